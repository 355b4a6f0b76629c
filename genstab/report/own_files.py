"""What `genstab report` may replace: files that it wrote itself, which it knows by what is in them."""

from collections.abc import Mapping
from pathlib import Path

from genstab.errors import InputError
from genstab.runtime.files import writing

SOFTWARE = "genstab report"  # in the metadata of pictures
WRITTEN_BY_REPORT: dict[str, tuple[bytes, ...]] = {
    "output": (b'<meta name="generator" content="genstab', b"<footer><p>Written by genstab "),
    "table": (b"| option | runs |",),
    "plot": (SOFTWARE.encode(),),
    "film": (SOFTWARE.encode(),),
}
"""The options that name a file, and bytes that tell each kind of file from those of others."""


def check_replaceable(outputs: Mapping[str, str], overwrite: bool = False) -> None:
    """Raise an `InputError` for the first file of an option that others wrote, unless `overwrite`."""
    keys: dict[Path, str] = {}
    for key, name in outputs.items():
        path = Path(name)
        if (other := keys.setdefault(path.absolute(), key)) != key:
            raise InputError(f"{key}={name} is {other}, too: give each a file of its own")
        if overwrite or not path.is_file():
            continue
        with writing(key, name):
            content = path.read_bytes()
        if content and not any(mark in content for mark in WRITTEN_BY_REPORT[key]):
            raise InputError(
                f"{key}={name} exists and was not written by genstab report: name another file, or replace it with "
                "overwrite=true"
            )
