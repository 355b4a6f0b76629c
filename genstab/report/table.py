"""Runs beside each other, as plain numbers: the table, its best values, the Pareto front, the options that differ."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from genstab.metrics.registry import Metric, metric_of, metrics
from genstab.report.runs import Run


def columns_of(runs: Sequence[Run]) -> list[Metric]:
    """Return the metrics that at least one run has, those that nobody registered last."""
    every = metrics()
    others = sorted({key for run in runs for key in run.summary if key.startswith("val/")} - every.keys())
    columns = [*every.values(), *map(metric_of, others)]
    return [column for column in columns if any(column.of(run.summary) is not None for run in runs)]


def results_table(summary: Mapping[str, Any], title: str) -> Table:
    """Return the stability and quality that a run logged for the terminal, to one more digit than elsewhere."""
    table = Table("", "", "", title=title, show_header=False)
    for metric in metrics().values():
        if metric.key in summary and metric.group not in ("cost", "further"):
            table.add_row(metric.name, f"{summary[metric.key]:.{metric.digits + 1}f}", metric.unit)
    return table


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table without a line break at its end.

    >>> print(markdown_table(("case", "ms"), [("blur", "1.20")]))
    | case | ms |
    |---|---|
    | blur | 1.20 |
    """
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(header)}", *lines[1:]])


def best_of(values: Sequence[float | None], metric: Metric) -> set[int]:
    """Return the places of the best values; none where there is nothing to choose between."""
    scores = {i: metric.goodness(value) for i, value in enumerate(values) if value is not None}
    if len(set(scores.values())) < 2:
        return set()
    return {i for i, score in scores.items() if score == max(scores.values())}


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other one beats, in order of the first coordinate.

    More is better in both coordinates. A point is beaten by one that is at least as good in both and better in one;
    of equal points, none beats the other.
    """

    def beaten(point: tuple[float, float]) -> bool:
        return any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points)

    front = [i for i, point in enumerate(points) if not beaten(point)]
    return sorted(front, key=lambda i: (points[i][0], -points[i][1]))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested config as one level of dotted keys; lists and values as JSON, texts as they are."""
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

    A value stands out when it is not the most frequent one; of two equally frequent values, the second does.
    """
    every = list(options)
    found = {}
    for key in dict.fromkeys(key for each in every for key in each):
        values = [each.get(key) for each in every]
        if len(set(values)) > 1:
            usual = Counter(values).most_common(1)[0][0]
            found[key] = [(value, value != usual) for value in values]
    return found
