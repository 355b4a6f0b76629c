"""DataModule of pairs in shards, for datasets that do not fit on one disk."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader
from tqdm import tqdm

from genstab.data.datamodules import PairedData
from genstab.data.pairs import Pair
from genstab.data.shards.cache import CACHE, ShardCache, is_local, read_bytes, url_in
from genstab.data.shards.dataset import ShardPairs
from genstab.data.shards.format import INDEX, Shard, Split, check_bytes, parse_index
from genstab.data.shards.sampler import ShardSampler
from genstab.errors import InputError, check_counts


class ShardData(PairedData):
    """Pairs in shards, as `genstab shard` writes them, in a folder or at any URL that WebDataset opens.

    The order of an epoch depends only on the seed and the epoch, not on the number of workers or processes; it mixes
    `window` shards at a time. Remote shards are fetched into a cache that all processes of a machine share. Training
    resumes anywhere in an epoch without reading the pairs before.

    Args:
        root: where `index.json` and its shards are: a folder, a URL, or a command with `%s` for the name of a file
            (`pipe:aws s3 cp s3://bucket/pairs/%s -`).
        window: number of shards that are mixed.
        cache: folder for fetched shards, on a local disk; None is `~/.cache/genstab/shards`.
        cache_gb: size of the cache in GB; at least two windows.
        check: before training, `fast` checks that local shards exist and have the right size, `full` reads every shard
            and decodes every image, `off` does nothing. (An argument of `PairedData`.)
        kwargs: the other arguments of `PairedData`.

    Raises:
        InputError: a number is not positive, there is no index, a shard differs from its index, or as `PairedData`.
    """

    def __init__(
        self,
        root: str,
        window: int = 8,
        cache: str | None = None,
        cache_gb: float = 20.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        check_counts(window=window)
        if not cache_gb > 0:
            raise InputError(f"cache_gb={cache_gb} is not a positive number")
        self.window = window
        self.cache = ShardCache(cache or CACHE, 1e9 * cache_gb)
        self.found: dict[str, Split] = {}

    def splits(self) -> dict[str, Split]:
        """Return the splits by name, from the index.

        Raises:
            InputError: there is no valid index, or the cache is too small.
        """
        if self.found:
            return self.found
        where = url_in(self.root, INDEX)
        found = dict(parse_index(read_bytes(where), where, lambda name: url_in(self.root, name)))
        for name, split in found.items():
            most = max(((shard.bytes or 0) for shard in split.shards if not is_local(shard.url)), default=0)
            needed = 2 * min(self.window, len(split.shards)) * most
            if needed > self.cache.max_bytes:
                raise InputError(
                    f"data.cache_gb={self.cache.max_bytes / 1e9:g} is too small for {name}: two windows of "
                    f"{self.window} shards take {needed / 1e9:.2g} GB; set it higher, or data.window lower"
                )
        self.found = found
        return found

    def prepare_data(self) -> None:
        """With `check=full`, read every shard and decode every image once, on one process."""
        if self.check != "full" or self.decoded:
            return
        for name in self.splits():
            pairs = self._pairs(name)
            pairs.in_order = True
            loader = DataLoader(pairs, None, num_workers=self.num_workers, generator=torch.Generator())
            for item in tqdm(loader, f"reading {name}", len(pairs), leave=False, unit="pair", disable=None):
                for problem in filter(None, item.get("skipped", "").split("\n")):
                    self._skip(problem, rank_zero_warn)
        self.decoded = True

    def _dataset(self, split: str) -> ShardPairs:  # type: ignore[override]  # pairs all the same
        data = self._pairs(split)
        if self.check != "off":
            for shard in data.shards:
                self._check_shard(shard)
        return data

    def _pairs(self, split: str) -> ShardPairs:
        found = self.splits().get(split)
        if found is None or not found.pairs:
            raise InputError(f"data.root={self.root} has no pairs for split={split}: it has {', '.join(self.splits())}")
        wanted = self._wanted(split)
        if self.check != "off" and found.least and found.channels:
            least = Pair("", Path(f"the smallest pair for {split}"), Path(f"the smallest pair for {split}"))
            channels_a, channels_b = found.channels
            wanted.check(least, (channels_a, *found.least), (channels_b, *found.least))
        if self.load_size is None and found.least and not found.size:
            raise InputError(f"{self.root}: the images for {split} are of several sizes: set data.load_size")
        size = self._size(split, {found.size} if found.size else set())
        many = 2 if split == "val" else self.window + 1
        return ShardPairs(
            found.shards, self.cache, self.direction, size, wanted, self.on_error, many, in_order=split == "val"
        )

    def _check_shard(self, shard: Shard) -> None:
        """Check that a local shard exists and has the right size."""
        if not is_local(shard.url):
            return
        try:
            check_bytes(shard.url, Path(shard.url).stat().st_size, shard)
        except OSError as error:
            problem = f"{shard.url} is missing" if isinstance(error, FileNotFoundError) else str(error)
        except InputError as error:
            problem = str(error)
        else:
            return
        if self.on_error == "raise":
            raise InputError(problem)
        self._skip(problem, rank_zero_warn)

    def _sampler(self, processes: int, rank: int, seed: int) -> ShardSampler:
        lengths = [shard.pairs for shard in self.splits()["train"].shards]
        return ShardSampler(lengths, self.window, self.batch_size, processes, rank, seed)
