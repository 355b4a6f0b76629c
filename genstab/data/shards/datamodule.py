"""DataModule of pairs in shards, for datasets that do not fit on one disk."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.data.datamodules import PairedData
from genstab.data.pairs import Pair
from genstab.data.shards.cache import CACHE, ShardCache, is_local, read_bytes, url_in
from genstab.data.shards.dataset import ShardPairs
from genstab.data.shards.format import INDEX, Shard, Split, check_size, parse_index
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
        cache: folder on a local disk; fetched shards lie in its folder `genstab-shards`. None is `~/.cache/genstab`.
        cache_gb: size of the cache in GB; at least two windows.
        check: before training, `fast` checks that local shards exist and have the right size, `full` reads every shard
            and decodes every image, `off` does nothing. (An argument of `PairedData`.)
        kwargs: the other arguments of `PairedData`; `genstab shard` takes val_share and val_seed.

    Raises:
        InputError: a number is not positive, there is no index, a shard differs from its index, or as `PairedData`.
    """

    def __init__(
        self, root: str, window: int = 8, cache: str | None = None, cache_gb: float = 20.0, **kwargs: Any
    ) -> None:
        if held := {"val_share", "val_seed"} & kwargs.keys():
            raise InputError(f"data.{min(held)} holds out no pairs of shards: genstab shard {min(held)}=… does")
        super().__init__(root, **kwargs)
        if self.auto:
            raise InputError("data.value_range=auto needs data=paired: set [least,greatest] with data=shards")
        check_counts(window=window)
        if not cache_gb > 0:
            raise InputError(f"cache_gb={cache_gb} is not a positive number")
        self.window = window
        self.cache = ShardCache(cache or CACHE, 1e9 * cache_gb)
        self.ahead: Thread | None = None

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """The splits by name, from the index.

        Raises:
            InputError: there is no valid index, or the cache is too small.
        """
        where = url_in(self.root, INDEX)
        found = parse_index(read_bytes(where), where, lambda name: url_in(self.root, name))
        for name, split in found.items():
            most = max((shard.bytes for shard in split.shards if not is_local(shard.url)), default=0)
            needed = 2 * min(self.window, len(split.shards)) * most
            if needed > self.cache.max_bytes:
                raise InputError(
                    f"data.cache_gb={self.cache.max_bytes / 1e9:g} is too small for {name}: two windows of "
                    f"{self.window} shards take {needed / 1e9:.2g} GB; set it higher, or data.window lower"
                )
        return found

    def _pairs(self, split: str) -> ShardPairs:
        found = self.splits.get(split)
        if found is None or not found.shards:
            raise InputError(f"data.root={self.root} has no pairs for split={split}: it has {', '.join(self.splits)}")
        wanted = self._wanted(split)
        if self.check != "off":
            least = Pair("", Path(f"the smallest pair for {split}"), Path(f"the smallest pair for {split}"))
            channels_a, channels_b = found.channels or self._ab(*self.channels)
            shape_a = (wanted.reading_a.channels_of(channels_a), *found.least)
            wanted.check(least, shape_a, (wanted.reading_b.channels_of(channels_b), *found.least))
            if found.channels is None and not self.convert:
                raise InputError(
                    f"{self.root}: the images for {split} have several numbers of channels: set data.convert=true"
                )
            if wanted.same_size and not found.same_size:
                raise InputError(f"{self.root}: pairs for {split} have an A and a B of two sizes: set data.load_size")
        size = self._size(split, set() if found.size is None else {found.size})
        self.val_sizes_differ |= split == "val" and self.load_size is None and found.size is None
        return ShardPairs(
            found.shards, self.cache, 2 if split == "val" else self.window + 1, direction=self.direction, size=size,
            wanted=wanted, on_error=self.on_error,
        )  # fmt: skip

    def _dataset(self, split: str) -> ShardPairs:
        data = self._pairs(split)
        for shard in data.shards if self.check != "off" else ():
            if is_local(shard.url):
                try:
                    check_size(shard.url, shard)
                except InputError as error:
                    if self.on_error == "raise":
                        raise
                    self._skip(str(error), rank_zero_warn)
        return data

    def _sampler(self, processes: int, rank: int, seed: int) -> ShardSampler:
        lengths = [shard.pairs for shard in self.splits["train"].shards]
        return ShardSampler(lengths, self.window, self.batch_size, processes, rank, seed, self._fetch_ahead)

    def _fetch_ahead(self, number: int) -> None:
        """Fetch a training shard in the background, unless the one before is still on its way."""
        if not (self.ahead and self.ahead.is_alive()):
            self.ahead = Thread(target=self._fetch, args=(self.splits["train"].shards[number],), daemon=True)
            self.ahead.start()

    def _fetch(self, shard: Shard) -> None:
        with suppress(OSError):  # reading it will try again, and report the error
            self.cache.fetch(shard)
