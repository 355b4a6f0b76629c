"""The order of training data in shards: mixed over some of them at a time, so that few have to be at hand."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from genstab.data.sampler import EpochSampler


class Position(int):
    """A position in the data set that says which shard will be wanted after the one it lies in.

    >>> Position(3, ahead=7) + 1, Position(3, ahead=7).ahead
    (4, 7)
    """

    ahead: int

    def __new__(cls, value: int, ahead: int) -> "Position":
        """Make an integer, and keep the shard with it."""
        self = super().__new__(cls, value)
        self.ahead = ahead
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # it takes two
        """Let it pass to a loader's worker."""
        return int(self), self.ahead


def mixed(lengths: Sequence[int], window: int, generator: torch.Generator) -> Tensor:
    """Draw an order of all pairs that needs at most `window` shards at a time.

    The shards are put into a random order. Shard number n of it has its pairs at random places in the stretch from n to
    n + window, so that one shard after the other is begun and done with. Where there are no more shards than `window`,
    every order of the pairs is equally likely.

    Shape: → (sum of lengths,), positions counted through all shards.

    >>> mixed([2, 3, 1], window=1, generator=torch.Generator().manual_seed(0))
    tensor([5, 1, 0, 3, 4, 2])
    """
    count, pairs = len(lengths), sum(lengths)
    if count <= window:
        return torch.randperm(pairs, generator=generator)
    shards = torch.randperm(count, generator=generator)
    begin = torch.empty(count, dtype=torch.float64)
    begin[shards] = torch.arange(count, dtype=torch.float64)
    within = torch.rand(pairs, generator=generator, dtype=torch.float64)
    places = begin.repeat_interleave(torch.tensor(lengths)) + window * within
    return places.argsort(stable=True)


class ShardSampler(EpochSampler):
    """An `EpochSampler` of pairs in shards, drawn by `mixed` from `seed + epoch` alone.

    The first position in each shard that this process meets says which one it will meet next, as a `Position`.

    Args:
        lengths: the pairs of each shard.
        window: how many shards are mixed.
        batch_size, processes, rank, seed: see `EpochSampler`.

    >>> list(ShardSampler([2, 3, 1], window=1, batch_size=2))
    [5, 1, 0, 3, 4, 2]
    """

    def __init__(
        self,
        lengths: Sequence[int],
        window: int,
        batch_size: int,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(range(sum(lengths)), batch_size, processes, rank, seed)  # type: ignore[arg-type]  # has a length
        self.lengths, self.window = list(lengths), window
        digest = hashlib.sha256(" ".join(map(str, self.lengths)).encode()).hexdigest()[:8]
        self.kind = f"{len(self.lengths)} shards {digest}, window {window}"
        self.ends = torch.tensor(list(accumulate(lengths)))

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Return all positions of an epoch."""
        return mixed(self.lengths, self.window, generator)

    def __iter__(self) -> Iterator[int]:
        """Return this process's positions in the data set."""
        positions = list(super().__iter__())
        shards = torch.searchsorted(self.ends, torch.tensor(positions), right=True).tolist()
        met = list(dict.fromkeys(shards))
        following = dict(pairwise(met))
        for position, shard in zip(positions, shards, strict=True):
            ahead = following.pop(shard, None)
            yield position if ahead is None else Position(position, ahead)
