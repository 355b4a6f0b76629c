"""Shift operators, each returning (images, mask of the valid pixels), and lists of shifts.

A shift is `(dy, dx)` in pixels: down and to the right are positive.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from genstab.errors import InputError

Shift = tuple[int, int]
FractionalShift = tuple[float, float]
EIGHT_TO_THE_RIGHT = tuple((0, dx) for dx in range(1, 9))
PARTS_OF_A_PIXEL = ((0.0, 0.25), (0.0, 0.5), (0.0, 0.75), (0.5, 0.5))


def parse_shifts(shifts: Iterable[Sequence[float]], fractional: bool = False) -> list[tuple[Any, Any]]:
    """Check a list of (dy, dx) and return it as tuples of integers, or of floats if `fractional`.

    Raises:
        InputError: the list is empty, an element is not a pair of integers (or of finite numbers, if `fractional`), or
            it is the zero shift.

    >>> parse_shifts([[0, 1], [-2, 3]])
    [(0, 1), (-2, 3)]
    """
    if not isinstance(shifts, Iterable):
        raise InputError(f"shifts={shifts!r} is not a list of pairs [dy, dx]")
    number: Callable[[Any], float] = _finite if fractional else operator.index  # NumPy's and torch's numbers too
    wanted = "finite numbers" if fractional else "integers"
    pairs = []
    for shift in shifts:
        try:
            dy, dx = (number(value) for value in shift)
        except (TypeError, ValueError):
            raise InputError(f"shifts: {shift!r} is not a pair of {wanted} [dy, dx]") from None
        if (dy, dx) == (0, 0):
            raise InputError("shifts: the zero shift [0, 0] is never counted; take it out of the list")
        pairs.append((dy, dx))
    if not pairs:
        raise InputError("shifts: the list is empty; give at least one [dy, dx]")
    return pairs


def _finite(value: object) -> float:
    number = value.item() if isinstance(value, Tensor) else value
    if not isinstance(number, Real) or isinstance(number, bool) or not math.isfinite(number):
        raise TypeError
    return float(number)


def grid_shifts(reach: int) -> list[Shift]:
    """Return every shift with |dy| and |dx| up to `reach` except zero, row by row."""
    span = range(-reach, reach + 1)
    return [(dy, dx) for dy in span for dx in span if (dy, dx) != (0, 0)]


def roll(images: Tensor, shift: Shift) -> tuple[Tensor, Tensor]:
    """Shift circularly; every pixel is valid.

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W).

    >>> roll(torch.tensor([[[[1., 2., 3.]]]]), (0, 1))[0].tolist()
    [[[[3.0, 1.0, 2.0]]]]
    """
    return torch.roll(images, shift, (-2, -1)), images.new_ones((1, 1, *images.shape[-2:]), dtype=torch.bool)


def translate(images: Tensor, shift: Shift, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Shift, and mask pixels shifted in from outside and a `margin` on every side of the overlap.

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W).

    Raises:
        InputError: no pixel would be left.

    >>> translate(torch.ones(1, 1, 1, 4), (0, 1))[1].int().tolist()
    [[[[0, 1, 1, 1]]]]
    """
    mask = _overlap(images, shift, margin)
    return roll(images, shift)[0], mask


def fourier_shift(images: Tensor, shift: FractionalShift, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Shift circularly by fractions of a pixel in the Fourier domain (the shift theorem).

    A row of `size` pixels is the band-limited, periodic signal through them: its frequency k is multiplied by
    exp(−2πi k d / size). At the Nyquist frequency of an even side the factor is cos(π d), the mean of those for ±k, so
    that the result is real. Whole pixels are shifted by `roll`, bit for bit.

    The two ends of a real image do not match, and this seam rings: the mask leaves out pixels shifted in from outside,
    rounded up to whole pixels, and a `margin` on every side of the rest. Values may exceed the range of the images;
    they are not clipped. Computed in float64 (float32 on MPS, which has no float64), axis by axis.

    Shape: (N, C, H, W) → (N, C, H, W) in the dtype of the images, and a mask (1, 1, H, W).

    Raises:
        InputError: the images are not floating point, or no pixel would be left.

    >>> row = torch.tensor([[[[1.0, 0.0, -1.0, 0.0]]]])  # a cosine of four pixels
    >>> shifted, mask = fourier_shift(row, (0, 0.5))
    >>> shifted, mask.int()
    (tensor([[[[ 0.7071,  0.7071, -0.7071, -0.7071]]]]), tensor([[[[0, 1, 1, 1]]]], dtype=torch.int32))
    """
    if not images.is_floating_point():
        raise InputError(f"images of {images.dtype} can't be shifted by parts of a pixel: they must be floating point")
    mask = _overlap(images, shift, margin)
    shifted = images.float() if images.device.type == "mps" else images.double()
    for axis, distance in zip((-2, -1), shift, strict=True):
        if float(distance).is_integer():
            shifted = shifted.roll(int(distance), axis)
        else:
            shifted = _by_phase(shifted.movedim(axis, -1), distance).movedim(-1, axis)
    return shifted.to(images.dtype), mask


def _by_phase(rows: Tensor, distance: float) -> Tensor:
    size = rows.shape[-1]
    frequency = torch.arange(size // 2 + 1, device=rows.device, dtype=rows.dtype) / size
    angle = -2 * torch.pi * distance * frequency
    phase = torch.polar(torch.ones_like(angle), angle)
    if size % 2 == 0:  # not every library drops what would be imaginary there
        phase[-1] = math.cos(math.pi * distance)
    return torch.fft.irfft(torch.fft.rfft(rows) * phase, size)


def _overlap(images: Tensor, shift: FractionalShift, margin: int) -> Tensor:
    if margin < 0:
        raise InputError(f"margin={margin} must not be negative")
    height, width = images.shape[-2:]
    dy, dx = (int(math.copysign(math.ceil(abs(distance)), distance)) for distance in shift)
    if height - abs(dy) <= 2 * margin or width - abs(dx) <= 2 * margin:
        raise InputError(f"shift={shift} and margin={margin} leave no pixel of a {height}×{width} image")
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    mask = (rows >= max(dy, 0) + margin) & (rows < height + min(dy, 0) - margin)
    mask = mask & (columns >= max(dx, 0) + margin) & (columns < width + min(dx, 0) - margin)
    return mask[None, None]


def window(images: Tensor, shift: Shift, shifts: Sequence[Shift], multiple: int = 1) -> Tensor:
    """Crop the window of a larger image in which the scene is moved by `shift`; (0, 0) is the unmoved one.

    All windows for the same list of `shifts` have the same size: the largest that can move by all of them, cut to a
    multiple of `multiple` pixels.

    Shape: (N, C, H, W) → (N, C, h, w).

    Raises:
        InputError: the image is too small for these shifts.

    >>> row = torch.arange(5.).view(1, 1, 1, 5)
    >>> window(row, (0, 0), [(0, 2)]).flatten().tolist(), window(row, (0, 2), [(0, 2)]).flatten().tolist()
    ([2.0, 3.0, 4.0], [0.0, 1.0, 2.0])
    """
    shape = images.shape[-2:]
    most, least = ([bound(0, *(s[axis] for s in shifts)) for axis in (0, 1)] for bound in (max, min))
    sides = [shape[axis] - most[axis] + least[axis] for axis in (0, 1)]
    height, width = (side - side % multiple for side in sides)
    if min(height, width) < 1:
        farthest = max(shifts, key=lambda shift: max(abs(shift[0]), abs(shift[1])))
        raise InputError(f"an image of {shape[0]}×{shape[1]} is too small for shifts as far as {farthest}")
    top, left = most[0] - shift[0], most[1] - shift[1]
    return images[..., top : top + height, left : left + width]
