"""Where numbers and pictures go: Weights & Biases, TensorBoard, CSV."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genstab.loggers.wandb import wandb_logger as wandb_logger

__all__ = ["wandb_logger"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'genstab.loggers' has no attribute {name!r}")
        return getattr(import_module("genstab.loggers.wandb"), name)
