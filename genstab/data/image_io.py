"""Read image files to float tensors at their full depth, and write them."""

import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import kornia_rs
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image

from genstab.data.decoders import PNG, TIFF, Header, max_pixels, pillow_header, png_header, tiff_header
from genstab.data.formats import UNREAD
from genstab.errors import InputError
from genstab.runtime.files import write_whole


def read_image(path: str | Path) -> torch.Tensor:
    """Read an image file as float32 in [-1, 1]: `v / 255 * 2 - 1`, with 65535 for files of 16 bits.

    Grey images have 1 channel, grey with alpha 2, RGB 3, RGBA 4 (alpha is not premultiplied); bilevel images become
    grey; palettes, CMYK and other colour spaces become RGB. A TIFF may have any number of channels, interleaved or
    planar. The EXIF orientation is applied.

    Shape: → (C, H, W).

    Raises:
        InputError: the file is missing, empty, damaged, not an image, an animation or a stack of pages, or has a depth
            other than 8 or 16 bits; the message names the file and the reason.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (2, 1), (255, 0, 51)).save(f"{folder}/a.png")
    ...     image = read_image(f"{folder}/a.png")
    >>> image.shape, image[:, 0, 0]
    (torch.Size([3, 1, 2]), tensor([ 1.0000, -1.0000, -0.6000]))
    """
    with _opened(path) as header:
        return _values(header, path)


def decode_image(data: bytes, name: str) -> torch.Tensor:
    """Decode the content of an image file as `read_image` does; messages call it `name`."""
    file = io.BytesIO(data)
    file.name = name  # for messages, as an open file has one
    with _reasons(name):
        return _values(_header(file, len(data), name), name)


def _values(header: Header, name: str | Path) -> torch.Tensor:
    pixels = header.decode()
    if pixels.shape != header.shape:
        raise InputError(f"cannot read {name}: it holds {pixels.shape}, its header says {header.shape}")
    largest = np.iinfo(pixels.dtype).max
    # Flipped views have negative strides, which torch refuses: copy.
    values = np.ascontiguousarray(_upright(pixels, header.orientation).transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(values).div_(float(largest)).mul_(2).sub_(1)


def image_shape(path: str | Path) -> tuple[int, int, int]:
    """Return the shape (C, H, W) of an image from the header of its file; errors are those of `read_image`."""
    with _opened(path) as header:
        height, width, channels = header.shape
        return (channels, width, height) if header.orientation >= 5 else (channels, height, width)


def image_depth(path: str | Path) -> int:
    """Return the bits per channel of an image, 8 or 16, from the header of its file; 8 for bilevel and palettes."""
    with _opened(path) as header:
        return header.depth


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


def resized(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize an image (C, H, W) in [-1, 1]: bilinear, anti-aliased, clamped; one of that size is returned as it is."""
    if image.shape[1:] == tuple(size):
        return image
    result = F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return result[0].clamp_(-1, 1)  # the weights sum to 1 up to rounding


@contextmanager
def _opened(path: str | Path) -> Iterator[Header]:
    """Open a file and read its header; `Header.decode` works until the file is closed."""
    with _reasons(path):
        kind = os.stat(path)
        if not (stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode)):
            # Opening a pipe may block for ever.
            raise InputError(f"cannot read {path}: it is not a file but a device or a pipe")
        with open(path, "rb") as file:
            yield _header(file, kind.st_size, path)


def _header(file: BinaryIO, size: int, name: str | Path) -> Header:
    if size > (most := 8 * max_pixels()):  # bytes of the largest image, uncompressed RGBA of 16 bits
        raise InputError(f"cannot read {name}: {size} bytes exceed the limit of {most}")
    suffix = Path(name).suffix
    if suffix.lower() in UNREAD:  # by its name: raw files of cameras look like a TIFF with a small picture
        raise InputError(f"cannot read {name}: genstab does not read {suffix}: convert it to PNG or TIFF")
    magic = file.read(8)
    file.seek(0)
    if not magic:
        raise InputError(f"cannot read {name}: the file is empty")
    if magic == b"version ":
        raise InputError(f"cannot read {name}: it is a pointer of Git LFS: fetch the image with git lfs pull")
    return png_header(file) if magic == PNG else tiff_header(file) if magic[:4] in TIFF else pillow_header(file)


@contextmanager
def _reasons(name: str | Path) -> Iterator[None]:
    """Turn any error of the decoders into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"cannot read {name}: not an image in a format that genstab reads, or damaged") from None
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
_TIFF = dict.fromkeys((8, 16), range(1, 1 << 16))
# Numbers of channels that each format supports, by depth.
_HOLDS: dict[str, Mapping[int, range | tuple[int, ...]]] = {
    ".png": {8: (1, 2, 3, 4), 16: (1, 3, 4)},
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": {8: (1, 3)},
    ".jpeg": {8: (1, 3)},
    ".jpe": {8: (1, 3)},
    ".jfif": {8: (1, 3)},
    ".webp": {8: (3, 4)},
    ".bmp": {8: (1, 3)},
}
_JPEG = {"quality": 95, "subsampling": 0}
_WEBP = {"lossless": True, "exact": True}  # exact keeps the colours where alpha is 0
_OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), _JPEG),
    ".webp": _WEBP,
}


def writable(path: Path) -> Path:
    """Return the path, with the suffix .png where `write_image` does not write the format of its own."""
    return path if path.suffix.lower() in _HOLDS else path.with_suffix(".png")


def depth_of_format(path: str | Path, depth: int) -> int:
    """Return `depth` if the format of a file name supports it, else 8."""
    return depth if depth in _HOLDS.get(Path(path).suffix.lower(), ()) else 8


def write_image(path: str | Path, image: torch.Tensor, depth: int = 8) -> None:
    """Write an image in [-1, 1] to a file, the inverse of `read_image`; the suffix chooses the format.

    Values are clamped, scaled to 255 or 65535 and rounded, half to even. PNG, TIFF, BMP and WebP are lossless; JPEG has
    quality 95 without chroma subsampling. Missing folders are made, and the file is written
    atomically.

    Args:
        path: .png (1 to 4 channels; 16 bits: 1, 3 or 4), .tif or .tiff (any number), .jpg, .jpeg, .jpe or .jfif (1 or
            3), .webp (3 or 4) or .bmp (1 or 3). With 2 or 4 channels, the last one is alpha.
        image: floating point, shape (C, H, W).
        depth: 8, or 16 for PNG and TIFF.

    Raises:
        InputError: the format does not support the image, a value is NaN, or the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_image(f"{folder}/a.png", torch.tensor([[[-1.0, 0.0, 2.0]]]), depth=16)
    ...     read_image(f"{folder}/a.png")
    tensor([[[-1.0000e+00,  1.5259e-05,  1.0000e+00]]])
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _HOLDS:
        raise InputError(f"cannot write {path}: {suffix!r} is not one of {', '.join(_HOLDS)}")
    if depth not in _HOLDS[suffix]:
        raise InputError(f"cannot write {path}: {suffix} has {' or '.join(map(str, _HOLDS[suffix]))} bits, not {depth}")
    if not image.is_floating_point() or image.ndim != 3:
        raise InputError(f"cannot write {path}: {image.dtype} {tuple(image.shape)} is not floating point (C, H, W)")
    allowed = _HOLDS[suffix][depth]
    if len(image) not in allowed:
        numbers = ", ".join(map(str, allowed[:4]))
        raise InputError(f"cannot write {path}: {len(image)} channels, but {suffix} of {depth} bits supports {numbers}")
    if image.isnan().any():
        raise InputError(f"cannot write {path}: the image contains NaN")
    levels = (image.detach().float().clamp(-1, 1) + 1) * ((2**depth - 1) / 2)
    pixels = levels.round().permute(1, 2, 0).cpu().numpy().astype(np.uint8 if depth == 8 else np.uint16)
    try:
        write_whole(path, lambda file: _save(file, np.ascontiguousarray(pixels), suffix))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _save(file: BinaryIO, pixels: np.ndarray, suffix: str) -> None:
    """Write (H, W, C) of uint8 or uint16 to an empty file."""
    channels = pixels.shape[2]
    if suffix in (".tif", ".tiff"):
        colour = "rgb" if channels in (3, 4) else "minisblack"
        extra = {2: ["unassalpha"], 4: ["unassalpha"]}.get(channels, [0] * (channels - 1) if channels > 4 else None)
        squeezed = pixels[..., 0] if channels == 1 else pixels
        tifffile.imwrite(
            file, squeezed, photometric=colour, planarconfig="contig" if channels > 1 else None, extrasamples=extra,
            compression="zlib", metadata=None,
        )  # fmt: skip
    elif pixels.dtype == np.uint16:
        try:
            kornia_rs.io.write_image_png_u16(file.name, pixels, _PNG16[channels])
        except Exception as error:  # it raises bare Exceptions
            raise OSError(str(error)) from error
    else:
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)  # 2, 3, 4 channels: LA, RGB, RGBA
        image.save(file, Image.registered_extensions()[suffix], **_OPTIONS.get(suffix, {}))
