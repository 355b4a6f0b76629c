"""Measure any image-to-image model or classifier on any images: numbers and pictures; nothing is trained."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from genstab.data.paths import hxw
from genstab.errors import InputError
from genstab.evaluation.classifiers import classifier_stability
from genstab.evaluation.dataset_batches import Batch, batches, keep
from genstab.evaluation.generators import Measured, first_output, fitting_multiple, measure_stability
from genstab.evaluation.options import PARTS, Plan
from genstab.evaluation.robustness import (
    classification_corruption_errors,
    corruption_errors,
    corruption_picture,
    relative_corruption_error,
)
from genstab.inference.eval_mode import inference, value_range
from genstab.metrics.corruptions import SMALLEST, corruptions_for
from genstab.metrics.feature_distance import feature_maps
from genstab.metrics.layer_outputs import choose_layers
from genstab.metrics.shift_ops import Shift, grid_shifts
from genstab.metrics.shift_psnr import decibel
from genstab.report.figures import (
    circular_grid,
    distance_grids,
    feature_map_picture,
    map_table,
    measure_map,
    save_picture,
    write_exhibits,
)
from genstab.runtime.files import MEASUREMENTS, read_json, write_json

SHOWN = 4  # rows of the samples
FRAMES = 32  # of the film


def measure(model: nn.Module, dataset: Dataset, folder: str | Path, plan: Plan | None = None) -> Measured:
    """Measure a generator: stability in every protocol, quality, map, features, corruptions, speed.

    Of a model that returns logits (N, K), a classifier, its consistency and accuracy, features, errors under
    corruptions, speed. Its weights, modes and the random state stay as they are.

    Args:
        model: maps (N, C, H, W) to images of the same size or an integer multiple of it, or to logits; on its device.
        dataset: see `genstab.evaluation.dataset_batches.batches`.
        folder: gets `measurements.json` and the pictures; it is made where it is missing.
        plan: what to measure.

    Raises:
        InputError: images, options and generator do not fit together; an output that is not finite.
    """
    plan = plan or Plan()
    if plan.corruptions and plan.corruptions["baseline"]:
        read_json(Path(plan.corruptions["baseline"], MEASUREMENTS))  # what is missing is said before any work
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    in_range = value_range(model, *plan.value_range) if tuple(plan.value_range) != (-1, 1) else nullcontext()
    with in_range, _same_buffers(model):
        found = _measure(model, dataset, folder, plan)
    write_json(folder / MEASUREMENTS, found.measurements)
    return found


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass changes even in eval mode, such as a counter."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _measure(model: nn.Module, dataset: Dataset, folder: Path, plan: Plan) -> Measured:
    found = Measured()
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    wanted = max([SHOWN, *(part["images"] for part in (plan.map, plan.features, plan.corruptions) if part)])
    reading = batches(dataset, plan.images, plan.batch_size, plan.on_error == "skip", found.notes)
    first = next(reading)
    shapes: set[torch.Size] = set()
    reading = _seen(chain([first], reading), shapes)
    with inference(model, plan.dtype) as call:
        image = first.source[:1].to(device)
        classifies = first_output(call, image, first.names).ndim == 2
        if plan.features and plan.features["layers"] is not None:
            choose_layers(model, call, image, plan.features["layers"])  # what is misspelt is said before any work
    if classifies:
        kept = _consistency(model, reading, plan, wanted, found)
    else:
        kept = measure_stability(model, reading, plan, device, wanted, found)
    source = kept.source.to(device)
    found.summary["images_per_second"] = _speed(model, source[: plan.batch_size], plan, device)
    found.summary["parameters"] = _parameters(model)
    if any(shape != source.shape[1:] for shape in shapes):
        found.notes.append(f"map, features, corruptions, film: on images of {hxw(source.shape[2:])} alone")
    decibels: dict[Shift, float] | None = None
    with _noted("features", found):
        _features(model, source, plan, found)
    with _noted("corruptions", found):
        _corruptions(model, kept, plan, device, found, classifies)
    if not classifies:
        with _noted("map", found):
            decibels = _map(model, kept, plan, device, found)
        title = "" if plan.map is None else f"{plan.map['protocol']}, {len(source[: plan.map['images']])} images"
        target = None if kept.target is None else kept.target[:SHOWN]
        found.pictures |= write_exhibits(folder, model, source[:SHOWN], target, decibels, title, FRAMES, plan.dtype)
    for key in ("features", "corruptions"):
        if key in found.pictures:
            save_picture(found.pictures[key], folder / f"{key}.png")
    for key in ("features", "corruptions", "samples", "shift_map"):
        if key not in found.pictures:
            (folder / f"{key}.png").unlink(missing_ok=True)  # of an earlier measurement
    return found


def _seen(reading: Iterable[Batch], shapes: set[torch.Size]) -> Iterator[Batch]:
    for batch in reading:
        shapes.add(batch.source.shape[1:])
        yield batch


@contextmanager
def _noted(part: str, found: Measured) -> Iterator[None]:
    """Let what goes wrong in one part be noted: the numbers of the others are worth keeping."""
    try:
        yield
    except InputError as error:
        found.notes.append(f"{part}: not measured, {error}")


def _consistency(model: nn.Module, reading: Iterable[Batch], plan: Plan, wanted: int, found: Measured) -> Batch:
    """Measure what a classifier makes of shifts; return the first images."""
    part = plan.consistency or PARTS["consistency"]
    names: list[str] = []
    kept: list[Batch | None] = [None]

    def passing() -> Iterator[dict[str, Tensor]]:
        for batch in reading:
            names.extend(batch.names)
            kept[0] = keep(kept[0], batch, wanted)
            yield {"source": batch.source} if batch.labels is None else {"source": batch.source, "label": batch.labels}

    results = classifier_stability(
        model,
        passing(),
        max_shift=part["max_shift"],
        pairs=part["pairs"],
        seed=plan.seed,
        forward_batch=plan.batch_size,
        dtype=plan.dtype,
    )
    found.measurements["consistency"] = {"images": names, **results}
    found.summary["val/consistency"] = results["crop"]["consistency"]
    found.summary["val/consistency_roll"] = results["circular"]["consistency"]
    if "accuracy" in results["circular"]:
        found.summary["val/accuracy"] = results["circular"]["accuracy"]
    else:
        found.notes.append("accuracy: not measured, the images have no labels (data=classes has)")
    if plan.perceptual:
        found.notes.append(f"{', '.join(plan.perceptual)}: not measured, a classifier draws no images")
    found.summary["images"] = len(names)
    assert kept[0] is not None  # there was a first batch
    return kept[0]


def _parameters(model: nn.Module) -> int | None:
    """Count what was learned; a program may not tell."""
    if hasattr(model, "parameter_count"):
        return model.parameter_count  # type: ignore[return-value]  # a Program
    return sum(parameter.numel() for parameter in model.parameters())


def _speed(generator: nn.Module, source: Tensor, plan: Plan, device: torch.device) -> float:
    """Return images per second: the fastest of three forward passes."""
    wait = partial(torch.accelerator.synchronize, device) if device.type != "cpu" else lambda: None
    seconds = []
    with inference(generator, plan.dtype) as generate:
        for _ in range(3):
            wait()
            began = time.perf_counter()
            generate(source)
            wait()
            seconds.append(time.perf_counter() - began)
    return len(source) / min(seconds)


def _map(
    generator: nn.Module, kept: Batch, plan: Plan, device: torch.device, found: Measured
) -> dict[Shift, float] | None:
    if plan.map is None:
        return None
    names, reach, protocol = kept.names[: plan.map["images"]], plan.map["reach"], plan.map["protocol"]
    images = kept.source[: len(names)].to(device)
    multiple = plan.multiple or 1
    if protocol == "crop" and plan.multiple is None:
        with inference(generator, plan.dtype) as generate:
            fits = fitting_multiple(generate, images[:1], grid_shifts(reach))
        if fits is None:
            raise InputError("the generator takes no window smaller than the images")
        multiple = fits
    options = {"margin": plan.margin, "forward_batch": plan.batch_size, "multiple": multiple, "names": names}
    decibels = measure_map(generator, images, reach, plan.dtype, protocol=protocol, **options)
    found.measurements["shift_map"] = map_table(decibels, len(images), protocol)
    return decibels


def _features(generator: nn.Module, source: Tensor, plan: Plan, found: Measured) -> None:
    if plan.features is None:
        return
    images = source[: plan.features["images"]]
    shifts = circular_grid(images, plan.features["reach"])
    with tqdm(total=len(shifts) * len(images), desc="features", unit="image", leave=False, disable=None) as bar:
        layers = plan.features["layers"]
        distances = feature_maps(generator, images, shifts, layers, plan.batch_size, bar.update, plan.dtype)
    reach = shifts[-1][0]
    grids = {layer: grid.tolist() for layer, grid in distance_grids(distances, reach).items()}
    found.measurements["features"] = {"reach": reach, "images": len(images), "layers": grids}
    found.summary["val/feature_distance"] = sum(each.mean().item() for each in distances.values()) / len(distances)
    found.pictures["features"] = feature_map_picture(grids)


def _corruptions(
    model: nn.Module, kept: Batch, plan: Plan, device: torch.device, found: Measured, classifies: bool
) -> None:
    """Measure how far a generator's output moves under corruptions, or how often a classifier is wrong."""
    labels = kept.labels
    if plan.corruptions is None or (classifies and labels is None) or _too_small(kept, found):
        return
    number, severities = plan.corruptions["images"], list(plan.corruptions["severities"])
    source = kept.source[:number].to(device)
    names = list(plan.corruptions["names"] or corruptions_for(source.shape[1]))
    options: dict[str, Any] = {"seed": plan.seed, "indices": kept.positions[:number], "forward_batch": plan.batch_size}
    options |= {"progress": True, "dtype": plan.dtype}
    part: dict[str, Any] = {"severities": severities, "images": kept.names[:number], "relative": None}
    if classifies and labels is not None:
        key = "corruption_errors"
        part["errors"] = classification_corruption_errors(model, source, labels[:number], names, severities, **options)
        found.summary["val/corruption_error"] = torch.tensor(list(part["errors"].values())).mean().item()
    else:
        key = "corruptions"
        errors = corruption_errors(model, source, names, severities, **options).mean(2)
        part["errors"] = dict(zip(names, errors.tolist(), strict=True))
        part["decibels"] = dict(zip(names, decibel(errors).tolist(), strict=True))
        found.summary["val/corruption_psnr"] = decibel(errors).mean().item()
        found.pictures["corruptions"] = corruption_picture(part["decibels"], severities)
    found.measurements[key] = part
    if folder := plan.corruptions["baseline"]:
        part["relative"], found.summary["val/corruption_relative"] = _relative(part, key, folder)


def _too_small(kept: Batch, found: Measured) -> bool:
    height, width = kept.source.shape[-2:]
    if min(height, width) >= SMALLEST:
        return False
    found.notes.append(f"corruptions: not measured, {height}×{width} images are smaller than {SMALLEST}×{SMALLEST}")
    return True


def _relative(part: Mapping[str, Any], key: str, folder: str) -> tuple[dict[str, float], float]:
    baseline = read_json(Path(folder, MEASUREMENTS)).get(key)
    if baseline is None:
        raise InputError(f"corruptions.baseline={folder}: its {MEASUREMENTS} has no {key}")
    if baseline["images"] != part["images"]:
        raise InputError(f"corruptions.baseline={folder} was measured on {baseline['images']}, not {part['images']}")
    return relative_corruption_error(part["errors"], baseline["errors"], part["severities"], baseline["severities"])
