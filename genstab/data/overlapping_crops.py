"""Overlapping crops: two crops of one image, so that a loss can compare the outputs where they overlap.

Only a quarter of a batch, or one image, is cropped twice: with half of it the generator sees half as many images a
step, and its outputs are less like the targets. On several processes, it is a quarter of the batch of all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genstab.errors import InputError

MARGIN = 8  # pixels at the border of the overlap that training leaves out of the loss


class OverlappingCrops(NamedTuple):
    """A batch of pairs in which rows i and P + i show the same scene, for i below the number P of pairs.

    `source` and `target` have shape (N, C, H, W). `shift` is (dy, dx), by how many pixels the scene moved down and to
    the right from the first crop to the second; it is never (0, 0).
    """

    source: Tensor
    target: Tensor
    shift: tuple[int, int]


class Rows(NamedTuple):
    """Which images of a batch are cropped twice, and which once; the others are dropped."""

    twice: Sequence[int]
    once: Sequence[int]


def overlapping_pairs(batch_size: int) -> int:
    """Return how many images of a batch are cropped twice: a quarter, at least one; none in a batch of one."""
    return min(max(1, batch_size // 4), batch_size // 2)


def rows_to_crop(positions: Sequence[int], images: int) -> Rows:
    """Choose by the positions of this process's images in a batch of so many: the first are cropped twice.

    As many of the last images are dropped, so that the batch size stays the same, and with it the cost of a training
    step. A position of −1 is an image that does not count.

    >>> rows_to_crop([0, 1, 2, 3], 4)
    Rows(twice=[0], once=[1, 2])
    >>> rows_to_crop([0, 2], 4), rows_to_crop([1, 3], 4)  # the same on two processes
    (Rows(twice=[0], once=[1]), Rows(twice=[], once=[0]))
    """
    pairs = overlapping_pairs(images)
    return Rows(
        [row for row, position in enumerate(positions) if 0 <= position < pairs],
        [row for row, position in enumerate(positions) if pairs <= position < images - pairs],
    )


def overlapping_crops(source: Tensor, target: Tensor, offset: int, rows: Rows | None = None) -> OverlappingCrops:
    """Crop the images of `rows.twice` twice and those of `rows.once` once; by default as one process does.

    The positions of the two crops are drawn in every call from torch's random state and are the same for all images.
    Images that are cropped once are cropped at the first position.

    Shape: two of (N, C, H + offset, W + offset) → two of (N, C, H, W), and (dy, dx); C may differ between the two.

    Raises:
        InputError: `offset` is below 1, or not smaller than the images.
    """
    height, width = source.shape[-2:]
    if not 1 <= offset < min(height, width):
        raise InputError(f"offset={offset} is not from 1 to below the {height}×{width} of the images")
    positions = (offset + 1) ** 2
    first, step = torch.randint(positions, ()).item(), torch.randint(1, positions, ()).item()
    corners = [divmod(int(position) % positions, offset + 1) for position in (first, first + step)]
    twice, once = rows or rows_to_crop(range(len(source)), len(source))

    def crops(images: Tensor) -> Tensor:
        one, two = (images[..., top : top + height - offset, left : left + width - offset] for top, left in corners)
        # row by row: on a GPU, a list as index would wait for the device
        return torch.stack([*(one[i] for i in twice), *(two[i] for i in twice), *(one[i] for i in once)])

    (top, left), (other_top, other_left) = corners
    # In a crop further down, the scene lies further up.
    return OverlappingCrops(crops(source), crops(target), (top - other_top, left - other_left))


def equivariance_loss(output: Tensor, shift: tuple[int, int], margin: int = 0, pairs: int | None = None) -> Tensor:
    """Return the mean of |S G(x) − G(S x)| over the pixels where overlapping crops show the same, a scalar.

    It is zero if the crops do not overlap or there are no pairs. (Zhou 2025, arXiv 2503.09419, trains with such a
    loss on latents; this one compares crops of images.)

    Args:
        output: the generator's output (N, C, H, W) for the source of `OverlappingCrops`.
        shift: their shift.
        margin: pixels left out on each side of the overlap, since a network must guess what lies beyond its border.
        pairs: of the batch; None: as many as one process makes in a batch of this size.
    """
    pairs = overlapping_pairs(len(output)) if pairs is None else pairs
    first, second = [], []
    for by, size in zip(shift, output.shape[-2:], strict=True):
        length = max(0, size - abs(by) - 2 * margin)
        first.append(slice(margin + max(-by, 0), margin + max(-by, 0) + length))
        second.append(slice(margin + max(by, 0), margin + max(by, 0) + length))
    still, moved = output[:pairs, :, *first], output[pairs : 2 * pairs, :, *second]
    return (still - moved).abs().mean() if still.numel() else output.new_zeros(())
