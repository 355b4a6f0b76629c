"""A lost process, a data loader's worker or one of several that train together: one line, and how to resume."""

import multiprocessing
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb

import torch
from pytorch_lightning import Trainer

# private: a loader calls it once in a program, within the fit, and Lightning undoes it at the end of the fit; without
# it, the next job of a sweep would notice a killed worker after the loader's timeout only
from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler

from genstab.distributed.ddp import Launcher
from genstab.distributed.rendezvous import Rendezvous
from genstab.errors import InputError
from genstab.runtime.last_checkpoint import LastCheckpoint
from genstab.runtime.process_state import process_state_restored

# Seconds that the first process has to report an error that others have too, before they report it.
GRACE = 10.0
# Seconds until a process that closed its connections, or was killed, is gone.
EXIT = 3.0
DIED = "a worker of the data loader died{}, perhaps because the memory was full: lower data.num_workers or "
DIED += "data.batch_size"
# What torch says about a data loader, and what it means.
LOADER = {
    r"Bus error|\(shm\)|</torch_": "the shared memory of this machine or container (/dev/shm) is full: enlarge it "
    "(docker run --shm-size=8g) or lower data.num_workers",
    r"DataLoader worker .*is killed by signal:( [\w ]+)": DIED.format(" ({})"),
    r"DataLoader worker .*exited unexpectedly": DIED.format(""),
    r"DataLoader timed out after (\d+) seconds": "the workers of the data loader returned nothing for {} s: is the "
    "disk responding?",
}
# What torch says about the processes that train together, and what it means.
OTHERS = {
    r"EADDRINUSE": "the port at which the processes meet (MASTER_PORT) is taken: unset it or choose another",
    r"(\d+/\d+) clients joined": "only {} processes of this training run came within the trainer.strategy.timeout",
    r"[Tt]imed out": "another process of this training run did not answer within the trainer.strategy.timeout",
    r"gloo|NCCL|Store|[Ss]ocket|[Cc]onnection": "another process of this training run ended",
}


class LostProcessError(InputError):
    """A training run ended because a process was lost; the command line prints it as one line."""


class ReportedByFirst(SystemExit):
    """The silent end of a process whose error the first process reports."""


@contextmanager
def report_lost_process(trainer: Trainer, to_resume: str, processes: Rendezvous | None = None) -> Iterator[None]:
    """Fit in this context, and the loss of a process ends the training with one line that says how to resume.

    The first process reports for all and kills those that it started. Others give it `GRACE` seconds, and report only
    what it did not; that a process is missing, only the second one. How long processes wait for each other is the
    `timeout` of the strategy. `to_resume` is what to add to the command.

    Raises:
        LostProcessError: what was lost, where the last checkpoint is, and how to resume. Other errors, except for an
            `InputError`, get a note that says the latter.
        SystemExit: likewise, where torchrun's or SLURM's processes cannot train the next job of a sweep either.
    """
    _set_SIGCHLD_handler()
    try:
        yield
    except BaseException as error:
        text, missing = known(error)
        if text is None and isinstance(error, SystemExit | KeyboardInterrupt):
            if isinstance(error.__context__, KeyboardInterrupt):  # of which Lightning makes a plain exit
                raise KeyboardInterrupt from error
            raise
        with process_state_restored():
            if processes and missing:
                # torchrun ends all processes when one ended: not before it is said how to resume
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if trainer.global_rank:
                _wait_for_first(trainer, processes, missing)
            elif processes is not None:
                processes.report_failure()
            elif isinstance(launcher := trainer.strategy.launcher, Launcher):
                text = (missing and launcher.lost_process(EXIT)) or text
                launcher.kill(signal.SIGKILL)
            line = f"{text}; {_last_checkpoint(trainer, to_resume)}"
            if text is not None and missing and processes is not None:
                print(f"genstab: {line}", file=sys.stderr, flush=True)
                raise SystemExit(1) from error
        if text is not None:
            if not missing:
                _kill_workers()
            raise LostProcessError(line) from error
        if not isinstance(error, InputError):
            error.add_note(f"genstab: {_last_checkpoint(trainer, to_resume)}")
        raise


def known(error: BaseException | None) -> tuple[str | None, bool]:
    """Return what an error, or one that led to it, says of a lost process, and whether that is one of several."""
    while error is not None and not isinstance(error, InputError):
        # raised while a worker of a loader was asked for the memory that holds a batch
        frames = extract_tb(error.__traceback__) if isinstance(error, OSError | EOFError) else []
        if any("resource_sharer" in frame.filename for frame in frames):
            return DIED.format(""), False
        of_others = isinstance(error, torch.distributed.DistError) or re.search("gloo|NCCL", str(error))
        if isinstance(error, RuntimeError | OSError):
            for pattern, text in (OTHERS if of_others else LOADER).items():
                if found := re.search(pattern, str(error)):
                    return text.format(*(group.strip() for group in found.groups())), bool(of_others)
        error = error.__cause__ or error.__context__
    return None, False


def _wait_for_first(trainer: Trainer, processes: Rendezvous | None, missing: bool) -> None:
    """Let the first process report the error and end this one; return if this one has to report it."""
    if processes is not None:
        reported = processes.first_reports(GRACE)
    else:
        time.sleep(GRACE)
        reported = False  # or this process would have been killed
    if reported or (missing and trainer.global_rank > 1):
        raise ReportedByFirst(1)


def _kill_workers() -> None:
    """Kill the workers of the data loaders: one that hangs would be waited for at the end of the program."""
    if threading.current_thread() is not threading.main_thread():  # Python changes no handler there
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise an error
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(EXIT)
    signal.signal(signal.SIGCHLD, handler)


def _last_checkpoint(trainer: Trainer, to_resume: str) -> str:
    """Say where the last checkpoint is and how to resume."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint) and callback.path.is_file():
            return f"the last checkpoint is {callback.path}, and the same command resumes from it with {to_resume}"
    if trainer.ckpt_path:
        return f"the last checkpoint is still {trainer.ckpt_path}"
    return "there is no checkpoint yet"
