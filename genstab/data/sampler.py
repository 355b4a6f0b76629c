"""The order of the training data: drawn from seed and epoch, split between processes, resumed at any batch."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from genstab.errors import InputError


class EpochSampler(DistributedSampler[int]):
    """Sample a permutation for each epoch, drawn from `seed + epoch` alone; rank r of P takes every Pth image from r.

    Batch k of batch_size images on each of P processes therefore holds the images of batch k of P · batch_size images
    on one process. Images are repeated only if the last batch of an epoch has fewer images than there are processes:
    each process then gets the same number of them, and each image is drawn equally often over all processes, so that
    losses and batch statistics stay the same. If that takes more than batch_size images, every process gets one, and
    `genstab.data.shares.share` leaves out the repeated ones.

    Set `skip` to leave out the first images of this process's next pass without reading them.

    Args:
        dataset: anything with a length.
        batch_size: batch size of the loader that uses this sampler.
        processes: number of processes P.
        rank: rank r of this process.
        seed: another seed draws another order.
    """

    def __init__(self, dataset: Dataset, batch_size: int, processes: int = 1, rank: int = 0, seed: int = 0) -> None:
        super().__init__(dataset, processes, rank, shuffle=True, seed=seed)
        length = len(dataset)  # type: ignore[arg-type]  # a Sized dataset
        rest = length % (processes * batch_size)
        self.few = rest if rest < processes else 0  # images of the last batch, if there are too few for all processes
        each = self.few // math.gcd(self.few, processes) if self.few else 0
        self.even = each <= batch_size  # whether each of them is drawn equally often
        self.dealt = len(range(rank, length - self.few, processes))
        self.num_samples = self.dealt + (each if self.even else 1)
        self.batch_size, self.skip, self.is_sequential = batch_size, 0, False
        self.kind = ""  # anything else that the order depends on

    def permutation(self, generator: torch.Generator) -> torch.Tensor:
        """Draw the positions of an epoch."""
        return torch.randperm(len(self.dataset), generator=generator)  # type: ignore[arg-type]  # a Sized dataset

    def __iter__(self) -> Iterator[int]:
        """Return the positions of this process."""
        skip, self.skip = self.skip, 0
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.arange(len(self.dataset)) if self.is_sequential else self.permutation(generator)  # type: ignore[arg-type]
        dealt = len(order) - self.few
        mine = order[:dealt][self.rank :: self.num_replicas].tolist()
        extra = self.num_samples - self.dealt
        rest = order[dealt:].tolist()
        mine += [rest[i % self.few] for i in range(self.rank * extra, self.rank * extra + extra)]
        return iter(mine[skip:])


class ResumableLoader(DataLoader):
    """A data loader with an `EpochSampler` that saves how far it came in an epoch and resumes there.

    Lightning sets the epoch. Since it asks for an iterator before it sets the epoch, nothing is loaded before the first
    batch is asked for. The loader draws no numbers from the global random generators.
    """

    def __init__(
        self, dataset: Dataset, order: EpochSampler, sampler: Sampler[int] | None = None, **kwargs: Any
    ) -> None:
        # For `overfit_batches` Lightning makes this loader again, with a SequentialSampler beside the other arguments.
        order.is_sequential = sampler is not None
        # A generator of its own, or the workers' seeds would be drawn from the one that draws dropout masks.
        kwargs |= {"batch_size": order.batch_size, "generator": torch.Generator().manual_seed(order.seed)}
        super().__init__(dataset, sampler=order, **kwargs)
        self.order, self.batch = order, 0
        self.first = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: begins at the first batch
        self.batch, self.first = self.first, 0
        self.order.skip = self.batch * self.order.batch_size
        for batch in super().__iter__():
            self.batch += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return seed and kind of the order, and the number of batches returned in this epoch."""
        batch = (self.first or self.batch) % len(self)
        return {"seed": self.order.seed, "batch": batch, **({"kind": self.order.kind} if self.order.kind else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next pass after the saved number of batches.

        Raises:
            InputError: the saved order is another one.
        """
        if state.get("kind", "") != self.order.kind:
            now, then = self.order.kind or "files", state.get("kind") or "files"
            raise InputError(f"the order of the training data differs from the checkpoint's: {then} → {now}")
        self.order.seed, self.first = state["seed"], state["batch"]
