"""The sections of a page that are charts of numbers: which figures there are for each choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from genstab.metrics.measurements import known, unique
from genstab.report.charts import (
    DISTANCE_COLOURS,
    STABILITY_COLOURS,
    Style,
    colour_bar,
    corruption_lines,
    heat_map,
    image_boxes,
    layer_lines,
    quality_scatter,
    shift_lines,
)
from genstab.report.runs import Run
from genstab.report.table import value_of

WORST = 5
# Key, heading, whether more is better; the last one is worked out.
QUALITY = (
    ("val/l1", "L1", False),
    ("val/ssim", "SSIM", True),
    ("val/psnr", "PSNR, dB", True),
    ("val/accuracy", "accuracy", True),
    ("sharpness", "|total variation / the targets' − 1|", False),
)
PROTOCOLS = {"circular": "circular", "crop": "crop (camera)", "fractional": "fractional"}
STABILITY = {
    "val/shift_psnr": "shift PSNR, circular, dB",
    "val/shift_psnr_crop": "shift PSNR, crop (camera), dB",
    "val/shift_psnr_fractional": "shift PSNR, fractional, dB",
    "val/shift_psnr_worst": "shift PSNR, worst, dB",
    "val/consistency": "consistency of the predicted class",
}


@dataclass(frozen=True)
class Cell:
    """One place for a chart: its description, its figure for each choice, and whose it is (nobody's: of all runs)."""

    alt: str
    figures: Mapping[str, Any]
    run: str = ""
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """A section of charts.

    Attributes:
        id: of the section; its words are in the page's template.
        selects: (label, [(value, text)]); a figure's key is the chosen values, joined by "|".
        cells: where the charts go.
        grid: cells stand beside each other.
        bar: the colours that all cells share, for each choice.
        table: caption, headings, rows and kind (`number` or `text`) of a table below.
    """

    id: str
    selects: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    cells: Sequence[Cell] = ()
    grid: bool = False
    bar: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, Any] | None = None


def scatter_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """Quality against stability, for each pair of measures that some run has."""

    def quality(run: Run, key: str) -> float | None:
        ratio = value_of(run, "tv_ratio")
        return (None if ratio is None else abs(ratio - 1)) if key == "sharpness" else value_of(run, key)

    figures = {}
    notes = {run.name: _ratio_note(run) for run in runs}
    for (x, x_title, up), (y, y_title) in product(QUALITY, STABILITY.items()):
        points = {}
        for run in runs:
            pair = quality(run, x), value_of(run, y)
            if pair[0] is not None and pair[1] is not None:
                points[run.name] = (pair[0], pair[1])
        if points:
            figures[f"{x}|{y}"] = quality_scatter(points, styles, (x_title, y_title), up, notes)
    xs = [(x, title) for x, title, _ in QUALITY if any(key.startswith(f"{x}|") for key in figures)]
    ys = [(y, title) for y, title in STABILITY.items() if any(key.endswith(f"|{y}") for key in figures)]
    return Panel(
        "scatter",
        [("quality", xs), ("stability", ys)],
        [
            Cell(
                "Scatter of quality against stability, a point a run; the numbers are in the table of runs",
                figures,
            )
        ]
        if figures
        else [],
    )


def _ratio_note(run: Run) -> str:
    ratio = value_of(run, "tv_ratio")
    return "no total variation" if ratio is None else f"total variation {ratio:.2f} times the targets'"


def _protocols(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The measured shift PSNR by protocol and run."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        for protocol, part in (run.measurements.get("shift_psnr") or {}).items():
            found.setdefault(protocol, {})[run.name] = part
    order = [*PROTOCOLS, *sorted(set(found) - set(PROTOCOLS))]
    return {protocol: found[protocol] for protocol in order if protocol in found}


def _protocol_select(protocols: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [("protocol", [(protocol, PROTOCOLS.get(protocol, protocol)) for protocol in protocols])]


def lines_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """PSNR per shift."""
    protocols = _protocols(runs)
    figures = {protocol: shift_lines(part, styles) for protocol, part in protocols.items()}
    return Panel(
        "shifts",
        _protocol_select(protocols),
        [Cell("Shift PSNR over the shifts, a line a run", figures)] if figures else [],
    )


def image_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """Every image's mean dB, and the worst ones by name."""
    protocols = {
        protocol: {name: means for name, part in by_run.items() if (means := image_means(part))}
        for protocol, by_run in _protocols(runs).items()
    }
    l1 = {run.name: _l1_of(run) for run in runs}
    figures, rows = {}, []
    for protocol, by_run in protocols.items():
        notes = {
            name: {image: f"{image}: {value:.1f} dB{l1[name].get(image, '')}" for image, value in means.items()}
            for name, means in by_run.items()
        }
        if by_run:
            figures[protocol] = image_boxes(by_run, notes, styles)
        for name, means in by_run.items():
            worst = sorted(means, key=lambda image: means[image])[:WORST]
            rows.append([f"{name}, {protocol}", *(f"{image}: {means[image]:.1f} dB" for image in worst)])
    width = max(map(len, rows), default=1)
    table = {
        "caption": "The images with the lowest mean shift PSNR",
        "headings": ["run, protocol", *("worst" if i == 1 else f"{i}." for i in range(1, width))],
        "rows": [[*row, *[""] * (width - len(row))] for row in rows],
        "kind": "text",
    }
    return Panel(
        "images",
        _protocol_select(figures),
        [Cell("Mean shift PSNR of every image, a box a run", figures)] if figures else [],
        table=table if rows else None,
    )


def _l1_of(run: Run) -> dict[str, str]:
    quality = run.measurements.get("quality") or {}
    pairs = zip(unique(quality.get("images", ())), quality.get("l1", ()), strict=False)
    return {image: f", L1 {value:.3f}" for image, value in pairs if value is not None}


def image_means(part: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean dB over the shifts of each image of a protocol's measurements.

    >>> image_means({"images": ["a", "b"], "decibels": [[20.0, 30.0], [22.0, None]]})
    {'a': 21.0, 'b': 30.0}
    """
    columns = {
        image: known([row[i] for row in part["decibels"]]) for i, image in enumerate(unique(part.get("images") or ()))
    }
    return {image: sum(column) / len(column) for image, column in columns.items() if column}


def corruption_panel(runs: Sequence[Run], styles: Mapping[str, Style]) -> Panel:
    """dB over the severity of each corruption, and the error relative to the baseline's."""
    measured = {run.name: run.measurements["corruptions"] for run in runs if run.measurements.get("corruptions")}
    kinds = list(dict.fromkeys(kind for part in measured.values() for kind in part["decibels"]))
    severities: list[float] = max((part["severities"] for part in measured.values()), key=len, default=[])
    mean = {name: _mean_over(list(part["decibels"].values())) for name, part in measured.items()}
    figures = {"": corruption_lines(mean, severities, styles)}
    for kind in kinds:
        lines = {name: part["decibels"][kind] for name, part in measured.items() if kind in part["decibels"]}
        figures[kind] = corruption_lines(lines, severities, styles)
    relative = {name: part["relative"] for name, part in measured.items() if part.get("relative")}
    rows = [
        [
            kind.replace("_", " "),
            *("–" if part.get(kind) is None else f"{part[kind]:.2f}" for part in relative.values()),
        ]
        for kind in kinds
    ]
    table = {
        "caption": "Error under each corruption over the baseline's: 1 is equal, less is better",
        "headings": ["corruption", *relative],
        "rows": rows,
        "kind": "number",
    }
    return Panel(
        "corruptions",
        [("corruption", [("", "mean of all"), *((kind, kind.replace("_", " ")) for kind in kinds)])],
        [Cell("PSNR under corruption over the severity, a line a run", figures)] if measured else [],
        table=table if relative else None,
    )


def _mean_over(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    columns = [known(column) for column in zip(*rows, strict=True)]
    return [sum(column) / len(column) if column else None for column in columns]


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
