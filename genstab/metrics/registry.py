"""The registry of metrics for tables, pages, plots, verdicts and loggers.

A new metric is a file that computes it and one `register` here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from genstab.errors import InputError, check_choice
from genstab.metrics.measurements import number, unique

if TYPE_CHECKING:
    from genstab.metrics.protocols import Protocol

Better = Literal["max", "min", "one", ""]
# In the order of the tables; metrics that are not registered belong to the last one.
GROUPS = ("shift PSNR", "stability", "quality", "cost", "further")


@dataclass(frozen=True)
class Metric:
    """A metric in `summary.json`.

    Attributes:
        key: its log key, or its key in `summary.json`.
        heading: its name in a table, within its group.
        meaning: explanation in one line.
        group: one of `GROUPS`.
        unit: "dB", for example; empty for a bare number.
        better: `max`, `min`, `one` (nearest to 1), or empty if no value is better than another.
        digits: after the decimal point.
        in_training: a validation logs it; otherwise only `genstab measure` computes it.
        per_image: `measurements.json` has it for each image, too.
        brief: it is also in the terminal's table and in the Markdown table of options.
        pareto: place among the panels of the Pareto plot, from 1; 0: none.
        derive: computes it from the summary; None: the summary holds it.
        scale: factor from the number in the summary to the unit.
    """

    key: str
    heading: str
    meaning: str
    group: str = "quality"
    unit: str = ""
    better: Better = ""
    digits: int = 3
    in_training: bool = False
    per_image: bool = False
    brief: bool = False
    pareto: int = 0
    derive: Callable[[Mapping[str, Any]], float | None] | None = None
    scale: float = 1.0

    @property
    def name(self) -> str:
        """Its name outside its group."""
        return f"{self.group} {self.heading}" if self.group == "shift PSNR" else self.heading

    @property
    def title(self) -> str:
        """Its name with its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """Return its value in a summary, or None.

        >>> metrics()["tv_ratio"].of({"val/tv": 0.03, "val/tv_target": 0.04})
        0.75
        """
        value = number(self.derive(summary) if self.derive else summary.get(self.key))
        return value if value is None else value * self.scale

    def text(self, value: float) -> str:
        """Write a value with the metric's digits and unit.

        >>> metrics()["val/psnr"].text(16.314)
        '16.3 dB'
        """
        return f"{value:.{self.digits}f} {self.unit}".rstrip()

    def goodness(self, value: float) -> float:
        """Return a number that is larger for a better value; 0 if no value is better than another."""
        return {"max": value, "min": -value, "one": -abs(value - 1)}.get(self.better, 0.0)


def _tv_ratio(summary: Mapping[str, Any]) -> float | None:
    own, target = number(summary.get("val/tv")), number(summary.get("val/tv_target"))
    return own / target if own is not None and target else None


_METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> None:
    """Add a metric to every table, page, plot and logger.

    Raises:
        InputError: its key is taken, or its group is not one of `GROUPS`.
    """
    if metric.key in _METRICS:
        raise InputError(f"the metric {metric.key} is registered already")
    check_choice("group", metric.group, GROUPS)
    _METRICS[metric.key] = metric


def metrics() -> dict[str, Metric]:
    """Return every metric by its key, in the order of the tables.

    >>> list(metrics())[:4]
    ['val/shift_psnr', 'val/shift_psnr_worst', 'val/shift_psnr_pooled', 'val/shift_psnr_worst_shift']
    """
    every = {**_of_protocols(), **_METRICS}
    return dict(sorted(every.items(), key=lambda item: GROUPS.index(item[1].group)))


def metric_of(key: str) -> Metric:
    """Return the metric of a key; one that is not registered belongs to the last group."""
    return metrics().get(key) or Metric(key, key.removeprefix("val/"), "not registered", "further", digits=4)


def best_ends() -> dict[str, str]:
    """Return `max` or `min` for each log key for which one direction is better."""
    logged = {key: metric.better for key, metric in metrics().items() if key.startswith("val/")}
    return {key: better for key, better in logged.items() if better in ("max", "min")}


def quality_by_image(measurements: Mapping[str, Any]) -> dict[Metric, dict[str, float | None]]:
    """Return the numbers per image of `measurements.json` by metric; an empty dict if one was not measured."""
    quality = measurements.get("quality") or {}
    images = unique(quality.get("images") or ())
    return {
        metric: dict(zip(images, quality.get(metric.key.removeprefix("val/")) or (), strict=False))
        for metric in metrics().values()
        if metric.per_image
    }


HEADINGS = {"worst_shift": "at worst shift"}
REDUCTIONS = {
    "mean": "mean over images and shifts",
    "worst": "minimum over images and shifts",
    "pooled": "PSNR of the mean squared error",
    "worst_shift": "PSNR of the mean squared error at the worst shift, without images that no shift changes",
}


def protocols() -> "dict[str, Protocol]":
    """Return the protocols of shift PSNR by name."""
    from genstab.metrics.protocols import PROTOCOLS  # here, as it imports torch

    return PROTOCOLS


def _of_protocols() -> dict[str, Metric]:
    found = {}
    for protocol in protocols().values():
        for reduction, key in protocol.keys().items():
            end = "" if key == protocol.key else HEADINGS.get(reduction, reduction)
            heading = f"{protocol.heading} {end}".rstrip()
            meaning = f"{protocol.meaning}: {REDUCTIONS[reduction]}"
            brief = key == protocol.key or reduction == "worst_shift"
            found[key] = Metric(key, heading, meaning, "shift PSNR", "dB", "max", 1, in_training=True, brief=brief)
    return found


for _metric in (
    Metric("val/shift_period", "period", "smallest p of which all multiples, as shifts, are at least 3 dB better than "
           "all other shifts; 1: there is none", "shift PSNR", "pixels", "", 0, in_training=True),
    Metric("val/feature_distance", "feature distance", "cosine distance between shifted features and the features of "
           "the shifted input, mean over the layers", "stability", "", "min"),
    Metric("val/noise_floor", "noise floor", "PSNR between two runs on the same input; 100 for a deterministic model",
           "stability", "dB", "max", 1),
    Metric("val/corruption_psnr", "PSNR under corruption", "PSNR between the outputs of corrupted and clean inputs",
           "stability", "dB", "max", 1),
    Metric("val/corruption_relative", "corruption error / baseline", "error under corruption relative to a baseline, "
           "mean over the corruptions", "stability", "×", "min", 2, brief=True),
    Metric("val/corruption_error", "error rate under corruption", "top-1 error rate of a classifier on corrupted "
           "images, mean over the corruptions", "stability", "", "min", brief=True),
    Metric("val/consistency", "consistency, crop", "share of pairs of crops for which a classifier predicts the same "
           "class (Zhang 2019)", "stability", "", "max", 4, brief=True),
    Metric("val/consistency_roll", "consistency, circular", "the same for pairs of circular shifts", "stability", "",
           "max", 4, brief=True),
    Metric("val/accuracy", "accuracy", "top-1 accuracy of a classifier", better="max", digits=4,
           brief=True),
    Metric("val/l1", "L1", "mean absolute difference to the target", better="min", in_training=True, per_image=True,
           brief=True),
    Metric("val/psnr", "PSNR", "PSNR to the target", unit="dB", better="max", digits=1, in_training=True,
           per_image=True, brief=True),
    Metric("val/ssim", "SSIM", "structural similarity to the target (Wang 2004)", better="max", in_training=True,
           per_image=True, brief=True),
    Metric("val/tv", "total variation", "mean absolute difference of neighbouring pixels of the outputs",
           in_training=True, per_image=True, brief=True),
    Metric("val/tv_target", "TV of targets", "total variation of the targets", in_training=True, per_image=True,
           brief=True),
    Metric("tv_ratio", "TV / targets' TV", "total variation of the outputs divided by that of the targets; below 1: "
           "blurry", unit="×", better="one", digits=2, pareto=2, derive=_tv_ratio),
    Metric("val/spectrum_error", "spectrum error", "distance between the mean radial power spectra of outputs and "
           "targets; sensitive to blur and noise", unit="dB", better="min", digits=1, in_training=True, brief=True),
    Metric("val/swd", "sliced Wasserstein", "sliced Wasserstein distance between the patches of outputs and targets in "
           "a Laplacian pyramid (Karras 2018); decreases with the number of images", better="min", digits=1,
           in_training=True, brief=True, pareto=1),
    Metric("val/fid", "FID", "Fréchet distance of Inception features (Heusel 2017); decreases with the number of "
           "images", better="min", digits=1, brief=True),
    Metric("val/lpips", "LPIPS", "perceptual distance of AlexNet features to the target (Zhang 2018)", better="min",
           brief=True),
    Metric("val/perceptual", "perceptual distance", "distance to the target in five stages of a network trained on "
           "ImageNet (`realism=true`)", better="min", in_training=True,
           per_image=True, brief=True),
    Metric("val/frechet_patches", "Fréchet distance of patches", "how far the patches of outputs are from those of "
           "targets in three stages of the same network, as a share of the targets' variance", better="min",
           in_training=True, brief=True),
    *(Metric(f"val/frechet_patches_{stride}", f"Fréchet distance of patches, stride {stride}", "the same in one stage",
             better="min", in_training=True) for stride in (4, 8, 16)),
    Metric("val/kid", "KID", "kernel distance between the mean features of outputs and of targets in the same network "
           "(Bińkowski 2018), unbiased", better="min", in_training=True, brief=True),
    Metric("val/kid_error", "standard error of KID", "by the jackknife: a difference below twice this is chance",
           in_training=True),
    Metric("images_per_second", "speed", "images per second", "cost", "images/s", "max", 1),
    Metric("parameters", "parameters", "number of parameters of the model", "cost", "million", "", 2, scale=1e-6),
    Metric("seconds", "time", "duration of the whole job", "cost", "s", "", 0),
    Metric("step_ratio", "step", "time of a training step relative to `none`, from the benchmark", "cost", "×", "min",
           2, brief=True),
    Metric("val/output_spread", "distance between outputs", "root mean square distance between the outputs of "
           "different images, as a share of the value range; of a classifier, the share of pairs of images with two "
           "answers; near 0: always the same", "further", "", "", 4, in_training=True),
    Metric("val/output_std", "deviation within outputs", "standard deviation within an output, as a share of the value "
           "range; near 0: the outputs are flat", "further", "", "", 4, in_training=True),
    Metric("val/constant_outputs", "constant outputs", "share of images of which the output is constant: its standard "
           "deviation is below 1 % of the value range", "further", "", "", 4, in_training=True),
):  # fmt: skip
    register(_metric)
