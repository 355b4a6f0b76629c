"""What lies around a map: reflected, replicated, continued periodically, or zeros; any width, however small the map."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from genstab.errors import check_choice
from genstab.layers.depthwise import source_index
from genstab.layers.filters import PADDING_MODES


def pad2d(images: Tensor, padding: tuple[int, int, int, int], mode: str = "reflect") -> Tensor:
    """Pad (…, H, W) by (left, right, top, bottom); unlike `torch.nn.functional.pad`, also where the map is smaller.

    Reflection goes back and forth as in `numpy.pad`; a row of one pixel repeats it. With
    `torch.use_deterministic_algorithms` the gradient of every mode is the same at each run, on CUDA too.

    >>> pad2d(torch.tensor([[[[1., 2.]]]]), (3, 0, 0, 0)).tolist()
    [[[[2.0, 1.0, 2.0, 1.0, 2.0]]]]
    """
    check_choice("padding_mode", mode, PADDING_MODES)
    left, right, top, bottom = padding
    if mode == "zeros":
        return F.pad(images, padding)
    height, width = images.shape[-2:]
    spare = 1 if mode == "circular" else 0
    room = (torch.sym_max(left, right) < width + spare, torch.sym_max(top, bottom) < height + spare)
    exporting = torch.compiler.is_exporting()
    if exporting:  # one program for all sizes: what fits the example need not fit every map
        room = (statically_known_true(room[0]), statically_known_true(room[1]))
    if mode == "replicate" or all(room):
        if mode == "circular":  # torch's own loses the channels-last order, which costs more than the padding
            images = torch.cat((images[..., width - left :], images, images[..., :right]), -1)
            return torch.cat((images[..., height - top :, :], images, images[..., :bottom, :]), -2)
        if mode == "reflect" and torch.are_deterministic_algorithms_enabled() and not exporting:
            return _reflected(_reflected(images, -1, left, right), -2, top, bottom)
        return F.pad(images, padding, mode=mode)
    images = images.index_select(-2, _padded_index(height, top, bottom, mode, images.device))
    return images.index_select(-1, _padded_index(width, left, right, mode, images.device))


def _reflected(images: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Pad one dimension by what slices and flips give.

    CUDA's kernel for the gradient of torch's own adds up in any order, and raises an error in deterministic mode.
    """
    first, last = images.narrow(dim, 1, before), images.narrow(dim, images.shape[dim] - 1 - after, after)
    return torch.cat((first.flip(dim), images, last.flip(dim)), dim)


def _padded_index(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """Return for each padded position the one it is a copy of; any pad, however small the map."""
    return source_index(torch.arange(-before, size + after, device=device), size, mode)
