"""Overlapping crops: two crops of one image, so that a loss can compare the outputs where they overlap.

Only a quarter of a batch, or one image, is cropped twice: with half of it the generator sees half as many images a
step, and its outputs are less like the targets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from genstab.errors import InputError

MARGIN = 8  # pixels at the border of the overlap that training leaves out of the loss


class OverlappingCrops(NamedTuple):
    """A batch of pairs in which rows i and P + i show the same scene for i < P = `overlapping_pairs(N)`.

    `source` and `target` have shape (N, C, H, W). `shift` is (dy, dx), by how many pixels the scene moved down and to
    the right from the first crop to the second; it is never (0, 0).
    """

    source: Tensor
    target: Tensor
    shift: tuple[int, int]


def overlapping_pairs(batch_size: int) -> int:
    """Return how many images of a batch are cropped twice: a quarter, at least one; none in a batch of one."""
    return min(max(1, batch_size // 4), batch_size // 2)


def overlapping_crops(source: Tensor, target: Tensor, offset: int) -> OverlappingCrops:
    """Crop the first `overlapping_pairs` images of a batch twice and the next ones once.

    The last images are dropped, so that the batch size, and the cost of a training step, stays the same. The positions
    of the two crops are drawn in every call from torch's random state and are the same for all images. Images that are
    cropped once are cropped at the first position.

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
    pairs = overlapping_pairs(len(source))

    def crops(images: Tensor) -> Tensor:
        one, two = (images[..., top : top + height - offset, left : left + width - offset] for top, left in corners)
        return torch.cat((one[:pairs], two[:pairs], one[pairs : len(images) - pairs]))

    (top, left), (other_top, other_left) = corners
    # In a crop further down, the scene lies further up.
    return OverlappingCrops(crops(source), crops(target), (top - other_top, left - other_left))


def equivariance_loss(output: Tensor, shift: tuple[int, int] | None, margin: int = 0) -> Tensor:
    """Return the mean of |S G(x) − G(S x)| over the pixels where overlapping crops show the same, a scalar.

    It is zero if the crops do not overlap or the batch has no pair. (Zhou 2025, arXiv 2503.09419, trains with such a
    loss on latents; this one compares crops of images.)

    Args:
        output: the generator's output (N, C, H, W) for the source of `OverlappingCrops`.
        shift: their shift; None: the batch has no overlapping crops, and the loss is zero.
        margin: pixels left out on each side of the overlap, since a network must guess what lies beyond its border.
    """
    if shift is None:
        return output.new_zeros(())
    pairs = overlapping_pairs(len(output))
    first, second = [], []
    for by, size in zip(shift, output.shape[-2:], strict=True):
        length = max(0, size - abs(by) - 2 * margin)
        first.append(slice(margin + max(-by, 0), margin + max(-by, 0) + length))
        second.append(slice(margin + max(by, 0), margin + max(by, 0) + length))
    still, moved = output[:pairs, :, *first], output[pairs : 2 * pairs, :, *second]
    return (still - moved).abs().mean() if still.numel() else output.new_zeros(())
