"""Runs beside each other, as plain numbers: the table, its best values, the Pareto front, the options that differ."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genstab.report.runs import Run, number


@dataclass(frozen=True)
class Column:
    """A column of the table of runs.

    Attributes:
        key: of `summary.json`; `tv_ratio` is worked out.
        heading, unit: what stands above it.
        group: the columns that belong together.
        best: `max`, `min`, `one` (nearest to 1), or nothing where no value is better than another.
        digits: after the point.
    """

    key: str
    heading: str
    unit: str
    group: str
    best: str = ""
    digits: int = 1

    @property
    def name(self) -> str:
        """What to call it away from its group."""
        return f"{self.group} {self.heading}" if self.group == "shift PSNR" else self.heading


COLUMNS = (
    Column("val/shift_psnr", "mean", "dB", "shift PSNR", "max"),
    Column("val/shift_psnr_worst", "worst", "dB", "shift PSNR", "max"),
    Column("val/shift_psnr_pooled", "pooled", "dB", "shift PSNR", "max"),
    Column("val/shift_psnr_crop", "crop", "dB", "shift PSNR", "max"),
    Column("val/shift_psnr_fractional", "fractional", "dB", "shift PSNR", "max"),
    Column("val/feature_distance", "feature distance", "", "stability", "min", 4),
    Column("val/noise_floor", "noise floor", "dB", "stability", "max"),
    Column("val/corruption_psnr", "corruptions", "dB", "stability", "max"),
    Column("val/corruption_relative", "corruptions / baseline", "×", "stability", "min", 2),
    Column("val/consistency", "consistency, crop", "", "stability", "max", 4),
    Column("val/consistency_roll", "consistency, roll", "", "stability", "max", 4),
    Column("val/accuracy", "accuracy", "", "quality", "max", 4),
    Column("val/l1", "L1", "", "quality", "min", 3),
    Column("val/psnr", "PSNR", "dB", "quality", "max"),
    Column("val/ssim", "SSIM", "", "quality", "max", 3),
    Column("val/tv", "total variation", "", "quality", "", 3),
    Column("val/tv_target", "of targets", "", "quality", "", 3),
    Column("tv_ratio", "ratio", "×", "quality", "one", 2),
    Column("val/spectrum_error", "spectrum off by", "dB", "quality", "min"),
    Column("val/swd", "sliced Wasserstein", "", "quality", "min"),
    Column("val/fid", "FID", "", "quality", "min"),
    Column("val/lpips", "LPIPS", "", "quality", "min", 3),
    Column("images_per_second", "speed", "images/s", "cost", "max"),
    Column("parameters", "parameters", "million", "cost", "", 2),
    Column("seconds", "time", "s", "cost", "", 0),
)


def value_of(run: Run, key: str) -> float | None:
    """Return a number of a run's summary in the units of `COLUMNS`, None where there is none."""
    if key == "tv_ratio":
        own, target = number(run.summary.get("val/tv")), number(run.summary.get("val/tv_target"))
        return own / target if own is not None and target else None
    value = number(run.summary.get(key))
    return value / 1e6 if value is not None and key == "parameters" else value


def columns_of(runs: Sequence[Run]) -> list[Column]:
    """Return the columns that at least one run has, then the `val/` numbers that `COLUMNS` doesn't know."""
    listed = {column.key for column in COLUMNS}
    others = sorted({key for run in runs for key in run.summary if key.startswith("val/")} - listed)
    columns = [*COLUMNS, *(Column(key, key.removeprefix("val/"), "", "further", "", 4) for key in others)]
    return [column for column in columns if any(value_of(run, column.key) is not None for run in runs)]


def best_of(values: Sequence[float | None], best: str) -> set[int]:
    """Return the places of the best values; none where there is nothing to choose between.

    >>> best_of([3.0, None, 5.0, 5.0], "max"), best_of([0.5, 1.25], "one"), best_of([3.0, None], "max")
    ({2, 3}, {1}, set())
    """
    scores = {
        i: {"max": -value, "min": value, "one": abs(value - 1)}.get(best, 0.0)
        for i, value in enumerate(values)
        if value is not None
    }
    if not best or len(set(scores.values())) < 2:
        return set()
    return {i for i, score in scores.items() if score == min(scores.values())}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other one beats, in order of the first coordinate.

    More is better in both coordinates. A point is beaten by one that is at least as good in both and better in one;
    of equal points, none beats the other.

    >>> pareto_front([(1.0, 3.0), (2.0, 2.0), (1.0, 2.0), (3.0, 1.0)])
    [0, 1, 3]
    """

    def beaten(point: tuple[float, float]) -> bool:
        return any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points)

    front = [i for i, point in enumerate(points) if not beaten(point)]
    return sorted(front, key=lambda i: (points[i][0], -points[i][1]))


def quantile(values: Sequence[float], part: float) -> float:
    """Return a quantile, with linear interpolation.

    >>> quantile([4.0, 1.0, 2.0], 0.25)
    1.5
    """
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested config as one level of dotted keys; lists and values as JSON, texts as they are.

    >>> flatten({"data": {"size": 64, "root": "a"}, "seed": [1, 2]})
    {'data.size': '64', 'data.root': 'a', 'seed': '[1, 2]'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def options_of(run: Run) -> dict[str, str]:
    """Return a run's options; its own folder in them is written …, as it differs between any two runs."""
    folder = run.config.get("output_dir")
    own = folder if isinstance(folder, str) and folder else None
    return {
        key: value.replace(own, "…") if own else value
        for key, value in flatten(run.config).items()
        if key != "run_name"
    }


def differences(options: Iterable[Mapping[str, str]]) -> dict[str, list[tuple[str | None, bool]]]:
    """Return, for each key that is not the same in all, the value of each and whether it stands out.

    A value stands out when it is not the most frequent one; of two alike none is, and all but the first do.

    >>> differences([{"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "b": "3"}])
    {'b': [('2', True), ('3', False), ('3', False)]}
    """
    every = list(options)
    found = {}
    for key in dict.fromkeys(key for each in every for key in each):
        values = [each.get(key) for each in every]
        if len(set(values)) > 1:
            usual = Counter(values).most_common(1)[0][0]
            found[key] = [(value, value != usual) for value in values]
    return found
