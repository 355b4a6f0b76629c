"""The images of a dataset in batches of the same size."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from genstab.errors import InputError


@dataclass
class Batch:
    """Images of the same size: (N, C, H, W) in [−1, 1], names, positions in the dataset, and optionally more.

    Shape: target and output (N, C, H, W), labels (N,).
    """

    names: list[str]
    positions: list[int]
    source: Tensor
    target: Tensor | None = None
    labels: Tensor | None = None
    output: Tensor | None = None

    def first(self, number: int) -> "Batch":
        """Return its first images."""
        cut: dict[str, Any] = {key: None if each is None else each[:number] for key, each in vars(self).items()}
        return Batch(**cut)

    def extended(self, batch: "Batch", number: int) -> "Batch":
        """Append images of another batch, if all have the same size, up to `number` images."""
        more = batch.first(number - len(self.names))
        if not more.names or self._sizes() != more._sizes():
            return self
        tensors = {key: torch.cat([getattr(self, key), getattr(more, key)]) for key in self._sizes()}
        return Batch(self.names + more.names, self.positions + more.positions, **tensors)

    def _sizes(self) -> dict[str, torch.Size]:
        return {key: each.shape[1:] for key, each in vars(self).items() if isinstance(each, Tensor)}


def batches(dataset: Dataset, images: int | None, batch_size: int, skip: bool, notes: list[str]) -> Iterator[Batch]:
    """Read up to `images` images and yield them in batches of one size, with a progress bar.

    Args:
        dataset: items are dicts of `source` (C, H, W) in [−1, 1], `name`, and maybe `target` likewise or `label`.
        images: number of images, from the first on; None: all.
        batch_size: images in a batch.
        skip: leave out images that cannot be read.
        notes: gets a line for each of them.

    Raises:
        InputError: an image cannot be read, unless `skip`; there is no image.
    """
    count = min(len(dataset), images or math.inf)  # type: ignore[arg-type]  # a Sized dataset
    waiting: list[tuple[int, dict[str, Any]]] = []
    waiting_size: object = None
    for position in tqdm(range(int(count)), "images", unit="image", leave=False, disable=None):
        try:
            item = dataset[position]
        except InputError as error:
            if not skip:
                raise InputError(f"{error} (on_error=skip measures the others)") from error
            notes.append(f"skipped: {error}")
            continue
        size = item["source"].shape, item["target"].shape if "target" in item else None
        if waiting and (size != waiting_size or len(waiting) == batch_size):
            yield _batch(waiting)
            waiting = []
        waiting_size = size
        waiting.append((position, item))
    if not waiting:
        raise InputError("there is no image to measure" + (": all of them are unreadable" if notes else ""))
    yield _batch(waiting)


def _batch(waiting: list[tuple[int, dict[str, Any]]]) -> Batch:
    positions, items = zip(*waiting, strict=True)
    return Batch(
        names=[str(item.get("name", position)) for position, item in waiting],
        positions=list(positions),
        source=torch.stack([item["source"] for item in items]),
        target=torch.stack([item["target"] for item in items]) if "target" in items[0] else None,
        labels=torch.tensor([item["label"] for item in items]) if "label" in items[0] else None,
    )
