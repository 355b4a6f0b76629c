"""The façades of pix2pix: downloaded, unpacked and counted once; no network is needed after that."""

import http.client
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from tqdm import tqdm

from genstab.errors import InputError
from genstab.runtime.files import write_whole

FACADES_URL = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/facades.tar.gz"
"""CMP Façades (Tyleček and Šára 2013) as pix2pix uses them: photo and label map side by side."""

FACADES_COUNTS: Mapping[str, int] = {"train": 400, "val": 100, "test": 106}
"""How many pictures each folder of the archive holds."""

TIMEOUT = 30.0  # seconds without an answer


def fetch(url: str, path: str | Path) -> None:
    """Download `url` to `path`, which is there only when all of it is written.

    Raises:
        InputError: no network, refused or not found; the message says how to continue without a network.
    """
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(answer, "read", size, desc="downloading", leave=False, disable=None) as content:
                write_whole(path, lambda file: shutil.copyfileobj(content, file))
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"cannot download {url} ({' '.join(str(reason).split()) or type(error).__name__}): fetch it on "
            f"another machine and place it at {path}, or use data=paired data.root=DIR with your own images"
        ) from error


def unpack(archive: str | Path, folder: str | Path, max_bytes: int = 2 << 30, max_members: int = 100_000) -> None:
    """Unpack a tar archive, compressed or not, into a new `folder`, which is there only when everything is unpacked.

    If the archive holds a single folder, that becomes `folder`. Links and paths that leave the folder and devices are
    refused, as by tarfile's filter `data`.

    Raises:
        InputError: the archive is corrupted, unsafe, or larger than `max_bytes` or `max_members`; or `folder` is not
            empty.
    """
    archive, folder = Path(archive), Path(folder)
    if archive.exists() and not archive.is_file():  # opening a pipe may block for ever
        raise InputError(f"{archive} is not a file but a device or a pipe")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, for a folder cannot be renamed to another file system.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        content = Path(scratch, "content")
        content.mkdir()
        size = 0
        try:
            with tarfile.open(archive) as tar:
                for count, member in enumerate(tar, 1):
                    size += member.size
                    if size > max_bytes or count > max_members:
                        what = f"more than {max_bytes} bytes or {max_members} members"
                        raise InputError(f"{archive} unpacks to {what}: refused")
                    tar.extract(member, content, filter="data")
                while tar.fileobj.read(1 << 20):  # gzip compares its checksum at the end
                    pass
            top = list(content.iterdir())
            if folder.exists():
                folder.rmdir()  # only if it is empty; Windows does not replace folders
            os.replace(top[0] if len(top) == 1 and top[0].is_dir() else content, folder)
        except InputError:
            raise
        except tarfile.FilterError as error:
            raise InputError(f"{archive} is unsafe to unpack: {error}") from error
        except Exception as error:  # a damaged archive makes tarfile and the decompressors raise anything
            if isinstance(error, OSError) and error.errno is not None:  # no such file, disk full, no permission
                raise InputError(f"cannot unpack {archive} into {folder}: {error.strerror}") from error
            reason = str(error).partition("\n")[0].rstrip(":")  # tarfile lists every compression that it tried
            raise InputError(f"{archive} is a corrupted archive ({reason}): download it again") from error


def facades(root: str | Path, url: str = FACADES_URL, counts: Mapping[str, int] = FACADES_COUNTS) -> Path:
    """Make sure that the façades are in `root/facades/{train,val,test}`, and return that folder.

    If they are, nothing is done. An archive at `root/facades.tar.gz`, placed there by hand or left by an earlier run,
    is unpacked; otherwise it is downloaded.

    Raises:
        InputError: as `fetch` and `unpack`, or fewer pictures than `counts` says.
    """
    folder, archive = Path(root, "facades"), Path(root, "facades.tar.gz")
    if folder.is_dir() and any(folder.iterdir()):
        if short := _short(folder, counts):
            # It is not removed: somebody may have put it there.
            raise InputError(f"{folder} is incomplete, it holds {short}: remove it and run again")
        return folder
    downloaded = not archive.exists()
    if downloaded:
        fetch(url, archive)
    try:
        unpack(archive, folder)
    except InputError:
        if downloaded:
            archive.unlink()  # the connection may have been cut: the next run downloads it again
        raise
    if short := _short(folder, counts):
        shutil.rmtree(folder)  # made a line above
        raise InputError(f"{archive} is not the façades archive, it holds {short}: remove it and run again")
    return folder


def _short(folder: Path, counts: Mapping[str, int]) -> str:
    """Return which splits have too few pictures, or an empty string."""
    found = {split: sum(1 for _ in (folder / split).glob("*.jpg")) for split in counts}
    return ", ".join(f"{found[split]} of {n} in {split}" for split, n in counts.items() if found[split] < n)
