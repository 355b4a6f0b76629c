"""Find image files in folders, in natural order; names and sizes as they stand in messages."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.data.formats import is_image
from genstab.errors import InputError


def find_images(
    root: str | Path,
    recursive: bool = True,
    name: str = "data.root",
    say: Callable[[str], object] = rank_zero_warn,
) -> list[Path]:
    """List the images in a folder, in natural order of their names (2 before 10). No file is opened.

    Files in formats that genstab does not read, such as HEIC, are listed, too: reading them raises an error. Files that
    are no images by their names are counted in a line to `say`. What systems leave behind (`._x.png`, `__MACOSX`,
    `Thumbs.db`) is left out, as are hidden files and folders. Sub-folders are searched if `recursive`, also links to
    folders, except those that lead back to a folder around them.

    Raises:
        InputError: the folder does not exist or has no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{name}={root} {'is not a folder' if root.exists() else 'does not exist'}")
    images: list[Path] = []
    others: list[Path] = []
    around = {str(root): frozenset({os.path.realpath(root)})}
    for folder, below, files in os.walk(root, followlinks=True, onerror=_refuse):
        outside = around.pop(folder)
        inside = {each: os.path.realpath(os.path.join(folder, each)) for each in below if recursive and is_seen(each)}
        below[:] = [each for each, real in inside.items() if real not in outside]
        around |= {os.path.join(folder, each): outside | {inside[each]} for each in below}
        for file in files:
            path = Path(folder, file)
            # an image may be a dangling link, which fails when it is read
            (images if is_image(path) else others).append(path)
    if not images:
        kinds = "PNG, JPEG, TIFF, WebP, BMP and others that Pillow reads"
        raise InputError(f"{name}={root} has no images ({kinds}): found {listing(root)}")
    left = [path.relative_to(root).as_posix() for path in others if is_seen(path.name)]
    if left:
        say(f"{name}={root}: left out {len(left)} files that are no images by name: {shortened(left)}")
    return sorted(images, key=lambda path: natural(path.relative_to(root).as_posix()))


def is_seen(name: str) -> bool:
    """Return whether a folder or file of this name counts: not if it is hidden, or made by a system."""
    return not name.startswith(".") and name not in ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot open the folder {error.filename}: {error.strerror}") from error


def printable(name: str) -> str:
    """Return the name of a file as valid Unicode: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that orders numbers in names by their value."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name


def listing(folder: Path) -> str:
    """List the first entries of a folder; sub-folders end with a slash."""
    return shortened(sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())) or "nothing"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Join the first names, and count the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def hxw(size: Sequence[int]) -> str:
    """Format (height, width)."""
    return f"{size[0]}×{size[1]}"
