"""Tensors to pictures, numbers to tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table
from torch import Tensor

from genstab.images import to_uint8
from genstab.whole_files import write_picture

Picture = np.ndarray
# Log key, heading, unit: the lines of the table at the end of a run.
RESULTS = (
    ("val/shift_psnr", "shift PSNR, mean", "dB"),
    ("val/shift_psnr_worst", "shift PSNR, worst", "dB"),
    ("val/shift_psnr_pooled", "shift PSNR, pooled", "dB"),
    ("val/shift_psnr_crop", "shift PSNR, crop", "dB"),
    ("val/shift_psnr_fractional", "shift PSNR, fractional", "dB"),
    ("val/noise_floor", "noise floor, two runs of one input", "dB"),
    ("val/l1", "L1", ""),
    ("val/psnr", "PSNR", "dB"),
    ("val/ssim", "SSIM", ""),
    ("val/tv", "total variation", ""),
    ("val/tv_target", "total variation of the targets", ""),
    ("val/spectrum_error", "power spectrum, off the targets' by", "dB"),
    ("val/swd", "sliced Wasserstein distance", ""),
    ("val/fid", "FID", ""),
    ("val/lpips", "LPIPS", ""),
    ("val/feature_distance", "feature distance, mean of the layers", ""),
    ("val/corruption_psnr", "corrupted inputs, mean", "dB"),
    ("val/corruption_relative", "corruption error over the baseline's", ""),
    ("val/consistency", "consistency of the class, crop", ""),
    ("val/consistency_roll", "consistency of the class, circular", ""),
    ("val/accuracy", "accuracy", ""),
    ("val/corruption_error", "error rate with corrupted inputs", ""),
)


def picture_table(columns: Mapping[str, Tensor]) -> Picture:
    """Lay image batches side by side, a titled column each and a row an image.

    Shape: each column (N, C, H, W) in [−1, 1] → (height, width, 3), uint8.

    >>> import torch
    >>> picture_table({"source": torch.zeros(2, 3, 16, 16), "output": torch.ones(2, 1, 16, 16)}).shape
    (300, 284, 3)
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
    canvas = FigureCanvasAgg(figure)
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
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_picture(picture: Picture, path: str | Path) -> None:
    """Write a picture (height, width, 3), uint8, as PNG."""
    write_picture(Image.fromarray(picture), path, "PNG")


def save_film(frames: Sequence[Picture], path: str | Path, milliseconds: int = 120) -> None:
    """Write pictures of one size as an endless GIF."""
    # One palette for all frames: a palette of its own for each would flicker by itself.
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 4)])).quantize(255)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    options = {"save_all": True, "append_images": images[1:], "duration": milliseconds, "loop": 0}
    write_picture(images[0], path, "GIF", **options)


def results_table(metrics: Mapping[str, float], title: str) -> Table:
    """Return the metrics of a run that are present as a table for the terminal.

    >>> results_table({"val/l1": 0.31}, "run").row_count
    1
    """
    table = Table("", "", "", title=title, show_header=False)
    for key, heading, unit in RESULTS:
        if key in metrics:
            table.add_row(heading, f"{metrics[key]:.2f}" if unit == "dB" else f"{metrics[key]:.4f}", unit)
    return table
