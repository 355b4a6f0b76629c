"""What stability costs: each option's quality, stability and step time in one picture."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from genstab.errors import InputError
from genstab.metrics.measurements import is_constant
from genstab.metrics.registry import Metric, metrics
from genstab.report.figures import Picture, pixels
from genstab.report.seeds import Option
from genstab.report.table import pareto_front

STABILITY = "val/shift_psnr_crop"
NOT_MEASURED = "#b0b4ba"
PLACES: tuple[tuple[tuple[int, int], Literal["left", "right"]], ...] = (
    ((6, 5), "left"), ((6, -12), "left"), ((-6, 5), "right"), ((-6, -12), "right"), ((6, 14), "left"),
)  # fmt: skip
"""Where a name may stand, in points from its point; the last one if all are taken."""


def pareto_picture(options: Sequence[Option], title: str = "") -> Picture:
    """Draw stability over quality, a point an option with its spread over seeds; the colour is the cost of a step.

    There is a panel for each metric with a place in this plot (`Metric.pareto`). The dotted line joins the options that
    no other one beats in both. Raises an `InputError` if no option has both numbers of a panel.
    """
    stability = metrics()[STABILITY]
    qualities = sorted((metric for metric in metrics().values() if metric.pareto), key=lambda metric: metric.pareto)
    shown = {
        quality: some
        for quality in qualities
        if (some := [o for o in options if None not in (o.mean(quality.key), o.mean(STABILITY))])
    }
    if not shown:
        keys = " or ".join(quality.key for quality in qualities)
        raise InputError(f"no run has both {STABILITY} and {keys}: nothing to draw")
    costs = [option.cost for option in options if option.cost is not None]
    limits = Normalize(min(costs, default=1.0), max(costs, default=1.0) + 1e-6)
    figure = Figure(figsize=(6.0 * len(shown), 5.2), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (quality, some) in zip(panels, shown.items(), strict=True):
        points = _draw(axes, quality, stability, some, limits)
        axes.set(xlabel=f"{quality.title}, better {'near 1' if quality.better == 'one' else '→'}")
        axes.grid(alpha=0.3)
        axes.margins(0.15, 0.08)  # room for the names
        if quality.better == "one":
            axes.axvline(1.0, color="black", linewidth=0.8)
        elif quality.better == "min":
            axes.invert_xaxis()
    figure.axes[0].set_ylabel(stability.title)
    if costs:
        figure.colorbar(points, label="training step / that of none")
    figure.suptitle(title)
    figure.draw_without_rendering()  # puts the panels in their places
    for axes, (quality, some) in zip(panels, shown.items(), strict=True):
        name_points(axes, quality.key, some)
    return pixels(figure)


def _draw(
    axes: Axes, quality: Metric, stability: Metric, options: Sequence[Option], limits: Normalize
) -> PathCollection:
    x, y = ([option.mean(metric.key) or 0.0 for option in options] for metric in (quality, stability))
    across, up = ([option.spread(metric.key) or 0.0 for option in options] for metric in (quality, stability))
    axes.errorbar(x, y, xerr=across, yerr=up, fmt="none", ecolor="#8a8f98", elinewidth=1, zorder=1)
    if quality.better != "one":
        constant = [i for i, option in enumerate(options) if any(is_constant(run.summary) for run in option.runs)]
        goodness = [(quality.goodness(a), stability.goodness(b)) for a, b in zip(x, y, strict=True)]
        front = pareto_front(goodness, constant)
        axes.plot([x[i] for i in front], [y[i] for i in front], ":", color="#8a8f98", zorder=1)
    # what has no cost, and so no colour, is drawn as a bad value
    colours = colormaps["viridis_r"].with_extremes(bad=NOT_MEASURED)
    costs = np.array([np.nan if option.cost is None else option.cost for option in options])
    return axes.scatter(x, y, 60, costs, norm=limits, cmap=colours, edgecolors="black", plotnonfinite=True, zorder=3)


def name_points(axes: Axes, key: str, options: Sequence[Option]) -> None:
    """Write each name beside its point, where it covers no other name or point if there is such a place."""
    places = {option.name: (option.mean(key) or 0.0, option.mean(STABILITY) or 0.0) for option in options}
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
