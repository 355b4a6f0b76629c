"""Plain numbers to plotly figures. Text, axes and grid have no colours of their own: the page's style gives them."""

import html
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from genstab.metrics.measurements import known, unique
from genstab.metrics.registry import Metric
from genstab.report.table import pareto_front

Motion = tuple[float, ...]  # (dy, dx), or what else a protocol measures
Grid = Sequence[Sequence[float | None]]

# At least 3 : 1 against white and against the dark page; dashes and symbols tell runs apart without colour.
COLOURS = ("#2f74d6", "#d1571f", "#198f5c", "#b24aa2", "#93790a", "#0f8ca0", "#7d66d8", "#c9435b")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "triangle-down")
STABILITY_COLOURS = "Viridis"
# The paper's: from blue, no distance, to red.
DISTANCE_COLOURS = ((0.0, "#2c4fa3"), (0.25, "#74add1"), (0.5, "#fbf5c4"), (0.75, "#f4804d"), (1.0, "#a50026"))
PERFECT = "#e86ab5"  # in no part of either scale
ONE_COLOUR: dict[str, Any] = {"colorscale": [[0, PERFECT], [1, PERFECT]], "showscale": False}
LABEL = 28  # letters of a run's name in a chart
MOST_SHIFTS = 64  # along one axis; of more, only those along the axes and diagonals are drawn
ARROWS = {(0, 1): "→", (0, -1): "←", (1, 0): "↓", (-1, 0): "↑", (1, 1): "↘", (1, -1): "↙", (-1, 1): "↗", (-1, -1): "↖"}


@dataclass(frozen=True)
class Style:
    """How one run looks in every chart, and what it is called there."""

    label: str
    colour: str
    dash: str
    symbol: str

    def trace(self, size: int = 8) -> dict[str, Any]:
        """Return the options of its markers and lines."""
        line = {"color": self.colour, "width": 2.5, "dash": self.dash}
        return {"name": self.label, "marker": {"color": self.colour, "symbol": self.symbol, "size": size}, "line": line}

    def shade(self, opacity: float) -> str:
        """Return its colour, almost transparent."""
        return f"rgba{(*hex_to_rgb(self.colour), opacity)}"


def run_styles(names: Sequence[str]) -> dict[str, Style]:
    """Give each run a label, a colour, a dash and a symbol; the eight colours come again with another dash.

    Labels are names without what plotly would take for a tag; long ones are cut in the middle, and stay unique.
    """
    short = [name if len(name) <= LABEL else f"{name[: LABEL // 2]}…{name[1 - LABEL // 2 :]}" for name in names]
    count = len(COLOURS)
    return {
        name: Style(plain(label), COLOURS[i % count], DASHES[(i + i // count) % len(DASHES)], SYMBOLS[i % count])
        for i, (name, label) in enumerate(zip(names, unique(short), strict=True))
    }


def quality_scatter(
    points: Mapping[str, tuple[float, float]],
    styles: Mapping[str, Style],
    quality: Metric,
    stability: Metric,
    notes: Mapping[str, str],
    constant: Collection[str] = (),
) -> go.Figure:
    """Draw stability over quality with the Pareto front, a (quality, stability) point a run; better is right and up.

    Where a value nearest to 1 is best, its distance from 1 is drawn. Hovering over a point shows its note. Runs with a
    `constant` output are drawn, but are no part of the front.
    """
    figure = _figure(height=440)
    goodness = [(quality.goodness(x), stability.goodness(y)) for x, y in points.values()]
    front = pareto_front(goodness, [i for i, name in enumerate(points) if name in constant])
    drawn = {name: (_drawn(quality, x), _drawn(stability, y)) for name, (x, y) in points.items()}
    xs, ys = zip(*drawn.values(), strict=True)
    figure.add_scatter(
        x=[xs[i] for i in front], y=[ys[i] for i in front], mode="lines", name="Pareto front", hoverinfo="skip",
        line={"shape": "vh", "dash": "dot", "width": 2, "color": "#8a8f98"},
    )  # fmt: skip
    for name, (x, y) in drawn.items():
        figure.add_scatter(
            x=[x], y=[y], mode="markers", text=[plain(notes[name])], **styles[name].trace(14),
            hovertemplate=f"<b>{styles[name].label}</b><br>%{{x:.4g}}, %{{y:.4g}}<br>%{{text}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title=f"{title_of(quality)}, better →", range=_range(quality, xs))
    figure.update_yaxes(title=f"{title_of(stability)}, better ↑", range=_range(stability, ys))
    return figure


def title_of(metric: Metric) -> str:
    """Return the title of a metric's axis in `quality_scatter`."""
    return f"|{metric.name} − 1|" if metric.better == "one" else metric.title


def _drawn(metric: Metric, value: float) -> float:
    return abs(value - 1) if metric.better == "one" else value


def _range(metric: Metric, values: Sequence[float]) -> list[float]:
    """The ends of an axis, the better one last."""
    low, high = min(values), max(values)
    pad = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - pad, high + pad] if metric.better == "max" else [high + pad, low - pad]


def direction(motion: Motion) -> str:
    """Return an arrow for a shift along an axis or a diagonal, nothing for another motion."""
    if len(motion) != 2:
        return ""
    dy, dx = motion
    return "" if dy and dx and abs(dy) != abs(dx) else ARROWS[int(np.sign(dy)), int(np.sign(dx))]


def _label(motion: Motion) -> str:
    arrow = direction(motion)
    return f"{arrow} {max(map(abs, motion)):g}" if arrow else f"({', '.join(f'{each:g}' for each in motion)})"


def shift_lines(measured: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Style]) -> go.Figure:
    """Draw the PSNR over the shifts, a line a run and direction, and upright bars: the middle half of the images.

    The line is the pooled PSNR of all images, or else their mean. Of more than 64 shifts, only those along the axes and
    diagonals are drawn. A run has `shifts` [[dy, dx], …], `decibels` [[per image] per shift] and maybe `pooled`
    [per shift].
    """
    figure = _figure(height=420)
    tables: dict[str, dict[Motion, dict[str, Any]]] = {}
    for name, part in measured.items():
        rows = zip(part["shifts"], part["decibels"], part.get("pooled") or repeat(None), strict=False)
        tables[name] = {tuple(shift): _spread(row, pooled) for shift, each, pooled in rows if (row := known(each))}
    arrows = [*ARROWS.values(), ""]
    order = sorted(
        {shift for table in tables.values() for shift in table},
        key=lambda shift: (arrows.index(direction(shift)), math.hypot(*shift), shift),
    )
    if len(order) > MOST_SHIFTS:
        order = [shift for shift in order if direction(shift)] or order
    for name, table in tables.items():
        style = styles[name]
        lines: dict[str, list[Motion]] = {}
        for shift in order:
            if shift in table:
                lines.setdefault(direction(shift), []).append(shift)
        for i, shifts in enumerate(lines.values()):
            labels, drawn = [_label(shift) for shift in shifts], [table[shift] for shift in shifts]
            # bars below all lines, not an area: those of several runs would cover each other
            figure.add_scatter(
                x=[x for label in labels for x in (label, label, None)],
                y=[y for each in drawn for y in (each["low"], each["high"], None)], mode="lines", opacity=0.5,
                line={"width": 5, "color": style.colour}, hoverinfo="skip", showlegend=False, legendgroup=name,
            )  # fmt: skip
            figure.add_scatter(
                x=labels, y=[each["line"] for each in drawn], text=[each["note"] for each in drawn],
                mode="lines+markers", **style.trace(7), legendgroup=name, showlegend=i == 0, zorder=1,
                hovertemplate=f"<b>{style.label}</b> %{{x}}: %{{y:.1f}} dB<br>%{{text}}<extra></extra>",
            )  # fmt: skip
    _categories(figure, [_label(shift) for shift in order], "shift of the input, pixels")
    figure.update_yaxes(title="shift PSNR, dB")
    return figure


def _spread(decibels: Sequence[float], pooled: float | None) -> dict[str, Any]:
    """Return what is drawn of a shift: one PSNR, the ends of the middle half of the images, and a note."""
    mean = sum(decibels) / len(decibels)
    low, high = np.quantile(decibels, (0.25, 0.75)).tolist()
    worst = f"worst {min(decibels):.1f}, images {len(decibels)}"
    note = f"mean {mean:.1f}, middle half {low:.1f} to {high:.1f}, {worst}"
    return {"low": low, "high": high, "line": mean if pooled is None else pooled, "note": note}


def _categories(figure: go.Figure, names: Sequence[str], title: str) -> None:
    figure.update_xaxes(title=title, type="category", categoryorder="array", categoryarray=names)


def heat_map(
    values: Grid, limits: tuple[float, float], colours: Any, unit: str, perfect: float = math.inf
) -> go.Figure:
    """Draw values over (Δh, Δw), the zero shift in the middle; None is left open.

    Values from `perfect` on have a colour of their own, which `colour_bar` names.
    """
    reach = len(values) // 2
    axis = list(range(-reach, reach + 1))
    figure = _figure(height=300, margin={"l": 44, "r": 8, "t": 8, "b": 40})
    figure.add_heatmap(
        z=values, x=axis, y=axis, zmin=limits[0], zmax=limits[1], colorscale=colours, showscale=False,
        hoverongaps=False, hovertemplate=f"Δh %{{y}}, Δw %{{x}}: %{{z:.3g}} {unit}<extra></extra>",
    )  # fmt: skip
    over = [[1.0 if each is not None and each >= perfect else None for each in row] for row in values]
    if any(each for row in over for each in row):
        figure.add_heatmap(
            z=over, x=axis, y=axis, **ONE_COLOUR, hoverongaps=False,
            hovertemplate="Δh %{y}, Δw %{x}: no difference<extra></extra>",
        )  # fmt: skip
    common = {"constrain": "domain", "showgrid": False, "zeroline": False}
    figure.update_xaxes(title="Δw, pixels", **common)
    figure.update_yaxes(title="Δh, pixels", autorange="reversed", scaleanchor="x", **common)
    return figure


def colour_bar(limits: tuple[float, float], colours: Any, title: str, perfect: str = "") -> go.Figure:
    """Draw the colours of heat maps that share them, from one limit to the other, and beside them that of `perfect`."""
    span = limits[1] - limits[0]
    steps = [limits[0] + span * i / 127 for i in range(128)]
    figure = _figure(height=74, margin={"l": 28, "r": 28, "t": 4, "b": 44})
    figure.add_heatmap(z=[steps], x=steps, y=[0], colorscale=colours, showscale=False, hoverinfo="skip")
    ticks = [limits[0] + span * i / 4 for i in range(5)]
    texts = [f"{tick:.3g}" for tick in ticks]
    if perfect:
        beside = [limits[1] + 0.06 * span, limits[1] + 0.12 * span, limits[1] + 0.18 * span]
        figure.add_heatmap(z=[[1.0] * 3], x=beside, y=[0], **ONE_COLOUR, hoverinfo="skip")
        ticks, texts = [*ticks, beside[1]], [*texts, perfect]
    figure.update_yaxes(visible=False)
    figure.update_xaxes(title=title, showgrid=False, zeroline=False, tickvals=ticks, ticktext=texts)
    return figure


def run_lines(
    values: Mapping[str, Mapping[Any, float | None]], styles: Mapping[str, Style], x_title: str, y_title: str
) -> go.Figure:
    """Draw values over the layers of a network, or over the severities of a corruption, a line a run."""
    figure = _figure(height=400)
    order = list(dict.fromkeys(x for row in values.values() for x in row))
    for name, row in values.items():
        places = [x for x in order if x in row]
        figure.add_scatter(
            x=[plain(str(x)) for x in places], y=[row[x] for x in places], mode="lines+markers", **styles[name].trace(),
            hovertemplate=f"<b>{styles[name].label}</b> %{{x}}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    _categories(figure, [plain(str(x)) for x in order], x_title)
    figure.update_yaxes(title=y_title)
    return figure


def image_boxes(
    values: Mapping[str, Mapping[str, float]], notes: Mapping[str, Mapping[str, str]], styles: Mapping[str, Style]
) -> go.Figure:
    """Draw the mean dB of every image, a box and its points a run: {run: {image: dB}}; `notes` show on hovering."""
    figure = _figure(height=400)
    for name, by_image in values.items():
        trace = styles[name].trace(7) | {"line": {"color": styles[name].colour}}
        figure.add_box(
            y=list(by_image.values()), text=[plain(notes[name][image]) for image in by_image], **trace,
            boxpoints="all", jitter=0.5, pointpos=0, fillcolor=styles[name].shade(0.12), hoveron="points",
            showlegend=False, hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(title="mean shift PSNR, dB")
    return figure


def plain(text: str) -> str:
    """Escape what plotly would take for a tag."""
    return html.escape(text, quote=False)


def _figure(height: int, margin: Mapping[str, int] | None = None) -> go.Figure:
    layout = {
        "template": None,  # plotly's own would be a third of every figure
        "height": height,
        "margin": margin or {"l": 56, "r": 12, "t": 12, "b": 56},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {"bgcolor": "#1d2430", "font": {"color": "#ffffff"}, "bordercolor": "#1d2430"},
        "legend": {"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0},
        "dragmode": False,  # a finger that scrolls the page must not zoom
        "hovermode": "closest",
    }
    return go.Figure(layout=layout)
