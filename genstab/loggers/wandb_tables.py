"""W&B tables of what was measured: per shift, per image, per corruption, per layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.loggers.lifecycle import outlived
from genstab.metrics.measurements import image_means, known, mean
from genstab.metrics.registry import metrics, protocols, quality_by_image

Rows = list[list[Any]]

PER_SHIFT = ("protocol", "motion", "dy", "dx", "mean dB", "worst dB", "pooled dB")
CORRUPTIONS = ("corruption", "severity", "dB")
FEATURES = ("layer", "dy", "dx", "distance")
MOST_ROWS = 10_000  # `wandb.Table` leaves out the rest without a word


def log_tables(logger: Logger, measurements: Mapping[str, Any], step: int) -> None:
    """Log what `measurements.json` holds as tables `per_shift`, `per_image`, `corruptions` and `features`, to W&B.

    A part that was not measured has no table; other loggers get none.
    """
    if not isinstance(logger, WandbLogger):
        return
    with outlived(logger):  # of all tables together: each would wait for a server that does not answer
        for key, (columns, rows) in tables(measurements).items():
            if len(rows) > MOST_ROWS:
                rank_zero_warn(f"W&B keeps {MOST_ROWS} of the {len(rows)} rows of {key}; measurements.json has all")
            if rows:
                logger.log_table(key, list(columns), rows, step=step)


def tables(measurements: Mapping[str, Any]) -> dict[str, tuple[Sequence[str], Rows]]:
    """Return the columns and the rows of each table by its log key."""
    return {
        "per_shift": (PER_SHIFT, per_shift_rows(measurements)),
        "per_image": (per_image_columns(), per_image_rows(measurements)),
        "corruptions": (CORRUPTIONS, corruption_rows(measurements)),
        "features": (FEATURES, feature_rows(measurements)),
    }


def per_shift_rows(measurements: Mapping[str, Any]) -> Rows:
    """Return mean, worst and pooled dB of each protocol and motion; dy and dx are None if it is no shift."""
    rows: Rows = []
    for protocol, part in (measurements.get("shift_psnr") or {}).items():
        pooled = part.get("pooled") or [None] * len(part["shifts"])
        for motion, decibels, together in zip(part["shifts"], part["decibels"], pooled, strict=True):
            values = known(decibels)
            dy, dx = motion if len(motion) == 2 else (None, None)
            rows.append([protocol, str(motion), dy, dx, mean(values), min(values, default=None), together])
    return rows


def per_image_columns() -> list[str]:
    """Return one set of columns whatever was measured, so that W&B can join the tables of several runs."""
    quality = [metric.key.removeprefix("val/") for metric in metrics().values() if metric.per_image]
    return ["image", *(f"{protocol} dB" for protocol in protocols()), *quality]


def per_image_rows(measurements: Mapping[str, Any]) -> Rows:
    """Return the mean dB over the shifts of each protocol and the quality of each image, see `per_image_columns`."""
    columns = {f"{name} dB": image_means(part) for name, part in (measurements.get("shift_psnr") or {}).items()}
    quality = quality_by_image(measurements).items()
    columns |= {metric.key.removeprefix("val/"): by_image for metric, by_image in quality}
    images = dict.fromkeys(image for by_image in columns.values() for image in by_image)
    headings = per_image_columns()[1:]
    return [[image, *(columns.get(key, {}).get(image) for key in headings)] for image in images]


def corruption_rows(measurements: Mapping[str, Any]) -> Rows:
    """Return the dB of each corruption and severity, in the columns of `CORRUPTIONS`."""
    part = measurements.get("corruptions") or {"severities": [], "decibels": {}}
    return [
        [kind, severity, value]
        for kind, decibels in part["decibels"].items()
        for severity, value in zip(part["severities"], decibels, strict=True)
    ]


def feature_rows(measurements: Mapping[str, Any]) -> Rows:
    """Return the feature distance of each layer and shift but zero, in the columns of `FEATURES`."""
    part = measurements.get("features") or {"reach": 0, "layers": {}}
    span = range(-part["reach"], part["reach"] + 1)
    return [
        [layer, dy, dx, distance]
        for layer, grid in part["layers"].items()
        for dy, row in zip(span, grid, strict=True)
        for dx, distance in zip(span, row, strict=True)
        if (dy, dx) != (0, 0)
    ]
