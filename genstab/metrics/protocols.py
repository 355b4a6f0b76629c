"""Protocols: how an image and an output move and which pixels count; and the loop over the shifts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from genstab.errors import InputError, check_choice
from genstab.metrics import alias_free_ops as alias_free
from genstab.metrics.shift_ops import fourier_shift, parse_shifts, roll, translate, window

Motion = tuple[Any, ...]  # numbers: (dy, dx) for the protocols here
Generate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Protocol:
    """A way to move images: how they move, how outputs move likewise, and which pixels are compared.

    `register_protocol` adds one to the choices of every option, to tables and to pages.

    Args:
        name: its name in options and files.
        heading: heading of a column in a table.
        meaning: explanation in one line.
        when: end of a sentence of the verdict, as in "Is steady when the camera moves"; empty: it judges by others.
        move: (images, motion, scale, margin) → the moved images, and the mask (1, 1, H, W) of the pixels to compare. An
            output is `scale` times as high and wide as its input; motion and `margin` are in pixels of the input.
        windows: (images, motions, multiple) → the unmoved window and an iterator over the moved ones, with sides cut to
            a `multiple`, if the generator sees windows of the image; None: it sees the whole image, moved by `move`.
        fractional: moves by fractions of a pixel, and by `fractional_shifts` where an option has both kinds.
        motions: what it measures if not the shifts of an option, such as angles; tuples of numbers.
        reductions: the reductions that are logged: the first under `key`, others as `key` and their name. The verdict
            judges by the lowest of `worst_shift`, `pooled` and `mean`.
        margin: pixels left out on each side of the overlap, whatever the option says.
        passes_of: the protocol of the same windows that it is measured with, in the same passes of the generator.
        settle: (outputs of moved images, motion, scale) → what they are compared as, and a mask as of `move`, if not as
            they are.
    """

    name: str
    heading: str
    meaning: str
    when: str
    move: Callable[[Tensor, Motion, int, int], tuple[Tensor, Tensor]]
    windows: Callable[[Tensor, Sequence[Motion], int], tuple[Tensor, Iterator[Tensor]]] | None = None
    fractional: bool = False
    motions: tuple[Motion, ...] = ()
    reductions: tuple[str, ...] = ("mean", "pooled", "worst_shift")
    margin: int | None = None
    passes_of: str = ""
    settle: Callable[[Tensor, Motion, int], tuple[Tensor, Tensor]] | None = None

    @property
    def key(self) -> str:
        """The log key of its first reduction."""
        return "val/shift_psnr" if self.name == "circular" else f"val/shift_psnr_{self.name}"

    def keys(self) -> dict[str, str]:
        """Return the log key of each reduction."""
        return {each: f"{self.key}_{each}" if place else self.key for place, each in enumerate(self.reductions)}

    def parse(self, motions: Iterable[Sequence[float]]) -> list[Motion]:
        """Check motions given by a user and return them as tuples."""
        return [tuple(motion) for motion in motions] if self.motions else parse_shifts(motions, self.fractional)

    def measured(self, shifts: Sequence[Motion], fractional_shifts: Sequence[Motion]) -> Sequence[Motion]:
        """Return the motions to measure: its own, or the option for its kind."""
        return self.motions or (fractional_shifts if self.fractional else shifts)

    def inputs(self, images: Tensor, motions: Sequence[Motion], multiple: int) -> tuple[Tensor, Iterator[Tensor]]:
        """Return the unmoved input, `images` itself unless it is a window, and the input moved by each motion."""
        if self.windows is not None:
            return self.windows(images, motions, multiple)
        return images, (self.move(images, motion, 1, 0)[0] for motion in motions)

    def compared(
        self, output: Tensor, output_of_moved: Tensor, motion: Motion, scale: int, margin: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return S G(x), G(S x) and the mask of the pixels to compare, from G(x) and G(S x)."""
        moved_output, mask = self.move(output, motion, scale, margin if self.margin is None else self.margin)
        if self.settle is not None:
            output_of_moved, valid = self.settle(output_of_moved, motion, scale)
            mask = mask & valid
        return moved_output, output_of_moved, mask


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


def _translate(images: Tensor, motion: Motion, scale: int, margin: int) -> tuple[Tensor, Tensor]:
    return translate(images, _larger(motion, scale), scale * margin)


PROTOCOLS: dict[str, Protocol] = {}
"""Every protocol by its name, in the order in which tables show them."""


def register_protocol(protocol: Protocol) -> None:
    """Add a protocol to the choices of every option, to tables and to pages."""
    if protocol.name in PROTOCOLS:
        raise InputError(f"protocol {protocol.name!r} is registered already")
    PROTOCOLS[protocol.name] = protocol


def _as_published(operator: Callable[[Tensor, Motion, int], tuple[Tensor, Tensor]]) -> Any:
    return lambda images, motion, scale, margin: operator(images, motion, scale)


def by_passes(names: Iterable[str]) -> dict[str, list[str]]:
    """Return each of some protocols with those that are measured in its passes, asked for or not.

    >>> by_passes(["circular", "crop"])
    {'circular': ['circular'], 'crop': ['crop', 'crop_edge']}
    """
    given = list(names)
    leading = [name for name in given if PROTOCOLS[name].passes_of not in given]
    return {name: [name, *(each.name for each in PROTOCOLS.values() if each.passes_of == name)] for name in leading}


register_protocol(
    Protocol(
        "circular",
        heading="circular",
        meaning="the image is shifted circularly; every pixel counts",
        when="when the image is rolled around",
        move=_roll,
        reductions=("mean", "worst", "pooled", "worst_shift"),
    )
)
register_protocol(
    Protocol(
        "crop",
        heading="crop",
        meaning="two overlapping crops of the image, as if the camera moved; only the overlap counts",
        when="when the camera moves",
        move=_translate,
        windows=_windows,
    )
)
register_protocol(
    Protocol(
        "crop_edge",
        heading="crop to border",
        meaning="two overlapping crops, compared up to the border of the overlap",
        when="when the camera moves, up to the border",
        move=_translate,
        windows=_windows,
        margin=0,
        passes_of="crop",
    )
)
register_protocol(
    Protocol(
        "fractional",
        heading="fractional",
        meaning="the image is shifted by fractions of a pixel in the Fourier domain",
        when="when the image moves by fractions of a pixel",
        move=lambda images, motion, scale, margin: fourier_shift(images, _larger(motion, scale), scale * margin),
        fractional=True,
    )
)
register_protocol(
    Protocol(
        "eqt",
        heading="EQ-T",
        meaning="the image is moved by whole pixels, up to 12.5 % of its sides (Karras 2021, appendix E.1)",
        when="",
        move=_as_published(alias_free.whole_translation),
        windows=alias_free.whole_translation_windows,
        motions=alias_free.TRANSLATIONS,
        reductions=("pooled",),
    )
)
register_protocol(
    Protocol(
        "eqt_frac",
        heading="EQ-T_frac",
        meaning="the image is moved by fractions of a pixel, up to 12.5 % of its sides (Karras 2021, appendix E.2)",
        when="",
        move=_as_published(alias_free.lanczos_translation),
        windows=alias_free.lanczos_translation_windows,
        motions=alias_free.TRANSLATIONS,
        reductions=("pooled",),
    )
)
register_protocol(
    Protocol(
        "eqr",
        heading="EQ-R",
        meaning="the image is turned by any angle (Karras 2021, appendix E.3)",
        when="",
        move=_as_published(alias_free.rotation),
        windows=alias_free.rotation_windows,
        motions=alias_free.ANGLES,
        reductions=("pooled",),
        settle=alias_free.pseudo_rotation,
    )
)


def moved_outputs(
    generate: Generate,
    images: Tensor,
    shifts: Sequence[Sequence[float]],
    protocol: str = "circular",
    forward_batch: int = 32,
    multiple: int = 1,
    check_finite: bool = True,
    names: Sequence[str] | None = None,
    output: Tensor | None = None,
) -> Iterator[tuple[Motion, Tensor, Tensor, int]]:
    """Yield (shift, G(x), G(S x), scale) for each shift; the arguments are those of `shift_pairs`.

    An output is `scale` times as high and wide as its input.
    """
    check_choice("protocol", protocol, PROTOCOLS)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W) with N of at least 1")
    moving = PROTOCOLS[protocol]
    motions = moving.parse(shifts)
    at_rest, moved = moving.inputs(images, motions, multiple)
    if output is None or at_rest is not images:
        output = in_chunks(generate, at_rest, forward_batch)
    scale = _scale(at_rest, output, moving)
    if check_finite:
        require_finite(output, names, " at shift=(0, 0)")
    at_once = max(1, forward_batch // len(images))
    for start in range(0, len(motions), at_once):
        some = motions[start : start + at_once]
        outputs_of_moved = in_chunks(generate, torch.cat(list(islice(moved, len(some)))), forward_batch)
        for motion, output_of_moved in zip(some, outputs_of_moved.split(len(images)), strict=True):
            if check_finite:
                require_finite(output_of_moved, names, f" at shift={motion}")
            yield motion, output, output_of_moved, scale


def shift_pairs(
    generate: Generate,
    images: Tensor,
    shifts: Sequence[Sequence[float]],
    protocol: str = "circular",
    margin: int = 8,
    **options: Any,
) -> Iterator[tuple[Motion, Tensor, Tensor, Tensor]]:
    """Yield (shift, S G(x), G(S x), mask) for each shift.

    A generator of larger images (super-resolution) is measured at their scale: if its output is k times as high and
    wide as its input, S moves the output by k times the shift, and k times the margin is left out.

    Args:
        generate: maps images to images of k times the height and width, k = 1, 2, …, with any number of channels;
            called on at most `forward_batch` images at once.
        images: (N, C, H, W).
        shifts: pairs (dy, dx) in pixels of the input; integers, or for `fractional` also floats.
        protocol: one of `PROTOCOLS`.
        margin: pixels of the input left out on each side of the overlap, for `crop` and `fractional`.
        options: `forward_batch` images in a forward pass, of which several shifts share one, 32 by default; windows of
            `crop` are cut to a `multiple` of this many pixels, for generators that need one; `check_finite` raises if
            an output is not finite, instead of yielding it; `names` of the images for the error, (N,), or None for
            their index in the batch; `output`, G(images), if it has been computed already, not used by protocols with
            windows.

    Raises:
        InputError: the protocol or a shift is invalid, there are no images or they are too small for the shifts, a
            circular shift rolls them onto themselves, an output has another size, or an output is not finite.
    """
    for motion, output, output_of_moved, scale in moved_outputs(generate, images, shifts, protocol, **options):
        yield motion, *PROTOCOLS[protocol].compared(output, output_of_moved, motion, scale, margin)


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
            f"must be an integer multiple of the input's{cure if protocol.windows else ''}"
        )
    return scale


def require_finite(outputs: Tensor, names: Sequence[object] | None, condition: str) -> None:
    """Raise an `InputError` that names the first image, or its index, whose output has a NaN or infinity."""
    finite = outputs.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int(finite.int().argmin())
        name = first if names is None else names[first]
        raise InputError(f"the model's output for image {name}{condition} is not finite")
