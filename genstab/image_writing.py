"""Float tensors to image files, whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kornia_rs
import numpy as np
import tifffile
import torch
from PIL import Image

from genstab.errors import InputError

_PNG16 = {1: "mono", 3: "rgb", 4: "rgba"}
_TIFF = dict.fromkeys((8, 16), range(1, 1 << 16))
# The numbers of channels that each format holds, by depth.
_HOLDS: dict[str, Mapping[int, range | tuple[int, ...]]] = {
    ".png": {8: (1, 2, 3, 4), 16: (1, 3, 4)},
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".jpg": {8: (1, 3)},
    ".jpeg": {8: (1, 3)},
    ".webp": {8: (3, 4)},
    ".bmp": {8: (1, 3)},
}
_OPTIONS: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True, "exact": True},  # exact: colours where alpha is 0, too
    ".bmp": {"format": "BMP"},
    ".png": {"format": "PNG"},
}


def unfinished(path: Path) -> Path:
    """Return what an image file is called until it is whole.

    >>> unfinished(Path("out/a.png")).name
    '.a.png.part'
    """
    return path.with_name(f".{path.name}.part")


def depth_of_format(path: str | Path, depth: int) -> int:
    """Return `depth` if the format that a file name stands for has it, else 8.

    >>> depth_of_format("a.tif", 16), depth_of_format("a.jpg", 16)
    (16, 8)
    """
    return depth if depth in _HOLDS.get(Path(path).suffix.lower(), ()) else 8


def write_image(path: str | Path, image: torch.Tensor, depth: int = 8) -> None:
    """Write an image in [-1, 1] in the format that its name stands for: the inverse of `genstab.images.read_image`.

    Values are clamped, scaled to 255 or 65535 and rounded, half to even. PNG, TIFF, BMP and WebP are lossless; JPEG has
    quality 95 and full-resolution colours. The file appears when it is whole: before, it is called `.NAME.part`.

    Args:
        path: ends in .png (1 to 4 channels; 16 bits: 1, 3 or 4), .tif or .tiff (any number), .jpg or .jpeg (1 or 3),
            .webp (3 or 4) or .bmp (1 or 3). Of 2 and of 4 channels, the last is alpha.
        image: (C, H, W), floating point.
        depth: 8, or 16 for PNG and TIFF.

    Raises:
        InputError: the format can't hold the image, a value is NaN, or the file can't be written.

    >>> import tempfile
    >>> from genstab.images import read_image
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
        raise InputError(f"cannot write {path}: {image.dtype} {tuple(image.shape)} is no floating point (C, H, W)")
    allowed = _HOLDS[suffix][depth]
    if len(image) not in allowed:
        numbers = ", ".join(map(str, allowed[:4]))
        raise InputError(f"cannot write {path}: {len(image)} channels, {suffix} of {depth} bits holds {numbers}")
    if image.isnan().any():
        raise InputError(f"cannot write {path}: the image has NaN in it")
    levels = (image.detach().float().clamp(-1, 1) + 1) * ((2**depth - 1) / 2)
    pixels = levels.round().permute(1, 2, 0).cpu().numpy().astype(np.uint8 if depth == 8 else np.uint16)
    part = unfinished(path)
    try:
        _save(part, np.ascontiguousarray(pixels), suffix)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _save(path: Path, pixels: np.ndarray, suffix: str) -> None:
    """Write (H, W, C) of uint8 or uint16."""
    channels = pixels.shape[2]
    if suffix in (".tif", ".tiff"):
        colour = "rgb" if channels in (3, 4) else "minisblack"
        extra = {2: ["unassalpha"], 4: ["unassalpha"]}.get(channels, [0] * (channels - 1) if channels > 4 else None)
        squeezed = pixels[..., 0] if channels == 1 else pixels
        tifffile.imwrite(
            path, squeezed, photometric=colour, planarconfig="contig" if channels > 1 else None, extrasamples=extra,
            compression="zlib", metadata=None,
        )  # fmt: skip
    elif pixels.dtype == np.uint16:
        try:
            kornia_rs.io.write_image_png_u16(str(path), pixels, _PNG16[channels])
        except Exception as error:  # it raises nothing more precise
            raise OSError(str(error)) from error
    else:
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)  # 2, 3, 4 channels: LA, RGB, RGBA
        image.save(path, **_OPTIONS[suffix])
