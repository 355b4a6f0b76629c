"""The options of a measurement: which images, shifts and parts; checked before any work."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from genstab.errors import ON_ERROR, InputError, check_choice, check_counts
from genstab.evaluation.controls import CONTROLS
from genstab.inference.value_range import parse_values
from genstab.metrics.corruptions import CORRUPTIONS, SEVERITIES
from genstab.metrics.perceptual import METRICS as PERCEPTUAL
from genstab.metrics.protocols import PROTOCOLS, Motion
from genstab.metrics.shift_ops import EIGHT_TO_THE_RIGHT, PARTS_OF_A_PIXEL, grid_shifts, parse_shifts

PRECISIONS = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
PARTS: dict[str, dict[str, Any]] = {
    "map": {"reach": 8, "images": 2, "protocol": "circular"},
    "features": {"layers": None, "reach": 4, "images": 2},
    "consistency": {"max_shift": 8, "pairs": 5},
    "corruptions": {"names": None, "severities": SEVERITIES, "images": 8, "baseline": None},
}


def _choices(name: str, given: Sequence[str] | str, allowed: Collection[str]) -> list[str]:
    """Return one or several choices as a list without repetitions."""
    values = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    for value in values:
        check_choice(name, value, allowed)
    return values


@dataclass
class MeasureOptions:
    """Options of `genstab.evaluation.measure.measure`, with their defaults.

    Args:
        images: number of images of the dataset to measure, from the first on; None: all.
        batch_size: images in a forward pass.
        protocols: any of `genstab.metrics.protocols.PROTOCOLS`.
        shifts: pairs (dy, dx) in pixels, for `circular` and `crop`.
        reach: all shifts up to this many pixels in every direction, instead of `shifts`.
        fractional_shifts: pairs (dy, dx) in fractions of a pixel, for `fractional`.
        margin: pixels left out on each side, for `crop` and `fractional`.
        multiple: windows of `crop` are cut to a multiple of this many pixels; None finds what the generator needs.
        noise_floor: measure the noise floor, with a second pass of each image.
        precision: of weights and images, `float32`, `float64`, `bfloat16` or `float16`.
        value_range: the smallest and the largest value of the images of the generator, converted from [−1, 1]; `auto`
            finds them by trying.
        output_range: those of its outputs, if they are others.
        normalize: `imagenet`, for a model that takes (x − mean) / std of images in [0, 1].
        mean, std: the same with other numbers, one for each channel.
        perceptual: any of `fid`, `lpips`; they need packages and weights, see `genstab.metrics.perceptual.Perceptual`.
        realism: compare outputs with targets in the features of a trained network, see `genstab.metrics.realism`.
        control: `noise` or `sharpen`: measure the outputs with a change that is tuned to the targets' total variation,
            without features; `blur`: blurred targets in place of outputs, see `genstab.evaluation.controls`.
        seed: seed of the corruptions, and of the shifts of a classifier.
        on_error: `raise` at an unreadable image, or `skip` it and name it in the summary.
        map: reach, images, protocol of the shift map; None: no map.
        features: layers (names or patterns, None for the default), reach and images of the feature distance; or None.
        consistency: of a classifier: max_shift, the largest distance of two shifts of an image, and number of pairs.
        corruptions: names (None for all), severities, images, and the baseline: the folder of a measurement with the
            same images; or None.

    Raises:
        InputError: the value of an option is not allowed.

    >>> MeasureOptions(protocols=("crop",), reach=1).shifts
    [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    """

    images: int | None = 64
    batch_size: int = 32
    protocols: Sequence[str] | str = ("circular", "crop", "fractional")
    shifts: Sequence[Motion] = EIGHT_TO_THE_RIGHT
    reach: int | None = None
    fractional_shifts: Sequence[Motion] = PARTS_OF_A_PIXEL
    margin: int = 8
    multiple: int | None = None
    noise_floor: bool = True
    precision: str = "float32"
    value_range: Sequence[float] | str = (-1.0, 1.0)
    output_range: Sequence[float] | None = None
    normalize: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    perceptual: Sequence[str] | str = ()
    realism: bool = False
    control: str | None = None
    seed: int = 1
    on_error: str = "raise"
    map: Mapping[str, Any] | None = field(default_factory=PARTS["map"].copy)
    features: Mapping[str, Any] | None = field(default_factory=PARTS["features"].copy)
    consistency: Mapping[str, Any] | None = field(default_factory=PARTS["consistency"].copy)
    corruptions: Mapping[str, Any] | None = field(default_factory=PARTS["corruptions"].copy)

    def __post_init__(self) -> None:
        counts = {"images": self.images, "reach": self.reach, "multiple": self.multiple}
        check_counts(batch_size=self.batch_size, **{key: n for key, n in counts.items() if n is not None})
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("on_error", self.on_error, ON_ERROR)
        if self.control is not None:
            check_choice("control", self.control, CONTROLS)
            self.features = None  # those of the model are as without the control
        if not isinstance(self.margin, int) or self.margin < 0:
            raise InputError(f"margin={self.margin} is not an integer of at least 0")
        self.values = parse_values(self.value_range, self.output_range, self.normalize, self.mean, self.std)
        self.protocols = _choices("protocols", self.protocols, PROTOCOLS)
        self.perceptual = _choices("perceptual", self.perceptual, PERCEPTUAL)
        self.shifts = grid_shifts(self.reach) if self.reach else parse_shifts(self.shifts)
        self.fractional_shifts = parse_shifts(self.fractional_shifts, fractional=True)
        for name, defaults in PARTS.items():
            if (given := getattr(self, name)) is not None:
                for key in given:
                    check_choice(name, key, defaults)
                part = {**defaults, **given}
                counted = {"reach", "images", "max_shift", "pairs"} & part.keys()
                check_counts(**{f"{name}.{key}": part[key] for key in counted})
                setattr(self, name, part)
        if self.map:
            whole_pixels = [each.name for each in PROTOCOLS.values() if not each.fractional and not each.motions]
            check_choice("map.protocol", self.map["protocol"], whole_pixels)
        if self.corruptions:
            names, severities = self.corruptions["names"], self.corruptions["severities"]
            if not severities or any(isinstance(each, bool | float) or each not in SEVERITIES for each in severities):
                raise InputError(f"corruptions.severities={severities} are not some of 1, 2, 3, 4, 5")
            names = names and _choices("corruptions.names", names, CORRUPTIONS)
            self.corruptions = {**self.corruptions, "names": names}

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return PRECISIONS[self.precision]
