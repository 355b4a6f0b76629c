"""How the pixels of a file become numbers in [−1, 1]: value range, class labels, interpolation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.data.channels import converted, is_convertible
from genstab.errors import InputError, check_choice, check_counts

INTERPOLATIONS = ("bilinear", "nearest")
SIDES = ("source", "target")
VOID = 255  # the label of pixels without a class, as in Cityscapes and Pascal VOC
Range = tuple[float, float]


@dataclass(frozen=True)
class Reading:
    """How the pixels of a file become numbers in [−1, 1].

    Args:
        value_range: the values that become −1 and 1, for files of other types than 8-bit integers; values beyond them
            are clamped, and those that are not numbers become −1. None: the range of the type, 0 to 255 or 65535.
        labels: number of classes; pixels are class indices (grey values, or indices of a palette) and become as many
            channels, 1 in that of the class and −1 in the others. A pixel of 255 has no class. None: pixels are values.
        interpolation: `bilinear`, or `nearest`, which keeps the colours of label maps; always nearest with `labels`.
        max_megapixels: the most pixels of an image, in millions; None: 179, twice the limit of Pillow.
        channels: convert images with other channels, see `genstab.data.channels.converted`; None: as they are.

    Raises:
        InputError: an argument has another type or value.
    """

    value_range: Range | None = None
    labels: int | None = None
    interpolation: str = "bilinear"
    max_megapixels: float | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        check_choice("source_interpolation", self.interpolation, INTERPOLATIONS)
        if self.labels is not None:
            check_counts(least=2, source_labels=self.labels)
            object.__setattr__(self, "interpolation", "nearest")
        if self.channels is not None:
            check_counts(source_channels=self.channels)
        if self.max_megapixels is not None and not 0 < self.max_megapixels < 1e6:
            raise InputError(f"max_megapixels={self.max_megapixels} is not a positive number")

    @property
    def max_pixels(self) -> int | None:
        """The most pixels of an image."""
        return None if self.max_megapixels is None else int(1e6 * self.max_megapixels)

    def channels_of(self, stored: int) -> int:
        """Return the number of channels of the values of a file with so many."""
        if self.labels is not None:
            return self.labels
        return self.channels if self.channels and is_convertible(stored, self.channels) else stored

    def values(self, pixels: np.ndarray, name: object) -> Tensor:
        """Return the values of pixels (H, W, C) as (C, H, W) in [−1, 1], float32; `name` is for messages."""
        if self.labels is not None:
            return _one_hot(pixels, self.labels, name)
        values = self._scaled(pixels)
        return values if self.channels is None else converted(values, self.channels, name)

    def _scaled(self, pixels: np.ndarray) -> Tensor:
        # Flipped views have negative strides, which torch refuses: copy.
        planes = pixels.transpose(2, 0, 1)
        if self.value_range is None or pixels.dtype == np.uint8:
            largest = float(np.iinfo(pixels.dtype).max)
            return torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32)).div_(largest).mul_(2).sub_(1)
        least, greatest = self.value_range
        values = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float64))
        values = values.sub_(least).mul_(2 / (greatest - least)).sub_(1)
        return values.nan_to_num_(nan=-1.0, posinf=1.0, neginf=-1.0).clamp_(-1, 1).float()


AS_STORED = Reading()


def _one_hot(pixels: np.ndarray, labels: int, name: object) -> Tensor:
    grey = pixels[..., :1]
    if not np.issubdtype(pixels.dtype, np.integer) or not (pixels[..., :3] == grey).all():
        raise InputError(
            f"{name} holds colours or fractions, but data.source_labels={labels} needs class indices: "
            "one channel of integers, or a palette"
        )
    indices = torch.from_numpy(np.ascontiguousarray(grey[..., 0]).astype(np.int64))
    wrong = (indices < 0) | ((indices >= labels) & (indices != VOID))
    if wrong.any():
        raise InputError(
            f"{name} holds the label {int(indices[wrong][0])}, but data.source_labels={labels} allows 0 to "
            f"{labels - 1}, and {VOID} for none"
        )
    return (indices == torch.arange(labels)[:, None, None]).float().mul_(2).sub_(1)


def resized(image: Tensor, size: Sequence[int], interpolation: str = "bilinear") -> Tensor:
    """Resize images (C, H, W) or (N, C, H, W) in [−1, 1]; those of that size are returned as they are.

    `bilinear` is anti-aliased and clamped; `nearest` takes the pixel under the centre of the new one.
    """
    if image.shape[-2:] == tuple(size):
        return image
    batch = image[None] if image.ndim == 3 else image
    if interpolation == "nearest":
        result = F.interpolate(batch, tuple(size), mode="nearest-exact")
    else:
        result = F.interpolate(batch, tuple(size), mode="bilinear", antialias=True, align_corners=False)
        result.clamp_(-1, 1)  # the weights sum to 1 up to rounding
    return result[0] if image.ndim == 3 else result


def parse_range(name: str, value: Any) -> Range | None:
    """Return [least, greatest] as a pair of numbers; None stays None."""
    if value is None:
        return None
    if value == "auto":
        raise InputError(f"{name}=auto finds the values of training pairs, with data=paired: set [least,greatest] here")
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(numbers) != 2 or not all(isinstance(each, int | float) for each in numbers) or not numbers[0] < numbers[1]:
        raise InputError(f"{name}={value!r} is not [least, greatest] with least < greatest")
    return float(numbers[0]), float(numbers[1])


def parse_ranges(value: Any) -> dict[str, Any]:
    """Return the value range of source and target: a pair, `auto` or None.

    >>> parse_ranges([0, 10000])
    {'source': (0.0, 10000.0), 'target': (0.0, 10000.0)}
    >>> parse_ranges({"source": "auto"})
    {'source': 'auto', 'target': None}
    """
    if isinstance(value, Mapping):
        if value.keys() - set(SIDES):
            raise InputError(f"value_range={dict(value)!r} has other keys than source and target")
        each = {side: value.get(side) for side in SIDES}
    else:
        each = dict.fromkeys(SIDES, value)
    return {side: one if one == "auto" else parse_range("data.value_range", one) for side, one in each.items()}


def almost_constant(images: Tensor | Sequence[Tensor], what: str = "sources") -> str | None:
    """Return a line if images in [−1, 1] differ by less than a tenth of the range, as class indices read as grey do."""
    least, greatest = min(float(each.amin()) for each in images), max(float(each.amax()) for each in images)
    if greatest - least >= 0.2:
        return None
    highest = round((greatest + 1) * 127.5)
    said = f"the {what} are almost constant: their values are from {least:.3g} to {greatest:.3g} in [-1, 1]"
    if what == "outputs":
        return said
    labels = f"if these are class indices, set source_labels={highest + 1}; " if 1 <= highest < 150 else ""
    labels = labels if what == "sources" else ""
    return f"{said}; {labels}if they are images of less depth than their files, set their value range"
