"""Padding by any width, also wider than the map: reflect, replicate, circular or zeros."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from genstab.errors import check_choice
from genstab.layers.filters import PADDING_MODES
from genstab.layers.tracing import constant, largest, recording, scalar


def pad2d(images: Tensor, padding: tuple[int, int, int, int], mode: str = "reflect") -> Tensor:
    """Pad by (left, right, top, bottom); unlike in `torch.nn.functional.pad`, by more than the size of the images, too.

    Reflection goes back and forth as in `numpy.pad`; a single pixel is repeated. With
    `torch.use_deterministic_algorithms`, the gradients of all modes are deterministic, on CUDA too.

    Shape: (…, H, W) → (…, top + H + bottom, left + W + right).

    >>> pad2d(torch.tensor([[[[1., 2.]]]]), (3, 0, 0, 0)).tolist()
    [[[[2.0, 1.0, 2.0, 1.0, 2.0]]]]
    """
    check_choice("padding_mode", mode, PADDING_MODES)
    left, right, top, bottom = padding
    if all(isinstance(side, int) and side == 0 for side in padding):
        return images
    if mode == "zeros":
        return F.pad(images, padding)
    height, width = images.shape[-2:]
    spare = 1 if mode == "circular" else 0
    exporting = recording()
    if torch.jit.is_tracing():  # of another size, a map that is too small raises an error, as in torch
        fixed = not any(isinstance(side, Tensor) for side in padding)
        room = (
            fixed and max(left, right) < constant(width) + spare,
            fixed and max(top, bottom) < constant(height) + spare,
        )
    else:
        room = (torch.sym_max(left, right) < width + spare, torch.sym_max(top, bottom) < height + spare)
    if torch.compiler.is_exporting():  # one program for all sizes: the padding may be wider than other maps
        room = (statically_known_true(room[0]), statically_known_true(room[1]))
    if mode == "replicate" or all(room):
        # For circular padding, torch's own loses the channels-last order, which costs more than the padding. For the
        # gradient of reflection, its kernel on CUDA adds up in any order, and raises an error in deterministic mode.
        if mode == "circular" or (mode == "reflect" and torch.are_deterministic_algorithms_enabled() and not exporting):
            return _concatenated(_concatenated(images, -1, left, right, mode), -2, top, bottom, mode)
        return F.pad(images, padding, mode=mode)
    padded = images.index_select(-2, _padded_index(height, top, bottom, mode, images.device))
    padded = padded.index_select(-1, _padded_index(width, left, right, mode, images.device))
    if not exporting and images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last):
        return padded.contiguous(memory_format=torch.channels_last)  # index_select loses that order
    return padded


def _concatenated(images: Tensor, dim: int, before: int, after: int, mode: str) -> Tensor:
    """Pad one dimension with slices of the images themselves: `circular`, or flipped for `reflect`."""
    size = images.shape[dim]
    if mode == "circular":
        first, last = images.narrow(dim, size - before, before), images.narrow(dim, 0, after)
    else:
        first, last = images.narrow(dim, 1, before).flip(dim), images.narrow(dim, size - 1 - after, after).flip(dim)
    # An empty part would lose the channels-last order too.
    return torch.cat([part for part, width in ((first, before), (images, 1), (last, after)) if width], dim)


def _padded_index(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """Return for each padded position the pixel that it copies."""
    index = torch.arange(-before, size + after, device=device)
    # With a single pixel there is nothing to repeat; inductor fails on the remainder of a division by 1.
    if not torch.jit.is_tracing() and statically_known_true(size == 1):
        return index.clamp(0, 0)
    # A reflected row repeats: 0 1 2 3 2 1 | 0 1 2 3 …. No branch on a size that is not known, and a tensor to divide
    # by: both for the exporters.
    period = size if mode == "circular" else largest(2 * (size - 1), 1)
    index = index % scalar(period, device)
    return index if mode == "circular" else size - 1 - (index - (size - 1)).abs()
