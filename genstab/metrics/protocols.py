"""A protocol: how an image moves, how an output moves likewise, which pixels count; and the loop over its shifts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from genstab.errors import InputError, check_choice
from genstab.metrics.shift_ops import fourier_shift, parse_shifts, roll, translate, window

Motion = tuple[Any, ...]  # (dy, dx) for the protocols here; numbers, in any case
Generate = Callable[[Tensor], Tensor]


class Protocol(ABC):
    """One way to move an image: how the input moves, how an output moves likewise, and which pixels are compared.

    A subclass is added to the choices of every option by `register_protocol`.

    Attributes:
        name: what options and files call it.
        heading: of a column in a table.
        meaning: one line that explains it.
        when: ends a sentence of the verdict, as in "Is steady when the camera moves".
        fractional: it moves by parts of a pixel, and by `fractional_shifts` where an option has both.
        windows: the generator sees windows of the image, whose sides `multiple` may cut.
        reductions: what is logged of its dB: the mean under `key`, others of `ShiftPSNR` under `key` and their name.
    """

    name: str
    heading: str
    meaning: str
    when: str
    fractional: bool = False
    windows: bool = False
    reductions: tuple[str, ...] = ("mean",)

    @property
    def key(self) -> str:
        """The log key of its mean."""
        return f"val/shift_psnr_{self.name}"

    def keys(self) -> dict[str, str]:
        """Return the log key of each reduction."""
        return {
            reduction: self.key if reduction == "mean" else f"{self.key}_{reduction}" for reduction in self.reductions
        }

    def parse(self, shifts: Iterable[Sequence[float]]) -> list[Motion]:
        """Check motions as a user writes them.

        Raises:
            InputError: the list is empty, or one is none of this protocol, or is the one that moves nothing.
        """
        return list(parse_shifts(shifts, fractional=True) if self.fractional else parse_shifts(shifts))

    @abstractmethod
    def move_input(self, images: Tensor, motions: Sequence[Motion], multiple: int) -> tuple[Tensor, Iterator[Tensor]]:
        """Return the input at rest, and for each of the motions the input moved by it.

        The input at rest is `images` itself where the generator sees the whole image: its output is then computed once
        for all such protocols.

        Shape: (N, C, H, W) → (N, C, h, w) each.

        Raises:
            InputError: the images are too small for a motion.
        """

    @abstractmethod
    def move_output(self, output: Tensor, motion: Motion, scale: int, margin: int) -> tuple[Tensor, Tensor]:
        """Return an output moved as its input was, and the mask of the pixels that are compared.

        Args:
            output: (N, C, scale · h, scale · w).
            motion: as for the input.
            scale: how many times as high and wide as the input the output is.
            margin: pixels of the input to leave out on each side, where something else came in from outside.

        Shape: → (N, C, scale · h, scale · w) and a mask (1, 1, scale · h, scale · w).

        Raises:
            InputError: no pixel would be left.
        """


def _times(scale: int, motion: Motion) -> Any:
    return tuple(scale * distance for distance in motion)


class Circular(Protocol):
    """The image is rolled around; every pixel counts."""

    name, heading = "circular", "circular"
    meaning = "the image is rolled around, and every pixel counts"
    when = "when the image is rolled around"
    reductions = ("mean", "worst", "pooled")

    @property
    def key(self) -> str:
        """The log key of its mean, without a name."""
        return "val/shift_psnr"

    def move_input(self, images: Tensor, motions: Sequence[Motion], multiple: int) -> tuple[Tensor, Iterator[Tensor]]:
        """Roll the images; a shift once around is refused like the zero shift that it is."""
        height, width = images.shape[-2:]
        for dy, dx in motions:
            if dy % height == 0 and dx % width == 0:
                raise InputError(f"shift={(dy, dx)} rolls an image of {height}×{width} onto itself: a zero shift")
        return images, (roll(images, (dy, dx))[0] for dy, dx in motions)

    def move_output(self, output: Tensor, motion: Motion, scale: int, margin: int) -> tuple[Tensor, Tensor]:
        """Roll the output."""
        return roll(output, _times(scale, motion))


class Crop(Protocol):
    """Two windows are cut out of the image, as a camera that moved would, and compared where they overlap."""

    name, heading = "crop", "crop"
    meaning = "two windows of one image, as of a camera that moved, where they overlap"
    when = "when the camera moves"
    windows = True

    def move_input(self, images: Tensor, motions: Sequence[Motion], multiple: int) -> tuple[Tensor, Iterator[Tensor]]:
        """Cut out the window in the middle of all, and the moved ones."""
        shifts: Any = motions
        return window(images, (0, 0), shifts, multiple), (window(images, each, shifts, multiple) for each in shifts)

    def move_output(self, output: Tensor, motion: Motion, scale: int, margin: int) -> tuple[Tensor, Tensor]:
        """Shift the output; what came in from outside and the margin do not count."""
        return translate(output, _times(scale, motion), scale * margin)


class Fractional(Protocol):
    """The image moves by parts of a pixel, by `fourier_shift`; what came in from outside does not count."""

    name, heading = "fractional", "fractional"
    meaning = "the image moves by parts of a pixel, by a phase of its spectrum"
    when = "when the image moves by fractions of a pixel"
    fractional = True

    def move_input(self, images: Tensor, motions: Sequence[Motion], multiple: int) -> tuple[Tensor, Iterator[Tensor]]:
        """Shift the images by a phase."""
        shifts: Any = motions
        return images, (fourier_shift(images, each)[0] for each in shifts)

    def move_output(self, output: Tensor, motion: Motion, scale: int, margin: int) -> tuple[Tensor, Tensor]:
        """Shift the output; what came in from outside and the margin do not count."""
        return fourier_shift(output, _times(scale, motion), scale * margin)


PROTOCOLS: dict[str, Protocol] = {}
"""Every protocol by its name, in the order in which tables show them."""


def register_protocol(protocol: Protocol) -> None:
    """Add a protocol to the choices of every option, and to tables and pages."""
    PROTOCOLS[protocol.name] = protocol


for _each in (Circular(), Crop(), Fractional()):
    register_protocol(_each)


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
    pixel, by `fourier_shift`, and leaves out what came in from outside and `margin` pixels on each side.

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
    way = PROTOCOLS[protocol]
    motions = way.parse(shifts)
    called = range(len(images)) if names is None else names
    at_rest, moved = way.move_input(images, motions, multiple)
    if output is None or at_rest is not images:
        output = in_chunks(generate, at_rest, forward_batch)
    scale = _scale(at_rest, output, way)
    if check_finite:
        _check_finite(output, [(0, 0)], called)
    at_once = max(1, forward_batch // len(images))
    for start in range(0, len(motions), at_once):
        some = motions[start : start + at_once]
        outputs_of_moved = in_chunks(generate, torch.cat(list(islice(moved, len(some)))), forward_batch)
        if check_finite:
            _check_finite(outputs_of_moved, some, called)
        for motion, output_of_moved in zip(some, outputs_of_moved.split(len(images)), strict=True):
            moved_output, mask = way.move_output(output, motion, scale, margin)
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
