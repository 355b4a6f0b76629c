"""A protocol: how an image moves, how an output moves likewise, which pixels count; and the loop over its shifts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from genstab.errors import InputError, check_choice
from genstab.metrics.shift_ops import fourier_shift, parse_shifts, roll, translate, window

Motion = tuple[Any, ...]  # numbers: (dy, dx) for the protocols here
Generate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Protocol:
    """One way to move images: how they move, how outputs move likewise, and which pixels are then compared.

    `register_protocol` adds one to the choices of every option, to tables and to pages.

    Args:
        name: what options and files call it.
        heading: of a column in a table.
        meaning: one line that explains it.
        when: ends a sentence of the verdict, as in "Is steady when the camera moves".
        move: (images, motion, scale, margin) → the images moved, and the mask (1, 1, H, W) of the pixels that are
            compared. An output is `scale` times as high and wide as its input, in whose pixels motion and `margin` are.
        windows: (images, motions, multiple) → the window at rest and each of the moved ones, where the generator sees
            windows of the image whose sides are cut to a `multiple`; None: it sees the whole image, moved by `move`.
        fractional: it moves by parts of a pixel, and by `fractional_shifts` where an option has both kinds.
        reductions: of its dB that are logged: the mean under `key`, others of `ShiftPSNR` under `key` and their name.
    """

    name: str
    heading: str
    meaning: str
    when: str
    move: Callable[[Tensor, Motion, int, int], tuple[Tensor, Tensor]]
    windows: Callable[[Tensor, Sequence[Motion], int], tuple[Tensor, Iterator[Tensor]]] | None = None
    fractional: bool = False
    reductions: tuple[str, ...] = ("mean",)

    @property
    def key(self) -> str:
        """The log key of its mean."""
        return "val/shift_psnr" if self.name == "circular" else f"val/shift_psnr_{self.name}"

    def keys(self) -> dict[str, str]:
        """Return the log key of each reduction."""
        return {each: self.key if each == "mean" else f"{self.key}_{each}" for each in self.reductions}

    def parse(self, motions: Iterable[Sequence[float]]) -> list[Motion]:
        """Check motions as a user writes them.

        Raises:
            InputError: the list is empty, or one is none of this protocol, or moves nothing.
        """
        return list(parse_shifts(motions, self.fractional))

    def inputs(self, images: Tensor, motions: Sequence[Motion], multiple: int) -> tuple[Tensor, Iterator[Tensor]]:
        """Return the input at rest, `images` itself unless that is a window, and the input moved by each motion.

        Raises:
            InputError: the images are too small for a motion.
        """
        if self.windows is not None:
            return self.windows(images, motions, multiple)
        return images, (self.move(images, motion, 1, 0)[0] for motion in motions)


def _larger(motion: Motion, scale: int) -> Any:
    return tuple(scale * distance for distance in motion)


def _roll(images: Tensor, motion: Motion, scale: int, margin: int) -> tuple[Tensor, Tensor]:
    (dy, dx), (height, width) = motion, images.shape[-2:]
    if scale * dy % height == 0 and scale * dx % width == 0:
        raise InputError(f"shift={(dy, dx)} rolls an image of {height}×{width} onto itself: a zero shift")
    return roll(images, _larger(motion, scale))


def _windows(images: Tensor, motions: Sequence[Any], multiple: int) -> tuple[Tensor, Iterator[Tensor]]:
    moved = (window(images, motion, motions, multiple) for motion in motions)
    return window(images, (0, 0), motions, multiple), moved


PROTOCOLS: dict[str, Protocol] = {}
"""Every protocol by its name, in the order in which tables show them."""


def register_protocol(protocol: Protocol) -> None:
    """Add a protocol to the choices of every option, to tables and to pages."""
    PROTOCOLS[protocol.name] = protocol


register_protocol(
    Protocol(
        "circular",
        heading="circular",
        meaning="the image is rolled around, and every pixel counts",
        when="when the image is rolled around",
        move=_roll,
        reductions=("mean", "worst", "pooled"),
    )
)
register_protocol(
    Protocol(
        "crop",
        heading="crop",
        meaning="two windows of one image, as of a camera that moved, where they overlap",
        when="when the camera moves",
        move=lambda images, motion, scale, margin: translate(images, _larger(motion, scale), scale * margin),
        windows=_windows,
    )
)
register_protocol(
    Protocol(
        "fractional",
        heading="fractional",
        meaning="the image moves by parts of a pixel, by a phase of its spectrum",
        when="when the image moves by fractions of a pixel",
        move=lambda images, motion, scale, margin: fourier_shift(images, _larger(motion, scale), scale * margin),
        fractional=True,
    )
)


def shift_pairs(
    generate: Generate,
    images: Tensor,
    shifts: Sequence[Sequence[float]],
    protocol: str = "circular",
    margin: int = 8,
    forward_batch: int = 32,
    multiple: int = 1,
    check_finite: bool = True,
    names: Sequence[str] | None = None,
    output: Tensor | None = None,
) -> Iterator[tuple[Motion, Tensor, Tensor, Tensor]]:
    """Yield (shift, S G(x), G(S x), mask) for each shift.

    `circular` rolls the image; every pixel counts. `crop` cuts two windows out of the image, as a camera that moved
    would, and compares them where they overlap, less `margin` pixels on each side. `fractional` moves by parts of a
    pixel, by `fourier_shift`, and leaves out what came in from outside and `margin` pixels on each side. Others are
    added by `register_protocol`.

    A generator of larger images (super-resolution) is measured at their scale: where its output is k times as high
    and as wide as its input, S moves the output by k times the shift, and k times the margin is left out.

    Args:
        generate: images → images of k times the height and width, k = 1, 2, …, with any number of channels; called on
            at most `forward_batch` images at once.
        images: (N, C, H, W).
        shifts: (dy, dx) each, in pixels of the input; integers, or for `fractional` also floats.
        protocol: one of `PROTOCOLS`.
        margin: pixels of the input left out on each side of the overlap, for `crop` and `fractional`.
        forward_batch: images a forward pass; several shifts share one.
        multiple: windows of `crop` are cut to a multiple of so many pixels, for generators that need one.
        check_finite: raise where an output is not finite; else NaN and infinity go on into the pairs.
        names: what the error calls the images, (N,); None: their index in the batch.
        output: G(images) where it is known already; protocols that cut no windows then don't compute it again.

    Raises:
        InputError: the protocol is unknown, a shift is bad, there are no images or they are too small for the shifts, a
            circular shift goes once around, `generate` makes another size, or an output is not finite.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W) with N of at least 1")
    if names is not None and len(names) != len(images):
        raise InputError(f"names: {len(names)} of them for {len(images)} images")
    moving = PROTOCOLS[protocol]
    motions = moving.parse(shifts)
    called = range(len(images)) if names is None else names
    at_rest, moved = moving.inputs(images, motions, multiple)
    if output is None or at_rest is not images:
        output = in_chunks(generate, at_rest, forward_batch)
    scale = _scale(at_rest, output, moving)
    if check_finite:
        _check_finite(output, [(0, 0)], called)
    at_once = max(1, forward_batch // len(images))
    for start in range(0, len(motions), at_once):
        some = motions[start : start + at_once]
        outputs_of_moved = in_chunks(generate, torch.cat(list(islice(moved, len(some)))), forward_batch)
        if check_finite:
            _check_finite(outputs_of_moved, some, called)
        for motion, output_of_moved in zip(some, outputs_of_moved.split(len(images)), strict=True):
            moved_output, mask = moving.move(output, motion, scale, margin)
            yield motion, moved_output, output_of_moved, mask


def in_chunks(generate: Generate, images: Tensor, size: int) -> Tensor:
    """Call a generator on at most `size` images at once."""
    return torch.cat([generate(chunk) for chunk in images.split(size)])


def _scale(images: Tensor, output: Tensor, protocol: Protocol) -> int:
    if output.ndim != 4 or len(output) != len(images):
        raise InputError(
            f"the generator turns {tuple(images.shape)} into {tuple(output.shape)}: not one image (C, H, W) for each"
        )
    (height, width), (output_height, output_width) = images.shape[-2:], output.shape[-2:]
    scale = output_height // height
    if scale < 1 or (output_height, output_width) != (scale * height, scale * width):
        cure = f"; leave out the protocol {protocol.name}, or set multiple to what the generator needs"
        raise InputError(
            f"the generator turns images of {height}×{width} into {output_height}×{output_width}: another size, which "
            f"may only be a whole number of times as high and as wide{cure if protocol.windows else ''}"
        )
    return scale


def _check_finite(outputs: Tensor, moves: Sequence[Motion], names: Sequence[object]) -> None:
    finite = outputs.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        shift = moves[first // len(names)]
        raise InputError(f"the generator's output for image {names[first % len(names)]} at shift={shift} is not finite")
