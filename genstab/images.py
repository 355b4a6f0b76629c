"""Image files to float tensors at their full depth, and back to bytes."""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from genstab.decoders import PNG, TIFF, Header, most_pixels, pillow_header, png_header, tiff_header
from genstab.errors import InputError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
"""Suffixes, in lower case, of the files that count as images."""


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
        return _values(header, path)


def decode_image(data: bytes, name: str) -> torch.Tensor:
    """Return what `read_image` does of a file with these bytes; `name` is what messages call it.

    Shape: (C, H, W).

    Raises:
        InputError: as `read_image`.

    >>> file = io.BytesIO()
    >>> Image.new("L", (2, 1), 255).save(file, "PNG")
    >>> decode_image(file.getvalue(), "a.png")
    tensor([[[1., 1.]]])
    """
    file = io.BytesIO(data)
    file.name = name  # as an open file has it, for messages
    with _reasons(name):
        return _values(_header(file, len(data), name), name)


def _values(header: Header, name: str | Path) -> torch.Tensor:
    pixels = header.decode()
    if pixels.shape != header.shape:
        raise InputError(f"cannot read {name}: it holds {pixels.shape}, its header says {header.shape}")
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
def _opened(path: str | Path) -> Iterator[Header]:
    """Open the file for the header's `decode`."""
    with _reasons(path):
        kind = os.stat(path)
        if not (stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode)):
            raise InputError(
                f"cannot read {path}: it is no file but a device or a pipe"
            )  # opening one may wait for ever
        with open(path, "rb") as file:
            yield _header(file, kind.st_size, path)


def _header(file: BinaryIO, size: int, name: str | Path) -> Header:
    if size > (most := 8 * most_pixels()):  # bytes of the largest image, RGBA at 16 bits, unpacked
        raise InputError(f"cannot read {name}: {size} bytes exceed the limit of {most}")
    magic = file.read(8)
    file.seek(0)
    if not magic:
        raise InputError(f"cannot read {name}: the file is empty")
    if magic == b"version ":
        raise InputError(f"cannot read {name}: it is a pointer of Git LFS; git lfs pull fetches the image")
    return png_header(file) if magic == PNG else tiff_header(file) if magic[:4] in TIFF else pillow_header(file)


@contextmanager
def _reasons(name: str | Path) -> Iterator[None]:
    """Turn whatever the decoders raise into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"cannot read {name}: no PNG, JPEG, BMP, WebP or TIFF image, or a damaged one") from None
    except Exception as error:  # a damaged file makes decoders raise anything; kornia_rs a bare Exception
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InputError(f"cannot read {name}: {reason or type(error).__name__}") from error


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, C) as EXIF orientation 1 to 8 asks."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
