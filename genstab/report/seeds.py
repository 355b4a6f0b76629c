"""Runs that differ by nothing but their seed, taken together: the mean and the spread of each option."""

import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from genstab.errors import InputError
from genstab.metrics.measurements import known, mean, unique
from genstab.metrics.registry import Metric, metric_of, metrics
from genstab.report.runs import Run
from genstab.report.table import markdown_table, options_of
from genstab.runtime.files import read_json

COST = "step_ratio"
CHECKPOINT = "model.checkpoint"  # of a measurement
# What the benchmark timed: values of a configuration by dotted key, and its step over that of `none`.
Cost = tuple[Mapping[str, Any], float]


@dataclass(frozen=True)
class Option:
    """A configuration, and its runs with one seed each."""

    name: str  # that of the runs, without their seeds
    runs: Sequence[Run]
    cost: float | None = None  # of a training step, over that of `none`; None: not measured

    def values(self, key: str) -> list[float]:
        """Return a number of each run that has it."""
        return known([metric_of(key).of(run.summary) for run in self.runs])

    def mean(self, key: str) -> float | None:
        """Return the mean over the runs; None where none has the number."""
        return self.cost if key == COST else mean(self.values(key))

    def spread(self, key: str) -> float | None:
        """Return the standard deviation over the runs (of a sample: over n − 1); None for fewer than two."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None


def options_among(runs: Sequence[Run], costs: Collection[Cost] = ()) -> list[Option]:
    """Group the runs that have the same configuration except for seed, name and folder; in order of the first."""
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(_but_for_the_seed(run), []).append(run)
    names = [_without_seed(alike[0]) for alike in groups.values()]
    return [
        Option(name, alike, next((ratio for like, ratio in costs if _is_like(alike[0], like)), None))
        for name, alike in zip(unique(names), groups.values(), strict=True)
    ]


def _but_for_the_seed(run: Run) -> object:
    if not run.config:
        return run.folder.resolve()  # nothing says that another run is like it
    own = run.config.get("run_name")
    same = {key: value for key, value in options_of(run).items() if value != own and key != "ckpt_path"}
    if CHECKPOINT in same:
        same[CHECKPOINT] = re.sub(rf"seed{_seed(run)}\b", "seed", same[CHECKPOINT])
    return tuple(sorted(item for item in same.items() if item[0].rpartition(".")[2] != "seed"))


def _without_seed(run: Run) -> str:
    return re.sub(rf"-?seed{re.escape(_seed(run))}\b", "", run.name) or run.name


def _seed(run: Run) -> str:
    """Return the seed of a training; of a measurement, the one that the path of its checkpoint names, if it does."""
    named = re.search(r"seed(\d+)\b", options_of(run).get(CHECKPOINT, ""))
    return named[1] if named else str(run.config.get("seed"))


def _is_like(run: Run, values: Mapping[str, Any]) -> bool:
    """Return whether a run has some options; what it lacks is off: None, False or 0."""
    return all((run.option(key) or 0) == (value or 0) for key, value in values.items())


def read_costs(path: str | Path) -> list[Cost]:
    """Read how long a training step takes over that of `none`, from the benchmark's `--json` file."""
    results: Any = read_json(path).get("results")
    try:
        costs: list[Cost] = [
            (dict(each["config"]), float(each["times"]["step"]["ratio"].get("none", 1.0))) for each in results
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"costs={path} is not what python -m genstab.bench step --json FILE writes") from error
    if any(config == other for (config, _), (other, _) in combinations(costs, 2)):
        raise InputError(f"costs={path} has an option more than once: measure one --batch, --dtype and --layout")
    return costs


def options_table(options: Sequence[Option]) -> str:
    """Return a Markdown table of the brief metrics: an option a line, mean ± standard deviation over its runs."""
    columns = [m for m in metrics().values() if m.brief and any(option.mean(m.key) is not None for option in options)]
    header = ["option", "runs", *(column.title for column in columns)]
    rows = [[option.name, str(len(option.runs)), *(_cell(option, column) for column in columns)] for option in options]
    return markdown_table(header, rows)


def _cell(option: Option, metric: Metric) -> str:
    both = option.mean(metric.key), option.spread(metric.key)
    return " ± ".join(f"{value:.{metric.digits}f}" for value in both if value is not None) or "–"
