"""Shift-then-generate beside generate-then-shift, under the protocols `circular` and `crop`."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genstab.errors import InputError
from genstab.shift import Shift, roll, translate, window

PROTOCOLS = ("circular", "crop")


def shift_pairs(
    generate: Callable[[Tensor], Tensor],
    images: Tensor,
    shifts: Sequence[Shift],
    protocol: str = "circular",
    margin: int = 8,
    forward_batch: int = 32,
) -> Iterator[tuple[Shift, Tensor, Tensor, Tensor]]:
    """Yield (shift, S G(x), G(S x), mask) for each shift.

    `circular` rolls the image; every pixel counts. `crop` cuts two windows out of the image, as a camera that moved
    would, and compares them where they overlap, less `margin` pixels on each side.

    Args:
        generate: images → images of the same height and width; called on at most `forward_batch` images at once,
            unless `images` has more.
        images: (N, C, H, W).
        shifts: (dy, dx) each, see `genstab.shift.parse_shifts`.

    Raises:
        InputError: the protocol is unknown, the images are too small for the shifts, or `generate` changes the size.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol={protocol!r} is not one of {', '.join(PROTOCOLS)}")
    if protocol == "circular":
        reference, moved = images, [roll(images, shift)[0] for shift in shifts]
    else:
        reference, moved = window(images, (0, 0), shifts), [window(images, shift, shifts) for shift in shifts]
    output = generate(reference)
    if output.shape[-2:] != reference.shape[-2:]:
        raise InputError(f"the generator turns {tuple(reference.shape)} into {tuple(output.shape)}: another size")
    at_once = max(1, forward_batch // len(images))
    for start in range(0, len(shifts), at_once):
        outputs_of_shifted = generate(torch.cat(moved[start : start + at_once])).split(len(images))
        for shift, output_of_shifted in zip(shifts[start : start + at_once], outputs_of_shifted, strict=True):
            shifted_output, mask = roll(output, shift) if protocol == "circular" else translate(output, shift, margin)
            yield shift, shifted_output, output_of_shifted, mask
