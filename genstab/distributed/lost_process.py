"""A process that a training loses, a loader's worker or one of several: one line says so, and nobody waits on."""

import atexit
import multiprocessing
import os
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
from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler

from genstab.distributed.ddp import PARENT, Launcher
from genstab.distributed.rendezvous import Team
from genstab.errors import InputError
from genstab.runtime.last_checkpoint import LastCheckpoint

# Seconds that a process has to end by itself after another one is gone, and the first one, which speaks for all, to
# end the others.
GRACE = 10.0
# Seconds in which the exit code of a process that closed its connections is known.
MOMENT = 3.0
MEMORY = "perhaps because the memory was full"
LOWER = "lower data.num_workers or data.batch_size"
DIED = f"a worker of the data loader died, {MEMORY}: {LOWER}"
# What torch says of a loader, and what it means.
LOADER = {
    r"Bus error|\(shm\)|</torch_": "the shared memory of this machine or container (/dev/shm) is full: enlarge it "
    "(docker run --shm-size=8g) or lower data.num_workers",
    r"DataLoader worker .*is killed by signal: ([\w ]+)": f"a worker of the data loader died ({{}}), {MEMORY}: {LOWER}",
    r"DataLoader worker .*exited unexpectedly": DIED,
    r"DataLoader timed out after (\d+) seconds": "the workers of the data loader gave nothing for {} s: does the disk "
    "answer?",
}
# What torch says of the processes that train together, and what it means.
OTHERS = {
    r"EADDRINUSE": "the port at which the processes meet (MASTER_PORT) is taken: unset it or choose another",
    r"(\d+/\d+) clients joined": "only {} processes of this training came within the trainer.strategy.timeout",
    r"[Tt]imed out": "another process of this training did not answer within the trainer.strategy.timeout",
    r"gloo|NCCL|Store|[Ss]ocket|[Cc]onnection": "another process of this training ended",
}


class LostError(InputError):
    """A training that ended because a process was lost; the command line prints it as one line."""


class SpokenFor(SystemExit):
    """The end of a process without a word, because the first one says what happened."""

    def __init__(self) -> None:
        super().__init__(1)


@contextmanager
def losses_noticed(trainer: Trainer, to_go_on: str, processes: Team | None = None) -> Iterator[None]:
    """Fit inside of this, and the loss of a process ends the training with one line, whoever started the processes.

    The first process speaks for all, and ends those that Lightning started. Another one that fails gives it `GRACE`
    seconds for that and speaks only then; where it merely misses another one, only the second process does. Whoever
    still waits `GRACE` seconds after one that it started, or that started it, was lost is ended.

    Args:
        trainer: that fits.
        to_go_on: what to add to the command, for it to go on from the last checkpoint.
        processes: those of torchrun or SLURM.

    Raises:
        LostError: what was lost, where the last checkpoint is, and how to go on. Other errors, but for an `InputError`,
            get a note that says the latter.
        SystemExit: as `LostError`, where torchrun's or SLURM's processes cannot train the next job of a sweep either.
    """
    _set_SIGCHLD_handler()  # a loader does that once; done within the fit, Lightning would undo it at the end
    watch = _Watch(trainer, to_go_on)
    if trainer.world_size > 1:
        watch.start()
    try:
        yield
    except BaseException as error:
        text, missing = known(error)
        if text is None and isinstance(error, SystemExit | KeyboardInterrupt):
            _end_others(trainer, GRACE)
            if isinstance(error.__context__, KeyboardInterrupt):  # of which Lightning makes a plain exit
                raise KeyboardInterrupt from error
            raise
        if processes is not None and missing:
            _ignore_sigterm()
        if trainer.global_rank:
            _give_way(trainer, processes, missing)
        elif processes is not None:
            processes.speak()
        elif missing:
            text = _which(trainer, MOMENT) or text
        _end_others(trainer, 0)
        if text is None:
            if not isinstance(error, InputError):
                error.add_note(f"genstab: {_kept(trainer, to_go_on)}")
            raise
        atexit.register(_end_workers)
        line = f"{text}; {_kept(trainer, to_go_on)}"
        if missing and processes is not None:
            raise SystemExit(f"genstab: {line}") from error
        raise LostError(line) from error
    finally:
        watch.over.set()


def known(error: BaseException | None) -> tuple[str | None, bool]:
    """Return what an error, or one that led to it, says of a lost process, and whether that is one of several.

    >>> known(RuntimeError("DataLoader timed out after 600 seconds"))
    ('the workers of the data loader gave nothing for 600 s: does the disk answer?', False)
    >>> known(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer"))
    ('another process of this training ended', True)
    >>> known(RuntimeError("shapes do not match"))
    (None, False)
    """
    while error is not None and not isinstance(error, InputError):
        if isinstance(error, OSError | EOFError) and _handing_over(error):
            return DIED, False
        of_team = isinstance(error, torch.distributed.DistError) or re.search("gloo|NCCL", str(error))
        if isinstance(error, RuntimeError | OSError):
            for pattern, text in (OTHERS if of_team else LOADER).items():
                if found := re.search(pattern, str(error)):
                    return text.format(*found.groups()), bool(of_team)
        error = error.__cause__ or error.__context__
    return None, False


def _handing_over(error: BaseException) -> bool:
    """Return whether an error came up while a worker of a loader was asked for the memory that holds a batch."""
    return any("resource_sharer" in frame.filename for frame in extract_tb(error.__traceback__))


class _Watch(threading.Thread):
    """Ends this process where it still waits, deep in a library, for one that is gone."""

    def __init__(self, trainer: Trainer, to_go_on: str) -> None:
        super().__init__(daemon=True, name="losses-noticed")
        self.trainer, self.to_go_on, self.over = trainer, to_go_on, threading.Event()
        self.parent = int(os.environ.get(PARENT, 0)) if trainer.global_rank else 0

    def run(self) -> None:
        """Look once a second."""
        while not self.over.wait(1.0):
            if self._lost():
                if self.over.wait(GRACE):
                    return
                text = _which(self.trainer, 0) or "the first process of this training ended"
                if self.trainer.global_rank < 2:
                    print(f"genstab: {text}; {_kept(self.trainer, self.to_go_on)}", file=sys.stderr, flush=True)
                _end_others(self.trainer, 0)
                os._exit(1)

    def _lost(self) -> bool:
        return bool(self.parent and os.getppid() != self.parent) or _which(self.trainer, 0) is not None


def _give_way(trainer: Trainer, processes: Team | None, missing: bool) -> None:
    """Let the first process speak and end this one; return where this one has to speak."""
    if processes is not None:
        spoken = processes.first_speaks(GRACE)
    else:
        until = time.monotonic() + GRACE
        parent = int(os.environ.get(PARENT, 0))
        while os.getppid() == parent and time.monotonic() < until:
            time.sleep(0.1)
        spoken = False  # or this one would have been killed
    if spoken or (missing and trainer.global_rank > 1):
        raise SpokenFor


def _which(trainer: Trainer, seconds: float) -> str | None:
    """Return which process that Lightning started failed, once it has within so many seconds."""
    launcher, until = trainer.strategy.launcher, time.monotonic() + seconds
    while isinstance(launcher, Launcher):
        for rank, code in launcher.failed().items():
            how = f"ended with code {code}" if code > 0 else f"was killed ({signal.Signals(-code).name})"
            how += f", {MEMORY}" if code == -signal.SIGKILL else ""
            return f"process {rank} of {trainer.world_size} (counted from 0) {how}"
        if time.monotonic() >= until:
            break
        time.sleep(0.1)
    return None


def _end_others(trainer: Trainer, seconds: float) -> None:
    if isinstance(trainer.strategy.launcher, Launcher):
        trainer.strategy.launcher.end(seconds)


def _end_workers() -> None:
    """At the end of the program, kill the loaders' workers that are left: one that stands still is waited for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would raise an error
    for worker in multiprocessing.active_children():
        worker.kill()


def _kept(trainer: Trainer, to_go_on: str) -> str:
    """Say where the last checkpoint is and how to go on."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint) and callback.path.is_file():
            return f"the last checkpoint is {callback.path}, and the same command goes on from it with {to_go_on}"
    if trainer.ckpt_path:
        return f"the last checkpoint is still {trainer.ckpt_path}"
    return "there is no checkpoint yet"


def _ignore_sigterm() -> None:
    """Be spared by torchrun, which ends all processes where one ended, until it is said why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
