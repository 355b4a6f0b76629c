"""Twins: some of a batch's pictures, each in two windows that overlap, so that a loss can compare the outputs.

Only a quarter of a batch is paired, or one picture: with twins of half of it the generator sees half as many pictures a
step, and draws less like the targets for it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from genstab.errors import InputError

MARGIN = 8  # pixels at the border of the overlap that a training leaves out of the loss


class Twins(NamedTuple):
    """A batch of pairs whose rows i and P + i show one scene for i < P, and by how much it moved between the two.

    P is `twin_pairs` of its N rows.

    `source` and `target` are (N, C, H, W); `shift` is (dy, dx) in pixels, down and right positive, never zero.
    """

    source: Tensor
    target: Tensor
    shift: tuple[int, int]


def twin_pairs(count: int) -> int:
    """Return how many pictures a batch of `count` shows twice: a quarter of it, at least one; of one alone none.

    >>> [twin_pairs(count) for count in (1, 2, 4, 8, 15)]
    [0, 1, 1, 2, 3]
    """
    return min(max(1, count // 4), count // 2)


def twins(source: Tensor, target: Tensor, reach: int) -> Twins:
    """Cut two windows out of each of a batch's first `twin_pairs` pictures, and one out of each of the next.

    As many at the end are left out, so that the batch, and the cost of a training step, stays as it is. The places of
    the two windows are drawn anew in every call, from torch's random state, and are the same for all pictures; a
    picture in one window is seen through the first.

    Shape: (N, C, H + reach, W + reach) and (N, C', H + reach, W + reach) → (N, C, H, W), (N, C', H, W) and the shift.

    Raises:
        InputError: a reach below 1, or one that leaves nothing of the pictures.

    >>> pictures = torch.rand(4, 1, 9, 9)
    >>> source, target, shift = twins(pictures, pictures, reach=2)
    >>> source.shape, equivariance_loss(source, shift).item()
    (torch.Size([4, 1, 7, 7]), 0.0)
    """
    height, width = source.shape[-2:]
    if not 1 <= reach < min(height, width):
        raise InputError(f"reach={reach} is not from 1 to below the {height}×{width} of the pictures")
    places = (reach + 1) ** 2
    first, step = torch.randint(places, ()).item(), torch.randint(1, places, ()).item()
    corners = [divmod(int(place) % places, reach + 1) for place in (first, first + step)]
    pairs = twin_pairs(len(source))

    def windows(images: Tensor) -> Tensor:
        one, two = (images[..., top : top + height - reach, left : left + width - reach] for top, left in corners)
        return torch.cat((one[:pairs], two[:pairs], one[pairs : len(images) - pairs]))

    (top, left), (other_top, other_left) = corners
    # a window further down shows the scene further up
    return Twins(windows(source), windows(target), (top - other_top, left - other_left))


def equivariance_loss(output: Tensor, shift: tuple[int, int] | None, margin: int = 0) -> Tensor:
    """Return how far the outputs for twins differ where they show the same: the mean of |S G(x) − G(S x)|, a scalar.

    Zero where there is no overlap to compare, or no pair. (Zhou 2025, arXiv 2503.09419, trains with such a loss on
    latents; here it is one between crops, on images.)

    Args:
        output: for the source of `Twins`, (N, C, H, W).
        shift: theirs; None: there are none, and the loss is zero.
        margin: pixels left out on each side of the overlap: a network must guess what lies beyond its border.

    >>> output = torch.zeros(2, 1, 4, 4)
    >>> output[1, :, 1:] = 0.5
    >>> equivariance_loss(output, (1, 0))
    tensor(0.5000)
    """
    if shift is None:
        return output.new_zeros(())
    pairs = twin_pairs(len(output))
    first, second = [], []
    for by, size in zip(shift, output.shape[-2:], strict=True):
        length = max(0, size - abs(by) - 2 * margin)
        first.append(slice(margin + max(-by, 0), margin + max(-by, 0) + length))
        second.append(slice(margin + max(by, 0), margin + max(by, 0) + length))
    still, moved = output[:pairs, :, *first], output[pairs : 2 * pairs, :, *second]
    return (still - moved).abs().mean() if still.numel() else output.new_zeros(())
