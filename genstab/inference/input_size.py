"""Which sizes of images a model takes: any, multiples of a number, or one size alone; found by trying, quietly."""

import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genstab.data.paths import hxw
from genstab.errors import InputError
from genstab.inference.conventions import Call, ModelError
from genstab.inference.exported_programs import Program
from genstab.layers.padding import pad2d

Size = tuple[int, int]
MULTIPLES = (2, 4, 8, 16, 32, 64, 128, 256)
# Sides of the images that networks with a fixed size are published for.
SIDES = (224, 256, 384, 299, 512, 128, 64, 32, 28)
CHANNELS = (3, 1, 4)


@dataclass(frozen=True)
class InputSize:
    """The sizes that a model takes: sides of multiples of a number, or one (height, width) alone."""

    multiple: int = 1
    fixed: Size | None = None

    def __str__(self) -> str:
        return f"{hxw(self.fixed)} alone" if self.fixed else f"multiples of {self.multiple}"

    def of(self, height: int, width: int) -> Size:
        """Return the largest size that it takes out of larger images; (0, 0) if there is none."""
        if self.fixed is not None:
            return self.fixed if self.fixed[0] <= height and self.fixed[1] <= width else (0, 0)
        sides = height - height % self.multiple, width - width % self.multiple
        return sides if min(sides) else (0, 0)

    @property
    def is_any(self) -> bool:
        """Whether it takes images of all sizes."""
        return self.fixed is None and self.multiple == 1


def centre(images: Tensor, size: Sequence[int]) -> Tensor:
    """Return the centre of larger images.

    Shape: (…, H, W) → (…, height, width).

    >>> centre(torch.arange(5.0).view(1, 1, 1, 5), (1, 3)).flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    top, left = ((whole - part) // 2 for whole, part in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


def fits(output: Tensor, images: Tensor) -> bool:
    """Return whether an output is of logits, or of images of a multiple or an integer part of the input's size."""
    if output.ndim != 4:
        return output.ndim == 2
    small, large = sorted((tuple(output.shape[2:]), tuple(images.shape[2:])))
    ratio = large[0] // max(1, small[0])
    return tuple(ratio * side for side in small) == large


def find_input_size(model: nn.Module, call: Call, images: Tensor) -> InputSize | None:
    """Find which sizes a model takes that does not take these images (N, C, H, W); None if there is none among them."""
    height, width = images.shape[2:]
    if (declared := declared_size(model)) is not None:
        return InputSize(fixed=declared)
    alone: Size | None = None
    for multiple in MULTIPLES:
        size = InputSize(multiple).of(height, width)
        if not (min(size) and takes(call, centre(images[:1], size))):
            continue
        # A second size tells multiples from one size alone that is a multiple as well, or from larger multiples.
        narrower = (size[0], size[1] - multiple) if size[1] > multiple else (size[0] - multiple, size[1])
        if min(narrower) and takes(call, centre(images[:1], narrower)):
            return InputSize(multiple)
        alone = alone or size
    if alone is not None:
        return InputSize(fixed=alone)
    for side in SIDES:
        if side <= min(height, width) and takes(call, centre(images[:1], (side, side))):
            return InputSize(fixed=(side, side))
    return None


def declared_size(model: nn.Module) -> Size | None:
    """Return the (height, width) that a program declares, None if it takes others too or does not say."""
    height, width = model.shape[2:] if isinstance(model, Program) else (None, None)
    return None if height is None or width is None else (height, width)


def takes(call: Call, images: Tensor) -> bool:
    """Return whether a model takes images, without a word of it: some print before they raise."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return fits(call(images), images)
        except (InputError, MemoryError, torch.OutOfMemoryError, RuntimeError):
            return False


def advice(model: nn.Module, call: Call, images: Tensor) -> str:
    """Say in a few words what a model takes that fails on images (N, C, H, W); empty if that is not found."""
    height, width = images.shape[2:]
    one = images[:1]
    if declared := declared_size(model):
        return f": resize them by size=[{declared[0]},{declared[1]}]" if declared != (height, width) else ""
    for channels in CHANNELS:
        if channels != images.shape[1] and takes(call, one[:, :1].expand(-1, channels, -1, -1)):
            return f"; it takes images of {channels} channel{'s' * (channels > 1)}"
    if takes(lambda images: call(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), one):
        return "; model.layout=nhwc works"
    for side in SIDES:
        if (side, side) != (height, width) and takes(call, nn.functional.interpolate(one, (side, side))):
            return f"; it takes images of {side}×{side}: resize them by size=[{side},{side}] (of data in measure)"
    return ""


def padded_calls(model: nn.Module, call: Call, notes: list[str]) -> Call:
    """Return a function of images of any size for a model that takes multiples of a number, by padding with reflection.

    Outputs are cropped to their part of the images. The number is found when the model first fails or returns another
    size; `notes` gets a line then.

    Raises:
        InputError: in a call, the model takes one size alone, or no size is found.
    """
    found = InputSize()

    def padded(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        bottom, right = -height % found.multiple, -width % found.multiple
        larger = pad2d(images, (0, right, 0, bottom), "reflect") if bottom or right else images
        output = call(larger)
        if larger is images or output.ndim != 4 or not fits(output, larger):
            return output
        scale = output.shape[2] / (height + bottom)
        return output[..., : round(scale * height), : round(scale * width)]

    def generate(images: Tensor) -> Tensor:
        nonlocal found
        failure: ModelError | None = None
        try:
            output = padded(images)
            if fits(output, images) or output.ndim != 4:
                return output
        except ModelError as error:
            failure = error
        before = found
        for multiple in MULTIPLES if declared_size(model) is None else ():
            found = InputSize(multiple)
            if multiple > before.multiple and takes(padded, images[:1]):
                notes.append(f"images are padded to multiples of {multiple}, which the model needs, and cropped")
                return padded(images)
        found = before
        if failure is not None:
            raise InputError(f"{failure.reason}{advice(model, call, images)}") from failure
        return output

    return generate
