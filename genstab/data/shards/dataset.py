"""Dataset of pairs in shards, with random access."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from genstab.data.image_io import decode_image
from genstab.data.pairs import DIRECTIONS, ON_ERROR, Pair, Wanted, item_of
from genstab.data.paths import printable
from genstab.data.shards.cache import ShardCache, basename, is_local
from genstab.data.shards.format import Shard, ShardFile
from genstab.data.shards.sampler import Position
from genstab.errors import InputError, check_choice

_ATTEMPTS = 3  # a fetched shard may be removed from the cache before it is opened: fetch it again, this often


class ShardPairs(Dataset[dict[str, Any]]):
    """Read pairs out of shards as {"source": (C, H, W) float32 in [-1, 1], "target": likewise, "name": str}.

    Remote shards are fetched when they are needed, or ahead in the background if a `Position` or `in_order` tells which
    is next. Images are read, checked and resized as by `PairedImages`. With `on_error="skip"`, images that cannot be
    read or do not fit and damaged shards are skipped; a shard that cannot be fetched always raises an error.

    Args:
        shards: the shards; their order defines the indices of their pairs.
        cache: opens the shards.
        direction, size, wanted, on_error: see `PairedImages`.
        open_shards: number of shards that are kept open.
        in_order: whether the pairs are read from first to last.

    Raises:
        InputError: an unknown direction or `on_error`; when reading, as `ShardCache`, `ShardFile`, `decode_image` and
            `Wanted.check`.

    >>> len(ShardPairs([Shard("a.tar", 3), Shard("b.tar", 4)], ShardCache()))
    7
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        cache: ShardCache,
        direction: str = "AtoB",
        size: tuple[int, int] | None = None,
        wanted: Wanted | None = None,
        on_error: str = "raise",
        open_shards: int = 16,
        in_order: bool = False,
    ) -> None:
        check_choice("direction", direction, DIRECTIONS)
        check_choice("on_error", on_error, ON_ERROR)
        self.shards, self.cache, self.open_shards, self.in_order = list(shards), cache, open_shards, in_order
        self.direction, self.size, self.wanted, self.on_error = direction, size, wanted, on_error
        self.ends = list(accumulate(shard.pairs for shard in self.shards))
        self.opened: OrderedDict[int, ShardFile | InputError] = OrderedDict()
        self.ahead: threading.Thread | None = None

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files and threads, which belong to this process."""
        return {**self.__dict__, "opened": OrderedDict(), "ahead": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if isinstance(index, Position):
            self._fetch_ahead(index.ahead)
        problems: list[str] = []
        tried = 0
        while tried < len(self):
            place = (index + tried) % len(self)
            number = bisect_right(self.ends, place)
            first = self.ends[number] - self.shards[number].pairs
            file = self._shard(number)
            try:
                if isinstance(file, InputError):
                    raise file
                item = self._item(file, place - first)
                return item if self.on_error == "raise" else {**item, "skipped": "\n".join(problems)}
            except InputError as error:
                if self.on_error == "raise":
                    raise
                problems.append(printable(str(error).replace("\n", " ")))
                tried += self.ends[number] - place if isinstance(file, InputError) else 1
        raise InputError(f"none of the {len(self)} pairs can be read; {problems[0]}")

    def _item(self, file: ShardFile, number: int) -> dict[str, Any]:
        found = file.pairs[number]
        # Paths for messages.
        paths = [None if each is None else _path(file, each.name) for each in (found.a, found.b)]
        images = [
            None if each is None else decode_image(file.read(each), str(path))
            for each, path in zip((found.a, found.b), paths, strict=True)
        ]
        pair = Pair(found.name, paths[0], paths[1])  # type: ignore[arg-type]  # there is an A
        return item_of(pair, images[0], images[1], self.direction, self.size, self.wanted)  # type: ignore[arg-type]

    def _shard(self, number: int) -> ShardFile | InputError:
        """Return an open shard, or the error that opening it raised."""
        if number in self.opened:
            self.opened.move_to_end(number)
            return self.opened[number]
        shard = self.shards[number]
        for _ in range(_ATTEMPTS):
            self.cache.fetch(shard)
            try:
                self.opened[number] = self.cache.open(shard)
            except FileNotFoundError:
                continue
            except InputError as error:
                self.opened[number] = error
            if len(self.opened) > self.open_shards:
                self.opened.popitem(last=False)
            if self.in_order:
                self._fetch_ahead(number + 1)
            return self.opened[number]
        raise InputError(
            f"data.cache={self.cache.folder} removes shards before they are read: set data.cache_gb higher"
        )

    def _fetch_ahead(self, number: int) -> None:
        """Fetch the next shard in the background while this one is read."""
        busy = self.ahead is not None and self.ahead.is_alive()
        if number < len(self.shards) and not busy and not is_local(self.shards[number].url):
            self.ahead = threading.Thread(target=self._quietly, args=(self.shards[number],), daemon=True)
            self.ahead.start()

    def _quietly(self, shard: Shard) -> None:
        try:
            self.cache.fetch(shard)
        except InputError:
            return  # reading it will try again, and report the error


def _path(file: ShardFile, member: str) -> Path:
    return Path(file.name if is_local(file.name) else basename(file.name), printable(member))
