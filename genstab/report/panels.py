"""The sections of a page that are charts of numbers: which figures there are for each choice."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from genstab.metrics.measurements import image_means, is_constant, known, mean
from genstab.metrics.registry import metrics, protocols, quality_by_image
from genstab.report.charts import (
    DISTANCE_COLOURS,
    STABILITY_COLOURS,
    Grid,
    Style,
    colour_bar,
    heat_map,
    image_boxes,
    quality_scatter,
    run_lines,
    shift_lines,
    title_of,
)
from genstab.report.runs import Run

WORST = 5
JUDGED = "val/shift_psnr_crop_worst_shift"  # what a verdict is about, where runs have it
CAP = 99.95  # dB from here on are a perfect score, with a colour of its own: it would leave none for the others


@dataclass(frozen=True)
class Cell:
    """One place for a chart: its figure for each choice, and whose it is (nobody's: of all runs)."""

    figures: Mapping[str, Any]
    run: str = ""
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """A section of charts."""

    id: str  # of the section; its words are in the page's template
    cells: Sequence[Cell] = ()
    # (label, [(value, text)]); a figure's key is the chosen values, joined by "|"
    selects: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    bar: Mapping[str, Any] = field(default_factory=dict)  # colours for each choice, of cells beside each other
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None  # headings and rows of one below the charts
    opens_on: Sequence[str] = ()  # the value of each select; empty: the first ones


def _one_chart(id: str, figures: Mapping[str, Any], *selects: Any, **further: Any) -> Panel:
    return Panel(id, [Cell(figures)] if figures else [], selects, **further)


def scatter_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """Quality against stability, for each pair of metrics that some run has; it opens on one that most runs have."""
    judged = [metric for metric in metrics().values() if metric.better]
    qualities = [metric for metric in judged if metric.group == "quality"]
    stabilities = [metric for metric in judged if metric.group in ("shift PSNR", "stability")]
    ratio = metrics()["tv_ratio"]
    ratios = {run.name: ratio.of(run.summary) for run in runs}
    notes = {name: "" if value is None else f"{ratio.name} {ratio.text(value)}" for name, value in ratios.items()}
    constant = {run.name: "constant output" for run in runs if is_constant(run.summary)}
    drawn = {}
    for x, y in product(qualities, stabilities):
        pairs = {run.name: (x.of(run.summary), y.of(run.summary)) for run in runs}
        if points := {name: (a, b) for name, (a, b) in pairs.items() if a is not None and b is not None}:
            drawn[x, y] = points
    figures = {
        f"{x.key}|{y.key}": quality_scatter(points, styles, x, y, notes | constant, constant)
        for (x, y), points in drawn.items()
    }
    xs, ys = (
        [(axis.key, title_of(axis)) for axis in side if any(axis in axes for axes in drawn)]
        for side in (qualities, stabilities)
    )
    most = max(drawn, key=lambda axes: (len(drawn[axes]), axes[1].key == JUDGED), default=())
    opens_on = tuple(axis.key for axis in most)
    return _one_chart("scatter", figures, ("quality", xs), ("stability", ys), opens_on=opens_on)


def _protocols(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The measured shift PSNR by protocol and run."""
    measured = {run.name: run.measurements.get("shift_psnr") or {} for run in runs}
    every = dict.fromkeys([*protocols(), *(protocol for parts in measured.values() for protocol in parts)])
    found = {each: {name: parts[each] for name, parts in measured.items() if each in parts} for each in every}
    return {protocol: by_run for protocol, by_run in found.items() if by_run}


def _protocol_select(measured: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    named = {name: protocol.heading for name, protocol in protocols().items()}
    return "protocol", [(each, named.get(each, each)) for each in measured]


def lines_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """PSNR per shift."""
    figures = {protocol: shift_lines(part, styles) for protocol, part in _protocols(runs).items()}
    return _one_chart("shifts", figures, _protocol_select(figures))


def image_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """Every image's mean dB, and the worst ones by name."""
    quality = {run.name: _quality_of(run) for run in runs}
    figures, rows = {}, []
    for protocol, parts in _protocols(runs).items():
        means = {
            name: by_image
            for name, part in parts.items()
            if (by_image := {image: value for image, value in image_means(part).items() if value is not None})
        }
        notes = {
            name: {image: f"{image}: {value:.1f} dB{quality[name].get(image, '')}" for image, value in by_image.items()}
            for name, by_image in means.items()
        }
        if means:
            figures[protocol] = image_boxes(means, notes, styles)
        for name, by_image in means.items():
            worst = sorted(by_image, key=lambda image: by_image[image])[:WORST]
            rows.append([f"{name}, {protocol}", *(f"{image}: {by_image[image]:.1f} dB" for image in worst)])
    width = max(map(len, rows), default=1)
    headings = ["run, protocol", *("worst" if i == 1 else f"{i}." for i in range(1, width))]
    table = headings, [[*row, *[""] * (width - len(row))] for row in rows]
    return _one_chart("images", figures, _protocol_select(figures), table=table if rows else None)


def _quality_of(run: Run) -> dict[str, str]:
    """The quality of each image, in words."""
    said: dict[str, str] = {}
    for metric, by_image in quality_by_image(run.measurements).items():
        for image, value in by_image.items():
            if value is not None:
                said[image] = f"{said.get(image, '')}, {metric.name} {metric.text(value)}"
    return said


def corruption_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """dB over the severity of each corruption, and the error relative to the baseline's."""
    measured = {run.name: run.measurements["corruptions"] for run in runs if run.measurements.get("corruptions")}
    kinds = {kind: kind.replace("_", " ") for part in measured.values() for kind in part["decibels"]}
    means = {
        name: [mean(column) for column in zip(*part["decibels"].values(), strict=True)]
        for name, part in measured.items()
    }
    figures = {}
    for choice in ("", *kinds) if measured else ():
        lines = {
            name: dict(zip(part["severities"], row, strict=True))
            for name, part in measured.items()
            if (row := {**part["decibels"], "": means[name]}.get(choice))
        }
        figures[choice] = run_lines(lines, styles, "severity", "PSNR to the clean output, dB")
    relative = {name: part["relative"] for name, part in measured.items() if part.get("relative")}
    rows = [
        [text, *("–" if part.get(kind) is None else f"{part[kind]:.2f}" for part in relative.values())]
        for kind, text in kinds.items()
    ]
    table = ["corruption", *relative], rows
    choices = ("corruption", [("", "mean of all"), *kinds.items()])
    return _one_chart("corruptions", figures, choices, table=table if relative else None)


def map_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """The shift maps, on one colour scale."""
    maps = {run.name: run.measurements["shift_map"] for run in runs if run.measurements.get("shift_map")}
    values = _values(part["decibels"] for part in maps.values())
    below = [value for value in values if value < CAP] or [0.0]
    low, high = min(below), max(below)
    limits = (low, high) if high > low else (low - 1, high + 1)
    perfect = "100" if max(values, default=0) >= CAP else ""
    cells = [
        Cell(
            {"": heat_map(part["decibels"], limits, STABILITY_COLOURS, "dB", CAP)},
            name,
            f"{part.get('protocol', 'circular')}, images: {part.get('images', '?')}",
        )
        for name, part in maps.items()
    ]
    bar = {"": colour_bar(limits, STABILITY_COLOURS, "shift PSNR, dB", perfect)} if cells else {}
    return Panel("maps", cells, bar=bar)


def layer_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """Mean feature distance over the layers."""
    maps = _feature_maps(runs).items()
    means = {name: {layer: mean_distance(grid) for layer, grid in by_layer.items()} for name, by_layer in maps}
    figure = run_lines(means, styles, "", "mean cosine distance").update_yaxes(rangemode="tozero")
    return _one_chart("layers", {"": figure} if means else {})


def feature_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """The feature distance maps of a layer, on one colour scale."""
    maps = _feature_maps(runs)
    figures: dict[str, dict[str, Any]] = {name: {} for name in maps}
    bar = {}
    for layer in dict.fromkeys(layer for by_layer in maps.values() for layer in by_layer):
        grids = {name: by_layer[layer] for name, by_layer in maps.items() if layer in by_layer}
        limits = (0.0, max(_values(grids.values()), default=0.0) or 1.0)
        bar[layer] = colour_bar(limits, DISTANCE_COLOURS, "cosine distance")
        for name, grid in grids.items():
            figures[name][layer] = heat_map(grid, limits, DISTANCE_COLOURS, "cosine distance")
    cells = [Cell(figures[name], name) for name in maps]
    return Panel("features", cells, [("layer", [(layer, layer) for layer in bar])], bar=bar)


def _feature_maps(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    return {run.name: run.measurements["features"]["layers"] for run in runs if run.measurements.get("features")}


def _values(grids: Iterable[Grid]) -> list[float]:
    return [value for grid in grids for row in grid for value in known(row)]


def mean_distance(grid: Grid) -> float | None:
    """Return the mean over the shifts; the zero shift, in the middle, has no distance and doesn't count."""
    values = [value for row in grid for value in row]
    del values[len(values) // 2]
    return mean(values)


PANELS = (scatter_panel, lines_panel, map_panel, image_panel, layer_panel, feature_panel, corruption_panel)
