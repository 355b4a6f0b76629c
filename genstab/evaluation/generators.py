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
from genstab.metrics.perceptual import Perceptual, incomparable, note
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

    The first of the batches, on the device of the generator, has its output; the others get theirs. `rolled` holds its
    first images, and gets the outputs for their circular shifts. With `fixed`, it takes images of one size alone.
    """
    perceptual = Perceptual(options.perceptual, rolled.images.device)
    realism = MeasuredRealism(rolled.images.device) if options.realism else None
    groups = by_passes(options.protocols).values()
    protocols = [ProtocolErrors(group, options, results.notes, fixed) for group in groups]
    spread, as_a_set = OutputSpread(), SetQuality()
    quality: dict[str, list[Tensor]] = defaultdict(list)
    floors: list[Tensor] = []
    names: list[str] = []
    for batch in batches:
        if batch.output is None:
            batch.output = first_output(generate, batch.source, batch.names)
        output = batch.output
        spread.add(output)
        if options.noise_floor:
            error, pixels = squared_error(output, generate(batch.source))
            floors.append(decibel(error / pixels).cpu())
        for each in protocols:
            each.add(generate, batch, len(names), None if names else rolled)
        for key, values in _quality(output, batch.target, results.notes).items():
            quality[key].append(values)
        if (distances := perceptual.add(output, batch.target, results.notes)) is not None:
            quality["lpips"].append(distances)
        if realism is not None:
            quality["perceptual"].append(realism.add(output, batch.target, results.notes))
        as_a_set.add(output, batch.target)
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
    results.summary |= as_a_set.summary(results.notes) | perceptual.summary(results.notes)
    results.summary |= {} if realism is None else realism.summary()
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
        self.multiples: dict[torch.Size, int | str] = {}

    def add(self, generate: Generate, batch: Batch, position: int, rolled: RolledOutputs | None = None) -> None:
        """Measure a batch, the first image of which has this position; note why if it cannot be measured."""
        images, output = batch.source, batch.output
        try:
            if self.protocol.windows and self.fixed:
                images, output = batch.with_room(self.shifts), None
        except InputError as small:
            self.notes.append(f"{self.protocol.name}: not measured for {shortened(batch.names)}: {small}")
            return
        size = images.shape[1:]
        if size not in self.multiples:
            self.multiples[size] = self._multiple(generate, images[:1])
        if isinstance(multiple := self.multiples[size], int):
            try:
                found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.group}
                known: dict[str, Any] = {"multiple": multiple, "output": output, "names": batch.names}
                by_shift = errors_by_protocol(generate, images, self.shifts, self.group, **self.common, **known)
                for shift, errors, output_of_shifted in by_shift:
                    for name, (error, pixels) in errors.items():
                        found[name].append((error.cpu(), pixels.cpu()))
                        if rolled is not None and name == "circular":
                            rolled.add(shift, (error / pixels).cpu(), output_of_shifted)
                positions = torch.arange(position, position + len(batch.names))
                for name, pairs in found.items():
                    error, pixels = (torch.stack(each) for each in zip(*pairs, strict=True))
                    self.errors[name].append((positions, error, pixels))
            except ModelError as failure:  # it may reject shifted images
                multiple = self.multiples[size] = f"the generator failed: {failure.reason}"
        if isinstance(multiple, str):
            self.notes.append(f"{self.protocol.name}: not measured for {shortened(batch.names)}: {multiple}")

    def _multiple(self, generate: Generate, image: Tensor) -> int | str:
        """Return the multiple for the sides of windows of an image (1, C, H, W), or why it cannot be measured."""
        multiple = self.options.multiple or 1
        try:
            if self.protocol.windows and not self.options.multiple:
                multiple = fitting_multiple(generate, image, self.shifts, self.protocol) or 0
                if not multiple:
                    return "the generator takes no window smaller than the image"
            # is there room for every shift?
            one = image[:, :1]
            list(shift_pairs(lambda x: x, one, self.shifts, self.protocol.name, multiple=multiple, **self.common))
        except InputError as error:
            return f"{error} (other {'' if self.protocol.name == 'circular' else 'margin or '}shifts may fit)"
        return multiple

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
) -> int | None:
    """Find the smallest power of two, up to 256, such that the generator takes windows with sides of its multiples.

    None: there is no such window of the image (1, C, H, W).
    """
    for multiple in (2**power for power in range(9)):
        try:
            part, _ = protocol.inputs(image, shifts, multiple)
        except InputError:
            if multiple == 1:
                raise
            return None
        if takes(generate, part):
            return multiple
    return None


def _quality(output: Tensor, target: Tensor | None, notes: list[str]) -> dict[str, Tensor]:
    """Return the quality of each image; without comparable targets NaN, except for the total variation."""
    output = output.float().cpu()
    if target is not None and target.shape == output.shape:
        return image_quality(output, target)
    if target is not None:
        shapes = ["×".join(map(str, images.shape[1:])) for images in (output, target)]
        note(notes, f"quality: not measured, outputs are {shapes[0]} and targets {shapes[1]}")
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


class SetQuality:
    """How far outputs and targets differ as sets: power spectra and patches, for each size of images."""

    def __init__(self) -> None:
        self.by_shape: dict[tuple[int, ...], list[Any]] = {}

    def add(self, output: Tensor, target: Tensor | None) -> None:
        """Add outputs and targets, each (N, C, H, W), if they have the same shape."""
        if target is None or target.shape != output.shape:
            return
        output = output.float().cpu()
        entry = self.by_shape.setdefault(output.shape[1:], [0, SpectrumError(), SlicedWasserstein()])
        entry[1].update(output, target)
        if (room := MOST_PATCHED - entry[0]) > 0:
            entry[2].update(output[:room], target[:room])
        entry[0] += len(output)

    def summary(self, notes: list[str]) -> dict[str, float]:
        """Return both numbers for the most frequent size; add a note if there are others."""
        if not self.by_shape:
            return {}
        shape, (number, spectrum, patches) = max(self.by_shape.items(), key=lambda item: item[1][0])
        if len(self.by_shape) > 1:
            notes.append(f"spectrum_error, swd: of the {number} images of {'×'.join(map(str, shape))} alone")
        return {"val/spectrum_error": spectrum.compute().item(), "val/swd": patches.compute().item()}


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
            note(notes, f"realism: not measured, {reason}")
            return torch.full((len(output),), math.nan)
        return self.metric.update(output.to(self.device), target.to(self.device)).cpu()

    def summary(self) -> dict[str, float]:
        """Return the numbers of the sets by log key, without those of too few images."""
        if not self.metric.kernel.update_called:
            return {}
        found = {key: value.item() for key, value in self.metric.compute().items()}
        return {key: value for key, value in found.items() if not math.isnan(value)}
