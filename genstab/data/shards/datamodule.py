"""The DataModule of pairs in shards, for data sets that do not fit one disk."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader
from tqdm import tqdm

from genstab.data.datamodules import PairedData
from genstab.data.pairs import Pair
from genstab.data.shards.cache import CACHE, ShardCache, basename, expanded, is_local, read_bytes, url_in
from genstab.data.shards.dataset import ShardPairs
from genstab.data.shards.format import INDEX, Shard, Split, check_bytes, parse_index
from genstab.data.shards.sampler import ShardSampler
from genstab.errors import InputError, check_counts
from genstab.runtime.files import write_json


class ShardData(PairedData):
    """Pairs in shards, as `genstab shard` makes them, from a folder or from where WebDataset reads.

    The order of an epoch is drawn from the seed and the epoch alone, whatever the number of workers and processes; it
    mixes `window` shards at a time. Shards that are not here are fetched into a folder that they may fill up to
    `cache_gb`, where all processes of a machine share them. A training goes on anywhere in an epoch without reading
    what it has seen.

    Args:
        root: a folder, a URL, or a command with `%s` for a file's name (`pipe:aws s3 cp s3://bucket/pairs/%s -`), where
            `index.json` and its shards are; or the shards themselves, a list or a name with braces
            (`http://host/{train,val}-{000000..000099}.tar`), which are all read once to be counted.
        window: how many shards are mixed.
        cache: folder for the fetched shards, on a disk of this machine; None is `~/.cache/genstab/shards`.
        cache_gb: what they may take there; two windows at least.
        check: before training, `fast` looks for the shards and their sizes where they are files here; `full` reads
            every shard and decodes every image, wherever they are; `off` does nothing.
        kwargs: see `PairedData`.

    Raises:
        InputError: a number is not positive, there is no index, a shard is not what it says, or as `PairedData`.
    """

    def __init__(
        self,
        root: str | Iterable[str],
        window: int = 8,
        cache: str | None = None,
        cache_gb: float = 20.0,
        **kwargs: Any,
    ) -> None:
        roots = [root] if isinstance(root, str) else list(root)
        super().__init__(roots[0] if len(roots) == 1 else f"{len(roots)} lists of shards", **kwargs)
        check_counts(window=window)
        if not cache_gb > 0:
            raise InputError(f"cache_gb={cache_gb} is not a positive number")
        self.roots, self.window = roots, window
        self.cache = ShardCache(cache or CACHE, 1e9 * cache_gb)
        self.found: dict[str, Split] = {}

    def splits(self) -> dict[str, Split]:
        """Return what there is, by the index or by counting.

        Raises:
            InputError: there is no index or no shard of a split, the cache is too small, or as `ShardFile`.
        """
        if self.found:
            return self.found
        if len(self.roots) > 1 or re.search(r"\.tar\b", self.roots[0]):
            found = self._counted(expanded(self.roots))
        else:
            where = url_in(self.root, INDEX)
            found = dict(parse_index(read_bytes(where), where, lambda name: url_in(self.root, name)))
        for name, split in found.items():
            most = max(((shard.bytes or 0) for shard in split.shards if not is_local(shard.url)), default=0)
            needed = 2 * min(self.window, len(split.shards)) * most
            if needed > self.cache.most:
                raise InputError(
                    f"data.cache_gb={self.cache.most / 1e9:g} is too small for {name}: two windows of {self.window} "
                    f"shards take {needed / 1e9:.2g} GB; set it higher, or data.window lower"
                )
        self.found = found
        return found

    def prepare_data(self) -> None:
        """Read every shard and decode every image once, on one process; only with `check=full`."""
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
                self._look(shard)
        return data

    def _pairs(self, split: str) -> ShardPairs:
        found = self.splits().get(split)
        if found is None or not found.pairs:
            raise InputError(f"data.root={self.root} has no pairs for split={split}: it has {', '.join(self.splits())}")
        wanted = self._wanted(split)
        if self.check != "off" and found.least and found.channels:
            least = Pair("", Path(f"the least pair for {split}"), Path(f"the least pair for {split}"))
            channels_a, channels_b = found.channels
            wanted.check(least, (channels_a, *found.least), (channels_b, *found.least))
        if self.load_size is None and found.least and not found.size:
            raise InputError(f"{self.root}: the images for {split} are of several sizes: set data.load_size")
        size = self._size(split, {found.size} if found.size else set())
        many = 2 if split == "val" else self.window + 1
        return ShardPairs(
            found.shards, self.cache, self.direction, size, wanted, self.on_error, many, in_order=split == "val"
        )

    def _look(self, shard: Shard) -> None:
        """See whether a shard that should be a file here is one, of the right size."""
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

    def _counted(self, urls: list[str]) -> dict[str, Split]:
        """Count the pairs of shards without an index; for what had to be fetched, keep the numbers."""
        shards: dict[str, list[str]] = {"train": [], "val": []}
        for url in urls:
            name = basename(url)
            split = next((split for split in ("train", "val", "test") if name.startswith(split)), None)
            if split is None:
                raise InputError(f"data.root: {name} in {url} begins with neither train nor val nor test")
            shards["train" if split == "train" else "val"].append(url)
        if all(map(is_local, urls)):
            return {split: Split([self._count(url) for url in each]) for split, each in shards.items()}
        digest = hashlib.sha256("\n".join(urls).encode()).hexdigest()[:16]
        with self.cache.locked(f"counted-{digest}.json") as kept:  # the processes of a machine count once
            if not kept.is_file():
                numbers = {}
                for url in tqdm(urls, "counting", leave=False, unit="shard", disable=None):
                    shard = self._count(url)
                    numbers[url] = [shard.pairs, shard.bytes]
                write_json(kept, {"shards": numbers})
            found = json.loads(kept.read_text())["shards"]
        return {split: Split([Shard(url, *found[url]) for url in each]) for split, each in shards.items()}

    def _count(self, url: str) -> Shard:
        unknown = Shard(url, -1)
        self.cache.fetch(unknown)
        file = self.cache.open(unknown)
        return Shard(url, len(file.places), file.size)
