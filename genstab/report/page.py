"""One self-contained page that compares runs: `genstab report`."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from plotly.offline import get_plotlyjs

from genstab.metrics.measurements import is_constant
from genstab.metrics.registry import Metric, protocols
from genstab.report.charts import run_styles
from genstab.report.missing import is_classifier, missing_of
from genstab.report.panels import PANELS, Panel
from genstab.report.runs import Run
from genstab.report.slider_frames import COLUMNS, FRAMES, Slide, data_uri, flicker_strip, middle, read_slide, sheet
from genstab.report.table import best_of, columns_of, differences, flatten, in_short, options_of
from genstab.runtime.files import SLIDE_OUTPUT, SLIDE_SOURCE, write_whole, writing

SIDE = 128  # pixels of a moving picture, for so many runs; with more of them it shrinks, so that the page doesn't grow
RUNS_AT_FULL_SIDE = 6


def write_page(runs: Sequence[Run], output: str | Path, title: str | None = None) -> None:
    """Write the page of `build_page` atomically; raise an `InputError` if it cannot be written."""
    page = build_page(runs, title).encode("utf-8", "backslashreplace")  # names of files may be no valid text
    with writing("output", output):
        write_whole(output, lambda file: file.write(page))


def build_page(runs: Sequence[Run], title: str | None = None) -> str:
    """Return the HTML page that compares some runs; it needs no other file and no network."""
    styles = run_styles([run.name for run in runs])
    panels = [make(runs, styles) for make in PANELS]
    columns = columns_of(runs)
    animations = {run.name: animation for run in runs if (animation := _animation(run)) is not None}
    side = SIDE if len(animations) <= RUNS_AT_FULL_SIDE else int(SIDE * math.sqrt(RUNS_AT_FULL_SIDE / len(animations)))
    slides = _slides(animations, side)
    versions = [flatten(run.summary.get("versions") or {}) for run in runs]
    said = [each for each in versions if each] or [{}]
    differ, left_out = differences(
        options_of(run) | {f"{package} (version)": kept for package, kept in each.items()}
        for run, each in zip(runs, versions, strict=True)
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("genstab", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False, "allow_nan": False}
    return environment.get_template("page.html.jinja").render(
        title=title or ("One run" if len(runs) == 1 else f"{len(runs)} runs compared"),
        runs=runs,
        styles=styles,
        protocols=[
            each for each in protocols().values() if any(run.summary.keys() & each.keys().values() for run in runs)
        ],
        verdicts=[(run.name, run.summary["verdict"]) for run in runs if run.summary.get("verdict")],
        columns=columns,
        groups=[(group, len(list(members))) for group, members in groupby(columns, lambda column: column.group)],
        rows=table_rows(runs, columns),
        panels=panels,
        strips={name: data_uri(flicker_strip(slide.frames, slide.scale)) for name, slide in animations.items()},
        slides=slides,
        side=side,
        frames=FRAMES,
        options_differ=differ if len(runs) > 1 else {},
        options_left_out=left_out,
        in_short=in_short,
        classifiers=any(is_classifier(run.summary) for run in runs),
        generators=not all(is_classifier(run.summary) for run in runs),
        constant=[run.name for run in runs if is_constant(run.summary)],
        versions_same={key: kept for key, kept in said[0].items() if all(each.get(key) == kept for each in said)},
        configs={run.name: json.dumps(run.config, indent=2, ensure_ascii=False) for run in runs},
        missing=[(run.name, lacks) for run in runs if (lacks := missing_of(run, columns))],
        version=version("genstab"),
        plotly=get_plotlyjs(),
        data={"panels": {panel.id: _figures(panel) for panel in panels}, "slides": slides, "sheet": [FRAMES, COLUMNS]},
    )


def table_rows(runs: Sequence[Run], columns: Sequence[Metric]) -> list[list[dict[str, Any]]]:
    """Return the cells of the table of runs: the number, its text, and whether it is the best of its column."""
    constant = [i for i, run in enumerate(runs) if is_constant(run.summary)]  # stable without merit: never the best
    cells = []
    for column in columns:
        values = [column.of(run.summary) for run in runs]
        best = best_of(values, column, constant)
        texts = ["–" if value is None else f"{value:.{column.digits}f}" for value in values]
        cells.append([{"value": values[i], "text": text, "best": i in best} for i, text in enumerate(texts)])
    return [[column[i] for column in cells] for i in range(len(runs))]


def _figures(panel: Panel) -> dict[str, Any]:
    """The figures of a panel as plain types."""
    every = [*(cell.figures for cell in panel.cells), panel.bar]
    *figures, bar = ({key: figure.to_plotly_json() for key, figure in each.items()} for each in every)
    return {"figures": figures, "bar": bar}


def _animation(run: Run) -> Slide | None:
    source, output = run.folder / SLIDE_SOURCE, run.folder / SLIDE_OUTPUT
    return read_slide(source, output) if source.is_file() and output.is_file() else None


def _slides(animations: Mapping[str, Slide], side: int) -> list[dict[str, Any]]:
    """The moving pictures: the source, once where all runs have the same, and each run's output."""
    pairs = []
    for name, animation in animations.items():
        strip, frames = middle(animation, side)
        (height, width), scale = frames.shape[1:3], animation.scale
        still = {"name": f"source of {name}", "uri": data_uri(strip), "strip": True}
        still |= {"width": width // scale, "height": height // scale}
        moving = {"name": name, "uri": data_uri(sheet(frames)), "strip": False, "width": width, "height": height}
        moving |= {"scale": scale, "whole": width == animation.frames.shape[2], "decibels": slide_decibels(animation)}
        pairs.append((still, moving))
    if len({source["uri"] for source, _ in pairs}) == 1:
        return [pairs[0][0] | {"name": "source"}, *(output for _, output in pairs)]
    return [each for pair in pairs for each in pair]


def slide_decibels(animation: Slide) -> list[float | None]:
    """Return the shift PSNR of each frame of a slide, in dB, at most 100; None for the first, which hasn't moved."""
    still = animation.frames[0].astype(float)
    decibels: list[float | None] = [None]
    for i, frame in enumerate(animation.frames[1:], 1):
        error = np.square(np.roll(frame, -animation.scale * i, axis=1) - still).mean()
        decibels.append(min(100.0, 10 * math.log10(255**2 / error)) if error else 100.0)
    return decibels
