"""What stability costs: each option's quality, stability and step time in one picture."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from genstab.errors import InputError
from genstab.report.figures import Picture
from genstab.report.seeds import COST, Option
from genstab.report.table import pareto_front

STABILITY = ("val/shift_psnr_crop", "shift PSNR, crop, dB")
QUALITY = (("val/swd", "sliced Wasserstein distance to the targets"), ("tv_ratio", "total variation / targets'"))
NOT_MEASURED = "#b0b4ba"
PLACES: tuple[tuple[tuple[int, int], Literal["left", "right"]], ...] = (
    ((6, 5), "left"), ((6, -12), "left"), ((-6, 5), "right"), ((-6, -12), "right"), ((6, 14), "left"),
)  # fmt: skip
"""Where a name may stand, in points from its point; the last one if all are taken."""


def pareto_picture(options: Sequence[Option], title: str = "") -> Picture:
    """Draw stability over quality, a point an option with its spread over seeds; the colour is the cost of a step.

    Left over the sliced Wasserstein distance, right over the outputs' total variation as a share of the targets': 1 is
    as sharp as they are. The dotted line joins the options that no other one beats in both.

    Shape: (height, width, 3), uint8.

    Raises:
        InputError: no option has both numbers of a panel.
    """
    shown = {key: [o for o in options if None not in (o.mean(key), o.mean(STABILITY[0]))] for key, _ in QUALITY}
    for key, what in QUALITY:
        if not shown[key]:
            raise InputError(f"no run has both {STABILITY[0]} and {key} ({what}): nothing to draw")
    costs = [option.cost for option in options if option.cost is not None]
    figure = Figure(figsize=(12.0, 5.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    limits = (min(costs, default=1.0), max(costs, default=1.0) + 1e-6)
    points = None
    for axes, (key, what) in zip(figure.subplots(1, 2, sharey=True), QUALITY, strict=True):
        points = _draw(axes, key, shown[key], limits)
        axes.set(xlabel=f"{what}, better {'→' if key != 'tv_ratio' else 'near 1'}")
        axes.grid(alpha=0.3)
        axes.margins(0.15, 0.08)  # room for the names
        if key == "tv_ratio":
            axes.axvline(1.0, color="black", linewidth=0.8)
        else:
            axes.invert_xaxis()
            axes.set_ylabel(STABILITY[1])
    if costs and points is not None:
        figure.colorbar(points, label="training step / that of none")
    figure.suptitle(title)
    figure.draw_without_rendering()  # puts the panels in their places
    for axes, (key, _) in zip(figure.axes, QUALITY, strict=False):
        name_points(axes, key, shown[key])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw(axes: Axes, key: str, options: Sequence[Option], limits: tuple[float, float]) -> PathCollection:
    x, y = ([option.mean(each) or 0.0 for option in options] for each in (key, STABILITY[0]))
    across, up = ([option.spread(each) or 0.0 for option in options] for each in (key, STABILITY[0]))
    axes.errorbar(x, y, xerr=across, yerr=up, fmt="none", ecolor="#8a8f98", elinewidth=1, zorder=1)
    colours = [option.mean(COST.key) for option in options]
    missing = [i for i, colour in enumerate(colours) if colour is None]
    axes.scatter([x[i] for i in missing], [y[i] for i in missing], s=60, c=NOT_MEASURED, edgecolors="black", zorder=2)
    there = [i for i, colour in enumerate(colours) if colour is not None]
    points = axes.scatter(
        [x[i] for i in there], [y[i] for i in there], s=60, c=[colours[i] or 0.0 for i in there], cmap="viridis_r",
        vmin=limits[0], vmax=limits[1], edgecolors="black", zorder=3,
    )  # fmt: skip
    better = [-value if key != "tv_ratio" else -abs(value - 1) for value in x]
    front = pareto_front(list(zip(better, y, strict=True)))
    if key != "tv_ratio":
        axes.plot([x[i] for i in front], [y[i] for i in front], ":", color="#8a8f98", zorder=1)
    return points


def name_points(axes: Axes, key: str, options: Sequence[Option]) -> None:
    """Write each name beside its point, where it covers no other name or point if there is such a place."""
    places = {option.name: (option.mean(key) or 0.0, option.mean(STABILITY[0]) or 0.0) for option in options}
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(list(places.values()))]
    for option in sorted(options, key=lambda option: -places[option.name][1]):
        place = places[option.name]
        for offset, side in PLACES:
            text = axes.annotate(
                option.name, place, xytext=offset, textcoords="offset points", fontsize=8, horizontalalignment=side
            )
            box = text.get_window_extent()
            inside = all(axes.bbox.contains(*corner) for corner in box.corners())
            if (inside and not any(box.overlaps(other) for other in taken)) or (offset, side) == PLACES[-1]:
                break
            text.remove()
        taken.append(box)
