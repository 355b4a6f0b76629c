"""Shift-then-generate beside generate-then-shift, under the protocols `circular` and `crop`."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from genstab.errors import InputError, check_choice
from genstab.shift import Shift, roll, translate, window

PROTOCOLS = ("circular", "crop")


def shift_pairs(
    generate: Callable[[Tensor], Tensor],
    images: Tensor,
    shifts: Sequence[Shift],
    protocol: str = "circular",
    margin: int = 8,
    forward_batch: int = 32,
    multiple: int = 1,
) -> Iterator[tuple[Shift, Tensor, Tensor, Tensor]]:
    """Yield (shift, S G(x), G(S x), mask) for each shift.

    `circular` rolls the image; every pixel counts. `crop` cuts two windows out of the image, as a camera that moved
    would, and compares them where they overlap, less `margin` pixels on each side.

    Args:
        generate: images → images of the same height and width; called on at most `forward_batch` images at once.
        images: (N, C, H, W).
        shifts: (dy, dx) each, see `genstab.shift.parse_shifts`.
        margin: pixels left out on each side of the overlap, for `crop`.
        forward_batch: images a forward pass; several shifts share one.
        multiple: windows of `crop` are cut to a multiple of so many pixels, for generators that need one.

    Raises:
        InputError: the protocol is unknown, there are no images or they are too small for the shifts, a circular shift
            goes once around, or `generate` changes the size.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W) with N of at least 1")
    circular = protocol == "circular"
    height, width = images.shape[-2:]
    for dy, dx in shifts:
        if circular and dy % height == 0 and dx % width == 0:
            raise InputError(f"shift={(dy, dx)} rolls an image of {height}×{width} onto itself: a zero shift")
    reference = images if circular else window(images, (0, 0), shifts, multiple)
    output = _in_chunks(generate, reference, forward_batch)
    if output.shape[-2:] != reference.shape[-2:]:
        cure = "" if circular else "; leave out the protocol crop, or set multiple to what the generator needs"
        raise InputError(f"the generator turns {tuple(reference.shape)} into {tuple(output.shape)}: another size{cure}")
    at_once = max(1, forward_batch // len(images))
    for start in range(0, len(shifts), at_once):
        some = shifts[start : start + at_once]
        moved = [roll(images, shift)[0] if circular else window(images, shift, shifts, multiple) for shift in some]
        outputs_of_shifted = _in_chunks(generate, torch.cat(moved), forward_batch).split(len(images))
        for shift, output_of_shifted in zip(some, outputs_of_shifted, strict=True):
            shifted_output, mask = roll(output, shift) if circular else translate(output, shift, margin)
            yield shift, shifted_output, output_of_shifted, mask


def _in_chunks(generate: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    return torch.cat([generate(chunk) for chunk in images.split(size)])
