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
OF_BOTH = ("val/feature_distance", "features", "images_per_second", "parameters", "seconds")
OF_TARGETS = (
    "val/l1", "val/psnr", "val/ssim", "val/tv_target", "tv_ratio", "val/spectrum_error", "val/swd", "val/fid",
    "val/lpips",
)  # fmt: skip

OFF = "Switched off"
NO_IMAGES = "Not of classifiers, which draw no images"
ONLY_CLASSIFIERS = "Of classifiers alone"
IN_TRAINING = "Not measured in training, but by genstab measure"
NO_TARGETS = "Not measured without targets"
UNKNOWN = "Not measured"


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
        if reason != NO_IMAGES and not (reason == UNKNOWN and _noted(run, key)):
            reasons.setdefault(reason, []).append(name)
    if classifier:
        reasons[NO_IMAGES] = ["shift PSNR, quality, slider or flicker strip"]
    notes = list(run.summary.get("notes") or ())
    said = [f"{reason}: {'; '.join(dict.fromkeys(names))}" for reason, names in reasons.items()]
    if not (run.folder / MEASUREMENTS).is_file():
        said.append(f"no {MEASUREMENTS}")
    if slides and not classifier:
        said.append(f"no {', no '.join(slides)}: no slider, no flicker strip")
    absent = [key for key in ("verdict", "config", "versions") if not run.summary.get(key)]
    if absent:
        said.append(f"{SUMMARY} has no {', no '.join(absent)}")
    return [*notes, *said]


def _reason(run: Run, key: str, classifier: bool) -> str:
    if classifier:
        if key == "corruptions" and run.measurements.get("corruption_errors"):
            return NO_IMAGES
        if key not in (*OF_CLASSIFIERS, *OF_BOTH, "corruptions"):
            return NO_IMAGES
    elif key in OF_CLASSIFIERS:
        return ONLY_CLASSIFIERS
    if _switched_off(run.config, key):
        return OFF
    metric = metrics().get(key)
    if "trainer" in run.config and (
        key in ("features", "corruptions", "quality") or (metric and not metric.in_training)
    ):
        return IN_TRAINING
    if key in OF_TARGETS and number(run.summary.get("val/tv")) is not None:
        return NO_TARGETS
    return UNKNOWN


def _noted(run: Run, key: str) -> bool:
    """Whether a note of the measurement gives the reason already, as "features: not measured, …"."""
    part = key.removeprefix("val/").replace("feature_distance", "features").replace("shift_map", "map")
    part = "corruptions" if key in CORRUPTIONS else part
    part = next((name for name, protocol in protocols().items() if key in protocol.keys().values()), part)
    return any(note.partition(": not measured")[0] == part for note in run.summary.get("notes") or ())


def _switched_off(config: Mapping[str, Any], key: str) -> bool:
    """Whether an option says that something is not wanted."""
    callbacks = config.get("callbacks")
    stability = callbacks.get("stability") if isinstance(callbacks, Mapping) else None
    wanted = (stability if isinstance(stability, Mapping) else config).get("protocols")
    for name, protocol in protocols().items():
        if key in protocol.keys().values() and isinstance(wanted, list):
            return name not in wanted
    part = {"shift_map": "map", "val/feature_distance": "features"}.get(key, key)
    part = "corruptions" if key in CORRUPTIONS else part
    if part in ("map", "features", "corruptions") and part in config:
        options = config[part]
        baseline = options.get("baseline") if isinstance(options, Mapping) else None
        return options is None or (key == "val/corruption_relative" and baseline is None)
    if key in ("val/fid", "val/lpips") and isinstance(config.get("perceptual"), list):
        return key.removeprefix("val/") not in config["perceptual"]
    return key == "val/noise_floor" and config.get("noise_floor") is False
