"""What a run leaves in its folder, in numbers and frames: from a training or a measurement, for the report."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genstab.errors import InputError

SUMMARY, MEASUREMENTS = "summary.json", "measurements.json"
SLIDE_SOURCE, SLIDE_OUTPUT = "slide_source.webp", "slide_output.webp"
GRID = 4  # frames of a slide, each way


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write plain types as JSON; NaN and infinity, which JSON has not, as null; a crash leaves no half of it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(f"{folder}/a.json", {"l1": 0.5, "psnr": [math.nan, 3.0]})
    ...     Path(folder, "a.json").read_text()
    '{\\n  "l1": 0.5,\\n  "psnr": [null, 3.0]\\n}\\n'
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(_compact(json.dumps(_finite(content), indent=2, ensure_ascii=False)) + "\n")
    os.replace(unfinished, path)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def _compact(text: str) -> str:
    """Put lists of numbers on one line, so that a person can read a map of hundreds of them."""
    lines: list[str] = []
    opened = False
    for line in text.split("\n"):
        bare = line.strip()
        plain = bare.rstrip(",") in ("null", "]") or bare[:1] in "-0123456789"
        if opened and plain:
            lines[-1] += bare if bare.startswith("]") or lines[-1].endswith("[") else f" {bare}"
        else:
            lines.append(line)
        opened = (opened and plain and not bare.startswith("]")) or bare.endswith("[")
    return "\n".join(lines)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"cannot read {path}: it holds no JSON object")
    return content


def save_slide(frames: np.ndarray, path: str | Path) -> None:
    """Write the frames of a sliding picture as one lossless WebP, a grid of four by four, row by row.

    Shape: (16, H, W, 3), uint8.

    Raises:
        InputError: another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[0] != GRID**2 or frames.shape[3] != 3:
        raise InputError(f"frames are {frames.dtype} of shape {frames.shape}, not uint8 (16, H, W, 3)")
    _, height, width, _ = frames.shape
    grid = frames.reshape(GRID, GRID, height, width, 3).swapaxes(1, 2).reshape(GRID * height, GRID * width, 3)
    Image.fromarray(grid).save(path, lossless=True)


def read_slide(path: str | Path) -> np.ndarray:
    """Read what `save_slide` wrote.

    Shape: → (16, H, W, 3), uint8.

    Raises:
        InputError: the file is missing or no such picture.

    >>> import tempfile
    >>> frames = np.random.default_rng(0).integers(0, 256, (16, 5, 7, 3), dtype=np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_slide(frames, f"{folder}/a.webp")
    ...     bool((read_slide(f"{folder}/a.webp") == frames).all())
    True
    """
    try:
        with Image.open(path, formats=("WEBP",)) as picture:
            grid = np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    height, width = (side // GRID for side in grid.shape[:2])
    if grid.shape[:2] != (GRID * height, GRID * width) or not height or not width:
        raise InputError(f"cannot read {path}: {grid.shape[:2]} pixels are no grid of four by four frames")
    return grid.reshape(GRID, height, GRID, width, 3).swapaxes(1, 2).reshape(GRID**2, height, width, 3)
