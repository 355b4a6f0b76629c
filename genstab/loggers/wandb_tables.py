"""W&B tables of what was measured: per shift, per image, per corruption, per layer."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.loggers.lifecycle import outlived
from genstab.metrics.measurements import image_means, known, mean
from genstab.metrics.registry import metrics, protocols, quality_by_image

Table = tuple[list[str], list[list[Any]]]

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
                logger.log_table(key, columns, rows, step=step)


def tables(measurements: Mapping[str, Any]) -> dict[str, Table]:
    """Return the columns and the rows of each table by its log key; what was not measured has no rows.

    >>> tables({"corruptions": {"severities": [1, 2], "decibels": {"noise": [30.0, 20.0]}}})["corruptions"]
    (['corruption', 'severity', 'dB'], [['noise', 1, 30.0], ['noise', 2, 20.0]])
    """
    shift_psnr, corruptions, features = (
        measurements.get(key) or {} for key in ("shift_psnr", "corruptions", "features")
    )
    by_severity = [
        [kind, severity, value]
        for kind, decibels in corruptions.get("decibels", {}).items()
        for severity, value in zip(corruptions["severities"], decibels, strict=True)
    ]
    reach = features.get("reach", 0)
    by_layer = [
        [layer, dy, dx, distance]
        for layer, grid in features.get("layers", {}).items()
        for dy, row in enumerate(grid, -reach)
        for dx, distance in enumerate(row, -reach)
        if (dy, dx) != (0, 0)
    ]
    return {
        "per_shift": _per_shift(shift_psnr),
        "per_image": _per_image(measurements, shift_psnr),
        "corruptions": (["corruption", "severity", "dB"], by_severity),
        "features": (["layer", "dy", "dx", "distance"], by_layer),
    }


def _per_shift(shift_psnr: Mapping[str, Any]) -> Table:
    rows = []
    for protocol, part in shift_psnr.items():
        pooled = part.get("pooled") or [None] * len(part["shifts"])
        for motion, decibels, together in zip(part["shifts"], part["decibels"], pooled, strict=True):
            dy, dx = motion if len(motion) == 2 else (None, None)  # an angle, a factor
            rows.append([protocol, str(motion), dy, dx, mean(decibels), min(known(decibels), default=None), together])
    return ["protocol", "motion", "dy", "dx", "mean dB", "worst dB", "pooled dB"], rows


def _per_image(measurements: Mapping[str, Any], shift_psnr: Mapping[str, Any]) -> Table:
    found = {f"{name} dB": image_means(part) for name, part in shift_psnr.items()}
    found |= {metric.key.removeprefix("val/"): values for metric, values in quality_by_image(measurements).items()}
    images = dict.fromkeys(image for values in found.values() for image in values)
    # one set of columns whatever was measured, so that W&B can join the tables of several runs
    columns = [f"{protocol} dB" for protocol in protocols()]
    columns += [metric.key.removeprefix("val/") for metric in metrics().values() if metric.per_image]
    return ["image", *columns], [[image, *(found.get(key, {}).get(image) for key in columns)] for image in images]
