"""Other numbers of channels: grey to RGB and back, with and without alpha."""

import torch
from torch import Tensor

from genstab.errors import InputError

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow


def is_convertible(channels: int, wanted: int) -> bool:
    """Return whether `converted` converts an image with some number of channels to another one."""
    return channels == wanted or {channels, wanted} <= {1, 2, 3, 4}


def converted(image: Tensor, channels: int, name: object = "an image") -> Tensor:
    """Convert an image between grey (1 channel), grey with alpha (2), RGB (3) and RGBA (4).

    Grey is repeated for RGB; the grey of RGB is 0.299 R + 0.587 G + 0.114 B. Alpha is dropped, or 1, which is opaque.

    Shape: (C, H, W) in [-1, 1] → (channels, H, W).

    Raises:
        InputError: one of the numbers is none of these, and they differ; the message calls the image `name`.

    >>> converted(torch.tensor([[[-1.0]], [[1.0]], [[1.0]]]), 2)[:, 0, 0]
    tensor([0.4020, 1.0000])
    """
    if not is_convertible(len(image), channels):
        raise InputError(f"{name} has {len(image)} channels, which cannot be converted to {channels}: only 1 to 4 can")
    if len(image) == channels:
        return image
    colour = image[: 3 if len(image) >= 3 else 1]
    if channels >= 3:
        colour = colour.expand(3, -1, -1)
    elif len(colour) == 3:
        colour = torch.tensordot(colour.new_tensor(_LUMA), colour, 1)[None].clamp(-1, 1)
    if channels in (1, 3):
        return colour.contiguous()
    return torch.cat((colour, image[-1:] if len(image) in (2, 4) else torch.ones_like(image[:1])))
