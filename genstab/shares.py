"""How several processes share every training batch, so that together they train as one process would."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from genstab.batches import dataset_positions, first_loader


class Dealer(DistributedSampler):
    """A shuffled order, the same on all processes, dealt out one by one: process r of P gets every Pth image from r on.

    Batch k of batch_size images on each process is then batch k of P · batch_size images on one process, in the order
    that seed and epoch alone decide. Nothing is repeated, except where the last batch of an epoch has fewer images than
    there are processes: then each process gets the same number of them, and all processes together each equally
    often, which leaves losses and batch statistics as they are. If that took more than `batch_size`, every process gets
    one, and `share` leaves out those that were dealt before.

    Args:
        dataset: what has a length.
        batch_size: of the loader that takes this sampler.
        processes, rank: P and r.
        seed: draws another order.

    >>> one, two = (list(Dealer(range(8), 2, 2, rank)) for rank in (0, 1))
    >>> [(one[i], two[i]) for i in range(4)], list(Dealer(range(8), 4, 1, 0))
    ([(4, 0), (7, 3), (2, 5), (1, 6)], [4, 0, 7, 3, 2, 5, 1, 6])
    """

    def __init__(self, dataset: Dataset, batch_size: int, processes: int = 1, rank: int = 0, seed: int = 0) -> None:
        super().__init__(dataset, processes, rank, shuffle=True, seed=seed)
        length = len(dataset)  # type: ignore[arg-type]  # a Sized dataset
        rest = length % (processes * batch_size)
        self.few = rest if rest < processes else 0
        each = self.few // math.gcd(self.few, processes) if self.few else 0
        self.even = each <= batch_size  # all of the few are dealt equally often
        self.dealt = len(range(rank, length - self.few, processes))
        self.num_samples = self.dealt + (each if self.even else 1)

    def __iter__(self) -> Iterator[int]:
        """Yield this process's positions in the dataset."""
        length = len(self.dataset)  # type: ignore[arg-type]  # a Sized dataset
        order = torch.randperm(length, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        yield from order[: length - self.few][self.rank :: self.num_replicas]
        extra = self.num_samples - self.dealt
        for i in range(self.rank * extra, self.rank * extra + extra):
            yield order[length - self.few + i % self.few]


def share(loaders: Any, batch_idx: int, batch_length: int, world_size: int = 1, rank: int = 0) -> tuple[Tensor, float]:
    """Return which images of a training batch count on this process, and what the mean of their losses weighs.

    The mean over processes of weight × loss is the loss of one process that has all their images in one batch, each
    once. Only in the last batch of an epoch are images left out or is the weight not 1. It is 0 for a process without
    an image of its own; that keeps a repeated one, for it has to take part.

    Args:
        loaders: the training loader, with a `Dealer` or torch's `DistributedSampler`, which repeats the first images to
            fill up; of a list or a dict of them, the first counts.
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
    if left >= batch_size * world_size or (isinstance(sampler, Dealer) and sampler.few and sampler.even):
        return every, 1.0
    counted = dataset_positions(loader, batch_idx * batch_size, batch_length, world_size, rank) >= 0
    return counted if counted.any() else every, int(counted.sum()) * world_size / left
