"""The order of training data in shards: a few shards are mixed at a time, so that only these must be in the cache."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from genstab.data.sampler import EpochSampler


def mixed(lengths: Sequence[int], window: int, generator: torch.Generator) -> Tensor:
    """Draw an order of all pairs in which about `window` shards are in use at a time.

    The shards are shuffled; the pairs of the nth shard get random keys from n to n + window, and all pairs are sorted
    by their keys. With at most `window` shards, every order of the pairs is equally likely.

    Shape: → (sum of lengths,), positions of the pairs.
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
    """An `EpochSampler` of pairs in shards, in the order of `mixed`.

    Args:
        lengths: number of pairs of each shard.
        window: number of shards that are mixed.
        batch_size, processes, rank, seed: see `EpochSampler`.
        fetch_ahead: called at the first position in a shard, with the number of the shard that this process reads next.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        window: int,
        batch_size: int,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
        fetch_ahead: Callable[[int], object] = lambda shard: None,
    ) -> None:
        super().__init__(range(sum(lengths)), batch_size, processes, rank, seed)  # type: ignore[arg-type]  # a Sized dataset
        self.lengths, self.window, self.fetch_ahead = list(lengths), window, fetch_ahead
        digest = hashlib.sha256(" ".join(map(str, self.lengths)).encode()).hexdigest()[:8]
        self.kind = f"{len(self.lengths)} shards {digest}, window {window}"
        self.ends = torch.tensor(list(accumulate(lengths)))

    def permutation(self, generator: torch.Generator) -> Tensor:
        """Draw the positions of an epoch."""
        return mixed(self.lengths, self.window, generator)

    def __iter__(self) -> Iterator[int]:
        """Return the positions of this process."""
        positions = list(super().__iter__())
        shards = torch.searchsorted(self.ends, torch.tensor(positions), right=True).tolist()
        following = dict(pairwise(dict.fromkeys(shards)))
        for position, shard in zip(positions, shards, strict=True):
            if shard in following:
                self.fetch_ahead(following.pop(shard))
            yield position
