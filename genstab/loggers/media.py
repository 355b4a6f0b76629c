"""Pictures and animations for any logger that has a place for them."""

from pathlib import Path

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from genstab.errors import InputError
from genstab.loggers.lifecycle import outlived


def log_image(logger: Logger, key: str, image: np.ndarray, step: int, caption: str | None = None) -> None:
    """Log one picture (H, W, 3), uint8, to W&B or TensorBoard; others get none, the run folder holds it.

    Args:
        logger: any Lightning logger.
        key: the log key.
        image: the picture.
        step: the number of training batches so far, as in the metrics.
        caption: a line under the picture; W&B only.

    Raises:
        InputError: the image has another type or shape.
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
    """Log one GIF file at a step of the metrics' axis, to W&B; other loggers get none, the run folder holds it."""
    if isinstance(logger, WandbLogger):
        logger.log_video(key, [str(path)], step=step, format=["gif"])
