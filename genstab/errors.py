"""The one error that bad input raises, and the checks that everything needs."""

import errno
from collections.abc import Collection

ON_ERROR = ("raise", "skip")  # the choices at an image that cannot be read

# Errors of the disk, not of the program: no space, no quota, a failing, missing or read-only disk, no permission.
DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENODEV, errno.ESTALE, errno.EROFS, errno.EACCES}
)


class InputError(ValueError):
    """Bad input: the message names the thing, its value and what is allowed, in one line.

    The command line prints it without a traceback; everything else that goes wrong is a defect and keeps its traceback.
    Names with line breaks or with a terminal's control characters in them appear with escapes.

    >>> from genstab.layers.filters import taps
    >>> taps("tri9")
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: filter='tri9' is not one of none, rect2, tri3, bin4, bin5, bin6, bin7, kaiser, ideal
    >>> print(InputError("cannot read two\\nlines.png"))
    cannot read two\\nlines.png
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if text.startswith("Caught ") and "\nOriginal Traceback" in text:  # torch, of an error in a loader's worker
            text = text.rstrip("\n").rpartition("\n")[2].partition(": ")[2]
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise an `InputError` that lists the choices unless `value` is one of them.

    >>> check_choice("direction", "AB", ("AtoB", "BtoA"))
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: direction='AB' is not one of AtoB, BtoA
    """
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def check_counts(least: int = 1, **counts: object) -> None:
    """Raise an `InputError` that names the first argument that is not an integer of at least `least`.

    >>> check_counts(channels=64, levels=0)
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: levels=0 is not an integer of at least 1
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise InputError(f"{name}={count} is not an integer of at least {least}")


def reason(error: BaseException) -> str:
    """Return the message of an error in one line, without the number and the file name of an `OSError`."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200] or type(error).__name__
