"""Shift-then-generate beside generate-then-shift, under the protocols `circular`, `crop` and `fractional`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from genstab.errors import InputError, check_choice
from genstab.metrics.shift_ops import FractionalShift, fourier_shift, parse_shifts, roll, translate, window

PROTOCOLS = ("circular", "crop", "fractional")


def shift_pairs(
    generate: Callable[[Tensor], Tensor],
    images: Tensor,
    shifts: Sequence[Sequence[float]],
    protocol: str = "circular",
    margin: int = 8,
    forward_batch: int = 32,
    multiple: int = 1,
    check_finite: bool = True,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[FractionalShift, Tensor, Tensor, Tensor]]:
    """Yield (shift, S G(x), G(S x), mask) for each shift.

    `circular` rolls the image; every pixel counts. `crop` cuts two windows out of the image, as a camera that moved
    would, and compares them where they overlap, less `margin` pixels on each side. `fractional` moves by parts of a
    pixel, by `fourier_shift`, and leaves out what came in from outside and `margin` pixels on each side.

    A generator of larger images (super-resolution) is measured at their scale: where its output is k times as high
    and as wide as its input, S moves the output by k times the shift, and k times the margin is left out.

    Args:
        generate: images → images of k times the height and width, k = 1, 2, …, with any number of channels; called on
            at most `forward_batch` images at once, and on the unshifted ones once.
        images: (N, C, H, W).
        shifts: (dy, dx) each, in pixels of the input; integers, or for `fractional` also floats.
        margin: pixels of the input left out on each side of the overlap, for `crop` and `fractional`.
        forward_batch: images a forward pass; several shifts share one.
        multiple: windows of `crop` are cut to a multiple of so many pixels, for generators that need one.
        check_finite: raise where an output is not finite; else NaN and infinity go on into the pairs.
        names: what the error calls the images, (N,); None: their index in the batch.

    Raises:
        InputError: the protocol is unknown, a shift is bad, there are no images or they are too small for the shifts, a
            circular shift goes once around, `generate` makes another size, or an output is not finite.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W) with N of at least 1")
    if names is not None and len(names) != len(images):
        raise InputError(f"names: {len(names)} of them for {len(images)} images")
    pairs = parse_shifts(shifts, fractional=True) if protocol == "fractional" else parse_shifts(shifts)
    height, width = images.shape[-2:]
    for dy, dx in pairs:
        if protocol == "circular" and dy % height == 0 and dx % width == 0:
            raise InputError(f"shift={(dy, dx)} rolls an image of {height}×{width} onto itself: a zero shift")

    called = range(len(images)) if names is None else names
    reference = _moved(images, (0, 0), pairs, protocol, multiple) if protocol == "crop" else images
    output = _in_chunks(generate, reference, forward_batch)
    scale = _scale(reference, output, protocol)
    if check_finite:
        _check_finite(output, [(0, 0)], called)
    at_once = max(1, forward_batch // len(images))
    for start in range(0, len(pairs), at_once):
        some = pairs[start : start + at_once]
        moved = torch.cat([_moved(images, shift, pairs, protocol, multiple) for shift in some])
        outputs_of_shifted = _in_chunks(generate, moved, forward_batch)
        if check_finite:
            _check_finite(outputs_of_shifted, some, called)
        for shift, output_of_shifted in zip(some, outputs_of_shifted.split(len(images)), strict=True):
            larger = scale * shift[0], scale * shift[1]
            shifted_output, mask = _shifted(output, larger, protocol, scale * margin)
            yield shift, shifted_output, output_of_shifted, mask


def _in_chunks(generate: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    return torch.cat([generate(chunk) for chunk in images.split(size)])


# Of these two, `shift` is of integers but for `fractional`.
def _moved(images: Tensor, shift: Any, shifts: Any, protocol: str, multiple: int) -> Tensor:
    if protocol == "crop":
        return window(images, shift, shifts, multiple)
    return (roll if protocol == "circular" else fourier_shift)(images, shift)[0]


def _shifted(output: Tensor, shift: Any, protocol: str, margin: int) -> tuple[Tensor, Tensor]:
    if protocol == "circular":
        return roll(output, shift)
    return (translate if protocol == "crop" else fourier_shift)(output, shift, margin)


def _scale(images: Tensor, output: Tensor, protocol: str) -> int:
    if output.ndim != 4 or len(output) != len(images):
        raise InputError(
            f"the generator turns {tuple(images.shape)} into {tuple(output.shape)}: not one image (C, H, W) for each"
        )
    (height, width), (output_height, output_width) = images.shape[-2:], output.shape[-2:]
    scale = output_height // height
    if scale < 1 or (output_height, output_width) != (scale * height, scale * width):
        cure = "; leave out the protocol crop, or set multiple to what the generator needs"
        raise InputError(
            f"the generator turns images of {height}×{width} into {output_height}×{output_width}: another size, which "
            f"may only be a whole number of times as high and as wide{cure if protocol == 'crop' else ''}"
        )
    return scale


def _check_finite(outputs: Tensor, moves: Sequence[FractionalShift], names: Sequence[object]) -> None:
    finite = outputs.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        shift = moves[first // len(names)]
        raise InputError(f"the generator's output for image {names[first % len(names)]} at shift={shift} is not finite")
