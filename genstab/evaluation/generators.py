"""What needs every image once: stability in every protocol, quality, and how much the outputs differ at all."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genstab.data.paths import shortened
from genstab.errors import InputError
from genstab.evaluation.dataset_batches import Batch, keep
from genstab.evaluation.options import Plan
from genstab.inference.eval_mode import inference
from genstab.metrics.perceptual import Perceptual
from genstab.metrics.protocols import shift_pairs
from genstab.metrics.quality import image_quality, total_variation
from genstab.metrics.shift_ops import Shift, window, window_size
from genstab.metrics.shift_psnr import decibel, shift_errors
from genstab.metrics.sliced_wasserstein import MOST_PATCHED, SlicedWasserstein
from genstab.metrics.spectrum import SpectrumError
from genstab.report.figures import Picture, shift_table


@dataclass
class Measured:
    """What a measurement found: `summary` under the log keys, `measurements` in full, `pictures` by log key."""

    summary: dict[str, Any] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fitting_multiple(generate: Callable[[Tensor], Tensor], images: Tensor, shifts: list[Shift]) -> int | None:
    """Find the least power of two that the sides of a `crop` window must be a multiple of, for this generator.

    Shape: images (1, C, H, W).

    Returns:
        1, 2, …, 256; None where no window does.

    >>> fitting_multiple(nn.Sequential(nn.PixelUnshuffle(4), nn.PixelShuffle(4)), torch.zeros(1, 1, 16, 16), [(0, 1)])
    4
    """
    shape = (images.shape[-2], images.shape[-1])
    for multiple in (2**power for power in range(9)):
        if multiple > min(window_size(shape, shifts)):
            return None
        part = window(images, (0, 0), shifts, multiple)
        try:
            output = generate(part)
        except Exception:  # of torch, of a program with a size of its own, an `assert` of the network's author
            continue
        if output.shape[-2] % part.shape[-2] == 0 and output.shape[-1] % part.shape[-1] == 0:
            return multiple
    return None


def measure_stability(
    generator: nn.Module, reading: Iterable[Batch], plan: Plan, device: torch.device, wanted: int, found: Measured
) -> Batch:
    """Measure shift PSNR in every protocol, quality and the outputs' spread; add them to `found`.

    Args:
        generator: see `genstab.evaluation.measure.measure`.
        reading: see `genstab.evaluation.dataset_batches.batches`; at least one.
        plan: of it protocols, shifts, margin, multiple, batch_size, precision and perceptual.
        device: the generator's.
        wanted: how many images to return.
        found: gets the numbers, and a note where a protocol cannot be measured.

    Returns:
        The first images of one size, at most `wanted`.

    Raises:
        InputError: the generator cannot take the images, or gives something that is not finite; what `perceptual` needs
            is missing.
    """
    errors: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    quality: dict[str, list[Tensor]] = defaultdict(list)
    outputs = OutputSpread()
    as_a_set = SetQuality()
    perceptual = Perceptual(plan.perceptual, device)
    names: list[str] = []
    kept: Batch | None = None
    multiples: dict[tuple[str, torch.Size], int | str] = {}
    for batch in reading:
        source = batch.source.to(device)
        with inference(generator, plan.dtype) as generate:
            output = first_output(generate, source, batch.names)
            outputs.add(output, generate(source))
            for protocol in plan.protocols:
                place = protocol, source.shape[1:]
                if place not in multiples:
                    multiples[place] = _multiple_for(generate, source[:1], protocol, plan)
        for protocol in plan.protocols:
            place = protocol, source.shape[1:]
            reason = multiples[place]
            if isinstance(reason, int):
                try:
                    errors[protocol].append(_errors(generator, source, protocol, plan, reason, batch.names))
                    continue
                except InputError:
                    raise
                except Exception as failure:  # the code is not ours, and may refuse what a shift makes of an image
                    reason = multiples[place] = f"the generator failed: {_said(failure)}"
            found.notes.append(f"{protocol}: not measured for {shortened(batch.names)}: {reason}")
            nothing = torch.full((len(plan.shifts_of(protocol)), len(source)), math.nan, dtype=torch.float64)
            errors[protocol].append((nothing, nothing))
        for key, values in _quality(output, batch.target, found.notes).items():
            quality[key].append(values)
        if (distances := perceptual.add(output, batch.target, found.notes)) is not None:
            quality["lpips"].append(distances)
        as_a_set.add(output, batch.target)
        names += batch.names
        kept = keep(kept, batch, wanted)
    assert kept is not None  # `batches` yields at least one
    for protocol, pairs in errors.items():
        error, count = (torch.cat(column, 1) for column in zip(*pairs, strict=True))
        _add_protocol(found, protocol, plan, names, error, count)
    if errors and "shift_psnr" not in found.measurements:
        raise InputError(found.notes[-1])
    columns = {key: torch.cat(values) for key, values in quality.items()}
    columns = {key: each for key, each in columns.items() if not each.isnan().all()}
    found.measurements["quality"] = {"images": names, **{key: each.tolist() for key, each in columns.items()}}
    found.summary |= {f"val/{key}": each.nanmean().item() for key, each in columns.items()}
    found.summary |= outputs.summary() | as_a_set.summary(found.notes) | perceptual.summary(found.notes)
    found.summary["images"] = len(names)
    return kept


def _errors(
    generator: nn.Module, source: Tensor, protocol: str, plan: Plan, multiple: int, names: list[str]
) -> tuple[Tensor, Tensor]:
    return shift_errors(
        generator,
        source,
        plan.shifts_of(protocol),
        protocol,
        margin=plan.margin,
        forward_batch=plan.batch_size,
        multiple=multiple,
        dtype=plan.dtype,
        names=names,
    )


def _multiple_for(generate: Callable[[Tensor], Tensor], image: Tensor, protocol: str, plan: Plan) -> int | str:
    """Return what windows of an image (1, C, H, W) must be a multiple of; or why it cannot be measured."""
    multiple = plan.multiple or 1
    try:
        if protocol == "crop" and not plan.multiple:
            multiple = fitting_multiple(generate, image, list(plan.shifts)) or 0
            if not multiple:
                return "the generator takes no window smaller than the image"
        shifts = plan.shifts_of(protocol)
        for _ in shift_pairs(lambda images: images, image[:, :1], shifts, protocol, plan.margin, 32, multiple):
            pass  # is there room for every shift?
    except InputError as error:
        return f"{error} (other {'' if protocol == 'circular' else 'margin or '}shifts may fit)"
    return multiple


def _quality(output: Tensor, target: Tensor | None, notes: list[str]) -> dict[str, Tensor]:
    """Return the quality of each image; of what cannot be compared with a target the total variation, the rest NaN."""
    output = output.float().cpu()
    if target is not None and target.shape == output.shape:
        return image_quality(output, target)
    if target is not None:
        shapes = ["×".join(map(str, images.shape[1:])) for images in (output, target)]
        note = f"quality: not measured, outputs are {shapes[0]} and targets {shapes[1]}"
        notes.extend([note] if note not in notes else [])
    unknown = dict.fromkeys(("l1", "psnr", "ssim", "tv", "tv_target"), output.new_full((len(output),), math.nan))
    return {**unknown, "tv": total_variation(output)} if target is None else unknown


def first_output(generate: Callable[[Tensor], Tensor], source: Tensor, names: list[str]) -> Tensor:
    """Call a model for the first time; whatever it refuses becomes one line that names the image and its shape.

    Raises:
        InputError: the model cannot take such images.
    """
    try:
        return generate(source)
    except Exception as error:  # the code need not be ours
        raise InputError(f"the generator cannot take {names[0]} {tuple(source.shape)}: {_said(error)}") from error


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _add_protocol(found: Measured, protocol: str, plan: Plan, names: list[str], error: Tensor, count: Tensor) -> None:
    """Add the dB of one protocol, from squared errors and pixels (shifts, images)."""
    measured = ~error.isnan().any(0)
    if not measured.any():
        return
    decibels, together = decibel(error / count), decibel(error.nansum(1) / count.nansum(1))
    table = shift_table(plan.shifts_of(protocol), names, decibels, together)
    found.measurements.setdefault("shift_psnr", {})[protocol] = table
    key = "val/shift_psnr" if protocol == "circular" else f"val/shift_psnr_{protocol}"
    found.summary[key] = decibels[:, measured].mean().item()
    if protocol == "circular":
        found.summary["val/shift_psnr_worst"] = decibels[:, measured].min().item()
        found.summary["val/shift_psnr_pooled"] = decibel(error.nansum() / count.nansum()).item()


class SetQuality:
    """Whether the outputs, as a set, have such detail as the targets: by power spectrum and by patches."""

    def __init__(self) -> None:
        self.by_shape: dict[tuple[int, ...], list[Any]] = {}

    def add(self, output: Tensor, target: Tensor | None) -> None:
        """Add a batch, each (N, C, H, W); nothing where there is no target to compare with."""
        if target is None or target.shape != output.shape:
            return
        output = output.float().cpu()
        entry = self.by_shape.setdefault(output.shape[1:], [0, SpectrumError(), SlicedWasserstein()])
        entry[1].update(output, target)
        if (room := MOST_PATCHED - entry[0]) > 0:
            entry[2].update(output[:room], target[:room])
        entry[0] += len(output)

    def summary(self, notes: list[str]) -> dict[str, float]:
        """Return both numbers, of the images of the most frequent size; add a note where there are others."""
        if not self.by_shape:
            return {}
        shape, (number, spectrum, patches) = max(self.by_shape.items(), key=lambda item: item[1][0])
        if len(self.by_shape) > 1:
            notes.append(f"spectrum_error, swd: of the {number} images of {'×'.join(map(str, shape))} alone")
        return {"val/spectrum_error": spectrum.compute().item(), "val/swd": patches.compute().item()}


class OutputSpread:
    """How much the outputs differ: between two runs of one input, between images, and within one."""

    def __init__(self) -> None:
        self.floor: list[Tensor] = []
        self.spread_within: list[Tensor] = []
        self.sums: dict[tuple[int, ...], list[Any]] = {}

    def add(self, output: Tensor, again: Tensor) -> None:
        """Add a batch and what a second run made of the same one, each (N, C, H, W)."""
        output, again = output.double().cpu(), again.double().cpu()
        self.floor.append(decibel((output - again).square().mean((1, 2, 3))))
        self.spread_within.append(output.std((1, 2, 3), correction=0))
        entry = self.sums.setdefault(output.shape[1:], [0, 0.0, 0.0])
        entry[0] += len(output)
        entry[1] = entry[1] + output.sum(0)
        entry[2] = entry[2] + output.square().sum(0)

    def summary(self) -> dict[str, float]:
        """Return the noise floor in dB, and both spreads as root mean squares relative to the range of 2."""
        result = {
            "val/noise_floor": torch.cat(self.floor).mean().item(),
            "val/output_std": torch.cat(self.spread_within).mean().item() / 2,
        }
        number, total, squares = max(self.sums.values(), key=lambda entry: entry[0])
        if number > 1:
            # E (a − b)² = 2 · variance, with the unbiased variance of each pixel
            variance = (squares - total.square() / number).clamp(min=0) / (number - 1)
            result["val/output_spread"] = math.sqrt(2 * variance.mean().item()) / 2
        return result
