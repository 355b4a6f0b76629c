"""Runs beside each other, as plain numbers: the table, its best values, the Pareto front, the options that differ."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from genstab.metrics.registry import Metric, metric_of, metrics
from genstab.report.runs import Run

LONGEST = 32  # letters of a value among the options that differ


def columns_of(runs: Sequence[Run]) -> list[Metric]:
    """Return the metrics that at least one run has, those that nobody registered last."""
    every = metrics()
    others = sorted({key for run in runs for key in run.summary if key.startswith("val/")} - every.keys())
    columns = [*every.values(), *map(metric_of, others)]
    return [column for column in columns if any(column.of(run.summary) is not None for run in runs)]


def results_table(summary: Mapping[str, Any], title: str) -> Table:
    """Return the brief metrics that a run logged for the terminal, to one more digit than elsewhere."""
    table = Table("", "", "", title=title, show_header=False)
    for metric in metrics().values():
        if metric.brief and metric.key in summary:
            table.add_row(metric.name, f"{summary[metric.key]:.{metric.digits + 1}f}", metric.unit)
    return table


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table without a line break at its end.

    >>> print(markdown_table(("case", "ms"), [("blur", "1.20")]))
    | case | ms |
    |---|---|
    | blur | 1.20 |
    """
    texts = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in texts]
    return "\n".join([lines[0], f"|{'---|' * len(header)}", *lines[1:]])


def best_of(values: Sequence[float | None], metric: Metric, left_out: Collection[int] = ()) -> set[int]:
    """Return the places of the best values, some left out; none where there is nothing to choose between."""
    scores = {i: metric.goodness(value) for i, value in enumerate(values) if value is not None and i not in left_out}
    if len(set(scores.values())) < 2:
        return set()
    return {i for i, score in scores.items() if score == max(scores.values())}


def pareto_front(points: Sequence[tuple[float, float]], left_out: Collection[int] = ()) -> list[int]:
    """Return the indices of the points that no other one beats, some left out, in order of the first coordinate.

    More is better in both coordinates. A point is beaten by one that is at least as good in both and better in one;
    of equal points, none beats the other.
    """
    judged = {i: point for i, point in enumerate(points) if i not in left_out}
    front = [
        i for i, (x, y) in judged.items() if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in judged.values())
    ]
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
    own = str(run.config.get("output_dir") or "…")
    return {key: value.replace(own, "…") for key, value in flatten(run.config).items() if key != "run_name"}


def differences(options: Iterable[Mapping[str, str]]) -> tuple[dict[str, list[tuple[str | None, bool]]], int]:
    """Return, for each key that is not the same in all, the value of each and whether it stands out; and a number.

    A value stands out when it is not the most frequent one; of two equally frequent values, the second does. The number
    counts the keys left out, as the runs without them could not have them: a measurement has no learning rate, and no
    other class has the arguments of this one. Those that have such a key agree on its value.
    """
    every = list(options)
    found, left_out = {}, 0
    for key in dict.fromkeys(key for each in every for key in each):
        values = [each.get(key) for each in every]
        having = [each for each in every if key in each]
        usual = Counter(values).most_common(1)[0][0]
        if len({*values} - {None}) > 1 or any(key not in each and _could_have(key, each, having) for each in every):
            found[key] = [(value, value != usual) for value in values]
        elif None in values:
            left_out += 1
    return found, left_out


def _could_have(key: str, options: Mapping[str, str], having: Sequence[Mapping[str, str]]) -> bool:
    """Whether options without a key could have it: they have its group, and for the same class."""
    group = key.rpartition(".")[0]
    if group:
        target = options.get(f"{group}._target_")
        return any(other.startswith(f"{group}.") for other in options) and any(
            each.get(f"{group}._target_") == target for each in having
        )
    return any(_is_training(each) == _is_training(options) for each in having)


def _is_training(options: Mapping[str, str]) -> bool:
    return any(key.startswith("trainer.") for key in options)


def in_short(key: str, value: str | None) -> str:
    """Write the value of an option in at most 32 letters: a class without its module, the end of a path, a few items.

    >>> in_short("data._target_", "genstab.data.PairedData"), in_short("l", "[[0, 1], [0, 2], [0, 3], [0, 4], [0, 5]]")
    ('PairedData', '[[0, 1], [0, 2], [0, 3], …')
    """
    if value is None:
        return "–"
    if key.endswith("_target_"):
        return value.rpartition(".")[2]
    if len(value) <= LONGEST:
        return value
    if value.startswith(("[", "{")):
        end = "]," if value.startswith("[[") else ","
        return f"{value[: value.rfind(end, 0, LONGEST - 2) + len(end)]} …"
    return f"…{value[1 - LONGEST :]}"
