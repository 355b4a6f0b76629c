"""Pictures of what a generator does to a moving input: samples, the shift map, the film and the slides."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from genstab.errors import InputError
from genstab.images import to_uint8
from genstab.inference import inference
from genstab.listing import hxw
from genstab.metrics import decibel, squared_error
from genstab.protocols import shift_pairs
from genstab.report import Picture, picture_table, save_film, save_picture, shift_map
from genstab.results import SLIDE_OUTPUT, SLIDE_SOURCE
from genstab.shift import Shift, grid_shifts, roll
from genstab.slides import FRAMES, save_frames

Generate = Callable[[Tensor], Tensor]


def shift_panel(generate: Generate, source: Tensor, shift: Shift) -> dict[str, Tensor]:
    """Return the columns G(S x), S G(x) and their difference, four times as strong so that 25 dB can be seen.

    Shape: (N, C, H, W) in [−1, 1] → (N, C', H, W) each; the difference (N, 1, H, W), −1 (black) where they agree.
    """
    pairs = shift_pairs(generate, source, [shift], "circular", check_finite=False)
    _, shifted_output, output_of_shifted, _ = next(pairs)
    difference = 4 * (shifted_output - output_of_shifted).abs().mean(1, keepdim=True) - 1
    return {
        "G(shifted source)": output_of_shifted,
        "shifted G(source)": shifted_output,
        "difference × 4": difference,
    }


def circular_grid(images: Tensor, reach: int) -> list[Shift]:
    """Return the shifts with |dy| and |dx| up to `reach`, or up to what images (N, C, H, W) can be rolled by.

    Raises:
        InputError: a side of one pixel, which cannot be rolled.

    >>> import torch
    >>> circular_grid(torch.zeros(1, 3, 2, 8), 4)[-1]
    (1, 1)
    """
    smallest = min(images.shape[-2:])
    if smallest < 2:
        raise InputError(f"images of {hxw(images.shape[-2:])} cannot be rolled both ways")
    return grid_shifts(min(reach, smallest - 1))


def measure_map(
    generator: nn.Module, images: Tensor, reach: int, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[Shift, float]:
    """Measure shift PSNR for every shift with |dy| and |dx| up to `reach`, with a progress bar; mean over the images.

    Args:
        generator, images, dtype: see `genstab.shift_psnr`.
        reach: pixels; cut to what a circular shift of these images allows, a whole turn being none.
        options: see `genstab.protocols.shift_pairs`.

    Returns:
        {(dy, dx): dB}, without the zero shift.

    >>> measure_map(nn.Identity(), torch.rand(1, 3, 8, 8), 1)[0, 1]
    100.0
    """
    shifts = circular_grid(images, reach)
    decibels: dict[Shift, float] = {}
    with inference(generator, dtype) as generate:
        pairs = shift_pairs(generate, images, shifts, **options)
        for (dy, dx), *pair_and_mask in tqdm(pairs, "shift map", len(shifts), unit="shift", leave=False, disable=None):
            error, count = squared_error(*pair_and_mask)
            decibels[int(dy), int(dx)] = decibel(error / count).mean().item()
    return decibels


def map_table(decibels: Mapping[Shift, float], images: int, protocol: str = "circular") -> dict[str, Any]:
    """Return a shift map as plain types, as `measurements.json` holds it: rows of Δh, None at the zero shift.

    >>> decibels = {(dy, dx): 10.0 * dy + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)}
    >>> map_table(decibels, images=2)["decibels"]
    [[-11.0, -10.0, -9.0], [-1.0, None, 1.0], [9.0, 10.0, 11.0]]
    """
    reach = max(dy for dy, _ in decibels)
    span = range(-reach, reach + 1)
    rows = [[decibels.get((dy, dx)) for dx in span] for dy in span]
    return {"protocol": protocol, "reach": reach, "images": images, "decibels": rows}


def film(generate: Generate, image: Tensor, frames: int) -> list[Picture]:
    """Return one picture a frame: the source slid by another pixel, its output, and the output moved back.

    Shape: (1, C, H, W) in [−1, 1] → `frames` times (height, width, 3), uint8.
    """
    pictures = []
    for dx in range(frames):
        moved = roll(image, (0, dx))[0]
        output = generate(moved)
        scale = output.shape[-1] // image.shape[-1]
        back = roll(output, (0, -dx * scale))[0]
        pictures.append(picture_table({"source": moved, "output": output, "output moved back": back}))
    return pictures


def save_slides(generate: Generate, image: Tensor, folder: Path) -> None:
    """Write the source slid by 0 to 15 pixels, and its outputs, for the slider of the report.

    Shape: (1, C, H, W) in [−1, 1].
    """
    moved = [roll(image, (0, dx))[0] for dx in range(FRAMES)]
    save_frames(np.concatenate([to_uint8(each.float().cpu()) for each in moved]), folder / SLIDE_SOURCE)
    save_frames(np.concatenate([to_uint8(generate(each).float().cpu()) for each in moved]), folder / SLIDE_OUTPUT)


def write_exhibits(
    folder: Path,
    generator: nn.Module,
    source: Tensor,
    target: Tensor | None,
    decibels: dict[Shift, float] | None,
    title: str,
    frames: int,
    dtype: torch.dtype = torch.float32,
    spare: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Picture]:
    """Write `samples.png`, `shift_map.png`, `shift.gif` and the slides; return the first two by their log keys.

    Args:
        folder: where the files go; it exists.
        generator: maps the source to an image.
        source, target: (N, C, H, W) in [−1, 1], a row of the samples each; film and slides are of the first one.
        decibels: the shift map, see `measure_map`; None: no such picture.
        title: of the map.
        frames: of the film.
        dtype: the precision that the generator is called in, see `genstab.inference.inference`.
        spare: what a file is written within, to go on after one that cannot be.
    """
    with inference(generator, dtype) as generate:
        columns = {"source": source, "output": generate(source)}
        with spare(folder / "shift.gif"):
            save_film(film(generate, source[:1], frames), folder / "shift.gif")
        with spare(folder / SLIDE_OUTPUT):
            save_slides(generate, source[:1], folder)
    pictures = {"samples": picture_table(columns if target is None else {**columns, "target": target})}
    if decibels:
        pictures["shift_map"] = shift_map(decibels, title)
    for key, picture in pictures.items():
        with spare(folder / f"{key}.png"):
            save_picture(picture, folder / f"{key}.png")
    return pictures


def shift_table(
    shifts: Sequence[Sequence[float]], names: Sequence[str], decibels: Tensor, pooled: Tensor
) -> dict[str, Any]:
    """Return shift PSNR per shift and image as plain types, as `measurements.json` holds it.

    Shape: decibels (shifts, images) and pooled (shifts,), dB.
    """
    return {
        "shifts": [list(shift) for shift in shifts],
        "images": list(names),
        "decibels": decibels.tolist(),
        "pooled": pooled.tolist(),
    }
