"""Image files to float tensors at their full depth, and back to bytes."""

import io
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import kornia_rs
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from genstab.errors import InputError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
"""Suffixes, in lower case, of the files that count as images."""

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AS_IT_IS = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}  # every other mode becomes RGB
_quiet = threading.Lock()


@dataclass(frozen=True)
class _Header:
    """What a file says of itself: (H, W, C) as stored, EXIF orientation, how to get uint8 or uint16, and which."""

    shape: tuple[int, int, int]
    orientation: int
    decode: Callable[[], np.ndarray]
    depth: int = 8


def read_image(path: str | Path) -> torch.Tensor:
    """Read an image file as float32 in [-1, 1]: `v / 255 * 2 - 1`, or 65535 where the file holds 16 bits.

    Grey gives 1 channel, grey and alpha 2, RGB 3, RGBA 4 (alpha as it is stored); bilevel becomes grey, and
    palettes, CMYK and other colour spaces become RGB. A TIFF may hold any number of channels, interleaved or
    planar. The EXIF orientation is applied.

    Shape: (C, H, W).

    Raises:
        InputError: the file is missing, empty, damaged, no image, an animation or a stack of pages, or of
            another depth than 8 and 16 bits; the message names it and the reason.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (2, 1), (255, 0, 51)).save(f"{folder}/a.png")
    ...     image = read_image(f"{folder}/a.png")
    >>> image.shape, image[:, 0, 0]
    (torch.Size([3, 1, 2]), tensor([ 1.0000, -1.0000, -0.6000]))
    """
    with _opened(path) as header:
        pixels = header.decode()
        if pixels.shape != header.shape:
            raise InputError(f"cannot read {path}: it holds {pixels.shape}, its header says {header.shape}")
    largest = np.iinfo(pixels.dtype).max
    # Rotated views may have negative strides, which torch refuses: copy into (C, H, W).
    values = np.ascontiguousarray(_upright(pixels, header.orientation).transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(values).div_(float(largest)).mul_(2).sub_(1)


def image_shape(path: str | Path) -> tuple[int, int, int]:
    """Return the (C, H, W) that `read_image` gives, from the header alone.

    Raises:
        InputError: as `read_image`, where the header tells.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (3, 2)).save(f"{folder}/a.png")
    ...     image_shape(f"{folder}/a.png")
    (1, 2, 3)
    """
    with _opened(path) as header:
        height, width, channels = header.shape
        return (channels, width, height) if header.orientation >= 5 else (channels, height, width)


def image_depth(path: str | Path) -> int:
    """Return the bits of a value in an image file, 8 or 16, from the header alone; 8 for bilevel and palettes.

    Raises:
        InputError: as `read_image`, where the header tells.
    """
    with _opened(path) as header:
        return header.depth


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Turn images in [-1, 1] into bytes for viewing: clamped, `(v + 1) * 127.5`, rounded half to even.

    One channel is repeated to three. Of two channels the first is shown as grey, of more than three the first
    three.

    Shape: (..., C, H, W) float to (..., H, W, 3) uint8.

    Raises:
        InputError: `images` is not floating point or has no (C, H, W).

    >>> to_uint8(torch.tensor([[[-1.0, 0.0, 2.0]]]))[0, :, 0]
    array([  0, 128, 255], dtype=uint8)
    """
    if not images.is_floating_point() or images.ndim < 3 or images.shape[-3] < 1:
        raise InputError(f"images of {images.dtype} {tuple(images.shape)} are not floating point (..., C, H, W)")
    shown = images.detach()[..., :3, :, :] if images.shape[-3] >= 3 else images.detach()[..., :1, :, :]
    levels = ((shown.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.expand(*images.shape[:-3], 3, *images.shape[-2:]).movedim(-3, -1).contiguous().cpu().numpy()


def resized(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize an image in [-1, 1]: bilinear, anti-aliased, clamped; the image itself if it has that size.

    Shape: (C, H, W) → (C, *size).

    >>> resized(torch.tensor([[[-1.0, 1.0]]]), (1, 1))
    tensor([[[0.]]])
    """
    if image.shape[1:] == tuple(size):
        return image
    result = F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return result[0].clamp_(-1, 1)  # the weights sum to 1 but for rounding


@contextmanager
def _opened(path: str | Path) -> Iterator[_Header]:
    """Open the file for the header's `decode`, and turn whatever the decoders raise into an InputError."""
    try:
        with open(path, "rb") as file:
            magic = file.read(8)
            file.seek(0)
            if not magic:
                raise InputError(f"cannot read {path}: the file is empty")
            yield _png(file) if magic == _PNG else _tiff(file) if magic[:4] in _TIFF else _pillow(file)
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"cannot read {path}: no PNG, JPEG, BMP, WebP or TIFF image, or a damaged one") from None
    except Exception as error:  # a damaged file makes decoders raise anything; kornia_rs a bare Exception
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InputError(f"cannot read {path}: {reason or type(error).__name__}") from error


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, C) as EXIF orientation 1 to 8 asks."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def _pillow(file: BinaryIO, formats: tuple[str, ...] = ("JPEG", "BMP", "WEBP")) -> _Header:
    """Read the header of an 8-bit image (or a 16-bit grey one) with Pillow."""
    # The filters of `warnings` are global: the lock keeps two threads from restoring each other's.
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the size, which may be large, and on odd metadata
        image = Image.open(file, formats=formats)
        # PNG has its own look-up, for Pillow's decodes the picture; a TIFF is turned by Pillow as it loads.
        orientation = 1 if image.format in ("PNG", "TIFF") else _orientation(image.getexif())
    # A phone's JPEG may hold a second, auxiliary picture (MPO): the first is the photo.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InputError(f"cannot read {file.name}: it holds several pictures, one is wanted")
    mode = "I;16" if image.mode.startswith("I;16") else _AS_IT_IS.get(image.mode, "RGB")

    def decode() -> np.ndarray:
        image.load()
        image.info.pop("transparency", None)  # Pillow warns where a palette's alpha is dropped
        pixels = np.asarray(image if mode == "I;16" else image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], -1)

    depth = 16 if mode == "I;16" else 8
    return _Header((image.height, image.width, Image.getmodebands(mode)), orientation, decode, depth)


def _png(file: BinaryIO) -> _Header:
    """Read a PNG's chunks: depth, EXIF wherever it lies, and whether the file is whole."""
    width, height, depth, colour = struct.unpack(">16xIIBB7x", file.read(33))
    exif, kind = Image.Exif(), b""
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise InputError(f"cannot read {file.name}: truncated, it ends before its IEND chunk")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            exif.load(file.read(length))
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    orientation = _orientation(exif)
    file.seek(0)
    header = _pillow(file, ("PNG",))  # checks the header chunk too
    if depth != 16:
        return _Header(header.shape, orientation, header.decode)

    def decode() -> np.ndarray:
        file.seek(0)
        data = file.read()
        if colour == 4:
            # kornia_rs has no such mode and Pillow cuts it to 8 bits. But 16-bit grey and alpha lie in the
            # file byte for byte as 8-bit RGBA does, so say so in the header.
            fields = b"IHDR" + data[16:24] + bytes([8, 6]) + data[26:29]
            data = data[:12] + fields + struct.pack(">I", zlib.crc32(fields)) + data[33:]
            return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",))).view(">u2")
        return kornia_rs.io.decode_image_png_u16(data, (height, width), {0: "mono", 2: "rgb", 6: "rgba"}[colour])

    return _Header((height, width, {0: 1, 2: 3, 4: 2, 6: 4}[colour]), orientation, decode, depth)


def _tiff(file: BinaryIO) -> _Header:
    """Read a TIFF's header with tifffile, and leave to Pillow the colour spaces and codecs that it lacks."""
    tiff = tifffile.TiffFile(file)
    pictures = [series for series in tiff.series if not series.keyframe.is_reduced]  # leave out thumbnails
    if len(pictures) != 1:
        raise InputError(f"cannot read {file.name}: it holds {len(pictures)} pictures, one is wanted")
    picture, page = pictures[0], pictures[0].keyframe
    limit = 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)  # as Pillow has it: beyond, the header is damaged or evil
    if page.imagewidth * page.imagelength > limit:
        raise InputError(
            f"cannot read {file.name}: {page.imagelength}×{page.imagewidth} exceeds the limit of {limit} pixels"
        )
    end = file.seek(0, io.SEEK_END)
    for part in picture.pages:
        if part is not None and not _whole(part.dataoffsets, part.databytecounts, end):
            raise InputError(f"cannot read {file.name}: truncated, its pixels end after the file does")
    file.seek(0)

    bits = page.bitspersample
    if (str(page.dtype), bits) not in (("uint8", 8), ("uint16", 16), ("bool", 1)):
        raise InputError(f"cannot read {file.name}: pixels of {page.dtype}, {bits} bits, are not uint8 or uint16")
    packed = page.compression not in tifffile.TIFF.DECOMPRESSORS
    kinds = tifffile.PHOTOMETRIC
    plain = bits > 1 and page.photometric in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB)
    if plain and not packed:
        return _tiff_plain(file, picture)
    # Pillow keeps 8 bits and 16-bit grey. It cuts 16-bit colour to 8 bits, leaves inverted 16-bit grey as it
    # is, drops channels that it has no name for, and undoes premultiplied alpha where tifffile leaves it.
    cuts = bits == 16 and (page.photometric != kinds.MINISBLACK or page.samplesperpixel > 1)
    if not cuts and tifffile.EXTRASAMPLE.ASSOCALPHA not in page.extrasamples:
        with suppress(Image.UnidentifiedImageError):
            header = _pillow(file, ("TIFF",))
            if not plain or header.shape[2] == page.samplesperpixel:
                return header
    cure = "the package imagecodecs reads it (pip install imagecodecs)" if packed else "save it as grey or RGB"
    what = f"{page.compression!r}, {page.photometric!r} at {bits} bits in {page.samplesperpixel} channels"
    raise InputError(f"cannot read {file.name}: {what}; {cure}")


def _whole(offsets: Sequence[int], counts: Sequence[int], end: int) -> bool:
    """Tell whether every strip or tile lies inside the file; tifffile would fill an absent one with zeros."""
    return len(offsets) > 0 and all(n > 0 and o + n <= end for o, n in zip(offsets, counts, strict=True))


def _tiff_plain(file: BinaryIO, picture: tifffile.TiffPageSeries) -> _Header:
    """Tell rows, columns and channels apart by the axes that the file names."""
    page = picture.keyframe
    for source in (picture, page):  # the page settles it where tifffile muddles the axes of a 1×1 picture
        sizes = [(a, n) for a, n in zip(source.axes, source.shape, strict=True) if a in "YX" or n > 1]
        axes, shape = "".join(a for a, _ in sizes).replace("S", "C"), tuple(n for _, n in sizes)
        if axes in ("YX", "YXC", "CYX") and source.size == picture.size:
            break
    else:
        raise InputError(
            f"cannot read {file.name}: {picture.shape} with the axes {picture.axes} is a stack of pages; "
            "write channels with planarconfig='contig' or 'separate', or with metadata={'axes': 'CYX'}"
        )
    height, width = (shape[axes.index(axis)] for axis in "YX")
    channels = shape[axes.index("C")] if "C" in axes else 1

    def decode() -> np.ndarray:
        pixels = picture.asarray(maxworkers=1).reshape(shape)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels[..., None] if axes == "YX" else pixels.transpose(1, 2, 0) if axes == "CYX" else pixels

    orientation = page.tags.valueof(ExifTags.Base.Orientation, default=1)
    orientation = orientation if orientation in range(1, 9) else 1
    return _Header((height, width, channels), orientation, decode, page.bitspersample)
