"""The order of the training data: drawn from the seed and the epoch, dealt to processes, continued anywhere."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from genstab.data.collate import dataset_positions, first_loader
from genstab.errors import InputError


class EpochOrder(DistributedSampler[int]):
    """A permutation for each epoch, drawn from `seed + epoch` alone; process r of P gets every Pth image from r on.

    Batch k of batch_size images on each process is then batch k of P · batch_size images on one process. Nothing is
    repeated, except where the last batch of an epoch has fewer images than there are processes: then each process gets
    the same number of them, and all processes together each equally often, which leaves losses and batch statistics as
    they are. If that took more than `batch_size`, every process gets one, and `share` leaves out those
    that were dealt before. `skip` leaves out the first images of this process's next pass, without reading them.

    Args:
        dataset: what has a length.
        batch_size: of the loader that takes this sampler.
        processes, rank: P and r.
        seed: draws another order.

    >>> one, two = (list(EpochOrder(range(8), 2, 2, rank)) for rank in (0, 1))
    >>> [(one[i], two[i]) for i in range(4)], list(order := EpochOrder(range(8), 4))
    ([(4, 0), (7, 3), (2, 5), (1, 6)], [4, 0, 7, 3, 2, 5, 1, 6])
    >>> order.skip = 6
    >>> list(order), list(order)
    ([1, 6], [4, 0, 7, 3, 2, 5, 1, 6])
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
        self.batch_size, self.skip = batch_size, 0
        self.kind = ""  # what else the order depends on

    def drawn(self, generator: torch.Generator) -> torch.Tensor:
        """Return all positions of an epoch in their order."""
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]  # a Sized dataset

    def __iter__(self) -> Iterator[int]:
        """Return this process's positions in the dataset."""
        skip, self.skip = self.skip, 0
        order = self.drawn(torch.Generator().manual_seed(self.seed + self.epoch))
        dealt = len(order) - self.few
        mine = order[:dealt][self.rank :: self.num_replicas].tolist()
        extra = self.num_samples - self.dealt
        rest = order[dealt:].tolist()
        mine += [rest[i % self.few] for i in range(self.rank * extra, self.rank * extra + extra)]
        return iter(mine[skip:])


class OrderedLoader(DataLoader):
    """A loader in the order of an `EpochOrder` that knows where it stands, and goes on there after a restart.

    Lightning tells it the epoch. Nothing is fetched before the first batch is asked for, since Lightning asks for an
    iterator before it says which epoch it is. The loader draws no number from the global random generators.

    >>> loader = OrderedLoader(range(7), EpochOrder(range(7), batch_size=2))
    >>> first, *rest = [batch.tolist() for batch in loader]
    >>> loader.load_state_dict({"seed": 0, "batch": 1})
    >>> [batch.tolist() for batch in loader] == rest
    True
    """

    def __init__(self, dataset: Dataset, order: EpochOrder, **kwargs: Any) -> None:
        # Its own generator: the seeds of the workers would else be drawn from the one that draws dropout masks.
        generator = torch.Generator().manual_seed(order.seed)
        super().__init__(dataset, order.batch_size, sampler=order, generator=generator, **kwargs)
        self.order, self.batch = order, 0
        self.first = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: begins at the first batch
        self.batch, self.first = self.first, 0
        self.order.skip = self.batch * self.order.batch_size
        for batch in super().__iter__():
            self.batch += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and kind of the order, and the number of batches that were handed out in this epoch."""
        batch = (self.first or self.batch) % len(self)
        return {"seed": self.order.seed, "batch": batch, **({"kind": self.order.kind} if self.order.kind else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass after that many batches.

        Raises:
            InputError: they came in another order than this one.
        """
        if state.get("kind", "") != self.order.kind:
            now, then = self.order.kind or "files", state.get("kind") or "files"
            raise InputError(f"the training data come in another order than the checkpoint's: {then} → {now}")
        self.order.seed, self.first = state["seed"], state["batch"]


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
