"""The files that a training or a measurement leaves for the report, and JSON that every program can read."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genstab.errors import InputError
from genstab.whole_files import write_whole

SUMMARY, MEASUREMENTS = "summary.json", "measurements.json"
SLIDE_SOURCE, SLIDE_OUTPUT = "slide_source.webp", "slide_output.webp"


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write plain types as JSON; NaN and infinity, which JSON has not, as null; a crash leaves no half of it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(f"{folder}/a.json", {"l1": 0.5, "psnr": [math.nan, 3.0]})
    ...     Path(folder, "a.json").read_text()
    '{\\n  "l1": 0.5,\\n  "psnr": [null, 3.0]\\n}\\n'
    """
    text = _compact(json.dumps(_finite(content), indent=2, ensure_ascii=False)) + "\n"
    # what is no UTF-8, in the name of a file perhaps, becomes an escape of JSON
    write_whole(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def _compact(text: str) -> str:
    """Put lists of numbers on one line, so that a person can read a map of hundreds of them."""
    lines: list[str] = []
    opened = False
    for line in text.split("\n"):
        bare = line.strip()
        plain = bare.rstrip(",") in ("null", "]") or bare[:1] in "-0123456789"
        if opened and plain:
            lines[-1] += bare if bare.startswith("]") or lines[-1].endswith("[") else f" {bare}"
        else:
            lines.append(line)
        opened = (opened and plain and not bare.startswith("]")) or bare.endswith("[")
    return "\n".join(lines)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        InputError: there is no such file, or it is no JSON object.
    """
    try:
        # JSON has no NaN, but Python writes and reads it.
        content = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"cannot read {path}: it holds a {type(content).__name__}, not an object of keys and values")
    return content
