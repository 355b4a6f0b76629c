"""Measure any image-to-image model or classifier on any images: numbers and pictures; nothing is trained."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from timeit import Timer
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import benchmark
from torch.utils.data import Dataset

from genstab.data.paths import hxw
from genstab.data.reading import almost_constant
from genstab.errors import InputError
from genstab.evaluation.classifiers import classifier_stability
from genstab.evaluation.controls import OfTargets, controlled
from genstab.evaluation.dataset_batches import Batch, batches, number_of_images
from genstab.evaluation.generators import Measured, first_output, fitting_multiple, measure_generator
from genstab.evaluation.options import PARTS, MeasureOptions
from genstab.evaluation.progress import Progress, passes_of
from genstab.evaluation.robustness import corruption_errors, corruption_picture, relative_corruption_error
from genstab.inference.conventions import ModelError
from genstab.inference.eval_mode import inference
from genstab.inference.input_size import InputSize, advice, find_input_size, fits
from genstab.inference.value_range import SettledCall, ValuesError
from genstab.metrics.corruptions import corruptions_for
from genstab.metrics.feature_distance import feature_maps
from genstab.metrics.layer_outputs import choose_layers
from genstab.metrics.protocols import PROTOCOLS, Generate
from genstab.metrics.shift_map import RolledOutputs, circular_grid, map_table, measure_map
from genstab.metrics.shift_ops import Shift, grid_shifts
from genstab.metrics.shift_psnr import decibel
from genstab.report.figures import distance_grids, feature_map_picture, save_picture, write_exhibits
from genstab.runtime.files import MEASUREMENTS, read_json, write_json
from genstab.runtime.run_folder import MEASURED, MEASUREMENT, alone_in, check_free

SHOWN = 4  # rows of the samples
FRAMES = 32  # of the animation


def measure(
    model: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    options: MeasureOptions | None = None,
    notes: Sequence[str] = (),
    say: Callable[[str], object] = lambda line: None,
) -> Measured:
    """Measure a generator: stability in every protocol, quality, map, features, corruptions, speed.

    For a classifier, a model that returns logits (N, K), consistency and accuracy take the place of stability and
    quality. Weights, modes and the random state of the model are not changed.

    Args:
        model: maps (N, C, H, W) to images of the same size or an integer multiple of it, or to logits; on its device.
        dataset: see `genstab.evaluation.dataset_batches.batches`.
        folder: gets `measurements.json` and the pictures; created if missing.
        options: what to measure.
        notes: first lines of its notes, such as those of `load_model`.
        say: is called with a line on what is done next and how long it takes, such as `print`.

    Raises:
        InputError: images, options and generator do not fit together; an output is not finite.
        PartlyMeasuredError: an image could not be read after others were measured, which `folder` and the error hold.
    """
    options = options or MeasureOptions()
    baseline = None
    if options.corruptions and options.corruptions["baseline"]:
        path = Path(options.corruptions["baseline"], MEASUREMENTS)
        baseline = read_json(path)  # before any work
        if not isinstance(baseline, Mapping) or baseline.keys().isdisjoint(("corruptions", "corruption_errors")):
            raise InputError(f"corruptions.baseline: {path} has no corruptions: measure them there first")
    if options.control == "blur":
        model, dataset = nn.Identity(), OfTargets(dataset)
    folder = Path(folder)
    check_free(folder, MEASUREMENT)
    # One stream of random numbers for all parts: otherwise a part would repeat the random draws of G(x).
    with alone_in(folder, MEASUREMENT), _same_buffers(model), inference(model, options.dtype) as call:
        results = Measured(notes=[*notes])
        settled = SettledCall(call, options.values, results.notes)
        measurement = _Measurement(model, settled, settled, folder, options, say, baseline, results)
        found = measurement.run(dataset)
    found.notes[:] = dict.fromkeys(found.notes)
    if measurement.failed:
        raise PartlyMeasuredError(measurement.failed, found)
    return found


class PartlyMeasuredError(InputError):
    """Some images could not be read after the measurement had begun; `found` is that of the others."""

    def __init__(self, failed: Sequence[str], found: Measured) -> None:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        super().__init__(f"{failed[0]}{more}: the other {found.summary['images']} images were measured")
        self.found = found


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Restore buffers that a forward pass changes even in eval mode, such as a counter."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


@dataclass
class _Measurement:
    """One measurement: every image once, then the parts that look at the first ones alone."""

    model: nn.Module
    settled: SettledCall  # of images in [−1, 1]
    call: Generate  # the same, or its control
    folder: Path
    options: MeasureOptions
    say: Callable[[str], object]
    baseline: Mapping[str, Any] | None
    results: Measured
    names: list[str] = field(default_factory=list)
    first: Batch | None = None
    sizes: set[torch.Size] = field(default_factory=set)
    size: InputSize = field(default_factory=InputSize)
    failed: list[str] = field(default_factory=list)
    classes: int = 0  # of a classifier
    decibels: dict[Shift, float] = field(default_factory=dict)  # of the shift map
    progress: Progress | None = None

    def run(self, dataset: Dataset) -> Measured:
        options, results = self.options, self.results
        parts = (options.features, options.corruptions, options.map)
        number = max([SHOWN, *(part["images"] for part in parts if part)])
        images = self._batches(dataset, number)
        batch = next(images, None)
        if batch is None:
            raise InputError(f"there is no image to measure: {results.notes[-1]}")
        if options.control:
            if batch.output is None:
                raise InputError(f"control={options.control}: a classifier draws no images")
            given = batch.source, batch.output, batch.target
            self.call, batch.output = controlled(options.control, self.call, *given, results.notes)
        output = batch.output
        if options.features and options.features["layers"] is not None:
            # fail early if a name is misspelt
            choose_layers(self.model, self.call, batch.source[:1], options.features["layers"])
        speed = results.summary["images_per_second"] = self._speed(batch.source[: min(number, options.batch_size)])
        count = number_of_images(dataset, options.images)
        passes = passes_of(options, count, output is None, batch.source.shape[1])
        self.progress = Progress(count, *passes, speed, self.say)
        images = chain([batch], images)
        rolled: RolledOutputs | None = None
        if output is None:
            self._classifier(images, dataset, self.classes)
        else:
            rolled = RolledOutputs(batch.source[:number], output[:number])
            measure_generator(self.call, images, rolled, options, results, self.size.fixed is not None)
        first = self.first
        assert first is not None  # there is at least one batch
        if rolled is not None and first.output is not None and len(first.names) > len(rolled.images):
            rolled = RolledOutputs(first.source, first.output)  # the first batch had too few images
        results.summary["parameters"] = _parameters(self.model)
        if len(self.sizes) > 1:
            size = hxw(first.source.shape[2:])
            results.notes.append(f"map, features, corruptions, animation: on images of {size} alone")
        for name, part, measure_part in (
            ("features", options.features, self._features),
            ("corruptions", options.corruptions, self._corruptions),
            ("map", options.map if rolled is not None else None, self._map),
        ):
            if part:
                of_part = first.first(part["images"])
                self.say(f"Next: {name}, on {len(of_part.names)} images")
                try:
                    measure_part(part, of_part, rolled)
                except InputError as error:  # the numbers of the other parts are kept
                    results.notes.append(f"{name}: not measured, {error}")
        for name in MEASURED:
            (self.folder / name).unlink(missing_ok=True)  # of an earlier measurement
        write_json(self.folder / MEASUREMENTS, results.measurements)  # first, as it tells whose the others are
        if rolled is not None:
            self._pictures(first, rolled)
        for key, picture in results.pictures.items():
            save_picture(picture, self.folder / f"{key}.png")
        return results

    def _batches(self, dataset: Dataset, number: int) -> Iterator[Batch]:
        """Yield the batches; keep the names, and up to `number` of the first images with what was added to them."""
        options, notes = self.options, self.results.notes
        device = next((each.device for each in (*self.model.parameters(), *self.model.buffers())), None)
        skip = options.on_error == "skip"
        for batch in batches(dataset, options.images, options.batch_size, skip, notes, self.failed):
            for what, seen in (("sources", batch.source), ("targets", batch.target)):
                if not self.names and seen is not None and (line := almost_constant(seen, what)):
                    notes.append(f"in the first batch, {line}")
            batch.source = batch.source.to(device)
            if not self._takes(batch):
                continue
            yield batch
            self.sizes.add(batch.source.shape[1:])
            self.names += batch.names
            self.first = self.first.extended(batch, number) if self.first else batch.first(number)
            assert self.progress is not None  # it began with the first batch
            self.progress.measured(len(self.names))

    def _takes(self, batch: Batch) -> bool:
        """Call the model with a batch; leave it out if the model cannot take it, unless it is the first one."""
        try:
            if not self.size.is_any:
                self._cut(batch)
            output = self._output(batch)
        except InputError as error:
            skip = self.options.on_error == "skip"
            if isinstance(error.__cause__, ValuesError) or not (skip or self.names):
                raise
            if not skip:
                self.failed.append(str(error))
            self.results.notes.append(f"skipped: {error}")
            return False
        self.settled.settle()
        self.classes = output.shape[1]
        batch.output = output if output.ndim == 4 else None
        return True

    def _output(self, batch: Batch) -> Tensor:
        """Call the model, with a size that it takes; that is found by trying, for the images from now on, and noted."""

        def call(images: Tensor) -> Tensor:
            return self.settled(images, batch.target) if self.call is self.settled else self.call(images)

        found = None
        try:
            output = first_output(call, batch.source, batch.names)
            if output.ndim == 4 and not fits(output, batch.source):
                found = find_input_size(self.model, self.call, batch.source)
        except InputError as error:
            if not isinstance(error.__cause__, ModelError):
                raise
            found = find_input_size(self.model, self.call, batch.source)
            if found is None:
                raise InputError(f"{error}{advice(self.model, self.call, batch.source)}") from error
        if found is not None:
            self.size = found
            self._cut(batch)
            size = hxw(batch.source.shape[2:])
            self.results.notes.append(
                f"the model takes {found}: images are cut to their centre, {size} of {batch.names[0]}"
            )
            output = first_output(call, batch.source, batch.names)
        return output  # another size than the model's multiples is explained where shifts need it

    def _cut(self, batch: Batch) -> None:
        given = batch.source.shape[2:]
        size = self.size.of(*given)
        if not min(size):
            wanted = self.size.fixed or (self.size.multiple, self.size.multiple)
            cure = f"data.size=[{wanted[0]},{wanted[1]}] resizes images"
            raise InputError(f"{batch.names[0]} is {hxw(given)}, but the model takes {self.size}: {cure}")
        batch.cut(size)

    def _classifier(self, images: Iterable[Batch], dataset: Dataset, classes: int) -> None:
        """Measure consistency and accuracy of a classifier."""
        results, options = self.results, self.options
        part = options.consistency or PARTS["consistency"]
        size = self.size  # one that is found later is of images cut to it
        named = len(getattr(dataset, "classes", ())) or classes
        labelled = named == classes
        if not labelled and (file := getattr(dataset, "class_file", None)):
            raise InputError(f"data.classes={file} names {named} classes, but the model has {classes}")
        if not labelled:
            results.notes.append(
                f"accuracy: not measured, the model has {classes} classes and the data have folders for {named}: "
                "data.classes=FILE names the model's classes in order"
            )

        labels: set[int] = set()

        def views() -> Iterator[dict[str, Any]]:
            for batch in images:
                batch.labels = batch.labels if labelled else None
                whole = batch.source if batch.whole is None or size.is_any else batch.whole
                labels.update(() if batch.labels is None else batch.labels.tolist())
                yield {"source": whole, "label": batch.labels}

        found = classifier_stability(
            self.model,
            views(),
            max_shift=part["max_shift"],
            pairs=part["pairs"],
            seed=options.seed,
            forward_batch=options.batch_size,
            dtype=options.dtype,
            size=size,
        )
        results.measurements["consistency"] = {"images": self.names, **found}
        results.summary["val/consistency"] = found["crop"]["consistency"]
        results.summary["val/consistency_roll"] = found["circular"]["consistency"]
        if len(labels) > 1:  # otherwise one class may be the right answer for all images
            times = Counter(found["circular"]["predicted"]).values()
            results.summary["val/output_spread"] = 1 - sum((each / len(self.names)) ** 2 for each in times)
        if "accuracy" in found["circular"]:
            results.summary["val/accuracy"] = found["circular"]["accuracy"]
        elif labelled:
            results.notes.append("accuracy: not measured, the images have no labels (data=classes has)")
        if options.perceptual:
            results.notes.append(f"{', '.join(options.perceptual)}: not measured, a classifier draws no images")
        results.summary["images"] = len(self.names)

    def _speed(self, source: Tensor) -> float:
        """Return images per second: the fastest of three forward passes."""
        timer = Timer(lambda: self.call(source), timer=benchmark.timer)  # a clock that waits for an accelerator
        return len(source) / min(timer.repeat(3, number=1))

    def _features(self, part: Mapping[str, Any], images: Batch, rolled: RolledOutputs | None) -> None:
        """Measure the feature distance; the map reuses the outputs."""
        options, results = self.options, self.results
        shifts = circular_grid(images.source, part["reach"])
        distances = feature_maps(
            self.model,
            images.source,
            shifts,
            part["layers"],
            options.batch_size,
            options.dtype,
            rolled.compare if rolled is not None and len(images.names) <= options.batch_size else None,
        )
        reach = shifts[-1][0]
        grids = {layer: grid.tolist() for layer, grid in distance_grids(distances, reach).items()}
        results.measurements["features"] = {"reach": reach, "images": len(images.names), "layers": grids}
        means = [each.mean().item() for each in distances.values()]
        results.summary["val/feature_distance"] = sum(means) / len(means)
        results.pictures["features"] = feature_map_picture(grids)

    def _corruptions(self, part: Mapping[str, Any], images: Batch, rolled: RolledOutputs | None) -> None:
        """Measure how far a generator's output moves under corruptions, or how often a classifier is wrong."""
        options, results = self.options, self.results
        expected = images.labels if images.output is None else images.output
        if expected is None:
            return
        severities = list(part["severities"])
        names = list(part["names"] or corruptions_for(images.source.shape[1]))
        errors = corruption_errors(
            self.call,
            images.source,
            expected,
            names,
            severities,
            seed=options.seed,
            indices=images.positions,
            forward_batch=options.batch_size,
        ).mean(2)
        found: dict[str, Any] = {"severities": severities, "images": images.names, "relative": None}
        found["errors"] = dict(zip(names, errors.tolist(), strict=True))
        if images.output is None:
            key = "corruption_errors"
            results.summary["val/corruption_error"] = errors.mean().item()
        else:
            key = "corruptions"
            found["decibels"] = dict(zip(names, decibel(errors).tolist(), strict=True))
            results.summary["val/corruption_psnr"] = decibel(errors).mean().item()
            results.pictures["corruptions"] = corruption_picture(found["decibels"], severities)
        results.measurements[key] = found
        if self.baseline is not None:
            try:
                relative = relative_corruption_error(found, self.baseline[key])
            except (AttributeError, KeyError, TypeError) as error:
                reason = f"its {MEASUREMENTS} has no {key}, or not those of a measurement"
                raise InputError(f"corruptions.baseline={part['baseline']}: {reason}") from error
            found["relative"], results.summary["val/corruption_relative"] = relative

    def _map(self, part: Mapping[str, Any], images: Batch, rolled: RolledOutputs | None) -> None:
        options, protocol, shifts = self.options, PROTOCOLS[part["protocol"]], grid_shifts(part["reach"])
        multiple, source = options.multiple, images.source
        if protocol.windows and self.size.fixed:
            source = images.with_room(shifts)
        if protocol.windows and multiple is None:
            multiple = fitting_multiple(self.call, source[:1], shifts, protocol)
        self.decibels = measure_map(
            self.call,
            source,
            part["reach"],
            protocol.name,
            rolled,
            margin=options.margin,
            forward_batch=options.batch_size,
            multiple=multiple or 1,
            names=images.names,
        )
        self.results.measurements["shift_map"] = map_table(self.decibels, len(images.names), protocol.name)

    def _pictures(self, first: Batch, rolled: RolledOutputs) -> None:
        shown, part = first.first(SHOWN), self.options.map
        columns = {"source": shown.source, "output": shown.output, "target": shown.target}
        samples = {key: images for key, images in columns.items() if images is not None}
        title = "" if part is None else f"{part['protocol']}, {len(first.names[: part['images']])} images"
        self.results.pictures |= write_exhibits(self.folder, self.call, samples, rolled, self.decibels, title, FRAMES)


def _parameters(model: nn.Module) -> int | None:
    """Return the number of parameters; None for a program that does not tell."""
    if hasattr(model, "parameter_count"):
        return model.parameter_count  # type: ignore[return-value]  # a Program
    return sum(parameter.numel() for parameter in model.parameters())
