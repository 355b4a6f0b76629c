"""A terminal or a log file that cannot be written any more is no reason to lose a training."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


@contextmanager
def spared_streams() -> Iterator[None]:
    """Leave out what `sys.stdout` and `sys.stderr` do not take: on a full disk, or where their reader ended.

    >>> with open("/dev/full", "w") as full:
    ...     before, sys.stdout = sys.stdout, full
    ...     with spared_streams():
    ...         print("lost", flush=True)
    ...     sys.stdout = before
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Spared(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _give_up(stream)


def _give_up(stream: TextIO) -> None:
    """Flush, or else leave out the rest: Python itself would end with code 120."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)


class _Spared:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()
