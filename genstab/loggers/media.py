"""Pictures for any logger, what becomes of one that fails, and how to look at what it has."""

import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from genstab.errors import InputError
from genstab.loggers.csv_log import WholeCSVLogger
from genstab.loggers.wandb import PATIENCE, FallbackWandbLogger, died, end_run, how_to_upload, patience, refused
from genstab.loggers.wandb import STEP as STEP
from genstab.loggers.wandb import wandb_logger as wandb_logger
from genstab.runtime.files import Unwritten

# What of a logger writes.
METHODS = (
    "log_hyperparams", "log_metrics", "log_graph", "log_image", "log_video", "log_table", "save",
    "after_save_checkpoint", "finalize",
)  # fmt: skip


def log_image(logger: Logger, key: str, image: np.ndarray, step: int, caption: str | None = None) -> None:
    """Log one picture at a step of the metrics' axis, to W&B or TensorBoard.

    Any other logger (CSV, for one) has no place for pictures and gets none: the run folder holds them.

    Args:
        logger: any Lightning logger.
        key: the log key.
        image: uint8, shape (H, W, 3).
        step: the number of training batches so far, as in the metrics.
        caption: a line under the picture; W&B only.

    Raises:
        InputError: the image is not uint8 of shape (H, W, 3).

    >>> log_image(CSVLogger("outputs"), "val/samples", np.zeros((2, 3, 3), np.uint8), step=0)
    >>> log_image(CSVLogger("outputs"), "val/samples", np.zeros((2, 3)), step=0)
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: image is float64 of shape (2, 3), not uint8 of shape (H, W, 3)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image is {image.dtype} of shape {image.shape}, not uint8 of shape (H, W, 3)")
    if isinstance(logger, WandbLogger):
        # As a PIL image: wandb squeezes arrays, which breaks a picture of one row.
        logger.log_image(key, [Image.fromarray(image)], step=step, caption=[caption])
    elif isinstance(logger, TensorBoardLogger):
        with outlived(logger):
            logger.experiment.add_image(key, image, step, dataformats="HWC")


def log_video(logger: Logger, key: str, path: str | Path, step: int) -> None:
    """Log one GIF at a step of the metrics' axis, to W&B.

    Any other logger gets none: the run folder holds it.

    Args:
        logger: any Lightning logger.
        key: the log key.
        path: the file; it is copied.
        step: the number of training batches so far, as in the metrics.

    >>> log_video(CSVLogger("outputs"), "val/shift", "shift.gif", step=0)
    """
    if isinstance(logger, WandbLogger):
        logger.log_video(key, [str(path)], step=step, format=["gif"])


@rank_zero_only
def how_to_view(logger: Logger) -> str | None:
    """Return the one or two lines that say where to look at what was logged, if there is something to see.

    An online W&B run has a URL, and the command that uploads its folder; an offline one the commands `wandb sync`
    (upload it) and `wandb leet` (see it in the terminal); TensorBoard has its command and CSV its file. This starts no
    run, and works after the end of one. On ranks other than 0 it returns None.

    Args:
        logger: any Lightning logger.

    >>> how_to_view(CSVLogger("outputs", name="run", version=0))
    'outputs/run/version_0/metrics.csv'
    >>> how_to_view(wandb_logger("outputs")) is None  # nothing was logged
    True
    """
    if isinstance(logger, WandbLogger):
        if logger.version is None:  # the run has not started, and asking for it would start it
            return None
        run = logger.experiment
        if run.disabled:
            return None
        folder = str(Path(run.dir).parent)  # run.dir is its folder `files`
        upload = logger.how_to_upload() if isinstance(logger, FallbackWandbLogger) else how_to_upload([Path(folder)])
        if not run.offline:
            return f"{run.url}\n{upload}  # should something be missing there"
        return f"{upload}\nwandb leet {shlex.quote(folder)}"
    if isinstance(logger, TensorBoardLogger):
        return f"tensorboard --logdir {shlex.quote(str(logger.log_dir))}"
    if isinstance(logger, CSVLogger):
        return str(Path(logger.log_dir) / "metrics.csv")
    return None


@rank_zero_only
def close(logger: Logger) -> None:
    """End the W&B run of a job, so that the next job of the same program gets one of its own.

    Other loggers need no end. A run that cannot be ended is no reason to lose the job: one warning says so, and how to
    upload what it has.

    >>> close(CSVLogger("outputs"))
    """
    if isinstance(logger, WandbLogger) and logger._experiment is not None:
        timeout = getattr(logger, "_finish_timeout", 0.0)
        if problem := end_run(logger.experiment, timeout):
            view = how_to_view(logger) or ""
            upload = next((line for line in view.splitlines() if line.startswith("wandb sync")), "").partition("  #")[0]
            rank_zero_warn(f"the W&B run did not end cleanly: {problem}; upload what it has with `{upload}`")


def outlive(logger: Logger) -> None:
    """Let a training outlive whatever its logger fails in: one warning says so, and it is named at the end.

    `metrics.csv` keeps its rows until they can be written (see `csv_log`), TensorBoard goes on in another file,
    and W&B offline, where its service died.

    >>> logger = CSVLogger("/dev/null")
    >>> outlive(logger)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     logger.log_metrics({"val/l1": 0.5}, step=0)
    >>> logger.unwritten.files
    {'/dev/null/lightning_logs/version_0/metrics.csv': 'Not a directory'}
    """
    then = "the training goes on, and what is logged until it can be written again is lost"
    if isinstance(logger, WholeCSVLogger):
        then = "the training goes on, and the rows are kept until they can be written"
    elif isinstance(logger, TensorBoardLogger):
        _hush_threads()
    logger.unwritten = Unwritten("log", then)  # type: ignore[attr-defined]
    for name in METHODS:
        if method := getattr(logger, name, None):
            setattr(logger, name, _outliving(logger, method))


def _outliving(logger: Logger, method: Callable[..., Any]) -> Callable[..., None]:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        with outlived(logger):
            method(*args, **kwargs)

    return call


@contextmanager
def outlived(logger: Logger) -> Iterator[None]:
    """Go on after whatever a logger fails in, if `outlive` had it; calls may be nested."""
    try:
        # the start of a run has a patience of its own
        with patience(PATIENCE) if isinstance(logger, WandbLogger) and logger._experiment else nullcontext():
            yield
    except Exception as error:  # whatever it died of
        unwritten = getattr(logger, "unwritten", None)
        if unwritten is None:
            raise
        if isinstance(logger, FallbackWandbLogger) and died(error):
            logger.go_on_offline(error)
            return
        if isinstance(logger, FallbackWandbLogger) and refused(error):
            unwritten.note(f"{_place(logger)}: tables", error, "measurements.json has them")
            logger.log_table = _nothing  # type: ignore[method-assign]  # each would be waited for
            return
        if isinstance(logger, TensorBoardLogger):
            _forget_writer(logger)
        unwritten.note(_place(logger), error)
    else:
        if isinstance(logger, WholeCSVLogger) and logger._experiment and not logger._experiment.metrics:
            logger.unwritten.files.clear()  # type: ignore[attr-defined]  # all its rows are written


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _forget_writer(logger: TensorBoardLogger) -> None:
    """Let TensorBoard begin another file: its thread is dead. A full disk takes files, but nothing in them."""
    logger._experiment = None
    with suppress(OSError):
        for path in Path(logger.log_dir).glob("events.out.tfevents.*"):
            if path.stat().st_size == 0:
                path.unlink()


def _hush_threads() -> None:
    """Leave out the traceback of TensorBoard's thread: its next call raises the same error."""
    before = threading.excepthook

    def say(arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            before(arguments)

    threading.excepthook = say


def _place(logger: Logger) -> str:
    """Return where a logger writes to."""
    if isinstance(logger, FallbackWandbLogger) and logger.folders:
        return str(logger.folders[-1])
    folder = Path(getattr(logger, "log_dir", None) or logger.save_dir or type(logger).__name__)
    return str(folder / "metrics.csv" if isinstance(logger, CSVLogger) else folder)
