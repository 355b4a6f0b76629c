"""Operators of EQ-T, EQ-T_frac and EQ-R, each returning (images, mask) (Karras 2021, arXiv 2106.12423, appendix E).

StyleGAN3 moves the input signal itself, which has no border. A picture has one: the generator gets windows of a larger
picture, into which its content moves, and the operators move the outputs. Translations are shares of height and width.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.errors import InputError
from genstab.metrics.shift_ops import translate

Windows = tuple[Tensor, Iterator[Tensor]]
DRAWS = 16  # motions of each image; the paper draws one for each of 50,000
FARTHEST = 0.125  # of height and width, up or down
_DRAW = random.Random(0)
TRANSLATIONS = tuple((_DRAW.uniform(-FARTHEST, FARTHEST), _DRAW.uniform(-FARTHEST, FARTHEST)) for _ in range(DRAWS))
ANGLES = tuple((_DRAW.uniform(-180, 180),) for _ in range(DRAWS))  # degrees
LOBES = 3  # of the Lanczos filter, in pixels from its centre
REACH = 2 * LOBES  # pixels from the centre of a filter with the band limits of two grids
OVERSAMPLING = 4  # of the picture that a rotation samples linearly
EXTENT = 64  # pixels from the centre, of the sincs before they are windowed


def whole_translation(images: Tensor, motion: Sequence[float], scale: int = 1) -> tuple[Tensor, Tensor]:
    """Move by shares of the sides, rounded to pixels of the input (T in appendix E.1); pixels from outside are masked.

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W).

    >>> whole_translation(torch.arange(8.0).view(1, 1, 1, 8), (0, 0.125))[0].flatten()
    tensor([7., 0., 1., 2., 3., 4., 5., 6.])
    """
    dy, dx = (scale * round(share * side / scale) for share, side in zip(motion, images.shape[-2:], strict=True))
    return translate(images, (dy, dx))


def lanczos_translation(images: Tensor, motion: Sequence[float], scale: int = 1) -> tuple[Tensor, Tensor]:
    """Move by shares of the sides with a Lanczos filter (T in appendix E.2); pixels that saw the outside are masked.

    The filter is sinc(x) sinc(x / 3) for |x| < 3, normalised to sum 1.

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W).
    """
    moved, masks = images.float() if images.device.type == "mps" else images.double(), []  # mps has no float64
    for axis, share in ((-2, motion[0]), (-1, motion[1])):
        size = images.shape[axis]
        whole = math.floor(share * size)
        apart = torch.arange(1 - LOBES, LOBES + 1, dtype=torch.float64) - (share * size - whole)
        taps = _lanczos(apart).flip(0)
        rows = moved.movedim(axis, -1)
        padded = F.pad(rows, (LOBES, LOBES - 1)).unfold(-1, 2 * LOBES, 1)
        moved = (padded @ (taps / taps.sum()).to(moved)).roll(whole, -1).movedim(-1, axis)
        place = torch.arange(size, device=images.device)
        masks.append((place >= whole + LOBES) & (place < size + whole - LOBES + 1))
    return moved.to(images.dtype), (masks[0][:, None] & masks[1])[None, None]


def rotation(images: Tensor, motion: Sequence[float], scale: int = 1) -> tuple[Tensor, Tensor]:
    """Turn by degrees about the centre, with the band limits of both grids (R in appendix E.3).

    The picture is oversampled four times with a filter that passes what both the old and the turned grid can hold, and
    sampled linearly. Pixels less than 6 pixels from the border before the turn are masked.

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W).
    """
    height, width = images.shape[-2:]
    angle = math.radians(motion[0])
    phases = (
        F.pad(_filter(angle, OVERSAMPLING), (0, 1, 0, 1))
        .unflatten(1, (-1, OVERSAMPLING))
        .unflatten(0, (-1, OVERSAMPLING))
    )
    # one small convolution for each place between four pixels, which is faster than one among zeros
    phases = phases.permute(1, 3, 0, 2).flatten(0, 1).flip(1, 2)[:, None].to(images)
    rows, columns = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (height, width))
    y = math.sin(angle) * columns + math.cos(angle) * rows[:, None] + (height - 1) / 2
    x = math.cos(angle) * columns - math.sin(angle) * rows[:, None] + (width - 1) / 2
    pictures = F.pad(images.flatten(0, 1)[:, None], [phases.shape[-1] - 1] * 4)
    fine = F.pixel_shuffle(F.conv2d(pictures, phases), OVERSAMPLING)
    sides = fine.shape[-2:]
    half = REACH * OVERSAMPLING - 1  # the place of the first pixel
    grid = torch.stack(
        [2 * (at * OVERSAMPLING + half) / (side - 1) - 1 for at, side in ((x, sides[1]), (y, sides[0]))], -1
    )
    turned = F.grid_sample(fine, grid.to(fine).expand(len(fine), -1, -1, -1), align_corners=True)
    away = REACH - 0.5
    mask = (y >= away) & (y <= height - 1 - away) & (x >= away) & (x <= width - 1 - away)
    return turned.view(images.shape), mask[None, None].to(images.device)


def pseudo_rotation(images: Tensor, motion: Sequence[float], scale: int = 1) -> tuple[Tensor, Tensor]:
    """Take from turned images what turning outputs loses, without turning them (R* in appendix E.3).

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W), without 5 pixels at each side.
    """
    kernel = _filter(-math.radians(motion[0]), 1).to(images)
    half = len(kernel) // 2
    filtered = F.conv2d(images.flatten(0, 1)[:, None], kernel[None, None], padding=half)
    mask = torch.zeros(images.shape[-2:], dtype=torch.bool, device=images.device)
    mask[half:-half, half:-half] = True
    return filtered.view(images.shape), mask[None, None]


def _lanczos(x: Tensor) -> Tensor:
    return torch.sinc(x) * _window(x)


def _window(x: Tensor) -> Tensor:
    return torch.where(x.abs() < LOBES, torch.sinc(x / LOBES), 0)


@lru_cache(maxsize=2 * DRAWS)
def _filter(angle: float, oversampling: int) -> Tensor:
    """Return the taps of a low-pass filter for a grid and the same grid turned, 1 / oversampling pixels apart.

    It is the convolution of the square sincs of both grids, times the convolution of their Lanczos windows; the taps
    that meet the pixels of a picture together sum to 1.
    """
    reach = EXTENT * oversampling - 1
    line = torch.arange(-reach, reach + 1, dtype=torch.float64) / oversampling
    x, y = line, line[:, None]
    turned_x, turned_y = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x

    def of_both_grids(function: Callable[[Tensor], Tensor]) -> Tensor:
        spectra = [
            torch.fft.fft2(torch.fft.ifftshift(function(across) * function(down)))
            for across, down in ((x, y), (turned_x, turned_y))
        ]
        return torch.fft.fftshift(torch.fft.ifft2(spectra[0] * spectra[1]).real)

    kept = slice(reach - REACH * oversampling + 1, reach + REACH * oversampling)
    taps = (of_both_grids(torch.sinc) * of_both_grids(_window))[kept, kept]
    padded = F.pad(taps, (1, 0, 1, 0)).unflatten(1, (-1, oversampling)).unflatten(0, (-1, oversampling))
    together = padded.sum((0, 2), keepdim=True)
    return (padded / together).flatten(2, 3).flatten(0, 1)[1:, 1:]


def _centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = ((side - part) // 2 for side, part in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def _windows(
    images: Tensor, motions: Sequence[Any], size: tuple[int, int], move: Callable[[Tensor, Any], Tensor]
) -> Windows:
    height, width = images.shape[-2:]
    if min(size) < 1:
        raise InputError(f"an image of {height}×{width} is too small for windows that move in it")
    # about one centre: a picture and its window may not differ by half a pixel
    images = images[..., : height - (height - size[0]) % 2, : width - (width - size[1]) % 2]
    return _centre(images, size), (_centre(move(images, motion), size) for motion in motions)


def translation_windows(images: Tensor, motions: Sequence[Any], multiple: int, whole: bool) -> Windows:
    """Return the largest window that has room to move, and an iterator over the moved ones; see `Protocol.windows`."""
    room = 0 if whole else LOBES  # the filter sees beyond the window

    def largest(side: int) -> int:
        candidates = range(side - side % multiple, 0, -multiple)
        return next((n for n in candidates if n + 2 * (math.ceil(FARTHEST * n) + room) <= side), 0)

    size = largest(images.shape[-2]), largest(images.shape[-1])
    operator = whole_translation if whole else lanczos_translation

    def move(pictures: Tensor, motion: Any) -> Tensor:
        pixels = [share * side for share, side in zip(motion, size, strict=True)]
        pixels = [round(each) for each in pixels] if whole else pixels
        return operator(pictures, [each / side for each, side in zip(pixels, pictures.shape[-2:], strict=True)])[0]

    return _windows(images, motions, size, move)


def rotation_windows(images: Tensor, motions: Sequence[Any], multiple: int) -> Windows:
    """Return the largest square that can turn within the images, and an iterator over the turned ones."""
    side = math.floor((min(images.shape[-2:]) - 1 - 2 * REACH) / math.sqrt(2))
    side -= side % multiple
    return _windows(images, motions, (side, side), lambda pictures, motion: rotation(pictures, motion)[0])


whole_translation_windows = partial(translation_windows, whole=True)
lanczos_translation_windows = partial(translation_windows, whole=False)
