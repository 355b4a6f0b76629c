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
    """Images of one size: (N, C, H, W) in [−1, 1], names, positions; targets or labels (N,) where there are some."""

    names: list[str]
    positions: list[int]
    source: Tensor
    target: Tensor | None = None
    labels: Tensor | None = None


def batches(dataset: Dataset, images: int | None, batch_size: int, skip: bool, notes: list[str]) -> Iterator[Batch]:
    """Read up to `images` images and yield them in batches of one size, with a progress bar.

    Args:
        dataset: items are dicts of `source` (C, H, W) in [−1, 1], `name`, and maybe `target` likewise or `label`.
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
    names = [str(item.get("name", position)) for position, item in waiting]
    batch = Batch(names, list(positions), torch.stack([item["source"] for item in items]))
    if "target" in items[0]:
        batch.target = torch.stack([item["target"] for item in items])
    if "label" in items[0]:
        batch.labels = torch.tensor([item["label"] for item in items])
    return batch


def keep(kept: Batch | None, batch: Batch, wanted: int) -> Batch:
    """Add to the images kept so far those of a batch, if they and their targets have one size, `wanted` in all."""
    if kept is not None and _shapes(kept) != _shapes(batch):
        return kept
    missing = wanted - (0 if kept is None else len(kept.names))
    if kept is None:
        none = [None if each is None else each[:0] for each in (batch.target, batch.labels)]
        kept = Batch([], [], batch.source[:0], *none)

    def joined(before: Tensor | None, more: Tensor | None) -> Tensor | None:
        return None if before is None or more is None else torch.cat([before, more[:missing]])

    return Batch(
        kept.names + batch.names[:missing],
        kept.positions + batch.positions[:missing],
        torch.cat([kept.source, batch.source[:missing]]),
        joined(kept.target, batch.target),
        joined(kept.labels, batch.labels),
    )


def _shapes(batch: Batch) -> list[tuple[int, ...] | None]:
    return [None if each is None else each.shape[1:] for each in (batch.source, batch.target, batch.labels)]
