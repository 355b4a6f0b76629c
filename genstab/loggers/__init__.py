"""Where numbers and pictures go: Weights & Biases, TensorBoard, CSV."""

from genstab.loggers.wandb import wandb_logger as wandb_logger
