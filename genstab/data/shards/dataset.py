"""Dataset of pairs in shards, with random access."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from genstab.data.image_io import decode_image
from genstab.data.pairs import Pair, PairDataset
from genstab.data.paths import printable
from genstab.data.reading import Reading
from genstab.data.shards.cache import ShardCache, basename, is_local
from genstab.data.shards.format import Member, Shard, ShardFile
from genstab.errors import InputError


class ShardPairs(PairDataset):
    """Read pairs out of shards; remote shards are fetched when they are needed.

    With `on_error="skip"`, images that cannot be read or do not fit and damaged shards are skipped; a shard that cannot
    be fetched always raises an error.

    Args:
        shards: the shards; their order defines the indices of their pairs.
        cache: opens the shards.
        open_shards: number of shards that are kept open.
        options: the arguments of `PairDataset`.
    """

    def __init__(self, shards: Sequence[Shard], cache: ShardCache, open_shards: int = 16, **options: Any) -> None:
        super().__init__(**options)
        self.shards, self.cache, self.open_shards = list(shards), cache, open_shards
        self.ends = list(accumulate(shard.pairs for shard in self.shards))
        self.opened: OrderedDict[int, ShardFile | InputError] = OrderedDict()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out open files, which belong to this process."""
        return {**self.__dict__, "opened": OrderedDict()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return super().__getitem__(index)
        except OSError as error:
            raise InputError(error) from error

    def _read(self, index: int) -> tuple[Pair, Tensor, Tensor | None]:
        number = bisect_right(self.ends, index)
        file = self._open(number)
        name, member_a, member_b = file.pairs[index - self.ends[number]]  # counted from the end of the shard
        path_a, a = _decoded(file, member_a, self.wanted.reading_a)
        path_b, b = (None, None) if member_b is None else _decoded(file, member_b, self.wanted.reading_b)
        return Pair(name, path_a, path_b), a, b

    def _open(self, number: int) -> ShardFile:
        """Return an open shard, or raise the error that opening it raised."""
        if number not in self.opened:
            try:
                self.opened[number] = self.cache.open(self.shards[number])
            except InputError as error:
                self.opened[number] = error
            if len(self.opened) > self.open_shards:
                self.opened.popitem(last=False)
        self.opened.move_to_end(number)
        if isinstance(file := self.opened[number], InputError):
            raise file
        return file


def _decoded(file: ShardFile, member: Member, reading: Reading) -> tuple[Path, Tensor]:
    """Return the path of an image, for messages, and the image."""
    path = Path(file.name if is_local(file.name) else basename(file.name), printable(member.name))
    return path, decode_image(file.read(member), str(path), reading)
