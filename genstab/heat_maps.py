"""Feature distances as heat maps over the shift, as in figure 5 of Zhang 2019 (arXiv 1904.11486)."""

from collections.abc import Mapping
from math import ceil, isqrt

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from genstab.errors import InputError, check_counts
from genstab.shift import grid_shifts

Picture = np.ndarray


def distance_grids(distances: Mapping[str, Tensor], reach: int) -> dict[str, Tensor]:
    """Average distances over the images and lay them out by shift; the zero shift has none: 0.

    Shape: each (number of shifts, N), the shifts being those of `genstab.shift.grid_shifts(reach)`
    → (2 reach + 1, 2 reach + 1), row Δh + reach, column Δw + reach.

    Raises:
        InputError: another number of shifts.

    >>> import torch
    >>> distance_grids({"pool": torch.arange(8.0)[:, None]}, reach=1)["pool"].tolist()
    [[0.0, 1.0, 2.0], [3.0, 0.0, 4.0], [5.0, 6.0, 7.0]]
    """
    check_counts(reach=reach)
    side, shifts = 2 * reach + 1, grid_shifts(reach)
    grids = {}
    for name, values in distances.items():
        if len(values) != len(shifts):
            raise InputError(f"distances of {name} for {len(values)} shifts; reach={reach} has {len(shifts)}")
        grid = values.new_zeros(side, side)
        for (dy, dx), value in zip(shifts, values.mean(1), strict=True):
            grid[dy + reach, dx + reach] = value
        grids[name] = grid
    return grids


def feature_map_picture(distances: Mapping[str, ArrayLike], title: str = "", largest: float | None = None) -> Picture:
    """Draw a small heat map for each layer, over (Δh, Δw): from blue, where it moves with the image, to red.

    One scale for all, where the paper gives each layer its own: so layers can be compared, and pictures of two models
    that are given the same `largest`.

    Args:
        distances: cosine distances by layer, each (2 reach + 1, 2 reach + 1), see `distance_grids`.
        title: over the whole picture.
        largest: what is red; None: the largest distance there is, and at least 0.01, or rounding errors would glow.

    Shape: → (height, width, 3), uint8.

    Raises:
        InputError: no layer, or what is no square with an odd side.
    """
    grids = {name: np.asarray(grid, dtype=float) for name, grid in distances.items()}
    if not grids:
        raise InputError("distances: there is no layer")
    for name, grid in grids.items():
        if grid.ndim != 2 or grid.shape[0] != grid.shape[1] or grid.shape[0] % 2 == 0:
            raise InputError(f"distances of {name} of shape {grid.shape} are not (2 reach + 1, 2 reach + 1)")
    most = max(np.nanmax(grid, initial=0) for grid in grids.values())
    largest = max(0.01, most) if largest is None else largest
    columns = min(len(grids), max(4, isqrt(2 * len(grids))))
    rows = ceil(len(grids) / columns)
    figure = Figure(figsize=(1.5 * columns + 1.3, 1.65 * rows + 0.5 + 0.4 * bool(title)), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (axis, (name, grid)) in enumerate(zip(axes.flat, grids.items(), strict=False)):
        edge = len(grid) / 2
        axis.set_axis_on()
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
    bar = figure.colorbar(heat, ax=axes, label="cosine distance", extend="max" if most > largest else "neither")
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
