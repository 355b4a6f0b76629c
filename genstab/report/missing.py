"""What a run lacks, and why: what was switched off, what cannot be measured of it, and what is not there."""

from collections.abc import Mapping, Sequence
from typing import Any

from genstab.metrics.measurements import number
from genstab.metrics.registry import Metric, metrics, protocols
from genstab.report.runs import Run
from genstab.runtime.files import MEASUREMENTS, SLIDE_OUTPUT, SLIDE_SOURCE, SUMMARY

# Each part of measurements.json, and what cannot be shown without it.
PARTS = {
    "shift_psnr": "shift PSNR per shift and per image",
    "shift_map": "shift map",
    "features": "feature distance",
    "corruptions": "PSNR under corruption",
    "quality": "quality per image",
}
CONSISTENCY = ("val/consistency", "val/consistency_roll")
OF_CLASSIFIERS = (*CONSISTENCY, "val/accuracy", "val/corruption_error")
CORRUPTIONS = ("val/corruption_psnr", "val/corruption_error", "val/corruption_relative")
# Their options of `genstab measure`, where those are called otherwise.
REALISM = ("val/perceptual", "val/kid", "val/kid_error", *(f"val/frechet_patches{e}" for e in ("", "_4", "_8", "_16")))
OPTIONS = {
    "shift_map": "map", "val/feature_distance": "features", **dict.fromkeys(CORRUPTIONS, "corruptions"),
    **dict.fromkeys(REALISM, "realism"),
}  # fmt: skip
OF_BOTH = ("val/feature_distance", "features", "images_per_second", "parameters", "seconds")
OF_TARGETS = (
    "val/l1", "val/psnr", "val/ssim", "val/tv_target", "tv_ratio", "val/spectrum_error", "val/swd", "val/fid",
    "val/lpips",
)  # fmt: skip

OFF = "Switched off"
NO_IMAGES = "Not for classifiers, whose outputs are not images"
ONLY_CLASSIFIERS = "For classifiers only"
IN_TRAINING = "Not measured in training, but by genstab measure"
NO_TARGETS = "Not measured without targets"
UNKNOWN = "Not measured"
NOTED = ""


def is_classifier(summary: Mapping[str, Any]) -> bool:
    """Return whether a summary is that of a classifier."""
    return any(number(summary.get(key)) is not None for key in (*CONSISTENCY, "val/accuracy"))


def missing_of(run: Run, columns: Sequence[Metric]) -> list[str]:
    """Return in words what a run lacks: notes of its measurement, what is – in the table, parts and files."""
    reasons: dict[str, list[str]] = {}
    subjects = {column.key: column.name for column in columns if column.of(run.summary) is None}
    subjects |= {part: what for part, what in PARTS.items() if not run.measurements.get(part)}
    slides = [name for name in (SLIDE_SOURCE, SLIDE_OUTPUT) if not (run.folder / name).is_file()]
    classifier = is_classifier(run.summary)
    for key, name in subjects.items():
        reason = _reason(run, key, classifier)
        if reason not in (NO_IMAGES, NOTED):
            reasons.setdefault(reason, []).append(name)
    if classifier:
        reasons[NO_IMAGES] = ["shift PSNR, quality, slider or flicker strip"]
    said = list(run.summary.get("notes") or ())
    said += [f"{reason}: {'; '.join(dict.fromkeys(names))}" for reason, names in reasons.items()]
    if not (run.folder / MEASUREMENTS).is_file():
        said.append(f"no {MEASUREMENTS}")
    if slides and not classifier:
        said.append(f"no {', no '.join(slides)}: no slider, no flicker strip")
    absent = [key for key in ("verdict", "config", "versions") if not run.summary.get(key)]
    if absent:
        said.append(f"{SUMMARY} has no {', no '.join(absent)}")
    return said


def _reason(run: Run, key: str, classifier: bool) -> str:
    of_errors = key == "corruptions" and bool(run.measurements.get("corruption_errors"))
    if classifier and (of_errors or key not in (*OF_CLASSIFIERS, *OF_BOTH, "corruptions")):
        return NO_IMAGES
    if not classifier and key in OF_CLASSIFIERS:
        return ONLY_CLASSIFIERS
    if _switched_off(run, key):
        return OFF
    metric = metrics().get(key)
    in_training = metric.in_training if metric else key not in ("features", "corruptions", "quality")
    if "trainer" in run.config and not in_training:
        return IN_TRAINING
    outputs, targets = (number(run.summary.get(measured)) for measured in ("val/tv", "val/tv_target"))
    if key in OF_TARGETS and outputs is not None and targets is None:
        return NO_TARGETS
    # A note of the measurement may give the reason already, as "features: not measured, …".
    noted = any(note.startswith(f"{_option(key)}: not measured") for note in run.summary.get("notes") or ())
    return NOTED if noted else UNKNOWN


def _option(key: str) -> str:
    """Return the protocol that a metric belongs to, or the option that switches it off."""
    found = (each.passes_of or name for name, each in protocols().items() if key in each.keys().values())
    return next(found, OPTIONS.get(key, key.removeprefix("val/")))


def _switched_off(run: Run, key: str) -> bool:
    option, wanted = _option(key), None
    if key == "val/corruption_relative" and "corruptions" in run.config:
        return run.option("corruptions.baseline") is None
    if option in ("map", "features", "corruptions"):
        return option in run.config and run.option(option) is None
    if option in ("noise_floor", "realism"):
        return run.option(option) is False
    if option in protocols():
        wanted = run.option("callbacks.stability.protocols") or run.option("protocols")
    elif option in ("fid", "lpips"):
        wanted = run.option("perceptual")
    return isinstance(wanted, list) and option not in wanted
