"""Tensors and numbers to pictures."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import ceil, isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from genstab.data.image_io import to_uint8
from genstab.data.paths import shortened
from genstab.errors import InputError
from genstab.metrics.protocols import Generate, shift_pairs
from genstab.metrics.shift_map import RolledOutputs
from genstab.metrics.shift_ops import Shift, grid_shifts, roll
from genstab.report.own_files import SOFTWARE
from genstab.report.runs import Run
from genstab.report.slider_frames import FRAMES, Slide, read_slide, save_frames
from genstab.runtime.files import SLIDE_OUTPUT, SLIDE_SOURCE, write_picture

Picture = np.ndarray


def picture_table(columns: Mapping[str, Tensor]) -> Picture:
    """Lay image batches side by side, a titled column each and a row an image.

    Shape: each column (N, C, H, W) in [−1, 1] → (height, width, 3), uint8.
    """
    batches = [to_uint8(batch.float().cpu()) for batch in columns.values()]
    scale = max(1, 128 // batches[0].shape[2])  # small images are enlarged, so that pixels can be seen
    gap, header = 4, 24
    height, width = (side * scale for side in batches[0].shape[1:3])
    rows = len(batches[0])
    shape = (header + rows * (height + gap) - gap + 16, len(batches) * (width + gap) - gap + 24)
    canvas = Image.new("RGB", (shape[1], shape[0]), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(min(14, max(8, width // 9)))
    for column, (title, batch) in enumerate(zip(columns, batches, strict=True)):
        left = 12 + column * (width + gap)
        draw.text((left, 6), title, fill="black", font=font)
        for row, image in enumerate(batch):
            tile = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (left, header + row * (height + gap)))
    return np.asarray(canvas)


def shift_map(decibels: Mapping[tuple[int, int], float], title: str = "") -> Picture:
    """Draw shift PSNR over (Δh, Δw) as a heat map, the zero shift left white, and along both axes and the diagonal.

    The distance between the peaks is the period of the aliasing: 2 pixels for features subsampled once, 4 for twice, …

    Shape: {(dy, dx): dB} → (height, width, 3), uint8.
    """
    reach = max(max(abs(dy), abs(dx)) for dy, dx in decibels)
    values = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
    for (dy, dx), value in decibels.items():
        values[dy + reach, dx + reach] = value
    figure = Figure(figsize=(9.6, 4.2), dpi=120, layout="constrained")
    axes, lines = figure.subplots(1, 2, width_ratios=(1.15, 1))
    edge = reach + 0.5
    picture = axes.imshow(values, extent=(-edge, edge, edge, -edge), cmap="viridis", interpolation="nearest")
    axes.set(xlabel="Δw, pixels", ylabel="Δh, pixels", title=title)
    figure.colorbar(picture, label="shift PSNR, dB")
    for name, (dy, dx), style in (("Δw", (0, 1), "o-"), ("Δh", (1, 0), "s--"), ("diagonal", (1, 1), "^:")):
        along = {d: decibels[d * dy, d * dx] for d in range(1, reach + 1) if (d * dy, d * dx) in decibels}
        lines.plot(list(along), list(along.values()), style, label=name, markersize=4)
    lines.set(xlabel="shift, pixels", ylabel="shift PSNR, dB", title="along the axes and the diagonal")
    for axis in (axes.xaxis, axes.yaxis, lines.xaxis):
        axis.get_major_locator().set_params(integer=True)
    lines.grid(alpha=0.3)
    lines.legend()
    return pixels(figure)


def pixels(figure: Figure) -> Picture:
    """Render a matplotlib figure: (height, width, 3), uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture (height, width, 3), uint8, as PNG."""
    metadata = PngInfo()
    metadata.add_text("Software", SOFTWARE)
    write_picture(Image.fromarray(picture), path, "PNG", pnginfo=metadata)


def save_animation(frames: Sequence[Picture], path: str | Path, milliseconds: int = 120) -> None:
    """Write pictures of one size as an endless GIF."""
    # One palette for all frames: a palette of its own for each would flicker by itself.
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 4)])).quantize(255)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    options = {"save_all": True, "append_images": images[1:], "duration": milliseconds, "loop": 0}
    write_picture(images[0], path, "GIF", comment=SOFTWARE, **options)


def distance_grids(distances: Mapping[str, Tensor], reach: int) -> dict[str, Tensor]:
    """Average distances over the images and lay them out by shift; the zero shift has none: 0.

    Shape: each (number of shifts, N), the shifts being those of `genstab.metrics.shift_ops.grid_shifts(reach)`
    → (2 reach + 1, 2 reach + 1), row Δh + reach, column Δw + reach.

    >>> import torch
    >>> distance_grids({"pool": torch.arange(8.0)[:, None]}, reach=1)["pool"].tolist()
    [[0.0, 1.0, 2.0], [3.0, 0.0, 4.0], [5.0, 6.0, 7.0]]
    """
    grids = {name: values.new_zeros(2 * reach + 1, 2 * reach + 1) for name, values in distances.items()}
    for name, values in distances.items():
        for (dy, dx), mean in zip(grid_shifts(reach), values.mean(1), strict=True):
            grids[name][dy + reach, dx + reach] = mean
    return grids


def feature_map_picture(distances: Mapping[str, ArrayLike]) -> Picture:
    """Draw a small heat map for each layer, over (Δh, Δw): from blue, where it moves with the image, to red.

    One scale for all layers, where the paper gives each its own: so they can be compared. Red is the largest distance
    there is, and at least 0.01, or rounding errors would glow.

    Shape: cosine distances by layer, each (2 reach + 1, 2 reach + 1), see `distance_grids` → (height, width, 3), uint8.
    """
    grids = {name: np.asarray(grid, dtype=float) for name, grid in distances.items()}
    largest = max(0.01, *(np.nanmax(grid, initial=0) for grid in grids.values()))
    columns = min(len(grids), max(4, isqrt(2 * len(grids))))
    rows = ceil(len(grids) / columns)
    figure = Figure(figsize=(1.5 * columns + 1.3, 1.65 * rows + 0.5), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(grids) :]:
        axis.set_axis_off()
    for place, (axis, (name, grid)) in enumerate(zip(axes.flat, grids.items(), strict=False)):
        edge = len(grid) / 2
        # Yellow in between: what is white has not been measured.
        heat = axis.imshow(grid, extent=(-edge, edge, edge, -edge), cmap="RdYlBu_r", vmin=0, vmax=largest)
        ticks = [-(len(grid) // 2), 0, len(grid) // 2]
        axis.set(xticks=ticks, yticks=ticks)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=6, length=2, pad=1)
        if place % columns == 0:
            axis.set_ylabel("Δh, pixels", fontsize=7)
        if place + columns >= len(grids):
            axis.set_xlabel("Δw, pixels", fontsize=7)
    figure.colorbar(heat, ax=axes, label="cosine distance").ax.tick_params(labelsize=7)
    return pixels(figure)


def shift_panel(generate: Generate, source: Tensor, output: Tensor, shift: Shift) -> dict[str, Tensor]:
    """Return the columns G(S x), S G(x) and their difference, four times as strong so that 25 dB can be seen.

    Shape: x and G(x), (N, C, H, W) in [−1, 1] → (N, C', H, W) each; the difference has one channel, −1 for none.
    """
    pairs = shift_pairs(generate, source, [shift], "circular", check_finite=False, output=output)
    _, shifted_output, output_of_shifted, _ = next(pairs)
    difference = 4 * (shifted_output - output_of_shifted).abs().mean(1, keepdim=True) - 1
    return {"G(shifted source)": output_of_shifted, "shifted G(source)": shifted_output, "difference × 4": difference}


def animation(image: Tensor, outputs: Sequence[Tensor]) -> list[Picture]:
    """Return one picture a frame: the image rolled by another pixel, its output, and the output moved back.

    Shape: (1, C, H, W), and for each frame G of it rolled to the right by 0, 1, … pixels, in [−1, 1] → (height, width,
    3) each, uint8.
    """
    scale = outputs[0].shape[-1] // image.shape[-1]
    columns = (
        {"source": roll(image, (0, dx))[0], "output": output, "output moved back": roll(output, (0, -dx * scale))[0]}
        for dx, output in enumerate(outputs)
    )
    return list(map(picture_table, columns))


def write_exhibits(
    folder: Path,
    generate: Generate,
    samples: Mapping[str, Tensor],
    rolled: RolledOutputs,
    decibels: Mapping[Shift, float],
    title: str,
    frames: int,
    spare: Callable[[Path], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, Picture]:
    """Write the animation, `shift.gif`, and the slides of the first image; return samples and shift map by log key.

    The samples are batches (N, C, H, W) in [−1, 1] by title. Frames that `rolled` lacks come from `generate`. Without
    `decibels` there is no shift map. Each file is written within `spare`, to continue after one that cannot be.
    """
    image, outputs = rolled.images[:1], [rolled.frame(generate, dx) for dx in range(max(frames, FRAMES))]
    with spare(folder / "shift.gif"):
        save_animation(animation(image, outputs[:frames]), folder / "shift.gif")
    with spare(folder / SLIDE_OUTPUT):
        sources = [roll(image, (0, dx))[0] for dx in range(FRAMES)]
        for images, name in ((sources, SLIDE_SOURCE), (outputs[:FRAMES], SLIDE_OUTPUT)):
            save_frames(np.concatenate([to_uint8(each.float().cpu()) for each in images]), folder / name)
    return {"samples": picture_table(samples)} | ({"shift_map": shift_map(decibels, title)} if decibels else {})


def shift_table(
    shifts: Sequence[Sequence[float]], names: Sequence[str], decibels: Tensor, pooled: Tensor
) -> dict[str, Any]:
    """Return dB (shifts, images) and pooled dB (shifts,) as plain types, as `measurements.json` holds them."""
    return {
        "shifts": [list(shift) for shift in shifts],
        "images": list(names),
        "decibels": decibels.tolist(),
        "pooled": pooled.tolist(),
    }


def animations_beside(runs: Sequence[Run]) -> list[Picture]:
    """Return 16 pictures: the source and each run's output sliding, and below them the same moved back.

    Raises:
        InputError: a run has no such pictures, as a classifier has none, or those of another source.
    """
    if without := [run.name for run in runs if not (run.folder / SLIDE_OUTPUT).is_file()]:
        raise InputError(
            f"{shortened(without)}: no animation, without {SLIDE_OUTPUT}: leave it out, or leave out film="
        )
    slides = {run.name: read_slide(run.folder / SLIDE_SOURCE, run.folder / SLIDE_OUTPUT) for run in runs}
    first = slides[runs[0].name]
    for name, slide in slides.items():
        if not np.array_equal(slide.source, first.source):
            raise InputError(f"{name} slid another picture than {runs[0].name}: measure both on the same images")
    return [picture_table(_columns(first, slides, frame)) for frame in range(FRAMES)]


def _columns(first: Slide, slides: Mapping[str, Slide], frame: int) -> dict[str, Tensor]:
    still = first.source.repeat(first.scale, 0).repeat(first.scale, 1)
    columns = {"source": np.stack([np.roll(still, first.scale * frame, axis=1), still])}
    for name, slide in slides.items():
        output = slide.frames[frame]
        columns[name] = np.stack([output, np.roll(output, -slide.scale * frame, axis=1)])
    return {name: torch.from_numpy(pair).permute(0, 3, 1, 2) / 127.5 - 1 for name, pair in columns.items()}
