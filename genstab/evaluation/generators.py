"""Measure a generator on every image: stability in every protocol, quality, and the spread of its outputs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genstab.data.paths import hxw, shortened
from genstab.errors import InputError
from genstab.evaluation.dataset_batches import Batch
from genstab.evaluation.options import MeasureOptions
from genstab.inference.conventions import ModelError
from genstab.inference.input_size import takes
from genstab.metrics.output_spread import OutputSpread
from genstab.metrics.perceptual import Perceptual, incomparable
from genstab.metrics.protocols import PROTOCOLS, Generate, Motion, Protocol, by_passes, shift_pairs
from genstab.metrics.quality import image_quality, total_variation
from genstab.metrics.realism import Realism
from genstab.metrics.shift_map import RolledOutputs
from genstab.metrics.shift_psnr import decibel, errors_by_protocol, psnr_table, shift_period, squared_error
from genstab.metrics.sliced_wasserstein import MOST_PATCHED, SlicedWasserstein
from genstab.metrics.spectrum import SpectrumError
from genstab.metrics.trained_features import SMALLEST
from genstab.report.figures import Picture, shift_table


@dataclass
class Measured:
    """Results of a measurement: `summary` by log key, `measurements` in full, `pictures` by log key, and notes."""

    summary: dict[str, Any] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure_generator(
    generate: Generate,
    batches: Iterable[Batch],
    rolled: RolledOutputs,
    options: MeasureOptions,
    results: Measured,
    fixed: bool = False,
) -> None:
    """Measure shift PSNR in every protocol, quality and the spread of the outputs; add them to the results.

    The batches, on the device of the generator, have its outputs. `rolled` holds the first images, and gets the outputs
    for their circular shifts. With `fixed`, the generator takes images of one size alone.
    """
    perceptual = Perceptual(options.perceptual, rolled.images.device)
    realism = MeasuredRealism(rolled.images.device) if options.realism else None
    groups = by_passes(options.protocols).values()
    protocols = [ProtocolErrors(group, options, results.notes, fixed) for group in groups]
    spread, spectrum, patches = OutputSpread(), SpectrumError(), SlicedWasserstein()
    quality: dict[str, list[Tensor]] = defaultdict(list)
    floors: list[Tensor] = []
    names: list[str] = []
    for batch in batches:
        output = batch.output
        assert output is not None
        spread.add(output)
        if options.noise_floor:
            error, pixels = squared_error(output, generate(batch.source))
            floors.append(decibel(error / pixels).cpu())
        for each in protocols:
            each.add(generate, batch, len(names), None if names else rolled)
        shown = output.float().cpu()
        for key, values in _quality(shown, batch.target, results.notes).items():
            quality[key].append(values)
        if (distances := perceptual.add(output, batch.target, results.notes)) is not None:
            quality["lpips"].append(distances)
        if realism is not None:
            quality["perceptual"].append(realism.add(output, batch.target, results.notes))
        if batch.target is not None and batch.target.shape == shown.shape:
            spectrum.update(shown, batch.target)
            room = max(0, MOST_PATCHED - len(names))
            patches.update(shown[:room], batch.target[:room])
        names += batch.names
    for each in protocols:
        each.report(names, results)
    if protocols and "shift_psnr" not in results.measurements:
        raise InputError(results.notes[-1])
    columns = {key: torch.cat(values) for key, values in quality.items()}
    columns = {key: each for key, each in columns.items() if not each.isnan().all()}
    results.measurements["quality"] = {"images": names, **{key: each.tolist() for key, each in columns.items()}}
    results.summary |= {f"val/{key}": each.nanmean().item() for key, each in columns.items()}
    if floors:
        results.summary["val/noise_floor"] = torch.cat(floors).mean().item()
    between, results.summary["val/output_std"], results.summary["val/constant_outputs"] = spread.compute()
    if between is not None:
        results.summary["val/output_spread"] = between
    if spectrum.update_called:
        results.summary |= {"val/spectrum_error": spectrum.compute().item(), "val/swd": patches.compute().item()}
    results.summary |= perceptual.summary(results.notes) | ({} if realism is None else realism.summary())
    results.summary["images"] = len(names)


class ProtocolErrors:
    """The squared errors of protocols that share passes, batch by batch, without images that cannot be measured.

    With `fixed`, the generator takes images of one size alone: windows of it move in the whole images.
    """

    def __init__(self, group: list[str], options: MeasureOptions, notes: list[str], fixed: bool = False) -> None:
        self.group, self.options, self.notes, self.fixed = group, options, notes, fixed
        self.protocol = PROTOCOLS[group[0]]
        self.shifts = self.protocol.measured(options.shifts, options.fractional_shifts)
        self.common: dict[str, Any] = {"margin": options.margin, "forward_batch": options.batch_size}
        # by protocol: positions, errors and numbers of pixels
        self.errors: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in group}
        self.multiples: dict[torch.Size, int] = {}

    def add(self, generate: Generate, batch: Batch, position: int, rolled: RolledOutputs | None = None) -> None:
        """Measure a batch, the first image of which has this position; note why if it cannot be measured."""
        images, output = batch.source, batch.output
        try:
            if self.protocol.windows and self.fixed:
                images, output = batch.with_room(self.shifts), None
            multiple = self._multiple(generate, images[:1])
        except InputError as reason:
            self._leave_out(batch, str(reason))
            return
        known: dict[str, Any] = {"multiple": multiple, "output": output, "names": batch.names}
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.group}
        try:
            by_shift = errors_by_protocol(generate, images, self.shifts, self.group, **self.common, **known)
            for shift, errors, output_of_shifted in by_shift:
                for name, (error, pixels) in errors.items():
                    found[name].append((error.cpu(), pixels.cpu()))
                    if rolled is not None and name == "circular":
                        rolled.add(shift, (error / pixels).cpu(), output_of_shifted)
        except ModelError as failure:  # it may reject shifted images
            self._leave_out(batch, f"the generator failed: {failure.reason}")
            return
        positions = torch.arange(position, position + len(batch.names))
        for name, pairs in found.items():
            error, pixels = (torch.stack(each) for each in zip(*pairs, strict=True))
            self.errors[name].append((positions, error, pixels))

    def _leave_out(self, batch: Batch, reason: str) -> None:
        self.notes.append(f"{self.protocol.name}: not measured for {shortened(batch.names)}: {reason}")

    def _multiple(self, generate: Generate, image: Tensor) -> int:
        """Return the multiple for the sides of windows of an image (1, C, H, W), which has room for every shift."""
        size = image.shape[1:]
        if size not in self.multiples:
            multiple, protocol = self.options.multiple, self.protocol
            if multiple is None:
                multiple = fitting_multiple(generate, image, self.shifts, protocol) if protocol.windows else 1
            # raises where there is no room
            list(shift_pairs(lambda x: x, image, self.shifts, protocol.name, multiple=multiple, **self.common))
            self.multiples[size] = multiple
        return self.multiples[size]

    def report(self, names: list[str], results: Measured) -> None:
        """Add the dB of each shift and image, and the reductions under the log keys of the protocols."""
        for name, errors in self.errors.items():
            if not errors:
                return
            decibels, pooled, reductions = psnr_table(errors, len(names))
            table = shift_table(self.shifts, names, decibels, pooled)
            results.measurements.setdefault("shift_psnr", {})[name] = table
            keys = PROTOCOLS[name].keys()
            results.summary |= {key: reductions[reduction].item() for reduction, key in keys.items()}
            if name == ("crop" if "crop" in self.options.protocols else "circular"):
                period = shift_period(self.shifts, pooled.tolist())
                results.summary |= {} if period is None else {"val/shift_period": period}


def fitting_multiple(
    generate: Generate, image: Tensor, shifts: Sequence[Motion], protocol: Protocol = PROTOCOLS["crop"]
) -> int:
    """Find the smallest power of two, up to 256, such that the generator takes windows with sides of its multiples.

    Raises:
        InputError: there is no such window of the image (1, C, H, W), or no room for the shifts.
    """
    for multiple in (2**power for power in range(9)):
        try:
            part, _ = protocol.inputs(image, shifts, multiple)
        except InputError:
            if multiple == 1:
                raise
            break
        if takes(generate, part):
            return multiple
    raise InputError("the generator takes no window smaller than the image")


def _quality(output: Tensor, target: Tensor | None, notes: list[str]) -> dict[str, Tensor]:
    """Return the quality of each image; without comparable targets NaN, except for the total variation."""
    if target is not None and target.shape == output.shape:
        return image_quality(output, target)
    if target is not None:
        shapes = ["×".join(map(str, images.shape[1:])) for images in (output, target)]
        notes.append(f"quality: not measured, outputs are {shapes[0]} and targets {shapes[1]}")
    unknown = dict.fromkeys(("l1", "psnr", "ssim", "tv", "tv_target"), output.new_full((len(output),), math.nan))
    return {**unknown, "tv": total_variation(output)} if target is None else unknown


def first_output(generate: Generate, source: Tensor, names: list[str]) -> Tensor:
    """Call a model for the first time with images of their size; an error names the first image and its shape."""
    try:
        return generate(source)
    except InputError as error:  # also those of our own networks
        reason = error.reason if isinstance(error, ModelError) else error
        # one of grey, alpha or palette among others is the usual reason
        convert = "" if source.shape[1] == 3 else " (data.convert=true converts grey and alpha)"
        said = f"the generator cannot take {names[0]} {tuple(source.shape)}: {reason}{convert}"
        raise InputError(said) from error


class MeasuredRealism:
    """`Realism` of those images of a measurement that it can compare."""

    def __init__(self, device: torch.device) -> None:
        # Apple's GPUs have no float64
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.metric = Realism().to(self.device)

    def add(self, output: Tensor, target: Tensor | None, notes: list[str]) -> Tensor:
        """Return the perceptual distance of each image, (N,), NaN where it cannot be measured, which is noted."""
        reason = incomparable(output, target)
        if not reason and min(output.shape[-2:]) < SMALLEST:
            reason = f"images of {hxw(output.shape[-2:])} are below {SMALLEST}×{SMALLEST}"
        if reason or target is None:
            notes.append(f"realism: not measured, {reason}")
            return torch.full((len(output),), math.nan)
        return self.metric.update(output.to(self.device), target.to(self.device)).cpu()

    def summary(self) -> dict[str, float]:
        """Return the numbers of the sets by log key, without those of too few images."""
        if not self.metric.kernel.update_called:
            return {}
        found = {key: value.item() for key, value in self.metric.compute().items()}
        return {key: value for key, value in found.items() if not math.isnan(value)}
