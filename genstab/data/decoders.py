"""How the pixels of PNG, JPEG, BMP, WebP and TIFF files are found and unpacked: the header first, bombs refused."""

import io
import lzma
import math
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

import kornia_rs
import numpy as np
import tifffile
from PIL import ExifTags, Image

from genstab.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AS_IT_IS = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}  # every other mode becomes RGB
_EXIF = 1 << 20  # bytes; a larger EXIF chunk is none
_ROOM = 1 << 28  # bytes that a compressed strip may grow to unseen
# What tifffile unpacks without the package imagecodecs, and then without a bound: how to unpack it with one, and how
# many times its size it may grow.
_GROWS: Mapping[int, tuple[Callable[[], Any], int]] = MappingProxyType(
    {
        8: (zlib.decompressobj, 1032),
        32946: (zlib.decompressobj, 1032),
        34925: (lzma.LZMADecompressor, 8192),
    }
)
_PACKBITS = 32773  # grows 64-fold at most
_quiet = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What a file says of itself: (H, W, C) as stored, EXIF orientation, how to get uint8 or uint16, and which."""

    shape: tuple[int, int, int]
    orientation: int
    decode: Callable[[], np.ndarray]
    depth: int = 8


def most_pixels() -> int:
    """Return how many pixels an image may have, as Pillow has it: beyond, the header is damaged or evil.

    >>> most_pixels() == 2 * Image.MAX_IMAGE_PIXELS
    True
    """
    return 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1


def pillow_header(file: BinaryIO, formats: tuple[str, ...] = ("JPEG", "BMP", "WEBP")) -> Header:
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
    return Header((image.height, image.width, Image.getmodebands(mode)), orientation, decode, depth)


def png_header(file: BinaryIO) -> Header:
    """Read a PNG's chunks: depth, EXIF wherever it lies, and whether the file is whole."""
    exif, kind, kinds, start = Image.Exif(), b"", set(), file.read(33)
    truncated = InputError(f"cannot read {file.name}: truncated, it ends before its IEND chunk")
    if len(start) < 33:
        raise truncated
    width, height, depth, colour = struct.unpack(">16xIIBB7x", start)
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise truncated
        length, kind = struct.unpack(">I4s", head)
        kinds.add(kind)
        if kind == b"eXIf" and length <= _EXIF:
            exif.load(file.read(length))
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    if colour == 3 and b"PLTE" not in kinds:  # Pillow would make one up
        raise InputError(f"cannot read {file.name}: its colours are those of a palette, which it does not have")
    orientation = _orientation(exif)
    file.seek(0)
    header = pillow_header(file, ("PNG",))  # checks the header chunk too
    if depth != 16:
        return Header(header.shape, orientation, header.decode)

    def decode() -> np.ndarray:
        file.seek(0)
        data = file.read()
        if colour == 4:
            # kornia_rs has no such mode and Pillow cuts it to 8 bits. But 16-bit grey and alpha lie in the
            # file byte for byte as 8-bit RGBA does, so say so in the header.
            fields = b"IHDR" + data[16:24] + bytes([8, 6]) + data[26:29]
            data = data[:12] + fields + struct.pack(">I", zlib.crc32(fields)) + data[33:]
            return pillow_header(io.BytesIO(data), ("PNG",)).decode().view(">u2")
        return kornia_rs.io.decode_image_png_u16(data, (height, width), {0: "mono", 2: "rgb", 6: "rgba"}[colour])

    return Header((height, width, {0: 1, 2: 3, 4: 2, 6: 4}[colour]), orientation, decode, depth)


def tiff_header(file: BinaryIO) -> Header:
    """Read a TIFF's header with tifffile, and leave to Pillow the colour spaces and codecs that it lacks."""
    tiff = tifffile.TiffFile(file)
    pictures = [series for series in tiff.series if not series.keyframe.is_reduced]  # leave out thumbnails
    if len(pictures) != 1:
        raise InputError(f"cannot read {file.name}: it holds {len(pictures)} pictures, one is wanted")
    picture, page = pictures[0], pictures[0].keyframe
    limit = most_pixels()
    if page.imagewidth * page.imagelength > limit:
        raise InputError(
            f"cannot read {file.name}: {page.imagelength}×{page.imagewidth} exceeds the limit of {limit} pixels"
        )
    if max(picture.size, math.prod(page.chunks)) > 4 * limit:  # what Pillow's limit comes to in RGBA
        raise InputError(f"cannot read {file.name}: {picture.shape} exceeds the limit of {4 * limit} values")
    end = file.seek(0, io.SEEK_END)
    for part in picture.pages:
        if part is not None and not _whole(part.dataoffsets, part.databytecounts, end):
            raise InputError(f"cannot read {file.name}: truncated, its pixels end after the file does")
    file.seek(0)

    bits = page.bitspersample
    if (str(page.dtype), bits) not in (("uint8", 8), ("uint16", 16), ("bool", 1)):
        raise InputError(f"cannot read {file.name}: pixels of {page.dtype}, {bits} bits, are not uint8 or uint16")
    packed = not _unpacks(page.compression)
    kinds = tifffile.PHOTOMETRIC
    plain = bits > 1 and page.photometric in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB)
    if plain and not packed:
        return _plain(file, picture)
    # Pillow keeps 8 bits and 16-bit grey. It cuts 16-bit colour to 8 bits, leaves inverted 16-bit grey as it
    # is, drops channels that it has no name for, and undoes premultiplied alpha where tifffile leaves it.
    cuts = bits == 16 and (page.photometric != kinds.MINISBLACK or page.samplesperpixel > 1)
    if not cuts and tifffile.EXTRASAMPLE.ASSOCALPHA not in page.extrasamples:
        with suppress(Image.UnidentifiedImageError):
            header = pillow_header(file, ("TIFF",))
            if not plain or header.shape[2] == page.samplesperpixel:
                return header
    cure = "the package imagecodecs reads it (pip install imagecodecs)" if packed else "save it as grey or RGB"
    what = f"{page.compression!r}, {page.photometric!r} at {bits} bits in {page.samplesperpixel} channels"
    raise InputError(f"cannot read {file.name}: {what}; {cure}")


def _unpacks(compression: int) -> bool:
    """Tell whether tifffile unpacks this within bounds: what it can with imagecodecs, else what is known here."""
    codecs = tifffile.TIFF.DECOMPRESSORS
    # its own codecs ignore the size that they are asked for
    own = compression in codecs and codecs[compression].__module__ == "tifffile._imagecodecs"
    return compression in (1, _PACKBITS, *_GROWS) if own else compression in codecs


def _check_growth(
    file: BinaryIO, compression: int, offsets: Sequence[int], counts: Sequence[int], expected: int
) -> None:
    """Raise an `InputError` where a strip or tile unpacks to more than `expected` bytes, those of the whole picture.

    What cannot grow beyond 256 MB is left alone: unpacking it twice would cost more than the memory.
    """
    if compression not in _GROWS:
        return
    unpacker, times = _GROWS[compression]
    for offset, count in zip(offsets, counts, strict=True):
        if count * times > _ROOM:
            file.seek(offset)
            if len(unpacker().decompress(file.read(count), max(expected, _ROOM) + 1)) > max(expected, _ROOM):
                raise InputError(f"cannot read {file.name}: it unpacks to more than the {expected} bytes of its header")


def _whole(offsets: Sequence[int], counts: Sequence[int], end: int) -> bool:
    """Tell whether every strip or tile lies inside the file; tifffile would fill an absent one with zeros."""
    return len(offsets) > 0 and all(n > 0 and o + n <= end for o, n in zip(offsets, counts, strict=True))


def _plain(file: BinaryIO, picture: tifffile.TiffPageSeries) -> Header:
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
        for part in picture.pages:
            if part is not None:
                _check_growth(file, part.compression, part.dataoffsets, part.databytecounts, part.nbytes)
        pixels = picture.asarray(maxworkers=1).reshape(shape)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels[..., None] if axes == "YX" else pixels.transpose(1, 2, 0) if axes == "CYX" else pixels

    orientation = page.tags.valueof(ExifTags.Base.Orientation, default=1)
    orientation = orientation if orientation in range(1, 9) else 1
    return Header((height, width, channels), orientation, decode, page.bitspersample)
