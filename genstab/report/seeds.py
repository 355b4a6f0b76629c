"""Runs that differ by nothing but their seed, taken together: the mean and the spread of each option."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genstab.errors import InputError
from genstab.metrics.measurements import known, unique
from genstab.report.runs import Run
from genstab.report.table import COLUMNS, Column, options_of, value_of
from genstab.runtime.files import read_json

STABLE = "stable"
STABLE_BLUR = "tri3", "pre"  # as in conf/antialias/stable.yaml, and so are its head and its losses
STABLE_HEAD = 10
STABLE_LOSSES = {"equivariance_weight": 60.0, "detail_weight": 60.0}
COST = Column("cost", "step", "×", "cost", "", 2)
SHOWN = (
    "val/shift_psnr", "val/shift_psnr_worst", "val/shift_psnr_crop", "val/shift_psnr_fractional", "val/l1", "val/ssim",
    "val/tv", "val/tv_target", "val/spectrum_error", "val/swd", "val/fid", "val/lpips",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A configuration, and its runs with one seed each.

    Attributes:
        name: the runs' own without their seeds.
        runs: at least one.
        cost: of a training step, over that of `none`; None: not measured.
    """

    name: str
    runs: Sequence[Run]
    cost: float | None = None

    def values(self, key: str) -> list[float]:
        """Return a number of each run that has it."""
        return known([value_of(run, key) for run in self.runs])

    def mean(self, key: str) -> float | None:
        """Return the mean over the runs; None where none has the number."""
        if key == COST.key:
            return self.cost
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key: str) -> float | None:
        """Return the standard deviation over the runs (of a sample: over n − 1); None for fewer than two."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None


def options_among(runs: Sequence[Run], costs: Mapping[str, float] | None = None) -> list[Option]:
    """Take the runs together that have the same configuration but for seed, name and folder; in order of the first.

    Args:
        runs: see `genstab.report.runs.read_runs`.
        costs: of a training step by the option's name, see `read_costs`.

    >>> configs = [{"seed": seed, "lr": lr} for seed, lr in ((1, 0.1), (2, 0.1), (2, 1))]
    >>> runs = [Run(f"tri3-seed{config['seed']}", Path(), {"config": config}) for config in configs]
    >>> [(option.name, len(option.runs)) for option in options_among(runs)]
    [('tri3', 2), ('tri3 (2)', 1)]
    """
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(_but_for_the_seed(run), []).append(run)
    names = [_without_seed(alike[0]) for alike in groups.values()]
    return [
        Option(name, alike, (costs or {}).get(bench_name(alike[0].config)))
        for name, alike in zip(unique(names), groups.values(), strict=True)
    ]


def _but_for_the_seed(run: Run) -> object:
    if not run.config:
        return run.folder.resolve()  # nothing says that another run is like it
    own = run.config.get("run_name")
    same = {key: value for key, value in options_of(run).items() if value != own and key != "ckpt_path"}
    return tuple(sorted(item for item in same.items() if item[0].rpartition(".")[2] != "seed"))


def _without_seed(run: Run) -> str:
    return re.sub(rf"-?seed{re.escape(str(run.config.get('seed')))}\b", "", run.name) or run.name


def bench_name(config: Mapping[str, Any]) -> str:
    """Return what `python -m genstab.bench step` calls the option of a run's configuration; empty where it has none.

    >>> bench_name({"antialias": {"filter": "tri3", "placement": "post"}})
    'tri3xpost'
    """
    antialias, model = config.get("antialias") or {}, config.get("model") or {}
    filter, placement = antialias.get("filter"), antialias.get("placement")
    if not isinstance(filter, str):
        return ""
    extra = {"head": (model.get("generator") or {}).get("head"), **{key: model.get(key) for key in STABLE_LOSSES}}
    if any(extra.values()):  # more than a blur: the benchmark knows one such option
        stable = {"head": STABLE_HEAD, **STABLE_LOSSES}
        same = extra == stable and (filter, placement) == STABLE_BLUR
        return STABLE if same and not antialias.get("polyphase") else ""
    if antialias.get("polyphase"):
        return "" if placement != "pre" else "polyphase" if filter == "none" else f"polyphasex{filter}"
    return filter if filter == "none" else f"{filter}x{placement}"


def read_costs(path: str | Path) -> dict[str, float]:
    """Read how long a training step takes over that of `none`, for each option, from the benchmark's `--json` file.

    Raises:
        InputError: no such file, or another one.
    """
    unlike = InputError(f"costs={path} is not what python -m genstab.bench step --json FILE writes")
    costs: dict[str, float] = {}
    try:
        for result in read_json(path)["results"]:
            name, ratios = result["contestant"], result["times"]["step"]["ratio"]
            if name in costs:
                raise InputError(f"costs={path} has {name} more than once: measure one --batch, --dtype and --layout")
            costs[name] = float(ratios.get("none", 1.0))
    except (AttributeError, KeyError, TypeError) as error:
        raise unlike from error
    return costs


def options_table(options: Sequence[Option]) -> str:
    """Return a Markdown table: an option a line, mean ± standard deviation over its runs.

    Shift PSNR in dB; `of targets` is the total variation of the targets; `step` the cost of a training step.

    >>> runs = [Run("tri3", Path(), {"val/shift_psnr": value}) for value in (20, 22)]
    >>> print(options_table([Option("tri3", runs)]))
    | option | runs | shift PSNR mean, dB |
    |---|---|---|
    | tri3 | 2 | 21.0 ± 1.4 |
    """
    every = {column.key: column for column in (*COLUMNS, COST)}
    columns = [every[key] for key in (*SHOWN, COST.key) if any(option.mean(key) is not None for option in options)]
    header = ["option", "runs", *(f"{column.name}{column.unit and ', ' + column.unit}" for column in columns)]
    rows = [[option.name, str(len(option.runs)), *(_cell(option, column) for column in columns)] for option in options]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def _cell(option: Option, column: Column) -> str:
    mean, spread = option.mean(column.key), option.spread(column.key)
    if mean is None:
        return "–"
    return f"{mean:.{column.digits}f}" + ("" if spread is None else f" ± {spread:.{column.digits}f}")
