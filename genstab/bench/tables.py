"""Tables of the results, in Markdown."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from genstab.bench.layers import OTHERS, OWN
from genstab.report.table import markdown_table

Result = Mapping[str, Any]
# A ratio's name, the kind of case, whose time, and over whose: a layer's, or that of all other libraries, see `_ratio`.
RATIOS = (
    ("blur / fastest of the others", "blur", OWN, "fastest"),
    ("blur / median of the others", "blur", OWN, "median"),
    ("pre / plain convolution", "conv", "pre", "plain"),
    ("post / plain convolution", "conv", "post", "plain"),
    ("transposed convolution with blur / plain", "transposed", "blurred", "plain"),
    ("max pooling with blur / plain", "pool", "blurred", "plain"),
)
OF_ALL: dict[str, Callable[[Sequence[float]], float]] = {"fastest": max, "median": statistics.median}
MEASURED = ("forward", "forward_backward", "peak")


def ratio_table(results: Sequence[Result]) -> str:
    """Return the ratios over all shapes of the U-Net: geometric mean, and the worst with its map (/2: stride 2)."""
    cases: dict[Any, dict[str, Result]] = defaultdict(dict)
    for result in results:
        cases[_case(result)][result["contestant"]] = result
    found: dict[Any, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name, kind, layer, over in RATIOS:
        for case in cases.values():
            if layer not in case or case[layer]["kind"] != kind:
                continue
            result = case[layer]
            where = "×".join(map(str, result["shape"][1:])) + ("/2" if result["case"] == "blur, stride 2" else "")
            for what in MEASURED:
                ratio = _ratio(result, case, over, what)
                if ratio is not None:
                    found[name, result["shape"][0], result["layout"], result["dtype"]][what][where] = ratio
    header = ("ratio", "batch", "layout", "dtype", "forward", "forward+backward", "peak memory")
    rows = [[*map(str, row), *(_mean_and_worst(ratios[what]) for what in MEASURED)] for row, ratios in found.items()]
    return markdown_table(header, rows)


def _ratio(result: Result, case: Mapping[str, Result], over: str, what: str) -> float | None:
    """Return the time (or the peak memory, `what="peak"`) of a result over that of another layer of its case."""
    if what == "peak":
        peaks = {name: other["peak_bytes"] for name, other in case.items()}
        ratios = {name: result["peak_bytes"] / peak for name, peak in peaks.items() if peak}
    else:
        ratios = result["times"][what]["ratio"]
    if over in OF_ALL:
        others = [ratios[name] for name in OTHERS if name in ratios]
        return OF_ALL[over](others) if others else None
    return ratios.get(over)


def _mean_and_worst(ratios: Mapping[str, float]) -> str:
    if not ratios:
        return "–"
    worst = max(ratios, key=lambda where: ratios[where])
    return f"{statistics.geometric_mean(ratios.values()):.2f} ({ratios[worst]:.2f} at {worst})"


def details_table(results: Sequence[Result]) -> str:
    """Return the times and peak memory of each result; × is over the first result of its case."""
    header = ["case", "input", "layout", "dtype", "name"]
    for what in results[0]["times"]:
        header += [f"{what.replace('_', '+')} ms", "IQR", "×", "× IQR"]
    rows = []
    first: dict[Any, Result] = {}
    for result in results:
        baseline = first.setdefault(_case(result), result)
        times = [cell for timing in result["times"].values() for cell in _time(timing, baseline["contestant"])]
        shape = "×".join(map(str, result["shape"]))
        place = [result["case"], shape, result["layout"], result["dtype"], result["contestant"]]
        rows.append([*place, *times, *_peak(result, baseline)])
    return markdown_table([*header, "peak MB", "×"], rows)


def _case(result: Result) -> Any:
    return tuple(result["shape"]), result["layout"], result["dtype"], result["case"]


def _time(timing: Mapping[str, Any], first: str) -> list[str]:
    low, high = timing["seconds_quartiles"]
    cells = [f"{1e3 * timing['seconds']:.3f}", f"{100 * (high - low) / timing['seconds']:.0f} %"]
    if first not in timing["ratio"]:
        return [*cells, "1.000", "–"]
    low, high = timing["ratio_quartiles"][first]
    return [*cells, f"{timing['ratio'][first]:.3f}", f"{low:.3f} to {high:.3f}"]


def _peak(result: Result, first: Result) -> list[str]:
    if not result["peak_bytes"]:
        return ["–", "–"]
    return [f"{result['peak_bytes'] / 1e6:.3f}", f"{result['peak_bytes'] / first['peak_bytes']:.3f}"]
