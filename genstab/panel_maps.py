"""The sections of a page that are maps over shifts: shift PSNR and feature distance, with the distance by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from genstab.charts import DISTANCE_COLOURS, STABILITY_COLOURS, Style, colour_bar, heat_map, layer_lines
from genstab.comparison import known
from genstab.panels import Cell, Panel
from genstab.runs import Run

CAP = 99.95  # dB from here on are a perfect score, which would leave no colours for the others


def map_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """The shift maps, on one colour scale."""
    maps = {run.name: run.measurements["shift_map"] for run in runs if run.measurements.get("shift_map")}
    values = [value for part in maps.values() for row in part["decibels"] for value in known(row)]
    below = [value for value in values if value < CAP] or values or [0.0]
    limits = _apart(min(below), max(below))
    title = "shift PSNR, dB" + (
        " (100 dB, no difference at all, in the last colour)" if max(values, default=0) >= CAP else ""
    )
    cells = [
        Cell(
            f"Shift PSNR of {name} over vertical and horizontal shifts",
            {"": heat_map(part["decibels"], limits, STABILITY_COLOURS, "dB")},
            name,
            f"{part.get('protocol', 'circular')}, images: {part.get('images', '?')}",
        )
        for name, part in maps.items()
    ]
    return Panel(
        "maps",
        cells=cells,
        grid=True,
        bar={"": colour_bar(limits, STABILITY_COLOURS, title)} if cells else {},
    )


def _apart(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 1, high + 1)


def layer_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """Mean feature distance over the layers."""
    means = {
        name: {layer: mean_distance(grid) for layer, grid in by_layer.items()}
        for name, by_layer in _feature_maps(runs).items()
    }
    return Panel(
        "layers",
        cells=[Cell("Mean feature distance over the layers, a line a run", {"": layer_lines(means, styles)})]
        if means
        else [],
    )


def feature_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """The feature distance maps of a layer, on one colour scale."""
    maps = _feature_maps(runs)
    layers = list(dict.fromkeys(layer for by_layer in maps.values() for layer in by_layer))
    figures: dict[str, dict[str, Any]] = {name: {} for name in maps}
    bar = {}
    for layer in layers:
        grids = {name: by_layer[layer] for name, by_layer in maps.items() if layer in by_layer}
        highest = max((value for grid in grids.values() for row in grid for value in known(row)), default=0.0)
        limits = (0.0, highest or 1.0)
        bar[layer] = colour_bar(limits, DISTANCE_COLOURS, "cosine distance")
        for name, grid in grids.items():
            figures[name][layer] = heat_map(grid, limits, DISTANCE_COLOURS, "cosine distance")
    return Panel(
        "features",
        [("layer", [(layer, layer) for layer in layers])],
        [Cell(f"Feature distance of {name} over shifts, for the chosen layer", figures[name], name) for name in maps],
        grid=True,
        bar=bar,
    )


def _feature_maps(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    return {run.name: run.measurements["features"]["layers"] for run in runs if run.measurements.get("features")}


def mean_distance(grid: Sequence[Sequence[float | None]]) -> float:
    """Return the mean over the shifts; the zero shift, in the middle, has no distance and doesn't count.

    >>> mean_distance([[3.0, 1.0, None], [1.0, 0.0, 1.0], [1.0, 1.0, 6.0]])
    2.0
    """
    middle = len(grid) // 2
    values = [
        v for y, row in enumerate(grid) for x, v in enumerate(row) if v is not None and (y, x) != (middle, middle)
    ]
    return sum(values) / max(1, len(values))
