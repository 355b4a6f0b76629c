"""The format of shards: tar files of pairs, as WebDataset writes them, with random access; and their index."""

import os
import re
import tarfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from genstab.data.formats import EXTENSIONS
from genstab.data.paths import printable
from genstab.errors import InputError
from genstab.runtime.files import parse_json

INDEX = "index.json"
KIND = "genstab-shards-1"
SMALLEST_PAIR = 1024  # bytes: the header of one member of a tar file, and its content in blocks of 512


@dataclass(frozen=True)
class Shard:
    """A shard in the index: its URL, number of pairs, size in bytes and SHA-256."""

    url: str
    pairs: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of a split; the size that all images share, or None, the least height and width, and the channels of A
    and B, or None if they differ; and whether A and B of every pair have the same size.
    """

    shards: list[Shard]
    size: tuple[int, int] | None
    least: tuple[int, int]
    channels: tuple[int, int] | None
    same_size: bool = True


class Member(NamedTuple):
    """A file in a shard: its name, offset and size."""

    name: str
    offset: int
    size: int


def key_of(name: str) -> str:
    """Return the key of a pair in a shard: its name, with the characters that would end the key escaped."""
    return re.sub(r"[%./]", lambda found: f"%{ord(found[0]):02X}", name)


class ShardFile:
    """An open shard: `pairs` lists its pairs in the order of their first files: the name, A, and B or None.

    A pair has the members KEY.a.EXT and KEY.b.EXT, or KEY.ab.EXT with A in its left half; other members are ignored.

    Raises:
        InputError: the file is damaged or not the one in the index, or a pair is incomplete.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | Path, shard: Shard) -> None:
        self.name = shard.url
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self.descriptor)
            check_size(self.descriptor, shard)
            with os.fdopen(os.dup(self.descriptor), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                members = [Member(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
        except (FileNotFoundError, InputError):
            raise
        except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
            raise InputError(f"cannot read {self.name}: {error}") from error
        self.pairs = _paired(self.name, members)
        if shard.pairs != len(self.pairs):  # tarfile takes a damaged header for the end of the file
            raise InputError(f"{self.name} holds {len(self.pairs)} pairs, its index says {shard.pairs}")

    def read(self, member: Member) -> bytes:
        """Return the content of a member."""
        try:
            data = os.pread(self.descriptor, member.size, member.offset)
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from error
        if len(data) < member.size:
            raise InputError(f"{self.name} is cut off in {printable(member.name)}")
        return data


def check_size(path: str | int, shard: Shard) -> None:
    """Raise an `InputError` if a shard is missing or its size differs from its index."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise InputError(f"{shard.url} is missing") from error
    if size != shard.bytes:
        raise InputError(f"{shard.url} has {size} bytes, its index says {shard.bytes}: it is cut off, or another file")


def _paired(name: str, members: Iterable[Member]) -> list[tuple[str, Member, Member | None]]:
    sides: dict[str, dict[str, Member]] = {}
    for member in members:
        key, _, suffix = member.name.partition(".")
        side, dot, extension = suffix.lower().partition(".")
        if side in ("a", "b", "ab") and dot + extension in EXTENSIONS:
            sides.setdefault(key, {})[side] = member
    for found in sides.values():
        if found.keys() not in ({"a", "b"}, {"ab"}):
            has = ", ".join(printable(member.name) for member in found.values())
            raise InputError(f"{name}: a pair is KEY.a.png and KEY.b.png, or KEY.ab.png alone; found {has}")
    return [(printable(unquote(key)), found.get("a") or found["ab"], found.get("b")) for key, found in sides.items()]


def parse_index(text: bytes, where: str, url_of: Callable[[str], str]) -> Mapping[str, Split]:
    """Return the splits of an index; `url_of` maps the name of a shard to its URL, `where` is for messages."""
    try:
        content = parse_json(text)
        if content["kind"] != KIND:
            raise ValueError(f"its kind is {content['kind']!r}, not {KIND!r}")
        return {name: _split(split, url_of) for name, split in content["splits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is not an index of shards: {' '.join(str(error).split())}") from error


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is not a whole number of at least 1")
    return value


def _split(split: Mapping[str, Any], url_of: Callable[[str], str]) -> Split:
    shards = []
    for shard in split["shards"]:
        if not re.fullmatch(r"[\w-]+\.tar", shard["name"]):  # one that leaves the folder, or a command
            raise ValueError(f"{shard['name']!r} is not the name of a shard")
        pairs, length = _count(shard["pairs"]), _count(shard["bytes"])
        if pairs * SMALLEST_PAIR > length:
            raise ValueError(f"{shard['name']} cannot hold {pairs} pairs in {length} bytes")
        shards.append(Shard(url_of(shard["name"]), pairs, length, str(shard["sha256"])))
    height, width = map(_count, split["least"])
    size = (height, width) if split["size"] else None  # where all images have one size, it is the least
    channels = None
    if split["channels"] is not None:
        channels_a, channels_b = map(_count, split["channels"])
        channels = channels_a, channels_b
    return Split(shards, size, (height, width), channels, bool(split.get("same_size", True)))
