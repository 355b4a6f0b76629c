"""Shift PSNR over all shifts around zero, and the outputs for rolled images that map, animation and slides share."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from tqdm import tqdm

from genstab.data.paths import hxw
from genstab.errors import InputError
from genstab.metrics.protocols import Generate, shift_pairs
from genstab.metrics.shift_ops import Shift, grid_shifts, roll
from genstab.metrics.shift_psnr import decibel, squared_error


class RolledOutputs:
    """Outputs of a generator for circular shifts of a few images, so that nothing is computed twice.

    Attributes:
        images, output: x and G(x), (N, C, H, W) each.
        errors: mean of (G(S x) − S G(x))² by the shift S, (n,) for the first n images.
        frames: G of the first image rolled to the right, (1, C, H, W), by the number of pixels.
    """

    def __init__(self, images: Tensor, output: Tensor) -> None:
        self.images, self.output = images, output
        self.errors: dict[Shift, Tensor] = {}
        self.frames: dict[int, Tensor] = {0: output[:1]}

    def add(self, shift: Shift, error: Tensor, output_of_shifted: Tensor) -> None:
        """Keep the mean squared errors of the first images, (n,), and the output if it is a frame."""
        self.errors[shift] = error[: len(self.images)]
        if shift[0] == 0 < shift[1]:
            self.frames[shift[1]] = output_of_shifted[:1].clone()  # without the rest of its batch

    def compare(self, shift: Shift, output_of_shifted: Tensor) -> None:
        """Add G(S x) of the first images, unless it is not finite: then the map computes it again and raises."""
        if output_of_shifted.isfinite().all():
            scale = self.output.shape[-1] // self.images.shape[-1]
            output = self.output[: len(output_of_shifted)]
            error, count = squared_error(roll(output, (scale * shift[0], scale * shift[1]))[0], output_of_shifted)
            self.add(shift, error / count, output_of_shifted)

    def frame(self, generate: Generate, dx: int) -> Tensor:
        """Return G of the first image rolled by `dx` pixels to the right, (1, C, H, W)."""
        if dx not in self.frames:
            self.frames[dx] = generate(roll(self.images[:1], (0, dx))[0])
        return self.frames[dx]


def circular_grid(images: Tensor, reach: int) -> list[Shift]:
    """Return the shifts with |dy| and |dx| up to `reach`, limited to what images (N, C, H, W) can be rolled by."""
    smallest = min(images.shape[-2:])
    if smallest < 2:
        raise InputError(f"images of {hxw(images.shape[-2:])} cannot be rolled both ways")
    return grid_shifts(min(reach, smallest - 1))


def measure_map(
    generate: Generate,
    images: Tensor,
    reach: int,
    protocol: str = "circular",
    rolled: RolledOutputs | None = None,
    **options: Any,
) -> dict[Shift, float]:
    """Return {(dy, dx): dB} for every shift with |dy| and |dx| up to `reach`, the mean over the images.

    `rolled` has the outputs for `circular` that are known already, and gets the new ones; the options are those of
    `genstab.metrics.protocols.shift_pairs`.
    """
    shifts = circular_grid(images, reach)
    if rolled is None or protocol != "circular":
        rolled = RolledOutputs(images, images[:0])
    else:
        options["output"] = rolled.output[: len(images)]
    missing = [shift for shift in shifts if len(rolled.errors.get(shift, ())) < len(images)]
    pairs = shift_pairs(generate, images, missing, protocol, **options) if missing else ()
    for (dy, dx), *pair_and_mask in tqdm(pairs, "shift map", len(missing), unit="shift", leave=False, disable=None):
        error, count = squared_error(*pair_and_mask)
        rolled.add((dy, dx), error / count, pair_and_mask[1])
    return {shift: decibel(rolled.errors[shift][: len(images)]).mean().item() for shift in shifts}


def map_table(decibels: Mapping[Shift, float], images: int, protocol: str = "circular") -> dict[str, Any]:
    """Return a shift map as plain types for `measurements.json`: rows of Δh, None at the zero shift."""
    reach = max(dy for dy, _ in decibels)
    span = range(-reach, reach + 1)
    rows = [[decibels.get((dy, dx)) for dx in span] for dy in span]
    return {"protocol": protocol, "reach": reach, "images": images, "decibels": rows}
