"""`genstab train` as a job that submitit starts on a cluster, by Hydra's launcher: `hydra/launcher=slurm`."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from genstab.cli.train import run_train
from genstab.distributed.rendezvous import Team, team
from genstab.errors import InputError
from genstab.runtime.resume import CHECKPOINT
from genstab.runtime.signals import Stopped, by_submitit, requeue_signal

LAUNCHER = "hydra/launcher="
OURS = ("slurm", "slurm_cpu")


def check_launcher(words: Sequence[str]) -> None:
    """Refuse a launcher that is not installed, and one that Hydra would leave out, before it runs here instead.

    Raises:
        InputError: it is one of these.

    >>> check_launcher(["hydra/launcher=slurm"])
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: hydra/launcher=slurm starts the jobs of a sweep: add -m, for a single job, too
    """
    for word in words:
        if not word.startswith(LAUNCHER):
            continue
        name = word.removeprefix(LAUNCHER)
        if (name in OURS or name.startswith("submitit")) and not _installed():
            raise InputError(f"{word} needs a plugin of Hydra: pip install 'genstab[slurm]'")
        if name != "basic" and not {"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(words):
            raise InputError(f"{word} starts the jobs of a sweep: add -m, for a single job, too")
        for size in words if name in OURS else ():
            if re.match(r"trainer\.(devices|num_nodes)=(?![1-9]\d*$)", size):
                raise InputError(f"{size}: {word} wants a number, the same for all jobs")


def _installed() -> bool:
    try:
        return find_spec("hydra_plugins.hydra_submitit_launcher") is not None
    except ImportError:
        return False


def run_wherever(config: DictConfig, processes: Team | None = None) -> float | None:
    """Run `genstab.cli.train.run_train` here or, in a job that submitit started, as one of its tasks.

    There every task has this function and its config, pickled, in place of a command line. The tasks become a team, as
    those of torchrun do. The job goes on where its folder has a checkpoint, for it may have been requeued. When its
    time is up and all is saved and closed, submitit is told, which puts it into the queue.

    Raises:
        InputError: as `run_train`.
    """
    if not by_submitit():
        return run_train(config, processes)
    own = Path(config.output_dir) / CHECKPOINT
    if own.is_file():
        config.ckpt_path = str(own)
    processes = team()
    try:
        if processes is None:
            return run_train(config)
        if processes.rank:
            _follow(processes)
            return None
        with processes.leading():
            return run_train(config, processes)
    except Stopped as stopped:
        if stopped.signum != requeue_signal():
            raise
        os.kill(os.getpid(), stopped.signum)  # to submitit's own handler, which ends the first task
        # The others end without a fault: SLURM may be told to end all where one fails, and the first is not done yet.
        raise SystemExit(0) from stopped


def _follow(processes: Team) -> None:
    """Train as the first task says. Where that failed it says why, and nothing is to be added here."""
    try:
        with processes.following():
            for config in processes.configs():
                run_train(OmegaConf.create(config), processes)  # type: ignore[arg-type]  # a dict
    except Stopped:
        raise
    except SystemExit:
        return  # submitit misses what a task that exits would have returned, and says that in place of the reason


def refusal(error: BaseException) -> str | None:
    """Return in one line what submitit says of a job that it could not start, or that did not end; None for others.

    >>> refusal(RuntimeError("something else")) is None
    True
    """
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next
    if not any(each.startswith("submitit.") for each in (module, type(error).__module__)):
        return None
    said, *log = re.split(r"\n-{9,}\n?", str(error))
    end = [line for line in log[0].splitlines() if line.strip()][-1:] if log else []
    return " ".join(": ".join([said, *end]).split())
