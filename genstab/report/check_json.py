"""What the JSON files of a run may hold: what tables, charts and pages rely on, checked when they are read."""

from collections.abc import Mapping
from typing import Any

from genstab.metrics.measurements import number
from genstab.metrics.registry import metrics

GREATEST = 1e15
SHARES = ("val/accuracy", "val/consistency", "val/consistency_roll", "val/corruption_error", "val/constant_outputs")
SIGNED = ("val/ssim", "val/kid", "val/frechet_patches", *(f"val/frechet_patches_{stride}" for stride in (4, 8, 16)))
"""Metrics that may be below 0 by their definition or, as estimates without bias, by chance."""


def check_summary(summary: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first key of another type, or the first number that nothing can measure.

    Metrics that are no numbers are not measured.

    >>> check_summary({"val/accuracy": 1.5})
    Traceback (most recent call last):
    ...
    ValueError: val/accuracy is 1.5, not from 0 to 1
    """
    for key, metric in metrics().items():
        least = -GREATEST if metric.unit == "dB" or key in SIGNED else 0
        most = 1 if key in SHARES else GREATEST
        value = number(summary.get(key))
        if value is not None and not least <= value <= most:
            raise ValueError(f"{key} is {value:g}, not from {least:g} to {most:g}")
    for key in ("verdict", "notes"):
        _texts(summary.get(key), key)
    for key in ("config", "versions"):
        _object(summary.get(key), key)


def check_measurements(measurements: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the first part of `measurements.json` with another type, or another length.

    >>> check_measurements({"shift_map": {"decibels": [[20.0, 30.0, 20.0], [30.0, 30.0], []]}})
    Traceback (most recent call last):
    ...
    ValueError: shift_map.decibels[1] is not a list of 3
    """
    for protocol, part in _object(measurements.get("shift_psnr"), "shift_psnr").items():
        where = f"shift_psnr.{protocol}"
        shifts = _list(_object(part, where).get("shifts"), f"{where}.shifts")
        for i, shift in enumerate(shifts):
            if not shift or None in _numbers(shift, f"{where}.shifts[{i}]"):
                raise ValueError(f"{where}.shifts[{i}] is not a list of numbers")
        images = _texts(part.get("images"), f"{where}.images")
        rows = _list(part.get("decibels"), f"{where}.decibels", len(shifts))
        for i, row in enumerate(rows):
            _numbers(row, f"{where}.decibels[{i}]", len(images or rows[0] or ()))
        if part.get("pooled") is not None:
            _numbers(part["pooled"], f"{where}.pooled", len(shifts))
    if shift_map := _object(measurements.get("shift_map"), "shift_map"):
        _grid(shift_map.get("decibels"), "shift_map.decibels")
    features = _object(measurements.get("features"), "features")
    for layer, grid in _object(features.get("layers"), "features.layers").items():
        _grid(grid, f"features.layers.{layer}")
    if corruptions := _object(measurements.get("corruptions"), "corruptions"):
        severities = _numbers(corruptions.get("severities"), "corruptions.severities")
        for kind, row in _object(corruptions.get("decibels"), "corruptions.decibels").items():
            _numbers(row, f"corruptions.decibels.{kind}", len(severities))
        relative = _object(corruptions.get("relative"), "corruptions.relative")
        _numbers(list(relative.values()), "corruptions.relative")
    quality = dict(_object(measurements.get("quality"), "quality"))
    images = _texts(quality.pop("images", None), "quality.images")
    for key, values in quality.items():
        _numbers(values, f"quality.{key}", len(images))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping | None):
        raise ValueError(f"{where} is a {type(value).__name__}, not an object of keys and values")
    return value or {}


def _list(value: Any, where: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ValueError(f"{where} is not a list{'' if length is None else f' of {length}'}")
    return value


def _numbers(value: Any, where: str, length: int | None = None) -> list[float | None]:
    for each in _list(value, where, length):
        if each is not None and number(each) is None:
            raise ValueError(f"{where} holds {each!r:.40}, not a number")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list | None) or not all(isinstance(each, str) for each in value or ()):
        raise ValueError(f"{where} is not a list of texts")
    return value or []


def _grid(value: Any, where: str) -> None:
    side = len(_list(value, where))
    if side % 2 == 0:
        raise ValueError(f"{where} has {side} rows, and so none in the middle")
    for i, row in enumerate(value):
        _numbers(row, f"{where}[{i}]", side)
