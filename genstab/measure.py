"""Measure any image-to-image model on any images: a folder of numbers and pictures, and nothing is trained."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from genstab.corruptions import corruptions_for
from genstab.errors import InputError
from genstab.exhibits import map_table, measure_map, write_exhibits
from genstab.features import feature_maps
from genstab.heat_maps import distance_grids, feature_map_picture
from genstab.inference import inference, value_range
from genstab.metrics import decibel
from genstab.plan import Plan
from genstab.reading import Batch, batches
from genstab.report import save_picture
from genstab.results import MEASUREMENTS, read_json, write_json
from genstab.robustness import corruption_errors, corruption_picture, relative_corruption_error
from genstab.shift import Shift, grid_shifts
from genstab.stability import Measured, measure_stability
from genstab.timing import synchronize

SHOWN = 4  # rows of the samples
FRAMES = 32  # of the film


def measure(generator: nn.Module, dataset: Dataset, folder: str | Path, plan: Plan | None = None) -> Measured:
    """Measure a generator: stability in every protocol, quality, map, features, corruptions, speed.

    The generator's weights, modes and the random state stay as they are.

    Args:
        generator: maps (N, C, H, W) to images of the same size or an integer multiple of it, on its device.
        dataset: see `genstab.reading.batches`.
        folder: gets `measurements.json` and the pictures; it is made where it is missing.
        plan: what to measure.

    Raises:
        InputError: images, options and generator do not fit together; an output that is not finite.
    """
    plan = plan or Plan()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with value_range(generator, *plan.value_range) if tuple(plan.value_range) != (-1, 1) else nullcontext():
        found = _measure(generator, dataset, folder, plan)
    write_json(folder / MEASUREMENTS, found.measurements)
    return found


def _measure(generator: nn.Module, dataset: Dataset, folder: Path, plan: Plan) -> Measured:
    found = Measured()
    device = next((tensor.device for tensor in (*generator.parameters(), *generator.buffers())), torch.device("cpu"))
    wanted = max(SHOWN, *(part["images"] for part in (plan.map, plan.features, plan.corruptions) if part))
    reading = batches(dataset, plan.images, plan.batch_size, plan.on_error == "skip", found.notes)
    kept = measure_stability(generator, reading, plan, device, wanted, found)
    source = kept.source.to(device)
    found.summary["images_per_second"] = _speed(generator, source[: plan.batch_size], plan, device)
    found.summary["parameters"] = sum(parameter.numel() for parameter in generator.parameters())
    decibels = _map(generator, source, plan, found)
    _features(generator, source, plan, found)
    _corruptions(generator, kept, plan, device, found)
    title = "" if plan.map is None else f"{plan.map['protocol']}, {len(source[: plan.map['images']])} images"
    target = None if kept.target is None else kept.target[:SHOWN]
    found.pictures |= write_exhibits(folder, generator, source[:SHOWN], target, decibels, title, FRAMES)
    for key in ("features", "corruptions"):
        if key in found.pictures:
            save_picture(found.pictures[key], folder / f"{key}.png")
    return found


def _speed(generator: nn.Module, source: Tensor, plan: Plan, device: torch.device) -> float:
    """Return images per second: the fastest of three forward passes."""
    seconds = []
    with inference(generator, plan.dtype) as generate:
        for _ in range(3):
            synchronize(device)
            began = time.perf_counter()
            generate(source)
            synchronize(device)
            seconds.append(time.perf_counter() - began)
    return len(source) / min(seconds)


def _map(generator: nn.Module, source: Tensor, plan: Plan, found: Measured) -> dict[Shift, float] | None:
    if plan.map is None:
        return None
    images, protocol = source[: plan.map["images"]], plan.map["protocol"]
    options = {"protocol": protocol, "margin": plan.margin, "forward_batch": plan.batch_size, "dtype": plan.dtype}
    decibels = measure_map(generator, images, plan.map["reach"], **options)
    found.measurements["shift_map"] = map_table(decibels, len(images), protocol)
    return decibels


def _features(generator: nn.Module, source: Tensor, plan: Plan, found: Measured) -> None:
    if plan.features is None:
        return
    layers = plan.features["layers"]
    if layers is None and not any(generator.children()):
        found.notes.append(f"features: not measured, a {type(generator).__name__} has no layers to look into")
        return
    images = source[: plan.features["images"]]
    reach = min(plan.features["reach"], *(side - 1 for side in images.shape[-2:]))
    shifts = grid_shifts(reach)
    with tqdm(total=len(shifts) * len(images), desc="features", unit="image", leave=False, disable=None) as bar:
        distances = feature_maps(generator, images, shifts, layers, plan.batch_size, bar.update)
    grids = {layer: grid.tolist() for layer, grid in distance_grids(distances, reach).items()}
    found.measurements["features"] = {"reach": reach, "images": len(images), "layers": grids}
    found.summary["val/feature_distance"] = sum(each.mean().item() for each in distances.values()) / len(distances)
    found.pictures["features"] = feature_map_picture(grids)


def _corruptions(generator: nn.Module, kept: Batch, plan: Plan, device: torch.device, found: Measured) -> None:
    if plan.corruptions is None:
        return
    number, severities = plan.corruptions["images"], list(plan.corruptions["severities"])
    source = kept.source[:number].to(device)
    names = list(plan.corruptions["names"] or corruptions_for(source.shape[1]))
    errors = corruption_errors(
        generator,
        source,
        names,
        severities,
        seed=plan.seed,
        indices=kept.positions[:number],
        forward_batch=plan.batch_size,
        progress=True,
    ).mean(2)
    part: dict[str, Any] = {
        "severities": severities,
        "images": kept.names[:number],
        "errors": dict(zip(names, errors.tolist(), strict=True)),
        "decibels": dict(zip(names, decibel(errors).tolist(), strict=True)),
        "relative": None,
    }
    found.summary["val/corruption_psnr"] = decibel(errors).mean().item()
    if folder := plan.corruptions["baseline"]:
        part["relative"], found.summary["val/corruption_relative"] = _relative(part, folder)
    found.measurements["corruptions"] = part
    found.pictures["corruptions"] = corruption_picture(part["decibels"], severities)


def _relative(part: Mapping[str, Any], folder: str) -> tuple[dict[str, float], float]:
    baseline = read_json(Path(folder, MEASUREMENTS)).get("corruptions")
    if baseline is None:
        raise InputError(f"corruptions.baseline={folder} was measured without corruptions")
    if baseline["images"] != part["images"]:
        raise InputError(f"corruptions.baseline={folder} was measured on {baseline['images']}, not {part['images']}")
    return relative_corruption_error(part["errors"], baseline["errors"], part["severities"], baseline["severities"])
