"""Generators from checkpoint files."""

import pickle
from pathlib import Path

import torch
from torch import nn

from genstab.errors import InputError
from genstab.filters import AntiAlias
from genstab.unet import UNet

PREFIX = "generator."


def load_generator(path: str | Path) -> nn.Module:
    """Return the generator of a genstab checkpoint (`checkpoints/*.ckpt` of a run) in eval mode, on the CPU.

    The file is read with `weights_only=True`: nothing in it is executed.

    Raises:
        InputError: there is no such file, or it is no checkpoint of a genstab U-Net.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    config = checkpoint.get("generator") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} is no checkpoint of a genstab U-Net: it does not say how the generator is built")
    generator = UNet(**{**config, "antialias": AntiAlias(**config["antialias"])})
    weights = checkpoint["state_dict"].items()
    generator.load_state_dict({key.removeprefix(PREFIX): value for key, value in weights if key.startswith(PREFIX)})
    return generator.eval()
