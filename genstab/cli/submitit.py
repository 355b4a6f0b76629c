"""`genstab train` as a job that submitit starts on a cluster, by Hydra's launcher: `hydra/launcher=slurm`."""

import os
from pathlib import Path

from omegaconf import DictConfig

from genstab.cli.train import follow, run_train
from genstab.distributed.rendezvous import Rendezvous, join_rendezvous
from genstab.runtime.resume import CHECKPOINT
from genstab.runtime.signals import Stopped, by_submitit, requeue_signal


def run_wherever(config: DictConfig, processes: Rendezvous | None = None) -> float | None:
    """Run `genstab.cli.train.run_train` here or, in a job that submitit started, as one of its tasks.

    There every task has this function and its config, pickled, in place of a command line. The tasks meet as
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
    processes = join_rendezvous()
    try:
        if processes is None:
            return run_train(config)
        if processes.rank:
            try:
                follow(processes)
            except Stopped:
                raise
            except SystemExit:
                # submitit would say that it misses what a task that exits should have returned, and not the reason
                return None
            return None
        with processes.end_others_on_exit():
            return run_train(config, processes)
    except Stopped as stopped:
        if stopped.signum != requeue_signal():
            raise
        os.kill(os.getpid(), stopped.signum)  # to submitit's own handler, which ends the first task
        # The others end without a fault: SLURM may be told to end all where one fails, and the first is not done yet.
        raise SystemExit(0) from stopped
