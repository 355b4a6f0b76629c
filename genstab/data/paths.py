"""Images in folders: which there are, in natural order, and words for what else is."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from genstab.data.image_io import EXTENSIONS
from genstab.errors import InputError


def find_images(root: str | Path, recursive: bool = True, name: str = "data.root") -> list[Path]:
    """List the images below a folder, in natural order of their names (2 before 10). No file is opened.

    Folders whose names begin with a dot are left out. Links to folders are followed, each folder once.

    Args:
        root: the folder.
        recursive: look into its sub-folders, too.
        name: what messages call the folder.

    Raises:
        InputError: there is no such folder, or no image in it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for image in ("10.png", "2.JPG", "notes.txt", "more/1.tif"):
    ...         Path(root, image).parent.mkdir(exist_ok=True)
    ...         Path(root, image).touch()
    ...     [path.relative_to(root).as_posix() for path in find_images(root)]
    ['2.JPG', '10.png', 'more/1.tif']
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{name}={root} {'is not a folder' if root.exists() else 'does not exist'}")
    found, seen = [], set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen or not recursive else [each for each in below if not each.startswith(".")]
        if real not in seen:
            found += [Path(folder, file) for file in files]  # with dangling links: reading one says what is wrong
        seen.add(real)
    images = [path for path in found if path.suffix.lower() in EXTENSIONS]
    if not images:
        raise InputError(f"{name}={root} has no images ({', '.join(sorted(EXTENSIONS))}): found {listing(root)}")
    return sorted(images, key=lambda path: natural(path.relative_to(root).as_posix()))


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot look into {error.filename}: {error.strerror}") from error


def printable(name: str) -> str:
    """Return a file's name as text that every encoding and file format takes: bytes that are no UTF-8 as escapes.

    >>> print(printable(os.fsdecode(b"\\xfc.png")))
    \\udcfc.png
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def natural(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts names by the numbers in them.

    >>> sorted(["10", "9", "a2", "a10"], key=natural)
    ['9', '10', 'a2', 'a10']
    """
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name


def listing(folder: Path) -> str:
    """Name the first things in a folder; a folder in it ends with a slash."""
    return shortened(sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())) or "nothing"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Join names, and count those after the first.

    >>> shortened(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def hxw(size: Sequence[int]) -> str:
    """Write (height, width) as people do.

    >>> hxw((3, 4))
    '3×4'
    """
    return f"{size[0]}×{size[1]}"
