"""Which files are images, by their names, and the formats that Pillow decodes."""

from pathlib import PurePath

from PIL import Image

# Formats of one still picture that Pillow decodes itself: no data, films or documents, and no other program is run.
# Those with a signature are known by it, whatever the name of the file says; the others by the suffix.
SIGNED = (
    "AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PPM", "PSD", "QOI", "SGI", "SUN", "WEBP", "XBM",
    "XPM",
)  # fmt: skip
UNSIGNED = ("DIB", "PCX", "TGA")
_READ = {*SIGNED, *UNSIGNED, "MPO", "PNG", "TIFF"}
Image.init()
EXTENSIONS = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _READ) - {".avifs"}
"""Suffixes of image files that are read, in lower case."""
UNREAD = frozenset({
    ".heic", ".heif", ".hif", ".avifs", ".jxl", ".jxr", ".exr", ".svg", ".eps", ".wmf", ".emf", ".fit", ".fits", ".pcd",
    ".xcf", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw",
})  # fmt: skip
"""Suffixes of image files that are not read, in lower case: such a file is named, and counts as one that failed."""
_IMAGES = EXTENSIONS | UNREAD


def is_image(path: PurePath) -> bool:
    """Return whether a file is an image by its name, one that genstab reads or not.

    Files named `._…` are not: macOS writes them beside images on foreign disks.
    """
    return path.suffix.lower() in _IMAGES and not path.name.startswith("._")


def formats_of(name: str) -> tuple[str, ...]:
    """Return the formats that Pillow may take for a file of this name."""
    by_suffix = Image.registered_extensions().get(PurePath(name).suffix.lower())
    return (*SIGNED, by_suffix) if by_suffix in UNSIGNED else SIGNED
