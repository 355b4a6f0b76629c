"""The format of shards: tar files of pairs, as WebDataset writes them, with random access; and their index."""

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from genstab.data.image_io import EXTENSIONS
from genstab.data.paths import printable, shortened
from genstab.errors import InputError

INDEX = "index.json"
KIND = "genstab-shards-1"
SIDES = ("a", "b", "ab")
_BLOCK = 512


@dataclass(frozen=True)
class Shard:
    """A shard's URL, number of pairs, size in bytes and SHA-256; None if unknown."""

    url: str
    pairs: int
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Split:
    """The shards of a split; if known, the size that all pairs share, the least height and width, and the channels.

    >>> Split([Shard("a.tar", 3), Shard("b.tar", 4)]).pairs
    7
    """

    shards: list[Shard]
    size: tuple[int, int] | None = None
    least: tuple[int, int] | None = None
    channels: tuple[int, int] | None = None

    @property
    def pairs(self) -> int:
        """Return the number of pairs."""
        return sum(shard.pairs for shard in self.shards)


class Member(NamedTuple):
    """A file in a shard: its name, offset and size."""

    name: str
    offset: int
    size: int


class ShardPair(NamedTuple):
    """A pair in a shard; `b` is None if one file holds both images side by side."""

    name: str
    a: Member
    b: Member | None


def key_of(name: str) -> str:
    """Return the key of a pair in a shard: its name, with the characters that would end the key escaped.

    >>> key_of("1.5 m/é%"), unquote(key_of("1.5 m/é%"))
    ('1%2E5 m%2Fé%25', '1.5 m/é%')
    """
    return re.sub(r"[%./]", lambda found: f"%{ord(found[0]):02X}", name)


class ShardFile:
    """An open shard: `pairs` lists its pairs in the order of their first files, `size` is its size in bytes.

    A pair has the members KEY.a.EXT and KEY.b.EXT, or KEY.ab.EXT with A in its left half; other members are ignored.

    Args:
        path: an uncompressed tar file.
        shard: the index's entry for this shard, which is checked.
        name: name of the shard in messages.

    Raises:
        InputError: the file is cut off, damaged, compressed or not the one in the index, or a pair is incomplete.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: str | Path, shard: Shard, name: str) -> None:
        self.name, self.descriptor = name, -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self.descriptor).st_size
            check_bytes(name, self.size, shard)
            self.pairs = _paired(name, list(self._members()))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(f"cannot read {name}: {error.strerror}") from error
        if shard.pairs != len(self.pairs):
            raise InputError(f"{name} holds {len(self.pairs)} pairs, its index says {shard.pairs}")

    def read(self, member: Member) -> bytes:
        """Return the content of a member.

        Raises:
            InputError: it cannot be read.
        """
        try:
            data = os.pread(self.descriptor, member.size, member.offset)
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from error
        if len(data) < member.size:
            raise InputError(f"{self.name} is cut off in {printable(member.name)}")
        return data

    def _members(self) -> Iterator[Member]:
        """List the files; `tarfile` ends without an error at a damaged header, so check that the end was reached."""
        with os.fdopen(os.dup(self.descriptor), "rb") as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for info in tar:
                        if info.offset_data + info.size > self.size:
                            raise InputError(f"{self.name} is cut off at {self.size} bytes, in {printable(info.name)}")
                        if info.isreg():
                            yield Member(info.name, info.offset_data, info.size)
                    end = tar.offset
            except (tarfile.TarError, ValueError, OverflowError) as error:
                if os.pread(self.descriptor, 2, 0) == b"\x1f\x8b":
                    raise InputError(f"{self.name} is compressed: shards must be plain tar files") from error
                raise InputError(f"{self.name} is damaged or cut off: {error}") from error
        block = os.pread(self.descriptor, _BLOCK, end)
        if len(block) < _BLOCK:
            raise InputError(f"{self.name} is cut off at {self.size} bytes")
        if any(block):
            raise InputError(f"{self.name} is damaged at byte {end}")

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def check_bytes(name: str, size: int, shard: Shard) -> None:
    """Raise an `InputError` if the size of a shard differs from its index."""
    if shard.bytes not in (None, size):
        raise InputError(f"{name} has {size} bytes, its index says {shard.bytes}: it is cut off, or another file")


def _paired(name: str, members: list[Member]) -> list[ShardPair]:
    sides: dict[str, dict[str, Member]] = {}
    for member in members:
        folder, slash, file = member.name.rpartition("/")
        key, _, suffix = file.partition(".")
        side, dot, extension = suffix.lower().partition(".")
        if side in SIDES and dot + extension in EXTENSIONS:
            found = sides.setdefault(folder + slash + key, {})
            if side in found:
                raise InputError(f"{name} has {printable(member.name)} and {printable(found[side].name)}")
            found[side] = member
    if not sides:
        others = shortened([printable(member.name) for member in members]) or "nothing"
        raise InputError(f"{name} has no pairs, KEY.a.png and KEY.b.png or KEY.ab.png: found {others}")
    places = []
    for key, found in sides.items():
        if found.keys() not in ({"a", "b"}, {"ab"}):
            has = ", ".join(printable(member.name) for member in found.values())
            raise InputError(f"{name}: a pair is KEY.a.png and KEY.b.png, or KEY.ab.png alone; found {has}")
        places.append(ShardPair(printable(unquote(key)), found.get("a") or found["ab"], found.get("b")))
    return places


def parse_index(text: bytes, where: str, url_of: Callable[[str], str]) -> Mapping[str, Split]:
    """Return the splits of an index.

    Args:
        text: content of `index.json`.
        where: path or URL of the index, for messages.
        url_of: maps the name of a shard to its URL.

    Raises:
        InputError: the content is not a valid index.

    >>> parse_index(b"{}", "index.json", str)
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: index.json is not an index of shards: 'kind'
    """
    try:
        content = json.loads(text)
        if content["kind"] != KIND:
            raise ValueError(f"its kind is {content['kind']!r}, not {KIND!r}")
        return {name: _split(split, url_of) for name, split in content["splits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is not an index of shards: {' '.join(str(error).split())}") from error


def _split(split: Mapping[str, Any], url_of: Callable[[str], str]) -> Split:
    shards = []
    for shard in split["shards"]:
        if not re.fullmatch(r"[\w-]+\.tar", shard["name"]):  # one that leaves the folder, or a command
            raise ValueError(f"{shard['name']!r} is not the name of a shard")
        shards.append(Shard(url_of(shard["name"]), int(shard["pairs"]), int(shard["bytes"]), str(shard["sha256"])))
    keys = ("size", "least", "channels")
    size, least, channels = (None if (two := split[key]) is None else (int(two[0]), int(two[1])) for key in keys)
    return Split(shards, size, least, channels)
