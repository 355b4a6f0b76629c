"""`genstab train` as a job that submitit starts, on a cluster by `hydra/launcher=slurm`."""

import os
from pathlib import Path

from omegaconf import DictConfig

from genstab.cli.train import follow, run_train
from genstab.distributed.rendezvous import Rendezvous, join_rendezvous
from genstab.runtime.resume import CHECKPOINT
from genstab.runtime.signals import Stopped, by_submitit, requeue_signal


def run_wherever(config: DictConfig, processes: Rendezvous | None = None) -> float | None:
    """Run `genstab.cli.train.run_train` here or, in a job that submitit started, as one of its tasks.

    Each task of submitit gets this function and its config, pickled, and no command line. The tasks train together, as
    those of torchrun do. The job resumes if its folder has a checkpoint, for it may have been requeued. At its time
    limit, when everything is saved and closed, submitit is told, which requeues it.

    Raises:
        InputError: as `run_train`.
    """
    if not by_submitit():
        return run_train(config, processes)
    own = Path(config.output_dir) / CHECKPOINT
    if own.is_file():
        config.ckpt_path = str(own)
    processes = join_rendezvous()
    try:
        if processes is None:
            return run_train(config)
        if processes.rank:
            try:
                follow(processes)
            except SystemExit as end:
                if isinstance(end, Stopped):
                    raise
            # submitit would report the missing return value of a task that exits, instead of the reason
            return None
        with processes.end_others_on_exit():
            return run_train(config, processes)
    except Stopped as stopped:
        if stopped.signum != requeue_signal():
            raise
        os.kill(os.getpid(), stopped.signum)  # to submitit's handler, which ends the first task
        # The others end without an error: SLURM may end all tasks when one fails, and the first is still at work.
        raise SystemExit(0) from stopped
