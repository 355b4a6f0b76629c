"""Read image files to float tensors at their full depth, and write them."""

import io
import math
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import kornia_rs
import numpy as np
import tifffile
import torch
from PIL import Image

from genstab.data.decoders import (
    GDAL_NODATA,
    LARGER,
    PNG,
    TIFF,
    Header,
    Tag,
    max_pixels,
    pillow_header,
    png_chunk,
    png_header,
    tiff_header,
)
from genstab.data.formats import EXTENSIONS, UNREAD
from genstab.data.reading import AS_STORED, Range, Reading
from genstab.errors import InputError
from genstab.runtime.files import write_whole

ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)


@dataclass(frozen=True)
class ImageInfo:
    """What the header of an image file says.

    Args:
        shape: (C, H, W) of what `read_image` returns.
        dtype: name of the type of its pixels; `uint8` for bilevel and palettes.
        orientation: of EXIF, 1 to 8; 1 is upright.
        profile: the ICC profile, or None.
        tags: of a GeoTIFF: code, type, count and value of each.
        extra: see `genstab.data.decoders.Header`; None if the channels are not those of the file.
    """

    shape: tuple[int, int, int]
    dtype: str
    orientation: int
    profile: bytes | None
    tags: tuple[Tag, ...]
    extra: tuple[int, ...] | None = None

    @property
    def no_data(self) -> float:
        """The value of pixels without data, NaN where the header names none."""
        return _no_data(self.tags)


def read_image(path: str | Path, reading: Reading = AS_STORED) -> torch.Tensor:
    """Read an image file as float32 in [-1, 1]: `v / 255 * 2 - 1`, with 65535 for files of 16 bits.

    Grey images have 1 channel, grey with alpha 2, RGB 3, RGBA 4 (alpha is not premultiplied); bilevel images become
    grey; palettes, CMYK and other colour spaces become RGB. A TIFF may have any number of channels, interleaved or
    planar. The EXIF orientation is applied; colours are not converted by an ICC profile.

    Shape: → (C, H, W).

    Args:
        path: the file.
        reading: another range of values, which signed, floating-point and 32-bit files need, or class labels.

    Raises:
        InputError: the file is missing, empty, damaged, not an image, an animation or a stack of pages, or is not of
            8 or 16 bits, without a value range; the message names the file and the reason.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (2, 1), (255, 0, 51)).save(f"{folder}/a.png")
    ...     image = read_image(f"{folder}/a.png")
    >>> image.shape, image[:, 0, 0]
    (torch.Size([3, 1, 2]), tensor([ 1.0000, -1.0000, -0.6000]))
    """
    with _opened(path, reading) as header:
        return _values(header, path, reading)


def decode_image(data: bytes, name: str, reading: Reading = AS_STORED) -> torch.Tensor:
    """Decode the content of an image file as `read_image` does; messages call it `name`."""
    file = io.BytesIO(data)
    file.name = name  # for messages, as an open file has one
    with _reasons(name):
        return _values(_header(file, len(data), reading.max_pixels), name, reading)


def _values(header: Header, name: str | Path, reading: Reading) -> torch.Tensor:
    _check_type(header, name, reading)
    indices = header.indices if reading.labels is not None else None
    pixels = _pixels(header, name) if indices is None else indices()
    return reading.values(_upright(pixels, header.orientation), name)


def _pixels(header: Header, name: str | Path) -> np.ndarray:
    pixels = header.decode()
    if pixels.shape != header.shape:
        raise InputError(f"cannot read {name}: it holds {pixels.shape}, its header says {header.shape}")
    return pixels


def _check_type(header: Header, name: str | Path, reading: Reading) -> None:
    if header.dtype not in ("uint8", "uint16") and reading.value_range is None and reading.labels is None:
        bits = 8 * np.dtype(header.dtype).itemsize
        raise InputError(
            f"cannot read {name}: pixels of {header.dtype}, {bits} bits, are not uint8 or uint16: set their range of "
            "values, data.value_range=[0,10000] (genstab predict: source_range; data=paired finds it with "
            "data.value_range=auto)"
        )


def image_info(path: str | Path, reading: Reading = AS_STORED) -> ImageInfo:
    """Return what the header of an image file says; errors are those of `read_image`."""
    with _opened(path, reading) as header:
        _check_type(header, path, reading)
        height, width, channels = header.shape
        size = (width, height) if header.orientation >= 5 else (height, width)
        shape = reading.channels_of(channels), *size
        check_alpha(path, channels, header.extra, shape[0])
        extra = header.extra if shape[0] == channels else None
        return ImageInfo(shape, header.dtype, header.orientation, header.profile, header.tags, extra)


def check_alpha(path: str | Path, channels: int, extra: Sequence[int] | None, wanted: int | None) -> None:
    """Raise an `InputError` if a conversion to other channels would drop the last one as alpha, which it is not."""
    if wanted not in (None, channels) and channels in (2, 4) and extra and extra[-1] not in ALPHA:
        raise InputError(
            f"{path} has {channels} channels, the last of which is not alpha: it cannot be converted to {wanted}"
        )


def image_shape(path: str | Path, reading: Reading = AS_STORED) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of an image from the header of its file; errors are those of `read_image`."""
    return image_info(path, reading).shape


def pixel_range(path: str | Path, reading: Reading = AS_STORED) -> Range | None:
    """Return the least and the greatest value of the pixels of a file, without those that are no data.

    None: there are none, or the file is of 8 bits, for which there is nothing to find out.
    """
    with _opened(path, reading) as header:
        if header.dtype == "uint8":
            return None
        pixels = _pixels(header, path)
        found = pixels[np.isfinite(pixels) & (pixels != _no_data(header.tags))]
    return (float(found.min()), float(found.max())) if found.size else None


def _no_data(tags: Sequence[Tag]) -> float:
    for code, _, _, value in tags:
        if code == GDAL_NODATA:
            with suppress(ValueError):
                return float(value)
    return math.nan


def missing_pixels(path: str | Path, info: ImageInfo, reading: Reading = AS_STORED) -> torch.Tensor | None:
    """Return where a file of a header has no data in any channel, (1, H, W) booleans; None where that cannot be."""
    if np.dtype(info.dtype).kind != "f" and math.isnan(info.no_data):
        return None
    with _opened(path, reading) as header:
        pixels = _upright(_pixels(header, path), header.orientation)
    return torch.from_numpy((~np.isfinite(pixels) | (pixels == info.no_data)).all(2))[None]


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert images in [-1, 1] to RGB bytes for viewing: clamped, `(v + 1) * 127.5`, rounded half to even.

    One or two channels are shown as grey (the second is dropped), more than three by the first three.

    Shape: (..., C, H, W), float → (..., H, W, 3), uint8.

    Raises:
        InputError: `images` is not floating point, or has fewer than three dimensions.
    """
    if not images.is_floating_point() or images.ndim < 3 or images.shape[-3] < 1:
        raise InputError(f"images of {images.dtype} {tuple(images.shape)} are not floating point (..., C, H, W)")
    shown = images.detach()[..., :3, :, :] if images.shape[-3] >= 3 else images.detach()[..., :1, :, :]
    levels = ((shown.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.expand(*images.shape[:-3], 3, *images.shape[-2:]).movedim(-3, -1).contiguous().cpu().numpy()


@contextmanager
def _opened(path: str | Path, reading: Reading) -> Iterator[Header]:
    """Open a file and read its header; `Header.decode` works until the file is closed."""
    with _reasons(path):
        kind = os.stat(path)
        if not (stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode)):
            # Opening a pipe may block for ever.
            raise InputError(f"cannot read {path}: it is not a file but a device or a pipe")
        with open(path, "rb") as file:
            yield _header(file, kind.st_size, reading.max_pixels)


def _header(file: BinaryIO, size: int, limit: int | None) -> Header:
    name = file.name
    if size > (most := 8 * max_pixels(limit)):  # bytes of the largest image, uncompressed RGBA of 16 bits
        raise InputError(f"cannot read {name}: {size} bytes exceed the limit of {most}{LARGER}")
    suffix = Path(name).suffix
    if suffix.lower() in UNREAD:  # by its name: raw files of cameras look like a TIFF with a small picture
        raise InputError(f"cannot read {name}: genstab does not read {suffix}: convert it to PNG or TIFF")
    magic = file.read(8)
    file.seek(0)
    if not magic:
        raise InputError(f"cannot read {name}: the file is empty")
    if magic == b"version ":
        raise InputError(f"cannot read {name}: it is a pointer of Git LFS: fetch the image with git lfs pull")
    if magic == PNG:
        return png_header(file, limit)
    return tiff_header(file, limit) if magic[:4] in TIFF else pillow_header(file, limit=limit)


@contextmanager
def _reasons(name: str | Path) -> Iterator[None]:
    """Turn any error of the decoders into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"cannot read {name}: not an image in a format that genstab reads, or damaged") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"cannot read {name}: {error}{LARGER}") from error
    except Exception as error:  # a damaged file makes decoders raise anything, kornia_rs a bare Exception
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InputError(f"cannot read {name}: {reason or type(error).__name__}") from error


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation, 1 to 8, to (H, W, C)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


_PNG16 = {1: "mono", 3: "rgb", 4: "rgba"}
# Numbers of channels that each format supports, by depth.
_HOLDS: dict[str, Mapping[int, range | tuple[int, ...]]] = {
    ".png": {8: (1, 2, 3, 4), 16: (1, 3, 4)},
    **{suffix: dict.fromkeys((8, 16), range(1, 1 << 16)) for suffix in (".tif", ".tiff")},
    **{suffix: {8: (1, 3)} for suffix in (".jpg", ".jpeg", ".jpe", ".jfif")},
    ".webp": {8: (3, 4)},
    ".bmp": {8: (1, 3)},
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact keeps the colours where alpha is 0
}


def writable(path: Path) -> Path:
    """Return the path, with the suffix .png if it is of a format that is read but not written, such as GIF."""
    return path.with_suffix(".png") if path.suffix.lower() in EXTENSIONS - _HOLDS.keys() else path


def type_of_format(path: str | Path, dtype: str) -> str:
    """Return the type of pixels if the format of a file name supports it, else the deepest; a TIFF holds any."""
    suffix = Path(path).suffix.lower()
    if suffix in (".tif", ".tiff") or dtype == "uint8":
        return dtype
    return "uint16" if 16 in _HOLDS.get(suffix, ()) else "uint8"


def write_image(
    path: str | Path,
    image: torch.Tensor,
    dtype: str = "uint8",
    value_range: Range | None = None,
    profile: bytes | None = None,
    tags: Sequence[Tag] = (),
    extra: Sequence[int] | None = None,
    missing: torch.Tensor | None = None,
    no_data: float = math.nan,
) -> None:
    """Write an image in [-1, 1] to a file, the inverse of `read_image`; the suffix chooses the format.

    Values are clamped, scaled to 255 or 65535 and rounded, half to even. PNG, TIFF, BMP and WebP are lossless; JPEG has
    quality 95 without chroma subsampling. Missing folders are made, and the file is written atomically.

    Args:
        path: .png (1 to 4 channels; 16 bits: 1, 3 or 4), .tif or .tiff (any number), .jpg, .jpeg, .jpe or .jfif (1 or
            3), .webp (3 or 4) or .bmp (1 or 3). With 2 or 4 channels, the last one is alpha.
        image: floating point, shape (C, H, W).
        dtype: the type of the pixels: `uint8`; `uint16` for PNG and TIFF; `int16`, `float32` and the like for TIFF.
        value_range: the values that -1 and 1 become; None: the range of the type, for `uint8` and `uint16`.
        profile: an ICC profile to keep; left out where it is of another number of channels, or BMP.
        tags: of a GeoTIFF to keep, from `image_info`.
        extra: what the channels of a TIFF after grey or RGB are, from `image_info`; None: alpha, if they are 2 or 4.
        missing: pixels without data, (1, H, W) booleans.
        no_data: the value of those.

    Raises:
        InputError: the format does not support the image, a value is NaN, or the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_image(f"{folder}/a.png", torch.tensor([[[-1.0, 0.0, 2.0]]]), "uint16")
    ...     read_image(f"{folder}/a.png")
    tensor([[[-1.0000e+00,  1.5259e-05,  1.0000e+00]]])
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _HOLDS:
        raise InputError(f"cannot write {path}: {suffix!r} is not one of {', '.join(_HOLDS)}")
    if type_of_format(path, dtype) != dtype:
        bits = " or ".join(map(str, _HOLDS[suffix]))
        raise InputError(f"cannot write {path}: {suffix} has {bits} bits, not {dtype}")
    kind = np.dtype(dtype)
    if not image.is_floating_point() or image.ndim != 3:
        raise InputError(f"cannot write {path}: {image.dtype} {tuple(image.shape)} is not floating point (C, H, W)")
    allowed = _HOLDS[suffix][16 if kind == np.uint16 else 8]
    if len(image) not in allowed:
        numbers = ", ".join(map(str, allowed[:4]))
        raise InputError(
            f"cannot write {path}: {len(image)} channels, but {suffix} of {8 * kind.itemsize} bits supports {numbers}"
        )
    if image.isnan().any():
        raise InputError(f"cannot write {path}: the image contains NaN")
    pixels = _levels(image.detach().float(), kind, value_range).permute(1, 2, 0).cpu().numpy().astype(kind)
    if missing is not None:
        pixels[missing[0].cpu().numpy()] = no_data
    if profile is not None and profile[16:20] != (b"GRAY" if len(image) <= 2 else b"RGB "):
        profile = None
    try:
        write_whole(path, lambda file: _save(file, np.ascontiguousarray(pixels), suffix, profile, tags, extra))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _levels(image: torch.Tensor, kind: np.dtype, value_range: Range | None) -> torch.Tensor:
    shifted = image.clamp(-1, 1) + 1
    if value_range is None:
        levels = shifted * (float(np.iinfo(kind).max) / 2)
    else:
        least, greatest = value_range
        levels = shifted.double() * ((greatest - least) / 2) + least
    if kind.kind == "f":
        return levels
    return levels.round().clamp(float(np.iinfo(kind).min), float(np.iinfo(kind).max))


def _save(
    file: BinaryIO,
    pixels: np.ndarray,
    suffix: str,
    profile: bytes | None,
    tags: Sequence[Tag],
    extra: Sequence[int] | None,
) -> None:
    """Write (H, W, C) to an empty file."""
    channels = pixels.shape[2]
    if suffix in (".tif", ".tiff"):
        if extra is None and channels in (2, 3, 4):
            extra = [tifffile.EXTRASAMPLE.UNASSALPHA] * (channels != 3)
        elif extra is None or channels - len(extra) not in (1, 3):
            extra = [tifffile.EXTRASAMPLE.UNSPECIFIED] * (channels - 1)
        colour = "rgb" if channels - len(extra) == 3 else "minisblack"
        tifffile.imwrite(
            file, pixels.squeeze(2) if channels == 1 else pixels, photometric=colour, extrasamples=extra or None,
            planarconfig="contig" if channels > 1 else None,
            compression="zlib", metadata=None, iccprofile=profile, extratags=[(*tag, True) for tag in tags],
        )  # fmt: skip
    elif pixels.dtype == np.uint16:
        try:
            kornia_rs.io.write_image_png_u16(file.name, pixels, _PNG16[channels])
        except Exception as error:  # it raises bare Exceptions
            raise OSError(str(error)) from error
        if profile is not None:
            written = Path(file.name).read_bytes()
            file.write(written[:33] + png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(profile)) + written[33:])
    else:
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)  # 2, 3, 4 channels: LA, RGB, RGBA
        kind = Image.registered_extensions()[suffix]
        options = {} if profile is None or kind == "BMP" else {"icc_profile": profile}
        image.save(file, kind, **_OPTIONS.get(kind, {}), **options)
