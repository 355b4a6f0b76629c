"""Measure any image-to-image model or classifier on any images: numbers and pictures; nothing is trained."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from genstab.evaluation.robustness import corruption_errors, corruption_picture, relative_corruption_error
from genstab.inference.conventions import ModelError
from genstab.inference.eval_mode import inference
from genstab.inference.input_size import InputSize, advice, find_input_size, fits
from genstab.inference.value_range import first_call
from genstab.metrics.corruptions import SMALLEST, corruptions_for
from genstab.metrics.feature_distance import feature_maps
from genstab.metrics.layer_outputs import choose_layers
from genstab.metrics.protocols import PROTOCOLS, Generate, by_passes
from genstab.metrics.shift_map import RolledOutputs, circular_grid, map_table, measure_map
from genstab.metrics.shift_ops import Shift, grid_shifts
from genstab.metrics.shift_psnr import decibel
from genstab.report.figures import distance_grids, feature_map_picture, save_picture, write_exhibits
from genstab.runtime.files import MEASUREMENTS, read_json, write_json
from genstab.runtime.run_folder import MEASURED, check_measurable

SHOWN = 4  # rows of the samples
FRAMES = 32  # of the animation
QUIET = 10.0  # seconds between two lines on how far it is, in a log


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
    if options.corruptions and options.corruptions["baseline"]:
        read_json(Path(options.corruptions["baseline"], MEASUREMENTS))  # fail early if it is missing
    if options.control == "blur":
        model, dataset = nn.Identity(), OfTargets(dataset)
    folder = Path(folder)
    check_measurable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # One stream of random numbers for all parts: otherwise a part would repeat the random draws of G(x).
    with ExitStack() as stack, _same_buffers(model), inference(model, options.dtype) as call:
        measurement = _Measurement(model, call, folder, options, stack)
        measurement.results.notes += notes
        measurement.say = say
        found = measurement.run(dataset)
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


class _Measurement:
    """One measurement: every image once, then the parts that look at the first ones alone."""

    def __init__(
        self, model: nn.Module, call: Generate, folder: Path, options: MeasureOptions, stack: ExitStack
    ) -> None:
        self.model, self.call, self.folder, self.options, self.stack = model, call, folder, options, stack
        self.device = next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self.results = Measured()
        self.names: list[str] = []
        self.first: Batch | None = None
        self.sizes: set[torch.Size] = set()
        self.size = InputSize()
        self.failed: list[str] = []
        self.say: Callable[[str], object] = lambda line: None
        self.said = time.monotonic()

    def run(self, dataset: Dataset) -> Measured:
        options, results = self.options, self.results
        parts = (options.map, options.features, options.corruptions)
        number = max([SHOWN, *(part["images"] for part in parts if part)])
        images = self._batches(dataset, number)
        batch = next(images)
        output = self._first_output(batch)
        if options.control:
            if output.ndim == 2:
                raise InputError(f"control={options.control}: a classifier draws no images")
            given = batch.source, output, batch.target
            self.call, output = controlled(options.control, self.call, *given, results.notes)
        if options.features and options.features["layers"] is not None:
            # fail early if a name is misspelt
            choose_layers(self.model, self.call, batch.source[:1], options.features["layers"])
        speed = results.summary["images_per_second"] = self._speed(batch.source[: min(number, options.batch_size)])
        count = number_of_images(dataset, options.images)
        passes = passes_of(options, count, output.ndim == 2, batch.source.shape[1])
        time_left = duration(passes / speed)
        self.say(f"Measuring {count} images: {passes:,} passes at {speed:.3g} per second, at least {time_left}")
        images = chain([batch], images)
        rolled: RolledOutputs | None = None
        if output.ndim == 2:
            self._classifier(images, dataset, output.shape[1])
        else:
            batch.output = output
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
        self._say_next("feature distance", options.features)
        with self._noted("features"):
            self._features(first.source, rolled)
        self._say_next("corruptions", options.corruptions)
        with self._noted("corruptions"):
            self._corruptions(first)
        decibels: dict[Shift, float] = {}
        if rolled is not None:
            self._say_next("shift map", options.map)
            with self._noted("map"):
                decibels = self._map(first, rolled)
        for name in MEASURED:
            (self.folder / name).unlink(missing_ok=True)  # of an earlier measurement
        write_json(self.folder / MEASUREMENTS, results.measurements)  # first, as it tells whose the others are
        if rolled is not None:
            self._pictures(first, rolled, decibels)
        for key, picture in results.pictures.items():
            save_picture(picture, self.folder / f"{key}.png")
        return results

    def _batches(self, dataset: Dataset, number: int) -> Iterator[Batch]:
        """Yield the batches; keep the names, and up to `number` of the first images with what was added to them."""
        options = self.options
        skip = options.on_error == "skip"
        notes = self.results.notes
        for batch in batches(dataset, options.images, options.batch_size, skip, notes, self.failed):
            if not self.names and (line := almost_constant(batch.source)):
                notes.append(f"in the first batch, {line}")
            batch.source = batch.source.to(self.device)
            if not self.size.is_any:
                self._cut(batch)
            yield batch
            self.sizes.add(batch.source.shape[1:])
            self.names += batch.names
            if not sys.stderr.isatty() and time.monotonic() > self.said + QUIET:  # where no bar is drawn
                self.said = time.monotonic()
                self.say(f"{len(self.names)} images measured")
            self.first = self.first.extended(batch, number) if self.first else batch.first(number)

    def _first_output(self, batch: Batch) -> Tensor:
        """Call the model with the values and with a size of images that it takes, found by trying, and note them."""
        said: list[str] = []
        contexts: list[ExitStack] = []

        def first(images: Tensor) -> Tensor:
            output, context = first_call(self.model, self.call, self.options.values, images, said, batch.target)
            contexts.append(context)
            return output

        failure: InputError | None = None
        try:
            output = first_output(first, batch.source, batch.names)
            found = None if output.ndim != 4 or fits(output, batch.source) else self._other_size(batch)
        except InputError as error:
            if not isinstance(error.__cause__, ModelError):
                raise
            failure, found = error, self._other_size(batch)
        if found is not None:
            for context in contexts:
                context.close()  # or values would be converted twice
            said.clear()
            self.size = found
            self._cut(batch)
            size = hxw(batch.source.shape[2:])
            self.results.notes.append(
                f"the model takes {found}: images are cut to their centre, {size} of {batch.names[0]}"
            )
            output = first_output(first, batch.source, batch.names)
        elif failure is not None:
            raise InputError(f"{failure}{advice(self.model, self.call, batch.source)}") from failure
        self.stack.push(contexts[-1])
        self.results.notes += said
        return output  # another size than the model's multiples is explained where shifts need it

    def _other_size(self, batch: Batch) -> InputSize | None:
        return find_input_size(self.model, self.call, batch.source)

    def _cut(self, batch: Batch) -> None:
        given = batch.source.shape[2:]
        size = self.size.of(*given)
        if not min(size):
            wanted = self.size.fixed or (self.size.multiple, self.size.multiple)
            cure = f"data.size=[{wanted[0]},{wanted[1]}] resizes images"
            raise InputError(f"{batch.names[0]} is {hxw(given)}, but the model takes {self.size}: {cure}")
        batch.cut(size)

    def _say_next(self, part: str, options: Mapping[str, Any] | None) -> None:
        if options:
            images = min(options["images"], 0 if self.first is None else len(self.first.names))
            self.say(f"Next: {part}, of {images} images")

    @contextmanager
    def _noted(self, part: str) -> Iterator[None]:
        """Turn an error in one part into a note, and keep the numbers of the other parts."""
        try:
            yield
        except InputError as error:
            self.results.notes.append(f"{part}: not measured, {error}")

    def _classifier(self, images: Iterable[Batch], dataset: Dataset, classes: int) -> None:
        """Measure consistency and accuracy of a classifier."""
        results, options = self.results, self.options
        part = options.consistency or PARTS["consistency"]
        named = len(getattr(dataset, "classes", ())) or classes
        labelled = named == classes
        if not labelled and (file := getattr(dataset, "class_file", None)):
            raise InputError(f"data.classes={file} names {named} classes, but the model has {classes}")
        if not labelled:
            results.notes.append(
                f"accuracy: not measured, the model has {classes} classes and the data have folders for {named}: "
                "data.classes=FILE names the model's classes in order"
            )

        def views() -> Iterator[dict[str, Any]]:
            for batch in images:
                batch.labels = batch.labels if labelled else None
                yield {"source": batch.source if batch.whole is None else batch.whole, "label": batch.labels}

        found = classifier_stability(
            self.model,
            views(),
            max_shift=part["max_shift"],
            pairs=part["pairs"],
            seed=options.seed,
            forward_batch=options.batch_size,
            dtype=options.dtype,
            size=self.size,
        )
        results.measurements["consistency"] = {"images": self.names, **found}
        results.summary["val/consistency"] = found["crop"]["consistency"]
        results.summary["val/consistency_roll"] = found["circular"]["consistency"]
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

    def _features(self, source: Tensor, rolled: RolledOutputs | None) -> None:
        """Measure the feature distance; the map reuses the outputs."""
        part, options, results = self.options.features, self.options, self.results
        if part is None:
            return
        images = source[: part["images"]]
        shifts = circular_grid(images, part["reach"])
        distances = feature_maps(
            self.model,
            images,
            shifts,
            part["layers"],
            options.batch_size,
            options.dtype,
            rolled.compare if rolled is not None and len(images) <= options.batch_size else None,
        )
        reach = shifts[-1][0]
        grids = {layer: grid.tolist() for layer, grid in distance_grids(distances, reach).items()}
        results.measurements["features"] = {"reach": reach, "images": len(images), "layers": grids}
        means = [each.mean().item() for each in distances.values()]
        results.summary["val/feature_distance"] = sum(means) / len(means)
        results.pictures["features"] = feature_map_picture(grids)

    def _corruptions(self, first: Batch) -> None:
        """Measure how far a generator's output moves under corruptions, or how often a classifier is wrong."""
        options, results = self.options, self.results
        expected = first.labels if first.output is None else first.output
        if options.corruptions is None or expected is None:
            return
        images = first.first(options.corruptions["images"])
        if min(images.source.shape[2:]) < SMALLEST:
            size = hxw(images.source.shape[2:])
            raise InputError(f"{size} images are smaller than {SMALLEST}×{SMALLEST}")
        severities = list(options.corruptions["severities"])
        names = list(options.corruptions["names"] or corruptions_for(images.source.shape[1]))
        errors = corruption_errors(
            self.call,
            images.source,
            expected[: len(images.names)],
            names,
            severities,
            seed=options.seed,
            indices=images.positions,
            forward_batch=options.batch_size,
        ).mean(2)
        part: dict[str, Any] = {"severities": severities, "images": images.names, "relative": None}
        part["errors"] = dict(zip(names, errors.tolist(), strict=True))
        if images.output is None:
            key = "corruption_errors"
            results.summary["val/corruption_error"] = errors.mean().item()
        else:
            key = "corruptions"
            part["decibels"] = dict(zip(names, decibel(errors).tolist(), strict=True))
            results.summary["val/corruption_psnr"] = decibel(errors).mean().item()
            results.pictures["corruptions"] = corruption_picture(part["decibels"], severities)
        results.measurements[key] = part
        if folder := options.corruptions["baseline"]:
            part["relative"], results.summary["val/corruption_relative"] = _relative(part, key, folder)

    def _map(self, first: Batch, rolled: RolledOutputs) -> dict[Shift, float]:
        part, options = self.options.map, self.options
        if part is None:
            return {}
        images, protocol = first.first(part["images"]), PROTOCOLS[part["protocol"]]
        multiple, source = options.multiple, images.source
        if protocol.windows and self.size.fixed:
            source = images.with_room(grid_shifts(part["reach"]))
        if protocol.windows and multiple is None:
            multiple = fitting_multiple(self.call, source[:1], grid_shifts(part["reach"]), protocol)
            if multiple is None:
                raise InputError("the generator takes no window smaller than the images")
        decibels = measure_map(
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
        self.results.measurements["shift_map"] = map_table(decibels, len(images.names), protocol.name)
        return decibels

    def _pictures(self, first: Batch, rolled: RolledOutputs, decibels: dict[Shift, float]) -> None:
        shown, part = first.first(SHOWN), self.options.map
        columns = {"source": shown.source, "output": shown.output, "target": shown.target}
        samples = {key: images for key, images in columns.items() if images is not None}
        title = "" if part is None else f"{part['protocol']}, {len(first.names[: part['images']])} images"
        self.results.pictures |= write_exhibits(self.folder, self.call, samples, rolled, decibels, title, FRAMES)


def passes_of(options: MeasureOptions, images: int, classifier: bool, channels: int) -> int:
    """Return about how many images a measurement passes through the model.

    >>> passes_of(MeasureOptions(features=None, corruptions=None, map=None), images=10, classifier=False, channels=3)
    230
    """
    part = options.consistency or PARTS["consistency"]
    per_image = 2 * (1 + 2 * part["pairs"])
    if not classifier:
        moving = [PROTOCOLS[name] for name in by_passes(options.protocols)]
        shifts = (len(each.measured(options.shifts, options.fractional_shifts)) for each in moving)
        per_image = 1 + options.noise_floor + sum(shifts) + sum(each.windows is not None for each in moving)
    total = images * per_image
    for name in ("features",) if classifier else ("map", "features"):
        if each := getattr(options, name):
            total += min(images, each["images"]) * ((2 * each["reach"] + 1) ** 2 - 1)
    if each := options.corruptions:
        names = each["names"] or corruptions_for(channels)
        total += min(images, each["images"]) * len(names) * len(each["severities"])
    return total


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(41.6), duration(300), duration(9000)
    ('42 s', '5 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _parameters(model: nn.Module) -> int | None:
    """Return the number of parameters; None for a program that does not tell."""
    if hasattr(model, "parameter_count"):
        return model.parameter_count  # type: ignore[return-value]  # a Program
    return sum(parameter.numel() for parameter in model.parameters())


def _relative(part: Mapping[str, Any], key: str, folder: str) -> tuple[dict[str, float], float]:
    baseline = read_json(Path(folder, MEASUREMENTS)).get(key)
    if baseline is None:
        raise InputError(f"corruptions.baseline={folder}: its {MEASUREMENTS} has no {key}")
    try:
        images, errors, severities = baseline["images"], baseline["errors"], baseline["severities"]
        if images != part["images"]:
            raise InputError(f"corruptions.baseline={folder} was measured on {images}, not {part['images']}")
        return relative_corruption_error(part["errors"], errors, part["severities"], severities)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"corruptions.baseline={folder}: its {MEASUREMENTS} is no measurement's") from error
