"""Values and image names as `measurements.json` holds them."""

from collections import Counter
from collections.abc import Sequence


def known(values: Sequence[float | None]) -> list[float]:
    """Return the values that are numbers."""
    return [value for value in values if value is not None]


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
