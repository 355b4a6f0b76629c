"""The façades of pix2pix: fetched once, checked and unpacked; no network is needed once they are there."""

import bz2
import gzip
import hashlib
import http.client
import lzma
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from genstab.errors import InputError

FACADES_URL = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/facades.tar.gz"
"""CMP Façades (Tyleček and Šára 2013) as pix2pix uses them: photo and label map side by side."""

FACADES_COUNTS: Mapping[str, int] = {"train": 400, "val": 100, "test": 106}
"""How many pictures each folder of the archive holds."""

_BLOCK = 1 << 18
_TIMEOUT = 30.0
_HEADER = 1 << 20  # bytes; tarfile reads a member's extended header at once, whatever size it claims
_OPENERS: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


def fetch(url: str, path: str | Path, expected_bytes: int | None = None, sha256: str | None = None) -> None:
    """Download `url` to `path`, which appears only when whole; a cut download resumes from `path.part`.

    Raises:
        InputError: no network, refused, not found or cut (the message says how to go on without a network),
            or another size or SHA-256 than expected (then `path.part` is removed).

    >>> fetch("http://127.0.0.1:1/x.tar.gz", "x.tar.gz")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: cannot download http://127.0.0.1:1/x.tar.gz (...): fetch it on another ...
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _stream(url, part, expected_bytes)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"cannot download {url} ({' '.join(str(reason).split()) or type(error).__name__}): fetch it on "
            f"another machine and place it at {path}, or use data=paired data.root=DIR with your own images"
        ) from error
    if sha256 is not None:
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256.lower():
            _discard(part)
            raise InputError(f"{url} has the SHA-256 {found}, expected {sha256}")
    os.replace(part, path)
    _discard(part)


def unpack(archive: str | Path, folder: str | Path, max_bytes: int = 2 << 30, max_members: int = 100_000) -> None:
    """Unpack a tar archive, compressed or not, into a new `folder`, which appears only when whole.

    Where everything lies in one top folder, that becomes `folder`. Only plain files and folders are allowed:
    links, devices, absolute paths and paths that leave the folder are refused. Sizes count as the headers claim them
    and as they turn out.

    Raises:
        InputError: the archive is corrupted, unsafe, or larger than `max_bytes` or `max_members`; or `folder`
            holds something already.

    >>> unpack(__file__, "facades")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: ...download.py is a corrupted archive (...): remove it, fetch it again
    """
    archive, folder = Path(archive), Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"cannot unpack {archive}: {folder} exists; remove it first")
    if archive.exists() and not archive.is_file():
        raise InputError(f"cannot unpack {archive}: it is a folder, a device or a pipe")  # which might never end
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, for a rename to another file system is no rename.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        content = Path(scratch, "content")
        content.mkdir()
        try:
            with _decompressed(archive) as stream:
                _extract(_Bounded(stream, archive, max_bytes, max_members), content)
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            if isinstance(error, tarfile.FilterError):
                raise InputError(f"{archive} is unsafe to unpack: {error}") from error
            if isinstance(error, OSError) and error.errno is not None:  # absent, disk full, no permission
                raise InputError(f"cannot unpack {archive} into {folder}: {error.strerror}") from error
            reason = str(error).partition("\n")[0].rstrip(":")  # tarfile goes on about every codec it tried
            raise InputError(f"{archive} is a corrupted archive ({reason}): remove it, fetch it again") from error
        top = list(content.iterdir())
        whole = top[0] if len(top) == 1 and top[0].is_dir() else content
        if folder.exists():
            folder.rmdir()  # empty, as seen above; Windows replaces no folder
        os.replace(whole, folder)


def facades(root: str | Path, url: str = FACADES_URL, counts: Mapping[str, int] = FACADES_COUNTS) -> Path:
    """Make sure that the façades lie in `root/facades/{train,val,test}`, and return that folder.

    Where they do, nothing is done. An archive at `root/facades.tar.gz`, placed there by hand or left by an
    earlier run, is unpacked; otherwise it is downloaded.

    Raises:
        InputError: as `fetch` and `unpack`, or fewer pictures than `counts` says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Path(root, "facades", "val").mkdir(parents=True)
    ...     Path(root, "facades", "val", "1.jpg").touch()
    ...     facades(root, counts={"val": 1}).name
    'facades'
    """
    folder, archive = Path(root, "facades"), Path(root, "facades.tar.gz")
    if folder.is_dir() and any(folder.iterdir()):
        if short := _short(folder, counts):
            # Not ours to remove: somebody may have put it there.
            raise InputError(f"{folder} is incomplete, it holds {short}: remove it and run again")
        return folder
    if not archive.exists():
        fetch(url, archive)
    unpack(archive, folder)
    if short := _short(folder, counts):
        shutil.rmtree(folder)  # ours, made a line above
        raise InputError(f"{archive} is not the façades archive, it holds {short}: remove it and run again")
    return folder


def _short(folder: Path, counts: Mapping[str, int]) -> str:
    """Say which splits have too few pictures; nothing where all are complete."""
    found = {split: sum(1 for _ in (folder / split).glob("*.jpg")) for split in counts}
    return ", ".join(f"{found[split]} of {n} in {split}" for split, n in counts.items() if found[split] < n)


def _stream(url: str, part: Path, expected_bytes: int | None) -> None:
    """Write the body of `url` to `part`, after what lies there if the server still has the same file."""
    mark = _mark(part)
    start = part.stat().st_size if part.exists() else 0
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if mark.exists() and (validator := mark.read_text()):
            headers["If-Range"] = validator
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not start:
            raise
        _discard(part)  # longer than the file, or as long: start over
        return _stream(url, part, expected_bytes)
    with response:
        if response.status != 206:
            start = 0  # the server ignores ranges, or has another file by now: it sends everything
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _discard(part)
            raise OSError(f"the server sent the range {response.headers.get('Content-Range')}, run again")
        total = _total(response, start)
        if expected_bytes is not None and total not in (None, expected_bytes):
            _discard(part)
            raise InputError(f"{url} has {total} bytes, expected {expected_bytes}")
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            mark.write_text(_validator(response))
            while block := response.read(_BLOCK):
                bar.update(file.write(block))
            size = file.tell()
    if total is not None and size < total:
        raise OSError(f"cut off at {size} of {total} bytes, run again to resume")
    if expected_bytes is not None and size != expected_bytes:
        _discard(part)
        raise InputError(f"{url} has {size} bytes, expected {expected_bytes}")
    return None


def _total(response: Any, start: int) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None else start + int(length)


def _validator(response: Any) -> str:
    """What If-Range may ask for: a strong ETag, or else the date; empty where the server sends neither."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag


def _mark(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _mark(part).unlink(missing_ok=True)


def _decompressed(archive: Path) -> IO[bytes]:
    """Open an archive, whatever it is compressed with, as a plain stream."""
    with open(archive, "rb") as file:
        magic = file.read(6)
    opener: Callable[..., Any] = next((each for start, each in _OPENERS.items() if magic.startswith(start)), open)
    return opener(archive, "rb")


class _Bounded:
    """The stream of an archive that gives neither more than its limit in all nor a large part of it at once."""

    def __init__(self, stream: IO[bytes], archive: Path, max_bytes: int, max_members: int) -> None:
        self.stream, self.archive, self.max_bytes, self.max_members = stream, archive, max_bytes, max_members
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER:
            raise self.refusal()
        return self.stream.read(size)

    def refusal(self) -> InputError:
        what = f"more than {self.max_bytes} bytes or {self.max_members} members"
        return InputError(f"{self.archive} unpacks to {what}: refused")


def _extract(stream: _Bounded, folder: Path) -> None:
    members = size = 0
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]  # what it reads with
        for member in tar:
            members, size = members + 1, size + member.size
            if size > stream.max_bytes or members > stream.max_members:
                raise stream.refusal()
            if not (member.isfile() or member.isdir()):
                raise InputError(f"{stream.archive} is unsafe to unpack: {member.name!r} is a link or a device")
            if member.name.startswith("/"):  # the filter would unpack it below the folder
                raise InputError(f"{stream.archive} is unsafe to unpack: {member.name!r} is an absolute path")
            tar.extract(member, folder, filter="data")
        # Read on to the end: only there does gzip compare its checksum.
        while rest := stream.read(_BLOCK):
            size += len(rest)
            if size > stream.max_bytes:
                raise stream.refusal()
