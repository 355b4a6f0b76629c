"""Weights & Biases without an account or a network; pictures for any logger; how to look at a run.

`wandb_logger` is the target of `logger=wandb`, `log_image` and `log_video` take any logger, and `how_to_view`
says at the end of a run where to look.
"""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from genstab.errors import InputError

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[str, ...] = get_args(Mode)
# Which end of each metric is the good one: the summary of a run holds it beside the last value.
SUMMARY: Mapping[str, str] = MappingProxyType(
    {
        "val/shift_psnr": "max",
        "val/shift_psnr_worst": "max",
        "val/shift_psnr_pooled": "max",
        "val/shift_psnr_crop": "max",
        "val/psnr": "max",
        "val/ssim": "max",
        "val/l1": "min",
    }
)
# Seconds that the end of a run waits for its upload; without a limit, a network that went away would hold the
# program for ever. What was not uploaded stays in the run's folder.
FINISH_TIMEOUT = 120.0
# The x axis that WandbLogger logs beside every metric: Lightning's count of training batches.
STEP = "trainer/global_step"


def wandb_logger(
    save_dir: str | Path,
    project: str = "genstab",
    mode: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, str] = SUMMARY,
    init_timeout: float = 10.0,
) -> WandbLogger:
    """Return a logger whose W&B run starts at first use, on rank 0 only, under `save_dir/wandb`.

    Nobody is ever asked to log in. Where an online run cannot start (no login, no network, no answer), the
    run is offline, one warning says so, and the training goes on. A run left open by an earlier job of the
    same process is finished when this one starts: one job, one run.

    Args:
        save_dir: the folder of the job; it is made where it is missing.
        project: the W&B project.
        mode: "online", "offline" or "disabled"; None takes the environment's WANDB_MODE, else what
            `wandb offline` or `wandb disabled` set, else online for a user who is logged in and offline for
            one who isn't.
        name: the name of the run; None lets W&B find one.
        group: the group of the run.
        tags: the tags of the run.
        config: shown as the configuration of the run; `log_hyperparams` adds to it.
        summary: "max" or "min" for each metric whose best value the summary of the run shall hold: as
            `KEY.max` or `KEY.min`, beside the last value, which is then `KEY.last`.
        init_timeout: seconds to wait for the server before the run goes offline.

    Raises:
        InputError: the mode (or WANDB_MODE) or one of the summaries is not one of the choices.

    >>> wandb_logger("outputs", mode="offline").name
    'genstab'
    >>> wandb_logger("outputs", mode="of")
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: mode='of' is not one of online, offline, disabled
    """
    source = "mode"
    if mode is None and (mode := os.environ.get("WANDB_MODE") or None):
        source = "WANDB_MODE"
        mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)  # their older names
    if mode is not None and mode not in MODES:
        raise InputError(f"{source}={mode!r} is not one of {', '.join(MODES)}")
    for key, best in summary.items():
        if best not in ("max", "min"):
            raise InputError(f"summary[{key!r}]={best!r} is not one of max, min")
    return FallbackWandbLogger(
        save_dir,
        cast(Mode | None, mode),
        summary,
        init_timeout,
        project=project,
        name=name,
        group=group,
        tags=tuple(tags) or None,
        config=None if config is None else dict(config),
    )


class FallbackWandbLogger(WandbLogger):
    """A `WandbLogger` whose run goes offline where an online one cannot start; made by `wandb_logger`."""

    def __init__(
        self,
        save_dir: str | Path,
        mode: Mode | None,
        summary: Mapping[str, str],
        init_timeout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir=save_dir, **kwargs)
        self._mode = mode
        self._summary = dict(summary)
        self._init_timeout = init_timeout

    @property
    @rank_zero_experiment
    def experiment(self) -> "wandb.Run":
        """The run, started at first use; on the other ranks an object that does nothing."""
        # A spawned process finds an id to attach to, which the parent class knows how to do.
        if self._experiment is None and getattr(self, "_attach_id", None) is None:
            self._experiment = self._start()
        return super().experiment

    def _start(self) -> "wandb.Run":
        import wandb  # here: it takes 0.4 s, and the other ranks and loggers never need it

        Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)
        if wandb.run is not None:
            wandb.finish()
        mode = self._mode
        if mode is None and (stored := wandb.setup().settings.mode) in ("offline", "disabled"):
            mode = stored
        run = None
        problem = ""
        if mode is None or mode == "online":
            try:
                if _logged_in():
                    run = self._init("online")
                elif mode == "online":
                    problem = "no API key is configured (see `wandb login`)"
            # OSError covers the time-out of the wait for wandb's own service.
            except (wandb.Error, OSError) as error:
                problem = " ".join(str(error).partition("\nConsider ")[0].splitlines())
            mode = "offline"
        if run is None:
            run = self._init(mode)
        if problem:
            rank_zero_warn(
                f"W&B cannot log online: {problem}. This run is logged offline; upload it later with "
                f"`wandb sync {shlex.quote(str(_run_dir(run)))}`"
            )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for key, best in self._summary.items():
            run.define_metric(key, step_metric=STEP, step_sync=True, summary=f"{best},last")
        return run

    def _init(self, mode: Mode) -> "wandb.Run":
        import wandb

        settings = wandb.Settings(
            console="off",  # a progress bar is no log
            disable_code=True,  # no diff of a large tree; the commit is still noted
            quiet=True,  # the run's folder is still printed
            init_timeout=self._init_timeout,
            finish_timeout=FINISH_TIMEOUT,
        )
        # wandb warns of `anonymous`, which the parent class sets.
        arguments = {key: value for key, value in self._wandb_init.items() if key != "anonymous"}
        return wandb.init(**arguments, mode=mode, settings=settings)


def _logged_in() -> bool:
    import wandb

    # No viewer: login would ask the server for the user's name, only to print it, for ten seconds if need be.
    wandb.setup(wandb.Settings(mode="online", x_disable_viewer=True))
    return wandb.login(prompt=False, verify=False)


def _run_dir(run: "wandb.Run") -> Path:
    return Path(run.dir).parent  # run.dir is its folder `files`


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

    An online W&B run has a URL; an offline one the commands `wandb sync` (upload it) and `wandb leet` (see it
    in the terminal); TensorBoard has its command and CSV its file. This starts no run, and works after the
    end of one. On ranks other than 0 it returns None.

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
        if not run.offline:
            return run.url
        folder = shlex.quote(str(_run_dir(run)))
        return f"wandb sync {folder}\nwandb leet {folder}"
    if isinstance(logger, TensorBoardLogger):
        return f"tensorboard --logdir {shlex.quote(str(logger.log_dir))}"
    if isinstance(logger, CSVLogger):
        return str(Path(logger.log_dir) / "metrics.csv")
    return None


@rank_zero_only
def close(logger: Logger) -> None:
    """End the W&B run of a job, so that the next job of the same program gets one of its own.

    Other loggers need no end. A run that cannot be ended is no reason to lose the job: one warning says so.

    >>> close(CSVLogger("outputs"))
    """
    if isinstance(logger, WandbLogger) and logger.version is not None:
        try:
            logger.experiment.finish()
        except Exception as error:  # whatever its service died of
            rank_zero_warn(f"the W&B run did not end cleanly: {error}")
