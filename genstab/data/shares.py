"""How processes share the images of a dataset: which images of a batch count, and with which weight."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DistributedSampler

from genstab.data.sampler import EpochSampler


def dataset_positions(trainer: Trainer, seen: int, batch_length: int) -> Tensor:
    """Return the position in the dataset of each image of an unshuffled validation batch; −1 for a repeated image.

    `seen` is the number of images of the first validation loader that this process has seen before this batch.

    `DistributedSampler` gives rank r the positions r, r + P, r + 2P, … and repeats images in the last round, so that
    every process has the same number of batches. A repeated image must not be counted twice in a metric.
    """
    positions = trainer.global_rank + trainer.world_size * torch.arange(seen, seen + batch_length)
    sampler = getattr(first_loader(trainer.val_dataloaders), "sampler", None)
    if isinstance(sampler, DistributedSampler):
        return torch.where(positions < len(sampler.dataset), positions, -1)  # type: ignore[arg-type]  # a Sized dataset
    return positions


def first_loader(loaders: Any) -> Any:
    """Return the first loader of a list or a dict, or the loader itself."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return loaders[0] if isinstance(loaders, Sequence) else loaders


def share(loaders: Any, batch_idx: int, batch_length: int, world_size: int = 1, rank: int = 0) -> tuple[Tensor, float]:
    """Return which images of a training batch count on this process, and the weight of the mean of their losses.

    The mean over processes of weight × loss equals the loss of a single process with all these images in one batch,
    each counted once. Images are left out, and the weight differs from 1, only in the last batch of an epoch. The
    weight is 0 on a process that has only repeated images; it keeps one of them, since every process must take part.

    Args:
        loaders: the training loader, with an `EpochSampler` or torch's `DistributedSampler`, which fills the last
            round by repeating images; the first one, if this is a list or a dict.
        batch_idx: index of the batch in the epoch.
        batch_length: number of images in the batch on this process.
        world_size: number of processes.
        rank: rank of this process.

    Shape: → (batch_length,), bool, and a float.
    """
    loader = first_loader(loaders)
    sampler, batch_size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    every = torch.ones(batch_length, dtype=torch.bool)
    if world_size == 1 or batch_size is None or not isinstance(sampler, DistributedSampler):
        return every, 1.0
    left = len(sampler.dataset) - batch_idx * batch_size * world_size  # type: ignore[arg-type]  # a Sized dataset
    if left >= batch_size * world_size or (isinstance(sampler, EpochSampler) and sampler.few and sampler.even):
        return every, 1.0
    counted = rank + world_size * torch.arange(batch_length) < left
    return counted if counted.any() else every, int(counted.sum()) * world_size / left


def images_in_batch(loaders: Any, batch_idx: int, batch_length: int, world_size: int = 1) -> int:
    """Return how many images all processes together have in a training batch, each counted once; see `share`."""
    loader = first_loader(loaders)
    sampler, batch_size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if batch_size is None or not isinstance(sampler, DistributedSampler):
        return batch_length * world_size
    left = len(sampler.dataset) - batch_idx * batch_size * world_size  # type: ignore[arg-type]  # a Sized dataset
    return min(batch_size * world_size, left)
