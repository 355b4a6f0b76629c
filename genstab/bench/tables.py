"""Tables of the benchmark's results, for the terminal and in Markdown."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from genstab.bench.layers import COPY, OWN

Result = Mapping[str, Any]
# A ratio's name, the kind of case, whose time, and divided by what, see `_layer_ratio`.
RATIOS = (
    ("blur / fastest of the others", "blur", OWN, "fastest"),
    ("blur / median of the others", "blur", OWN, "median"),
    ("blur / its bytes at copy speed", "blur", OWN, COPY),
    ("pre / plain convolution", "conv", "pre", "plain"),
    ("post / plain convolution", "conv", "post", "plain"),
    ("post / plain with stride 1, then depthwise blur", "conv", "post", "naive post"),
    ("transposed convolution with blur / plain", "transposed", "blurred", "plain"),
    ("max pooling with blur / plain", "pool", "blurred", "plain"),
)
TIMES = ("forward", "forward_backward")


@dataclass(frozen=True)
class Sheet:
    """A table: a title, a header and rows."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> Table:
        """Return the table for the terminal."""
        table = Table(title=self.title, title_justify="left")
        for heading in self.header:
            table.add_column(heading, no_wrap=True, justify="right" if heading in _NUMBERS else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table in Markdown.

        >>> print(Sheet("speed", ("case", "ms"), [("blur", "1.20")]).markdown())
        **speed**
        <BLANKLINE>
        | case | ms |
        |---|---|
        | blur | 1.20 |
        """
        lines = ["|".join(("", *(f" {cell} " for cell in row), "")) for row in (self.header, *self.rows)]
        lines.insert(1, "|---" * len(self.header) + "|")
        return "\n".join((f"**{self.title}**", "", *lines))


_NUMBERS = {"forward ms", "forward+backward ms", "ms", "IQR", "×", "× IQR", "images/s", "peak MB", "moved MB", "× copy"}


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean.

    >>> round(geometric_mean([0.5, 2.0]), 9)
    1.0
    """
    return math.exp(statistics.fmean(math.log(value) for value in values))


def copy_ratio(result: Result, copy: Result, what: str) -> float:
    """Return the time of a blur relative to moving its bytes at the speed of a copy."""
    speed = copy["bytes_moved"]["forward"] / copy["times"]["forward"]["seconds"]
    return float(result["times"][what]["seconds"] * speed / result["bytes_moved"][what])


def _place(result: Result) -> tuple[Any, ...]:
    return tuple(result["shape"]), result["layout"], result["dtype"], result["case"]


def _layer_ratio(result: Result, rivals: Mapping[str, Result], over: str, what: str) -> float | None:
    """Return the time (or the peak memory, `what="peak"`) of a result over its rivals' of the same case."""
    if what == "peak":
        peaks = {name: result["peak_bytes"] / each["peak_bytes"] for name, each in rivals.items() if each["peak_bytes"]}
        ratios = peaks if result["peak_bytes"] else {}
    elif over == COPY:
        return copy_ratio(result, rivals[COPY], what)
    else:
        ratios = result["times"][what]["ratio"]
    others = [ratio for name, ratio in ratios.items() if name not in (COPY, result["contestant"])]
    if over in ("fastest", "median"):
        choose: Callable[[Sequence[float]], float] = max if over == "fastest" else statistics.median
        return choose(others) if others else None
    return ratios.get(over)


def key_ratios(results: Sequence[Result]) -> Sheet:
    """Return the ratios over all shapes of the U-Net: geometric mean, and the worst with its map (/2: stride 2).

    Every ratio is one of times of the same runs, round by round; smaller is better. In the column of the peak memory
    `fastest` is the smallest.
    """
    cases: dict[tuple[Any, ...], dict[str, Result]] = {}
    for result in results:
        cases.setdefault(_place(result), {})[result["contestant"]] = result
    groups = dict.fromkeys((r["shape"][0], r["layout"], r["dtype"]) for r in results)
    rows = []
    for name, kind, whose, over in RATIOS:
        for group in groups:
            rivals_of = [
                rivals
                for rivals in cases.values()
                if whose in rivals
                and rivals[whose]["kind"] == kind
                and (rivals[whose]["shape"][0], rivals[whose]["layout"], rivals[whose]["dtype"]) == group
            ]
            cells = []
            for what in (*TIMES, "peak"):
                ratios = {}
                for rivals in rivals_of:
                    ratio = _layer_ratio(rivals[whose], rivals, over, what)
                    if ratio is not None:
                        place = _map(rivals[whose]) + ("/2" if rivals[whose]["case"] == "blur, stride 2" else "")
                        ratios[place] = ratio
                worst = max(ratios, key=lambda place: ratios[place], default="")
                mean = f"{geometric_mean(ratios.values()):.2f}" if ratios else ""
                cells.append(f"{mean} ({ratios[worst]:.2f} at {worst})" if ratios else "–")
            if set(cells) != {"–"}:
                rows.append([name, *map(str, group), *cells])
    title = "Time over time: geometric mean over the U-Net's shapes (the worst, and where); below 1 is faster"
    return Sheet(title, ("ratio", "batch", "layout", "dtype", "forward", "forward+backward", "peak memory"), rows)


def layer_details(results: Sequence[Result]) -> Sheet:
    """Return each layer at each shape; × is relative to the first layer of its case."""
    rows = []
    first: Result = {}
    copy: Result | None = None
    for result in results:
        if not first or _place(result) != _place(first):
            first = result
            copies = [r for r in results if r["contestant"] == COPY and _place(r) == _place(first)]
            copy = copies[0] if copies else None
        row = [result["case"], _map(result), str(result["shape"][0]), result["layout"], result["dtype"]]
        row.append(result["contestant"])
        for what in TIMES:
            timing = result["times"].get(what)
            row += _time(timing, first["contestant"]) if timing else ["–"] * 3
        row += _peak(result, first)
        moved = result.get("bytes_moved", {})
        if "forward_backward" in moved and copy:
            row += [f"{moved['forward_backward'] / 1e6:.3f}", f"{copy_ratio(result, copy, 'forward_backward'):.2f}"]
        else:
            row += ["–", "–"]
        rows.append(row)
    header = ["case", "map", "batch", "layout", "dtype", "layer", "forward ms", "IQR", "×"]
    header += ["forward+backward ms", "IQR", "×", "peak MB", "×", "moved MB", "× copy"]
    return Sheet("Every layer at every shape", header, rows)


def step_table(results: Sequence[Result]) -> Sheet:
    """Return the training steps; × is relative to the first option of the same batch, layout and dtype."""
    rows = []
    first: Result = {}
    for result in results:
        if not first or _place(result) != _place(first):
            first = result
        timing = result["times"]["step"]
        ratio = ["1.00", "–"]
        if result is not first:
            low, high = timing["ratio_quartiles"][first["contestant"]]
            ratio = [f"{timing['ratio'][first['contestant']]:.3f}", f"{low:.3f} to {high:.3f}"]
        ms, iqr, _ = _time(timing, first["contestant"])
        place = [str(result["shape"][0]), result["layout"], result["dtype"], result["contestant"]]
        rows.append([*place, ms, iqr, *ratio, f"{result['images_per_second']:.2f}", *_peak(result, first)])
    header = ("batch", "layout", "dtype", "antialias", "ms", "IQR", "×", "× IQR", "images/s", "peak MB", "×")
    return Sheet(f"One training step; × is over {first['contestant'] if first else 'none'}", header, rows)


def guards_table(results: Sequence[Result]) -> Sheet:
    """Return the batches of a training with and without its checks; the throughput is that over the one with none."""
    rows = []
    for result in results:
        ms, iqr, _ = _time(result["times"]["step"], "")
        first = results[0]["contestant"]
        low, high = (1 / q for q in reversed(result["times"]["step"]["ratio_quartiles"].get(first, (1.0, 1.0))))
        spread = f"{low:.3f} to {high:.3f}" if result["contestant"] != first else "–"
        throughput = f"{result['throughput']:.3f}"
        rounds = str(result["times"]["step"]["rounds"])
        rows.append([str(result["shape"][0]), result["contestant"], ms, iqr, rounds, throughput, spread])
    header = ("batch", "checks", "ms", "IQR", "rounds", "throughput", "quartiles")
    return Sheet("One batch of a training, data and callbacks included; throughput over none", header, rows)


def _map(result: Result) -> str:
    return "×".join(map(str, result["shape"][1:]))


def _time(timing: Mapping[str, Any], first: str) -> list[str]:
    low, high = timing["seconds_quartiles"]
    spread = f"{100 * (high - low) / timing['seconds']:.0f} %"
    return [f"{1e3 * timing['seconds']:.3f}", spread, f"{timing['ratio'].get(first, 1.0):.2f}"]


def _peak(result: Result, first: Result) -> list[str]:
    if not result["peak_bytes"]:
        return ["–", "–"]
    return [f"{result['peak_bytes'] / 1e6:.3f}", f"{result['peak_bytes'] / first['peak_bytes']:.3f}"]
