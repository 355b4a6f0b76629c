"""What a training batch of one process weighs, so that several train together as one would."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from genstab.batches import dataset_positions, first_loader
from genstab.order import EpochOrder


def share(loaders: Any, batch_idx: int, batch_length: int, world_size: int = 1, rank: int = 0) -> tuple[Tensor, float]:
    """Return which images of a training batch count on this process, and what the mean of their losses weighs.

    The mean over processes of weight × loss is the loss of one process that has all their images in one batch, each
    once. Only in the last batch of an epoch are images left out or is the weight not 1. It is 0 for a process without
    an image of its own; that keeps a repeated one, for it has to take part.

    Args:
        loaders: the training loader, with an `EpochOrder` or torch's `DistributedSampler`, which repeats the first
            images to fill up; of a list or a dict of them, the first counts.
        batch_idx: which batch of the epoch.
        batch_length: its number of images on this process.

    Shape: → (batch_length,), booleans, and a number.

    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(range(5), batch_size=2, sampler=DistributedSampler(range(5), 2, rank=1))
    >>> share(loader, 0, 2, 2, rank=1), share(loader, 1, 1, 2, rank=0), share(loader, 1, 1, 2, rank=1)
    ((tensor([True, True]), 1.0), (tensor([True]), 2.0), (tensor([True]), 0.0))
    """
    loader = first_loader(loaders)
    sampler, batch_size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    every = torch.ones(batch_length, dtype=torch.bool)
    if world_size == 1 or batch_size is None or not isinstance(sampler, DistributedSampler):
        return every, 1.0
    left = len(sampler.dataset) - batch_idx * batch_size * world_size  # type: ignore[arg-type]  # a Sized dataset
    if left >= batch_size * world_size or (isinstance(sampler, EpochOrder) and sampler.few and sampler.even):
        return every, 1.0
    counted = dataset_positions(loader, batch_idx * batch_size, batch_length, world_size, rank) >= 0
    return counted if counted.any() else every, int(counted.sum()) * world_size / left
