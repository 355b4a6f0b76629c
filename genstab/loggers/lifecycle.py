"""A logger that fails without ending the training, its end, and where to look at what was logged."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from genstab.loggers.wandb import end_run, how_to_upload, run_folder
from genstab.runtime.files import FailedWrites

# The methods of a logger that write.
METHODS = (
    "log_hyperparams", "log_metrics", "log_graph", "log_image", "log_video", "save", "after_save_checkpoint",
    "finalize",
)  # fmt: skip


@rank_zero_only
def how_to_view(logger: Logger) -> str | None:
    """Return the one or two lines that say where to look at what was logged; None if nothing was, and on other ranks.

    This starts no W&B run, and works after the end of one.

    >>> how_to_view(CSVLogger("outputs", name="run", version=0))
    'outputs/run/version_0/metrics.csv'
    """
    if isinstance(logger, WandbLogger):
        if logger.version is None or logger.experiment.disabled:  # without a version, it would start now
            return None
        run = logger.experiment
        if run.offline:
            return f"{how_to_upload(run)}\nwandb leet {shlex.quote(str(run_folder(run)))}"
        return f"{run.url}\n{how_to_upload(run)}  # if something is missing there"
    if isinstance(logger, TensorBoardLogger):
        return f"tensorboard --logdir {shlex.quote(str(logger.log_dir))}"
    return str(Path(logger.log_dir, "metrics.csv")) if isinstance(logger, CSVLogger) else None


@rank_zero_only
def close(logger: Logger) -> None:
    """End the W&B run of a job, so that the next job of the same program gets its own.

    A run that cannot be ended does not fail the job: one warning says so, and how to upload what it has.
    """
    if isinstance(logger, WandbLogger) and logger.version is not None and (problem := end_run(logger.experiment)):
        upload = how_to_upload(logger.experiment)
        rank_zero_warn(f"the W&B run did not end cleanly: {problem}; upload what it has with `{upload}`")


def outlive(logger: Logger) -> None:
    """Let a training run go on when its logger fails: the first failure is a warning, and the end of the run lists it.

    TensorBoard continues in another file. `WholeCSVLogger` needs none of this: it keeps its rows until they can be
    written. Call `close` at the end.
    """
    if hasattr(logger, "unwritten"):
        return
    then = "the training goes on, and what is logged until it can be written again is lost"
    logger.unwritten = FailedWrites("log", then)  # type: ignore[attr-defined]
    for name in METHODS:
        if method := getattr(logger, name, None):
            setattr(logger, name, outlived(logger)(method))


@contextmanager
def outlived(logger: Logger) -> Iterator[None]:
    """Continue after any failure of a logger that was given to `outlive`; a context or a decorator, may be nested."""
    try:
        yield
    except Exception as error:  # wandb and TensorBoard raise errors of many kinds
        unwritten = getattr(logger, "unwritten", None)
        if unwritten is None:
            raise
        if isinstance(logger, TensorBoardLogger):
            _start_another_file(logger)
        place = getattr(logger, "log_dir", None) or logger.save_dir
        if isinstance(logger, WandbLogger) and logger.version is not None:
            place = run_folder(logger.experiment)
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # Lightning wraps TensorBoard's
        unwritten.record(os.path.normpath(place or type(logger).__name__), cause)


def _start_another_file(logger: TensorBoardLogger) -> None:
    """Let TensorBoard's writer open a new file, for the thread of this one is dead; remove files without content."""
    with suppress(OSError):
        logger.experiment.file_writer = logger.experiment.all_writers = None
        for path in Path(logger.log_dir).glob("events.out.tfevents.*"):
            if path.stat().st_size == 0:
                path.unlink()
