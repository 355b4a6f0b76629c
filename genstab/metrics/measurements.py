"""Values and image names as `summary.json` and `measurements.json` hold them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def number(value: object) -> float | None:
    """Return a finite number as it is, anything else as None.

    >>> number(3), number(None), number(float("nan")), number(True), number("3")
    (3, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


SAME = 0.01  # share of the value range, 2.6 grey levels: what differs less is the same


def is_constant(summary: Mapping[str, Any]) -> bool:
    """Return whether a model draws the same picture for every input, or flat ones, or always answers with one class.

    Any number of it is worthless.

    >>> is_constant({"val/output_spread": 0.0, "val/output_std": 0.2}), is_constant({"val/l1": 0.1})
    (True, False)
    """
    values = [number(summary.get(key)) for key in ("val/output_spread", "val/output_std")]
    return any(value is not None and value < SAME for value in values)


def known(values: Sequence[float | None]) -> list[float]:
    """Return the values that are numbers."""
    return [value for value in values if value is not None]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are numbers, None where there is none."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def unique(names: Sequence[str]) -> list[str]:
    """Number the names that come again, so that no two images share one.

    >>> unique(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def image_means(part: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the mean dB over the shifts of each image of a protocol's measurements.

    >>> image_means({"images": ["a", "b"], "decibels": [[20.0, 30.0], [22.0, None]]})
    {'a': 21.0, 'b': 30.0}
    """
    columns = zip(*part["decibels"], strict=True)
    return {image: mean(column) for image, column in zip(unique(part.get("images") or ()), columns, strict=False)}
