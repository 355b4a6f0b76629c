"""Shift operators, each returning (images, mask of the valid pixels), and lists of shifts.

A shift is `(dy, dx)` in pixels: down and to the right are positive.
"""

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from genstab.errors import InputError

Shift = tuple[int, int]


def parse_shifts(shifts: Iterable[Sequence[int]]) -> list[Shift]:
    """Check a list of (dy, dx) and return it as tuples.

    Raises:
        InputError: the list is empty, or one is no pair of integers, or is the zero shift, which says nothing.

    >>> parse_shifts([[0, 1], [-2, 3]])
    [(0, 1), (-2, 3)]
    """
    if not isinstance(shifts, Iterable):
        raise InputError(f"shifts={shifts!r} is not a list of pairs [dy, dx]")
    pairs: list[Shift] = []
    for shift in shifts:
        try:
            dy, dx = (operator.index(value) for value in shift)  # NumPy's and torch's integers too
        except (TypeError, ValueError):
            raise InputError(f"shifts: {shift!r} is not a pair of integers [dy, dx]") from None
        if (dy, dx) == (0, 0):
            raise InputError("shifts: the zero shift [0, 0] is never counted; take it out of the list")
        pairs.append((dy, dx))
    if not pairs:
        raise InputError("shifts: the list is empty; give at least one [dy, dx]")
    return pairs


def grid_shifts(reach: int) -> list[Shift]:
    """Return every shift with |dy| and |dx| up to `reach` but zero, row by row.

    >>> len(grid_shifts(2))
    24
    """
    span = range(-reach, reach + 1)
    return [(dy, dx) for dy in span for dx in span if (dy, dx) != (0, 0)]


def roll(images: Tensor, shift: Shift) -> tuple[Tensor, Tensor]:
    """Shift circularly: what leaves on one side comes in on the other; every pixel is valid.

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W).

    >>> roll(torch.tensor([[[[1., 2., 3.]]]]), (0, 1))[0].tolist()
    [[[[3.0, 1.0, 2.0]]]]
    """
    return torch.roll(images, shift, (-2, -1)), images.new_ones((1, 1, *images.shape[-2:]), dtype=torch.bool)


def translate(images: Tensor, shift: Shift, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Shift and mask what came in from outside, and a `margin` on every side of the overlap.

    Shape: (N, C, H, W) → (N, C, H, W) and a mask (1, 1, H, W).

    Raises:
        InputError: no pixel would be left.

    >>> translate(torch.ones(1, 1, 1, 4), (0, 1))[1].int().tolist()
    [[[[0, 1, 1, 1]]]]
    """
    if margin < 0:
        raise InputError(f"margin={margin} must not be negative")
    height, width = images.shape[-2:]
    dy, dx = shift
    shifted, mask = roll(images, shift)
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    mask = mask & (rows >= max(dy, 0) + margin) & (rows < height + min(dy, 0) - margin)
    mask = mask & (columns >= max(dx, 0) + margin) & (columns < width + min(dx, 0) - margin)
    if height - abs(dy) <= 2 * margin or width - abs(dx) <= 2 * margin:
        raise InputError(f"shift={shift} and margin={margin} leave no pixel of a {height}×{width} image")
    return shifted, mask


def window_size(shape: tuple[int, int], shifts: Sequence[Shift], multiple: int = 1) -> tuple[int, int]:
    """Return the largest (height, width) of a window that an image of `shape` has room to move by all `shifts`.

    Both are cut to a multiple of `multiple` pixels.

    Raises:
        InputError: the image is too small for these shifts.

    >>> window_size((128, 128), [(0, 1), (0, 8)])
    (128, 120)
    """
    size = tuple(
        shape[axis] - (max(0, *(s[axis] for s in shifts)) - min(0, *(s[axis] for s in shifts))) for axis in (0, 1)
    )
    height, width = (side - side % multiple for side in size)
    if min(height, width) < 1:
        farthest = max(shifts, key=lambda shift: max(abs(shift[0]), abs(shift[1])))
        raise InputError(f"an image of {shape[0]}×{shape[1]} is too small for shifts as far as {farthest}")
    return height, width


def window(images: Tensor, shift: Shift, shifts: Sequence[Shift], multiple: int = 1) -> Tensor:
    """Cut the window in which the scene appears moved by `shift`, out of a larger image; (0, 0) is the reference.

    All windows for one list of `shifts` have the same size, see `window_size`.

    Shape: (N, C, H, W) → (N, C, h, w).

    >>> row = torch.arange(5.).view(1, 1, 1, 5)
    >>> window(row, (0, 0), [(0, 2)]).flatten().tolist(), window(row, (0, 2), [(0, 2)]).flatten().tolist()
    ([2.0, 3.0, 4.0], [0.0, 1.0, 2.0])
    """
    height, width = window_size((images.shape[-2], images.shape[-1]), shifts, multiple)
    top = max(0, *(s[0] for s in shifts)) - shift[0]
    left = max(0, *(s[1] for s in shifts)) - shift[1]
    return images[..., top : top + height, left : left + width]
