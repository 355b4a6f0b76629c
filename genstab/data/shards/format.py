"""Shards: tar files of pairs, as WebDataset has them, read at any place; and the index of what they hold."""

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
    """Where a shard is, how many pairs it holds, and its bytes and SHA-256; None where that is not known."""

    url: str
    pairs: int
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Split:
    """The shards of a split, and where known the one size of its pairs, their least height and width, their channels.

    >>> Split([Shard("a.tar", 3), Shard("b.tar", 4)]).pairs
    7
    """

    shards: list[Shard]
    size: tuple[int, int] | None = None
    least: tuple[int, int] | None = None
    channels: tuple[int, int] | None = None

    @property
    def pairs(self) -> int:
        """Return how many pairs there are."""
        return sum(shard.pairs for shard in self.shards)


class Member(NamedTuple):
    """A file in a shard: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


class Place(NamedTuple):
    """A pair in a shard; `b` is None where one file holds both images side by side."""

    name: str
    a: Member
    b: Member | None


def key_of(name: str) -> str:
    """Return what a pair is called in a shard, where a key ends at the first dot.

    >>> key_of("1.5 m/é%"), unquote(key_of("1.5 m/é%"))
    ('1%2E5 m%2Fé%25', '1.5 m/é%')
    """
    return re.sub(r"[%./]", lambda found: f"%{ord(found[0]):02X}", name)


class ShardFile:
    """An open shard: `places` are its pairs in the order of their first files, `size` its bytes.

    The members of a pair are KEY.a.EXT and KEY.b.EXT, or KEY.ab.EXT with A in its left half; others are left alone.

    Args:
        path: a tar file without compression.
        shard: what it should be.
        name: what messages call it.

    Raises:
        InputError: it is cut off, damaged, compressed, another one than the index says, or a pair is not whole.
        FileNotFoundError: it is not there.
    """

    def __init__(self, path: str | Path, shard: Shard, name: str) -> None:
        self.name, self.descriptor = name, -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self.descriptor).st_size
            check_bytes(name, self.size, shard)
            self.places = _paired(name, list(self._members(self.size)))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(f"cannot read {name}: {error.strerror}") from error
        if shard.pairs not in (-1, len(self.places)):
            raise InputError(f"{name} holds {len(self.places)} pairs, its index says {shard.pairs}")

    def read(self, member: Member) -> bytes:
        """Return the bytes of a file in it.

        Raises:
            InputError: they cannot be read any more.
        """
        try:
            data = os.pread(self.descriptor, member.size, member.offset)
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from error
        if len(data) < member.size:
            raise InputError(f"{self.name} is cut off in {printable(member.name)}")
        return data

    def _members(self, size: int) -> Iterator[Member]:
        """Look at the headers only. (`tarfile` takes three times as long, and here it is every worker that looks.)"""
        position = 0
        while any(head := os.pread(self.descriptor, _BLOCK, position)):
            try:
                info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                if head.startswith(b"\x1f\x8b"):
                    raise InputError(f"{self.name} is compressed: pairs are read at any place, of plain tar") from error
                where = f"is cut off at {size} bytes" if len(head) < _BLOCK else f"is damaged at byte {position}"
                raise InputError(f"{self.name} {where}") from error
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
                yield from self._others(position)
                return
            start = position + _BLOCK
            position = start + -(-info.size // _BLOCK) * _BLOCK
            if position > size:
                raise InputError(f"{self.name} is cut off at {size} bytes, in {printable(info.name)}")
            if info.type != tarfile.DIRTYPE:
                yield Member(info.name, start, info.size)
        if position + _BLOCK > size:
            raise InputError(f"{self.name} is cut off at {size} bytes, between two files")

    def _others(self, position: int) -> Iterator[Member]:
        """Go on where a header wants more than its block: a long name, or what other programs write."""
        with os.fdopen(os.dup(self.descriptor), "rb") as file:
            file.seek(position)
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for info in tar:
                        if info.isreg():
                            yield Member(info.name, info.offset_data, info.size)
                    end = os.pread(self.descriptor, _BLOCK, tar.offset)  # of which tarfile says nothing
            except (tarfile.TarError, ValueError, OverflowError) as error:
                raise InputError(f"{self.name} is damaged or cut off: {error}") from error
        if len(end) < _BLOCK or any(end):
            raise InputError(f"{self.name} is cut off at {self.size} bytes, or damaged")

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


def check_bytes(name: str, size: int, shard: Shard) -> None:
    """Raise an `InputError` for a shard that has not the size that its index says."""
    if shard.bytes not in (None, size):
        raise InputError(f"{name} has {size} bytes, its index says {shard.bytes}: it is cut off, or another one")


def _paired(name: str, members: list[Member]) -> list[Place]:
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
        places.append(Place(printable(unquote(key)), found.get("a") or found["ab"], found.get("b")))
    return places


def parse_index(text: bytes, where: str, url_of: Callable[[str], str]) -> Mapping[str, Split]:
    """Return the splits that an index lists.

    Args:
        text: of `index.json`.
        where: it is, for messages.
        url_of: from a file's name to where it is.

    Raises:
        InputError: it is none.

    >>> parse_index(b"{}", "index.json", str)
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: index.json is no index of shards: 'kind'
    """
    try:
        content = json.loads(text)
        if content["kind"] != KIND:
            raise ValueError(f"its kind is {content['kind']!r}, not {KIND!r}")
        return {name: _split(split, url_of) for name, split in content["splits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is no index of shards: {' '.join(str(error).split())}") from error


def _split(split: Mapping[str, Any], url_of: Callable[[str], str]) -> Split:
    shards = []
    for shard in split["shards"]:
        if not re.fullmatch(r"[\w-]+\.tar", shard["name"]):  # one that leaves the folder, or a command
            raise ValueError(f"{shard['name']!r} is no name of a shard")
        shards.append(Shard(url_of(shard["name"]), int(shard["pairs"]), int(shard["bytes"]), str(shard["sha256"])))
    keys = ("size", "least", "channels")
    size, least, channels = (None if (two := split[key]) is None else (int(two[0]), int(two[1])) for key in keys)
    return Split(shards, size, least, channels)
