"""Read shards from a folder, or fetch them from any URL that WebDataset opens into a cache of bounded size."""

import hashlib
import os
import re
import select
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock

from genstab.data.shards.format import Shard, ShardFile
from genstab.errors import InputError

TIMEOUT = 60.0  # seconds without a byte after which a download fails
ATTEMPTS = 4  # how often a download is tried, with pauses of 1, 2 and 4 seconds
CACHE = "~/.cache/genstab"
OWN = "genstab-shards"  # the folder in the cache that nobody else writes to
_FETCHED = re.compile(r"[0-9a-f]{16}-.+\.tar(\.part)?")  # as `ShardCache._path` names them
# Exit codes of curl, with which WebDataset opens http and https.
_CURL = {
    6: "the host is unknown", 7: "the connection was refused", 18: "the connection was lost",
    22: "the server has no such file or denies access", 28: "it timed out", 35: "the TLS connection failed",
    56: "the connection was lost", 60: "the TLS certificate is not valid",
}  # fmt: skip


def is_local(url: str) -> bool:
    """Return whether a shard is a local file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url) is None


def url_in(root: str, name: str) -> str:
    """Return the URL of a file below a root; a root with %s is a template for the name."""
    return root.replace("%s", name) if "%s" in root else f"{root.rstrip('/')}/{name}"


def read_bytes(url: str) -> bytes:
    """Return the content of an index."""
    try:
        if is_local(url):
            return Path(url).read_bytes()
        parts: list[bytes] = []
        _receive(url, parts.append)
    except OSError as error:
        raise InputError(f"cannot {'read' if is_local(url) else 'fetch'} {url}: {error.strerror or error}") from error
    return b"".join(parts)


class ShardCache:
    """Open shards; remote ones are fetched into a folder, from which the least recently used ones are removed.

    They lie in a folder of their own, `genstab-shards`, below the given one; no other file is counted or removed. Any
    number of processes may share it: a shard is fetched once, and one that is removed while a process reads it stays
    readable to that process.
    """

    def __init__(self, folder: str | Path = CACHE, max_bytes: float = 2e10) -> None:
        self.folder, self.max_bytes = Path(folder).expanduser() / OWN, max_bytes

    def open(self, shard: Shard) -> ShardFile:
        """Open a shard; a remote one is fetched, unless it is in the cache.

        Raises:
            InputError: as `ShardFile`, or a local shard is missing.
            OSError: as `fetch`.
        """
        if is_local(shard.url):
            try:
                return ShardFile(shard.url, shard)
            except FileNotFoundError as error:
                raise InputError(f"{shard.url} is missing") from error
        for _ in range(ATTEMPTS):
            self.fetch(shard)
            with suppress(FileNotFoundError):  # other processes have removed it since, to make room
                os.utime(self._path(shard))  # the time of its last use
                return ShardFile(self._path(shard), shard)
        raise OSError(f"data.cache={self.folder.parent} removes shards before they are read: set data.cache_gb higher")

    def fetch(self, shard: Shard) -> None:
        """Fetch a remote shard, unless it is in the cache.

        Raises:
            OSError: it cannot be fetched, differs from its index, or the folder cannot be written; not an `InputError`,
                which `on_error=skip` would take for a bad image.
        """
        if is_local(shard.url) or (path := self._path(shard)).is_file():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):  # one process at a time
                if not path.is_file():
                    self._fetch(shard, path)
        except ConnectionError:
            raise
        except OSError as error:
            raise OSError(
                f"data.cache={self.folder.parent} cannot keep {path.name}: {error.strerror or error}"
            ) from error

    def _path(self, shard: Shard) -> Path:
        """Return a path that differs for shards of the same name at two URLs, or with two contents."""
        digest = hashlib.sha256(f"{shard.url} {shard.sha256}".encode()).hexdigest()[:16]
        return self.folder / f"{digest}-{basename(shard.url)}"

    def _fetch(self, shard: Shard, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        try:
            for attempt in range(ATTEMPTS):
                time.sleep(2 ** (attempt - 1) if attempt else 0)
                with FileLock(self.folder / "room.lock"):
                    self._make_room(part, shard.bytes)
                try:
                    _download(shard, part)
                except ConnectionError as error:
                    reason = error
                else:
                    os.replace(part, path)
                    return
        finally:
            part.unlink(missing_ok=True)
        raise ConnectionError(f"cannot fetch {shard.url}: {reason}; tried {ATTEMPTS} times")

    def _make_room(self, part: Path, wanted: int) -> None:
        """Remove the least recently used shards until another one fits, and reserve its size."""
        part.unlink(missing_ok=True)
        found = []
        for path in filter(lambda path: _FETCHED.fullmatch(path.name), self.folder.iterdir()):
            with suppress(FileNotFoundError):  # another process finished or removed it
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        size = sum(each for _, each, _ in found) + wanted
        for _, each, path in sorted(found):
            if size <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            size -= each
        with part.open("xb") as file:  # not through a link
            file.truncate(wanted)


def basename(url: str) -> str:
    """Return the file name of a shard in a URL or a command."""
    found = re.findall(r"[\w.-]+\.tar\b", url)
    return found[-1] if found else "shard.tar"


def _download(shard: Shard, path: Path) -> None:
    """Download a shard; raise a `ConnectionError` unless it is what the index says."""
    digest = hashlib.sha256()
    with path.open("r+b") as file:

        def write(block: bytes) -> None:
            digest.update(block)
            file.write(block)

        _receive(shard.url, write)
        size = file.tell()
        file.truncate()
    if size != shard.bytes:
        raise ConnectionError(f"{size} bytes were received, the index says {shard.bytes}")
    if digest.hexdigest() != shard.sha256:
        raise ConnectionError(f"its SHA-256 is {digest.hexdigest()}, the index says {shard.sha256}")


def _receive(url: str, write: Callable[[bytes], object]) -> None:
    """Pass the content of a URL, opened by WebDataset, to `write` block by block.

    Raises:
        ConnectionError: the download fails; an `OSError` of `write` is passed on.
    """
    gopen = webdataset().gopen
    try:
        source = gopen(url)
    except (ValueError, ImportError, OSError) as error:
        program = getattr(error, "filename", None)
        raise ConnectionError(f"the program {program!r} is not installed" if program else str(error)) from error
    process: subprocess.Popen = source.proc
    try:
        descriptor = source.stream.fileno()
        while True:
            if not select.select([descriptor], [], [], TIMEOUT)[0]:
                raise ConnectionError(f"no data for {TIMEOUT:.0f} s")
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
        raise ConnectionError((curl and _CURL.get(code)) or f"its command failed with exit code {code}")


def webdataset() -> Any:
    """Import the optional package, or raise an `InputError` that says how to install it."""
    try:
        return import_module("webdataset")
    except ImportError as error:
        raise InputError("shards need the package webdataset: pip install 'genstab[shards]'") from error
