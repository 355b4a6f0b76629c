"""Building blocks of the networks: arguments of generators, blur and norm, initial weights, padding and cropping."""

from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import InputError, check_choice, check_counts
from genstab.layers.blur import BlurPool2d
from genstab.layers.filters import AntiAlias
from genstab.layers.padding import pad2d
from genstab.layers.tracing import recording

NORMS = ("batch", "instance", "group", "none")


def generator_config(
    norm: str, dropout: float, antialias: AntiAlias | str | None, **counts: int
) -> tuple[dict[str, Any], AntiAlias]:
    """Check the arguments that generators share; return plain numbers and strings for checkpoints, and the blur."""
    check_counts(**counts)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout} is not in [0, 1)")
    if not isinstance(antialias, AntiAlias):
        antialias = AntiAlias(filter=antialias or "none")
    return {**counts, "norm": norm, "dropout": dropout, "antialias": dict(vars(antialias))}, antialias


def blur_of(antialias: AntiAlias, stride: int = 1, mirrored: bool = False) -> nn.Module:
    """Return the blur of an `AntiAlias`, or the identity if its filter is `none`."""
    if antialias.filter == "none":
        return nn.Identity()
    return BlurPool2d(antialias.filter, stride, antialias.padding_mode, mirrored)


def norm2d(norm: str, channels: int) -> nn.Module:
    """Return the normalization layer `norm`, one of `NORMS`."""
    check_choice("norm", norm, NORMS)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    return nn.GroupNorm(gcd(channels, 32), channels) if norm == "group" else nn.Identity()


def init_normal(module: nn.Module) -> None:
    """Draw convolutions from N(0, 0.02), norm scales from N(1, 0.02); biases are zero (pix2pix, section 6.2)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) by reflection at the right and at the bottom, so that `multiple` divides H and W."""
    height, width = images.shape[-2:]
    # An exported program has no branch on the size, and may pad by 0.
    if not recording() and height % multiple == width % multiple == 0:
        return images
    # Not −size % multiple: the exporters can halve multiple · n, and see that the maps of decoder and encoder fit.
    bottom, right = ((size + multiple - 1) // multiple * multiple - size for size in (height, width))
    return pad2d(images, (0, right, 0, bottom), "reflect")


def crop(images: Tensor, height: int, width: int) -> Tensor:
    """Take the upper left (N, C, height, width) of larger images."""
    if torch.compiler.is_exporting():  # a slice would guard on the size, a negative pad does not
        return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
    return images[..., :height, :width]
