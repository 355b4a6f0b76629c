"""Generators from checkpoint files."""

import pickle
import re
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter
from zipfile import ZipFile

import torch
from torch import nn

from genstab.errors import InputError
from genstab.filters import AntiAlias
from genstab.foreign import foreign_generator
from genstab.resnet import ResNetGenerator
from genstab.unet import UNet

PREFIX = "generator."


def read_checkpoint(path: Path) -> Any:
    """Return what a file of `torch.save` holds, on the CPU, if it is weights and plain values: nothing is executed.

    Raises:
        InputError: there is no such file, it is damaged, or it holds other Python objects, which would run their code.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        head = file.read(2)
    if head != b"PK" and head[:1] != b"\x80":  # an archive, or pickle alone as before torch 1.6
        what = "not a file of torch.save" if head else "empty"
        raise InputError(f"{path} cannot be read as a checkpoint: it is {what}; nothing in it was run")
    check_archive(path)
    try:
        with catch_warnings():
            simplefilter("ignore")  # on old or odd protocols of pickle, before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes it raise anything
        unsafe = isinstance(error, pickle.UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            reason = f"it holds Python objects ({unsafe[1]}), not weights alone; refused, nothing in it was run"
            raise InputError(f"{path} cannot be read as a checkpoint: {reason}; save a state_dict()") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged or holds more than weights; nothing in it was run"
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error


def check_archive(path: Path, kind: str = "a checkpoint") -> None:
    """Compare each part of an archive with its checksum, which torch does not; other files are left alone.

    Raises:
        InputError: some part is damaged, or the end is missing.

    >>> check_archive(Path(__file__))
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # as a damaged one has it, NotImplementedError and zlib.error too
        damaged = str(error)
    if damaged:
        raise InputError(f"{path} cannot be read as {kind}: it is cut off or damaged ({damaged})")


def load_generator(path: str | Path, norm: str | None = None) -> nn.Module:
    """Return the generator of a checkpoint in eval mode, on the CPU.

    Either of genstab (`checkpoints/*.ckpt` of a run) or a `*_net_G.pth` of the PyTorch CycleGAN/pix2pix repository:
    its U-Nets and ResNet generators become a plain `genstab.UNet` or `genstab.ResNetGenerator`. The file is read with
    `weights_only=True`: nothing in it is executed.

    Args:
        path: the file.
        norm: `instance` or `none` for a file of that repository whose keys allow both. By default convolutions with a
            bias mean `instance`, as that repository builds its networks.

    Raises:
        InputError: there is no such file, it holds no such generator, or its norm is another one.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("generator") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        return foreign_generator(path, checkpoint, norm).eval()
    if norm not in (None, config.get("norm")):
        raise InputError(f"norm={norm!r} does not fit {path}: its generator has {config.get('norm')}")
    network = ResNetGenerator if "blocks" in config else UNet
    weights = checkpoint["state_dict"].items()
    try:
        generator = network(**{**config, "antialias": AntiAlias(**config["antialias"])})
        generator.load_state_dict({key.removeprefix(PREFIX): value for key, value in weights if key.startswith(PREFIX)})
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the generator that it describes: {reason}") from error
    return generator.eval()
