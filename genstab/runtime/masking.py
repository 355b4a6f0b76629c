"""No text that leaves the program holds a secret: values of the environment that a config asks for stay names."""

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

SHORTEST = 4  # characters of a value that is masked: shorter ones are no secrets
_names: dict[str, str] = {}  # of each value to mask, in every way that it is written


def mask(value: str, name: str) -> None:
    """From now on write `name` for a value: in what goes to the terminal, and in what `masked` returns."""
    if len(value) < SHORTEST:
        return
    written = {value, repr(value)[1:-1], os.path.normpath(value) if os.sep in value else value}
    _names.update(dict.fromkeys(written, name))
    for stream in filter(None, (sys.stdout, sys.stderr)):
        _mask_stream(stream)


def masked(value: Any) -> Any:
    """Return a text, or the mappings and lists that hold texts, with names in place of the values of `mask`.

    >>> mask("hunter2-of-nobody", "${oc.env:TOKEN}")
    >>> masked({"skipped": ["cannot read hunter2-of-nobody/1.png"], "images": 2})
    {'skipped': ['cannot read ${oc.env:TOKEN}/1.png'], 'images': 2}
    """
    if isinstance(value, str):
        for each in sorted(_names, key=len, reverse=True):
            value = value.replace(each, _names[each])
        return value
    if isinstance(value, Mapping):
        return {key: masked(each) for key, each in value.items()}
    return [masked(each) for each in value] if isinstance(value, list | tuple) else value


def _mask_stream(stream: TextIO) -> None:
    """Let `print`, warnings, tracebacks and progress bars write masked text."""
    write = stream.write
    if getattr(write, "masks", False):
        return

    def write_masked(text: str) -> int:
        write(masked(text))
        return len(text)

    write_masked.masks = True  # type: ignore[attr-defined]
    stream.write = write_masked  # type: ignore[method-assign]
