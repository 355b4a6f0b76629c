"""The images of a dataset in batches of the same size."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from genstab.data.paths import hxw
from genstab.errors import InputError
from genstab.inference.input_size import centre


@dataclass
class Batch:
    """Images of the same size: (N, C, H, W) in [−1, 1], names, positions in the dataset, and optionally more.

    Shape: target, output and whole (N, C, H, W), labels (N,). `whole` are the images of which the source is a part, for
    a model that does not take them whole.
    """

    names: list[str]
    positions: list[int]
    source: Tensor
    target: Tensor | None = None
    labels: Tensor | None = None
    output: Tensor | None = None
    whole: Tensor | None = None

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

    def cut(self, size: Sequence[int]) -> None:
        """Cut the source to its centre of (height, width), and a target of k times its size likewise."""
        self.whole, (height, width) = self.source, self.source.shape[2:]
        top, left = (height - size[0]) // 2, (width - size[1]) // 2
        self.source = self.whole[..., top : top + size[0], left : left + size[1]]
        scale = 0 if self.target is None else self.target.shape[2] // height
        if self.target is not None and scale and self.target.shape[2:] == (scale * height, scale * width):
            rows, columns = (slice(scale * at, scale * (at + side)) for at, side in zip((top, left), size, strict=True))
            self.target = self.target[..., rows, columns]

    def with_room(self, motions: Sequence[Sequence[float]]) -> Tensor:
        """Return the part of the whole images in which a window of the source's size can move by whole pixels.

        Raises:
            InputError: they are too small for that.
        """
        assert self.whole is not None
        spans = [max(0, *each) - min(0, *each) for each in zip(*motions, strict=True)]
        size = [int(side + span) for side, span in zip(self.source.shape[2:], spans, strict=True)]
        if size[0] > self.whole.shape[2] or size[1] > self.whole.shape[3]:
            sides = hxw(self.source.shape[2:])
            raise InputError(f"the generator takes {sides} alone, and windows that move need images of {hxw(size)}")
        return centre(self.whole, size)

    def _sizes(self) -> dict[str, torch.Size]:
        return {key: each.shape[1:] for key, each in vars(self).items() if isinstance(each, Tensor)}


def number_of_images(dataset: Dataset, images: int | None) -> int:
    """Return how many images of a dataset are measured."""
    return int(min(len(dataset), images or math.inf))  # type: ignore[arg-type]  # a Sized dataset


def batches(
    dataset: Dataset, images: int | None, batch_size: int, skip: bool, notes: list[str], failed: list[str]
) -> Iterator[Batch]:
    """Read up to `images` images and yield them in batches of one size, with a progress bar.

    The headers of all are checked first, if the dataset has a method `check_headers(images)`.

    Args:
        dataset: items are dicts of `source` (C, H, W) in [−1, 1], `name`, and maybe `target` likewise or `label`.
        images: number of images, from the first on; None: all.
        batch_size: images in a batch.
        skip: leave out images that cannot be read.
        notes: gets a line for each of them.
        failed: gets the error of each image that turns out to be unreadable after the first batch, and the others go
            on: they are not to be lost.

    Raises:
        InputError: an image cannot be read, unless `skip` or after the first batch; there is no image.
    """
    others = "(on_error=skip measures the others)"
    count = number_of_images(dataset, images)
    if not skip and (check := getattr(dataset, "check_headers", None)):
        try:
            check(count)
        except InputError as error:
            raise InputError(f"{error} {others}") from error
    begun = False
    waiting: list[tuple[int, dict[str, Any]]] = []
    waiting_size: object = None
    for position in tqdm(range(count), "images", unit="image", leave=False, disable=None):
        try:
            item = dataset[position]
        except InputError as error:
            if not skip:
                if not begun:
                    raise InputError(f"{error} {others}") from error
                failed.append(str(error))
            notes.append(f"skipped: {error}")
            continue
        size = item["source"].shape, item["target"].shape if "target" in item else None
        if waiting and (size != waiting_size or len(waiting) == batch_size):
            begun = True
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
