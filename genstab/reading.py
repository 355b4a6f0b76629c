"""The images of a dataset in batches of one size, and the first of them kept."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from genstab.errors import InputError


@dataclass
class Batch:
    """Images of one size: (N, C, H, W) in [−1, 1], their targets where there are some, their names and positions."""

    names: list[str]
    positions: list[int]
    source: Tensor
    target: Tensor | None


def batches(dataset: Dataset, images: int | None, batch_size: int, skip: bool, notes: list[str]) -> Iterator[Batch]:
    """Read up to `images` images and yield them in batches of one size, with a progress bar.

    Args:
        dataset: items are dicts of `source` (C, H, W) in [−1, 1], `target` likewise where there is one, and `name`.
        images: how many, from the first on; None: all.
        batch_size: images a batch.
        skip: go on after an image that cannot be read.
        notes: gets a line for each image that is skipped.

    Raises:
        InputError: an unreadable image, unless `skip`; no image at all.
    """
    count = min(len(dataset), images or math.inf)  # type: ignore[arg-type]  # a Sized dataset
    waiting: list[tuple[int, dict[str, Any]]] = []
    some = False
    for position in tqdm(range(int(count)), "images", unit="image", leave=False, disable=None):
        try:
            item = dataset[position]
        except InputError as error:
            if not skip:
                raise InputError(f"{error} (on_error=skip measures the others)") from error
            notes.append(f"skipped: {error}")
            continue
        if waiting and (_sizes(item) != _sizes(waiting[0][1]) or len(waiting) == batch_size):
            yield _batch(waiting)
            waiting = []
        waiting.append((position, item))
        some = True
    if not some:
        raise InputError("there is no image to measure" + (": all of them are unreadable" if notes else ""))
    yield _batch(waiting)


def _sizes(item: Mapping[str, Any]) -> tuple[Any, ...]:
    return item["source"].shape, item["target"].shape if "target" in item else None


def _batch(waiting: list[tuple[int, dict[str, Any]]]) -> Batch:
    positions, items = zip(*waiting, strict=True)
    target = torch.stack([item["target"] for item in items]) if "target" in items[0] else None
    names = [str(item.get("name", position)) for position, item in waiting]
    return Batch(names, list(positions), torch.stack([item["source"] for item in items]), target)


def keep(kept: Batch | None, batch: Batch, wanted: int) -> Batch:
    """Gather the first images of one size."""
    if kept is None:
        rest = slice(wanted)
        target = None if batch.target is None else batch.target[rest]
        return Batch(batch.names[rest], batch.positions[rest], batch.source[rest], target)
    missing = wanted - len(kept.names)
    if missing <= 0 or batch.source.shape[1:] != kept.source.shape[1:]:
        return kept
    target = None
    if kept.target is not None and batch.target is not None:
        target = torch.cat([kept.target, batch.target[:missing]])
    source = torch.cat([kept.source, batch.source[:missing]])
    return Batch(kept.names + batch.names[:missing], kept.positions + batch.positions[:missing], source, target)
