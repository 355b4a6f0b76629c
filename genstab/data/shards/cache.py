"""Where shards come from: a folder, or any place that WebDataset opens, by way of a folder of bounded size."""

import hashlib
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from genstab.data.shards.format import Shard, ShardFile
from genstab.errors import InputError

PATIENCE = 60.0
"""Seconds without a byte after which a source is given up."""

ATTEMPTS = 4
"""How often a shard is asked for, with pauses of 1, 2 and 4 seconds."""

CACHE = "~/.cache/genstab/shards"
_MOST = 1 << 30  # bytes of an index
# What curl answers, by which WebDataset opens http and https.
_CURL = {
    6: "nobody knows this host", 7: "nobody listens there", 18: "it was cut off", 22: "the server has it not, or not "
    "for us", 28: "it took too long", 35: "no safe connection", 56: "it was cut off", 60: "no safe connection",
}  # fmt: skip


def is_local(url: str) -> bool:
    """Tell whether a shard is a file here.

    >>> is_local("shards/a.tar"), is_local("http://host/a.tar"), is_local("pipe:cat a.tar")
    (True, False, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url) is None


def url_in(root: str, name: str) -> str:
    """Return where a file of a root is: below it, or what a command with %s makes of the name.

    >>> url_in("http://host/pairs/", "index.json"), url_in("pipe:cat pairs/%s", "index.json")
    ('http://host/pairs/index.json', 'pipe:cat pairs/index.json')
    """
    return root.replace("%s", name) if "%s" in root else f"{root.rstrip('/')}/{name}"


def expanded(lists: str | list[str]) -> list[str]:
    """Return every shard that a list with braces means, as WebDataset expands it.

    Raises:
        InputError: WebDataset is not installed.
    """
    expand = webdataset().shardlists.expand_urls
    return [url for each in ([lists] if isinstance(lists, str) else lists) for url in expand(each)]


def read_bytes(url: str) -> bytes:
    """Return the content of a small file, an index.

    Raises:
        InputError: it cannot be read, or is not small.
    """
    if is_local(url):
        try:
            return Path(url).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {url}: {error.strerror}") from error
    parts: list[bytes] = []

    def keep(block: bytes) -> None:
        parts.append(block)
        if sum(map(len, parts)) > _MOST:
            raise OSError(f"it has more than {_MOST} bytes")

    try:
        _receive(url, keep)
    except OSError as error:
        raise InputError(f"cannot fetch {url}: {error}") from error
    return b"".join(parts)


class ShardCache:
    """Open shards; those that are not here are fetched whole into a folder, and the oldest there make room.

    Any number of processes may share the folder: a shard is fetched once, and one that is removed while somebody reads
    it stays readable to them.

    Args:
        folder: `~` is your home; it appears when something is fetched.
        most: bytes that the fetched shards may take.
    """

    def __init__(self, folder: str | Path = CACHE, most: float = 2e10) -> None:
        self.folder, self.most = Path(folder).expanduser(), most

    def open(self, shard: Shard) -> ShardFile:
        """Open a shard that `fetch` brought here, or that was here.

        Raises:
            InputError: as `ShardFile`, or there is no such file.
            FileNotFoundError: it had to make room since.
        """
        if not is_local(shard.url):
            path = self._path(shard)
            os.utime(path)  # the oldest is the one not used for longest
            return ShardFile(path, shard, shard.url)
        try:
            return ShardFile(shard.url, shard, shard.url)
        except FileNotFoundError as error:
            raise InputError(f"{shard.url} is missing") from error

    def fetch(self, shard: Shard) -> None:
        """Have a shard here, unless it is.

        Raises:
            InputError: it cannot be fetched as the index says, or the folder cannot be written.
        """
        if is_local(shard.url) or self._path(shard).is_file():
            return
        path = self._path(shard)
        with self.locked(path.name):
            if not path.is_file():
                self._fetch(shard, path)

    @contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """Let one process at a time make a file of the folder, which is there then.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{name}.lock"):
                yield self.folder / name
        except OSError as error:
            raise InputError(f"data.cache={self.folder} cannot keep {name}: {error.strerror or error}") from error

    def _path(self, shard: Shard) -> Path:
        """Tell shards of one name in two places, or of two times, apart."""
        digest = hashlib.sha256(f"{shard.url} {shard.sha256}".encode()).hexdigest()[:16]
        return self.folder / f"{digest}-{basename(shard.url)}"

    def _fetch(self, shard: Shard, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        try:
            for attempt in range(ATTEMPTS):
                time.sleep(2 ** (attempt - 1) if attempt else 0)
                with FileLock(self.folder / "room.lock"):
                    self._make_room(part, shard.bytes or 0)
                reason = _attempt(shard, part)
                if reason is None:
                    os.replace(part, path)
                    return
        finally:
            part.unlink(missing_ok=True)
        raise InputError(f"cannot fetch {shard.url}: {reason}; tried {ATTEMPTS} times")

    def _make_room(self, part: Path, wanted: int) -> None:
        """Remove what was not used for longest until another file fits, and begin that with its size: it counts."""
        part.unlink(missing_ok=True)
        files = [path for pattern in ("*.tar", "*.part") for path in self.folder.glob(pattern)]
        found = sorted((stat.st_mtime, stat.st_size, path) for path in files if (stat := _stat(path)))
        size = sum(each for _, each, _ in found) + wanted
        for _, each, path in found:
            if size <= self.most:
                break
            path.unlink(missing_ok=True)
            size -= each
        with part.open("wb") as file:
            file.truncate(wanted)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # finished, or somebody else's and given up
        return None


def basename(url: str) -> str:
    """Return the name of a shard's file, wherever in a URL or a command it stands.

    >>> basename("pipe:curl -s http://host/train-000001.tar"), basename("a/val-0.tar")
    ('train-000001.tar', 'val-0.tar')
    """
    found = re.findall(r"[\w.-]+\.tar\b", url)
    return found[-1] if found else "shard.tar"


def _attempt(shard: Shard, part: Path) -> str | None:
    """Fetch a shard; return why that failed."""
    digest = hashlib.sha256()
    with part.open("r+b") as file:

        def write(block: bytes) -> None:
            digest.update(block)
            file.write(block)

        try:
            _receive(shard.url, write)
        except ConnectionError as error:
            return str(error)
        size = file.tell()
        file.truncate()
    if shard.bytes not in (None, size):
        return f"{size} bytes came, the index says {shard.bytes}"
    if shard.sha256 not in (None, digest.hexdigest()):
        return f"what came has the SHA-256 {digest.hexdigest()}, the index says {shard.sha256}"
    return None


def _receive(url: str, write: Callable[[bytes], object]) -> None:
    """Hand on what comes from a URL, opened as WebDataset does.

    Raises:
        ConnectionError: nothing comes, or no more; an `OSError` of `write` is passed on.
    """
    opened = webdataset().gopen
    try:
        source = opened(url)
    except (ValueError, ImportError, OSError) as error:
        program = getattr(error, "filename", None)
        raise ConnectionError(f"the program {program!r} is not installed" if program else str(error)) from error
    process: subprocess.Popen = source.proc
    try:
        descriptor = source.stream.fileno()
        while True:
            if not select.select([descriptor], [], [], PATIENCE)[0]:
                raise ConnectionError(f"nothing came for {PATIENCE:.0f} s")
            block = os.read(descriptor, 1 << 20)
            if not block:
                break
            write(block)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        source.stream.close()
    if code:
        curl = isinstance(process.args, list) and process.args[0] == "curl"
        raise ConnectionError(_CURL.get(code, f"curl ended with {code}") if curl else f"its command ended with {code}")


def webdataset() -> Any:
    """Return the package.

    Raises:
        InputError: it is not installed.

    >>> webdataset().gopen.__name__
    'gopen'
    """
    try:
        return import_module("webdataset")
    except ImportError as error:
        raise InputError("shards need the package webdataset: pip install 'genstab[shards]'") from error
