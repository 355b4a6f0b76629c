"""Differences between options with confidence intervals, from the numbers of each image that their runs have stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genstab.errors import InputError
from genstab.metrics.measurements import image_means
from genstab.metrics.registry import Metric, metrics, protocols, quality_by_image
from genstab.report.runs import Run
from genstab.report.seeds import Option
from genstab.report.table import markdown_table

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """The mean difference between two options on the same images, and its interval."""

    mean: float
    low: float
    high: float
    images: int

    def sign(self) -> int:
        """Return 1 or −1, or 0 where the interval contains zero."""
        return (self.low > 0) - (self.high < 0)


def image_values(run: Run, metric: Metric) -> dict[str, float]:
    """Return a metric of each image: its quality, or its mean dB over the shifts; empty if that was not stored."""
    by_image: Mapping[str, float | None] = quality_by_image(run.measurements).get(metric, {})
    for name, part in (run.measurements.get("shift_psnr") or {}).items():
        known = protocols().get(name)
        if known is not None and known.keys().get("mean") == metric.key:
            by_image = image_means(part)
    return {image: value for image, value in by_image.items() if value is not None}


def difference(ours: Option, theirs: Option, metric: Metric) -> Difference | None:
    """Compute the mean of `ours` minus that of `theirs` over their seeds and common images, with a bootstrap interval.

    Images are drawn with repetition, the same for both options, as they are paired; seeds are drawn for each option by
    itself. n − 1 of n are drawn, so that the variance of the means is unbiased for a few seeds (Rao and Wu 1988). The
    interval has the quantiles 0.025 and 0.975 of 4000 draws. An option with one seed has no spread over seeds: the
    interval is then about images alone.

    Returns:
        None where a run has not stored the metric of at least two common images.
    """
    runs = [[image_values(run, metric) for run in option.runs] for option in (ours, theirs)]
    common = set.intersection(*(set(values) for each in runs for values in each))
    if len(common) < 2:
        return None
    tables = [np.array([[values[image] for image in sorted(common)] for values in each]) for each in runs]
    random = np.random.default_rng(0)
    images = _weights(random, len(common))
    means = [((_weights(random, len(table)) @ table) * images).sum(1) for table in tables]
    low, high = np.quantile(means[0] - means[1], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Difference(float(tables[0].mean() - tables[1].mean()), float(low), float(high), len(common))


def _weights(random: np.random.Generator, number: int) -> np.ndarray:
    """Return the share of each of `number` items in each draw, (draws, number)."""
    if number == 1:
        return np.ones((RESAMPLES, 1))
    return random.multinomial(number - 1, np.full(number, 1 / number), RESAMPLES) / (number - 1)


def differences_table(options: Sequence[Option], baseline: str | None = None) -> str:
    """Return a Markdown table of the differences to one option, the first unless named; empty if none can be computed.

    A difference is bold where it is for the better and its interval does not contain zero, and in parentheses where it
    does. It has the brief metrics of which runs store every image.

    Raises:
        InputError: there is no option of this name.
    """
    names = [option.name for option in options]
    if baseline is not None and baseline not in names:
        raise InputError(f"baseline={baseline!r} is not one of {', '.join(names)}")
    first = options[0 if baseline is None else names.index(baseline)]
    judged = [metric for metric in metrics().values() if metric.brief and metric.better in ("max", "min")]
    found = {
        option.name: {metric: difference(option, first, metric) for metric in judged}
        for option in options
        if option is not first
    }
    columns = [metric for metric in judged if any(row[metric] is not None for row in found.values())]
    if not columns:
        return ""
    rows = [[name, *(_cell(row[metric], metric) for metric in columns)] for name, row in found.items()]
    table = markdown_table([f"minus {first.name}", *(metric.title for metric in columns)], rows)
    seeds = ", ".join(f"{option.name} {len(option.runs)}" for option in options)
    return (
        f"{table}\n\nDifferences on the same images, with {LEVEL:.0%} intervals of a bootstrap over images and seeds "
        f"(seeds: {seeds}). Bold: better. In parentheses: the interval contains zero."
    )


def _cell(found: Difference | None, metric: Metric) -> str:
    if found is None:
        return "–"
    mean, low, high = (f"{value:+.{metric.digits}f}" for value in (found.mean, found.low, found.high))
    text = f"{mean} [{low}, {high}]"
    if not found.sign():
        return f"({text})"
    return f"**{text}**" if found.sign() == (1 if metric.better == "max" else -1) else text
