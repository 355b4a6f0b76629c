"""The sliding pictures of a run, made small enough for a page: a sheet of frames, and the flicker strip."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from genstab.errors import InputError
from genstab.runtime.files import write_picture

FRAMES = 16
COLUMNS = 4  # of a sheet


@dataclass(frozen=True)
class Slide:
    """The output of one run while its source slides to the right, a pixel a frame."""

    source: np.ndarray  # at rest, (h, w, 3), uint8
    frames: np.ndarray  # the outputs, (frames, H, W, 3), uint8
    scale: int = 1  # pixels of the output a pixel of the source


def save_frames(frames: np.ndarray, path: str | Path) -> None:
    """Write 16 frames (16, H, W, 3), uint8, as one lossless WebP, a grid of four by four, row by row."""
    write_picture(Image.fromarray(sheet(frames)), path, "WEBP", lossless=True)


def read_frames(path: str | Path) -> np.ndarray:
    """Read what `save_frames` wrote: (16, H, W, 3), uint8; raise an `InputError` if the file holds no such picture."""
    try:
        with Image.open(path, formats=("WEBP",)) as picture:
            grid = np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error
    (height, width), rows = grid.shape[:2], FRAMES // COLUMNS
    if height % rows or width % COLUMNS:
        raise InputError(f"{path} has {height}×{width} pixels, no grid of {rows} by {COLUMNS} frames")
    parts = grid.reshape(rows, height // rows, COLUMNS, width // COLUMNS, 3)
    return parts.swapaxes(1, 2).reshape(FRAMES, height // rows, width // COLUMNS, 3)


def read_slide(source: str | Path, output: str | Path) -> Slide:
    """Read the frames of a run; raise an `InputError` if the output's size is no multiple of the source's."""
    still, frames = read_frames(source)[0], read_frames(output)
    (height, width), (tall, wide) = still.shape[:2], frames.shape[1:3]
    if tall % height or wide % width or tall // height != wide // width:
        raise InputError(f"{output} has {tall}×{wide} pixels, no multiple of the {height}×{width} of {source}")
    return Slide(still, frames, wide // width)


def flicker_strip(frames: np.ndarray, scale: int = 1) -> np.ndarray:
    """Stack the middle row of every frame (frames, H, W, 3), moved back: vertical lines where the output is stable."""
    middle = frames[:, frames.shape[1] // 2]
    return np.stack([np.roll(row, -scale * i, axis=0) for i, row in enumerate(middle)])


def middle(slide: Slide, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the middle `side` × `side` pixels, or all there is, out of the outputs, and the same place out of the source.

    The source comes as one strip: its columns from `frames − 1 − i` on are what frame i shows of it.

    Shape: → (h, w + frames − 1, 3), (frames, scale · h, scale · w, 3).
    """
    scale, count = slide.scale, len(slide.frames)
    height, width = (min(max(1, side // scale), length) for length in slide.source.shape[:2])
    top, left = (slide.source.shape[0] - height) // 2, (slide.source.shape[1] - width) // 2
    columns = np.arange(left - (count - 1), left + width)
    strip = slide.source[top : top + height].take(columns, axis=1, mode="wrap")
    rows = slice(scale * top, scale * (top + height))
    return strip, slide.frames[:, rows, scale * left : scale * (left + width)]


def sheet(frames: np.ndarray) -> np.ndarray:
    """Lay frames (frames, H, W, 3) out in rows of four: (frames / 4 · H, 4 · W, 3)."""
    count, height, width, channels = frames.shape
    grid = frames.reshape(count // COLUMNS, COLUMNS, height, width, channels).swapaxes(1, 2)
    return grid.reshape(count // COLUMNS * height, COLUMNS * width, channels)


def data_uri(picture: np.ndarray) -> str:
    """Encode a picture (H, W, 3), uint8, as a lossless WebP inside a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True, quality=60, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
