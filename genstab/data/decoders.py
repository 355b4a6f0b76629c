"""Decoders of PNG, JPEG, BMP, WebP and TIFF: read the header first, so that decompression bombs are refused."""

import io
import lzma
import math
import re
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import kornia_rs
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageFile

from genstab.data.formats import formats_of
from genstab.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AS_IT_IS = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}  # every other mode becomes RGB
_ORIENTATION = ExifTags.Base.Orientation
_MAX_EXIF = 1 << 20  # bytes; larger chunks are ignored
# Compressions that tifffile decodes without a limit unless imagecodecs is installed: a decompressor that takes one, and
# the largest ratio.
_UNLIMITED: dict[int, tuple[Callable[[], Any], int]] = {
    8: (zlib.decompressobj, 1032),
    32946: (zlib.decompressobj, 1032),
    34925: (lzma.LZMADecompressor, 8192),
}
_PACKBITS = 32773  # decompresses to at most 64 times its size
_quiet = threading.Lock()
# Tags of a GeoTIFF: pixel scale, tie points, transformation, the keys of the projection, GDAL's metadata and nodata
# value, and rational polynomials.
GEOTIFF = (33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113, 50844)
GDAL_METADATA, GDAL_NODATA = 42112, 42113
Tag = tuple[int, int, int, Any]  # code, type, count, value
_ICC = 34675
# In NewSubfileType: a smaller version of another page (an overview or a thumbnail), or its mask.
_AUXILIARY = 1 | 4
LARGER = " (max_megapixels sets another)"


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Args:
        shape: (H, W, C) as stored.
        orientation: of EXIF, 1 to 8.
        decode: returns the pixels, in `dtype`.
        dtype: name of their type, such as `uint8`.
        indices: returns the indices of a palette or of two levels, (H, W, 1), if the file has them.
        profile: the ICC profile, or None.
        tags: those of a GeoTIFF.
        extra: what a TIFF says of its channels after grey or RGB, in its tag ExtraSamples: 0 anything, 1 and 2 alpha.
    """

    shape: tuple[int, int, int]
    orientation: int
    decode: Callable[[], np.ndarray]
    dtype: str = "uint8"
    indices: Callable[[], np.ndarray] | None = None
    profile: bytes | None = None
    tags: tuple[Tag, ...] = ()
    extra: tuple[int, ...] | None = None


def max_pixels(limit: int | None = None) -> int:
    """Return the largest number of pixels of an image, twice Pillow's `MAX_IMAGE_PIXELS` as in Pillow, or `limit`."""
    return limit or 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)


def _orientation(value: Any) -> int:
    return value if value in range(1, 9) else 1


def pillow_header(file: BinaryIO, formats: tuple[str, ...] | None = None, limit: int | None = None) -> Header:
    """Read the header of an 8-bit image (or a deeper grey one) with Pillow; by default in any of `formats_of`."""
    # The filters of `warnings` are global; the lock keeps threads from restoring each other's.
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large sizes and odd metadata
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = before if limit is None else max(1, limit // 2)  # Pillow refuses twice as many
        try:
            image = Image.open(file, formats=formats or formats_of(file.name))
        finally:
            Image.MAX_IMAGE_PIXELS = before
        # For PNG, getexif() would decode the image: see `png_header`. A TIFF is rotated by Pillow when it loads.
        orientation = 1 if image.format in ("PNG", "TIFF") else _orientation(image.getexif().get(_ORIENTATION))
    # A phone's JPEG may hold a second, auxiliary image (MPO), and a PSD its layers; the first one is the photo.
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD"):
        raise InputError(f"cannot read {file.name}: it holds several images, not one")
    deep = image.mode.startswith("I;16") or (image.format, image.mode) == ("PPM", "I")  # which Pillow scales to 65535
    dtype = "uint16" if deep else {"I": "int32", "F": "float32"}.get(image.mode, "uint8")
    if dtype == "uint8" and (bits := _bits(file, image)) > 8:
        if image.format == "PPM":
            return _deep_ppm(file, image, limit)
        cut = f"{image.format} of {bits} bits, of which Pillow keeps 8"
        raise InputError(f"cannot read {file.name}: {cut}: convert it to a PNG or TIFF of 16 bits")
    mode = image.mode if dtype != "uint8" else _AS_IT_IS.get(image.mode, "RGB")

    def decode() -> np.ndarray:
        image.load()
        image.info.pop("transparency", None)  # Pillow warns if a palette's alpha is dropped
        pixels = np.asarray(image.convert(mode) if dtype == "uint8" else image).astype(dtype, copy=False)
        return pixels.reshape(*pixels.shape[:2], -1)

    def indices() -> np.ndarray:
        image.load()
        return np.asarray(image).astype(np.uint8)[..., None]

    return Header(
        (image.height, image.width, Image.getmodebands(mode)), orientation, decode, dtype,
        indices if image.mode in ("P", "1") else None, None if image.mode == "LAB" else image.info.get("icc_profile"),
    )  # fmt: skip


def _bits(file: BinaryIO, image: ImageFile.ImageFile) -> int:
    """Return the bits per channel in the file, of formats that Pillow cuts to 8 bits without a word."""
    if image.format == "PPM":
        _, _, _, arguments = image.tile[0]
        return int(arguments[1]).bit_length() if isinstance(arguments, tuple) else 8  # of the greatest value
    if image.format not in ("AVIF", "JPEG2000", "SGI"):
        return 8
    file.seek(0)
    start = file.read(1 << 24)
    if image.format == "SGI":
        return 8 * start[3]  # bytes per channel
    if image.format == "AVIF":  # in the configuration of AV1: high_bitdepth, twelve_bit
        flags = start[start.index(b"av1C") + 6]
        return 8 + 2 * bool(flags & 64) + 2 * bool(flags & 32)
    size = start.index(b"\xff\x4f\xff\x51") + 2  # the marker that begins a codestream: 38 bytes, 3 for each channel
    channels = int.from_bytes(start[size + 38 : size + 40])
    return 1 + max(depth & 127 for depth in start[size + 40 : size + 40 + 3 * channels : 3])


def _deep_ppm(file: BinaryIO, image: ImageFile.ImageFile, limit: int | None) -> Header:
    """Return the header of a PPM of 16 bits, which Pillow keeps in a grey one: read it as one of triple width."""
    width, height = image.size
    tile: Any = image.tile[0]

    def decode() -> np.ndarray:
        file.seek(0)
        data = file.read()
        start = b"%b %d %d %d\n" % (b"P2" if data.startswith(b"P3") else b"P5", 3 * width, height, tile.args[1])
        grey = pillow_header(io.BytesIO(start + data[tile.offset :]), ("PPM",), 3 * max_pixels(limit))
        return grey.decode().reshape(height, width, 3)

    return Header((height, width, 3), 1, decode, "uint16")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(file: BinaryIO, limit: int | None = None) -> Header:
    """Read the chunks of a PNG: its depth, EXIF anywhere in the file, and whether the file is complete."""
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
        if kind == b"eXIf" and length <= _MAX_EXIF:
            exif.load(file.read(length))
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    if colour == 3 and b"PLTE" not in kinds:  # Pillow would invent one
        raise InputError(f"cannot read {file.name}: it needs a palette, which is missing")
    orientation = _orientation(exif.get(_ORIENTATION))
    file.seek(0)
    header = pillow_header(file, ("PNG",), limit)  # checks the header chunk too
    if depth != 16:
        return replace(header, orientation=orientation)

    def decode() -> np.ndarray:
        file.seek(0)
        data = file.read()
        if colour == 4:
            # kornia_rs does not support grey with alpha, and Pillow reduces it to 8 bits. But its bytes are laid out as
            # those of 8-bit RGBA, so decode it as such.
            data = PNG + png_chunk(b"IHDR", data[16:24] + bytes([8, 6]) + data[26:29]) + data[33:]
            return pillow_header(io.BytesIO(data), ("PNG",), limit).decode().view(">u2").astype(np.uint16)
        return kornia_rs.io.decode_image_png_u16(data, (height, width), {0: "mono", 2: "rgb", 6: "rgba"}[colour])

    shape = (height, width, {0: 1, 2: 3, 4: 2, 6: 4}[colour])
    return Header(shape, orientation, decode, "uint16", profile=header.profile)


def tiff_header(file: BinaryIO, limit: int | None = None) -> Header:
    """Read the header of a TIFF with tifffile; use Pillow for what tifffile does not decode."""
    tiff = tifffile.TiffFile(file)
    pictures = [own for series in tiff.series if (own := _without_auxiliary(series)) is not None]
    if len(pictures) != 1:
        raise InputError(f"cannot read {file.name}: it holds {len(pictures)} images, not one")
    picture, page = pictures[0], pictures[0].keyframe
    limit = max_pixels(limit)
    # A tile may be larger than the image; four values per pixel is Pillow's limit for RGBA.
    if max(page.imagewidth * page.imagelength, picture.size // 4, math.prod(page.chunks) // 4) > limit:
        raise InputError(f"cannot read {file.name}: {picture.shape} exceeds the limit of {limit} pixels{LARGER}")
    end = file.seek(0, io.SEEK_END)
    pages: Any = filter(None, picture.pages)
    for part in pages:
        # tifffile fills missing strips with zeros.
        strips = list(zip(part.dataoffsets, part.databytecounts, strict=True))
        if not strips or not all(count > 0 and offset + count <= end for offset, count in strips):
            raise InputError(f"cannot read {file.name}: truncated, its pixels reach beyond the end of the file")
    file.seek(0)

    bits, dtype = page.bitspersample, np.dtype(page.dtype)
    if (dtype.kind not in "iuf" or bits != 8 * dtype.itemsize) and (dtype != np.bool_ or bits != 1):
        raise InputError(f"cannot read {file.name}: pixels of {page.dtype}, {bits} bits: save them as 8 or 16 bits")
    packed = not _is_decodable(page.compression)
    kinds = tifffile.PHOTOMETRIC
    plain = bits > 1 and page.photometric in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB)
    if plain and not packed:
        more = page.samplesperpixel - (3 if page.photometric == kinds.RGB else 1)
        said = tuple(map(int, page.extrasamples))
        extra = said if len(said) == more else (0,) * more
        return replace(_plain(file, picture), tags=_geotiff(page), profile=page.tags.valueof(_ICC), extra=extra)
    # Pillow keeps 8 bits and 16-bit grey. It reduces 16-bit colour to 8 bits, does not invert 16-bit grey, drops
    # channels that it does not know, and unlike tifffile divides by premultiplied alpha.
    cuts = bits == 16 and (page.photometric != kinds.MINISBLACK or page.samplesperpixel > 1)
    if not cuts and tifffile.EXTRASAMPLE.ASSOCALPHA not in page.extrasamples:
        with suppress(Image.UnidentifiedImageError):
            header = pillow_header(file, ("TIFF",), limit)
            kept = dtype == np.bool_ or dtype == header.dtype or (dtype, header.dtype) == (np.int16, "int32")
            if kept and (not plain or header.shape[2] == page.samplesperpixel):
                return replace(header, tags=_geotiff(page))
    cure = "install the package imagecodecs to read it" if packed else "save it as grey or RGB"
    what = f"{page.compression!r}, {page.photometric!r} at {bits} bits in {page.samplesperpixel} channels"
    raise InputError(f"cannot read {file.name}: {what}; {cure}")


def _without_auxiliary(series: tifffile.TiffPageSeries) -> tifffile.TiffPageSeries | None:
    """Return a series without masks, overviews and thumbnails, which tifffile takes for more images of a stack."""
    own = []
    for page in series.pages:
        full = page if isinstance(page, tifffile.TiffPage) else series.keyframe  # the others have no tags of their own
        if not full.subfiletype & _AUXILIARY:
            own.append(page)
    if len(own) == 1 < len(series.pages):
        return tifffile.TiffPageSeries(own)
    return series if own else None


def _geotiff(page: Any) -> tuple[Tag, ...]:
    tags = [tag for tag in page.tags if tag.code in GEOTIFF and tag.count <= _MAX_EXIF]
    found = {tag.code: (tag.code, int(tag.dtype), tag.count, tag.value) for tag in tags}
    if GDAL_METADATA in found:
        code, kind, _, value = found[GDAL_METADATA]
        text = re.sub(r"\s*<Item name=\"STATISTICS_[^<]*</Item>", "", str(value))  # of these pixels alone
        found[code] = (code, kind, len(text.encode()) + 1, text)
    return tuple(found.values())


def _is_decodable(compression: int) -> bool:
    """Return whether tifffile decodes a compression with limited memory."""
    codecs = tifffile.TIFF.DECOMPRESSORS
    # tifffile's own codecs ignore the size of the output
    own = compression in codecs and codecs[compression].__module__ == "tifffile._imagecodecs"
    return compression in (1, _PACKBITS, *_UNLIMITED) if own else compression in codecs


def _check_decompressed_size(file: BinaryIO, page: Any) -> None:
    """Raise an `InputError` if a strip or tile decompresses to more than the whole page, or to more than 256 MB.

    Strips that cannot be that large are not checked, since that means to decompress them twice.
    """
    unpacker, ratio = _UNLIMITED.get(page.compression, (None, 0))
    limit = max(page.nbytes, 1 << 28)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if unpacker is not None and count * ratio > limit:
            file.seek(offset)
            if len(unpacker().decompress(file.read(count), limit + 1)) > limit:
                raise InputError(
                    f"cannot read {file.name}: it decompresses to more than the {page.nbytes} bytes of its header"
                )


def _plain(file: BinaryIO, picture: tifffile.TiffPageSeries) -> Header:
    """Find rows, columns and channels by the names of the axes in the file."""
    page = picture.keyframe
    for source in (picture, page):  # for an image of 1×1 pixels, only the axes of the page are right
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
        for part in filter(None, picture.pages):
            _check_decompressed_size(file, part)
        pixels = picture.asarray(maxworkers=1).reshape(shape)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind == "u":
            pixels = np.iinfo(pixels.dtype).max - pixels
        return pixels[..., None] if axes == "YX" else pixels.transpose(1, 2, 0) if axes == "CYX" else pixels

    orientation = _orientation(page.tags.valueof(_ORIENTATION))
    return Header((height, width, channels), orientation, decode, str(page.dtype))
