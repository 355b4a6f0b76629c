"""Whose file it is: a command replaces none that it reads, and one of others only when it is told to."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from genstab.errors import InputError
from genstab.runtime.files import writing


def _nobodys(key: str, content: bytes) -> bool:
    return not content


def check_replaceable(
    outputs: Mapping[str, str | Path],
    overwrite: bool = False,
    reads: Iterable[str | Path] = (),
    own: Callable[[str, bytes], bool] = _nobodys,
) -> None:
    """Raise an `InputError` for the first file of an option that may not be written.

    Args:
        outputs: the file of each option.
        overwrite: whether files that are not `own` may be replaced.
        reads: the files that the command reads, which it never replaces.
        own: whether an existing file of an option, with its content, is one that the command itself wrote.
    """
    read = {Path(path).resolve() for path in reads}
    keys: dict[Path, str] = {}
    for key, name in outputs.items():
        path = Path(name).expanduser()
        if (other := keys.setdefault(path.resolve(), key)) != key:
            raise InputError(f"{key}={name} is {other}, too: give each a file of its own")
        if path.resolve() in read:
            raise InputError(f"{key}={name} is a file that this command reads: name another file")
        if overwrite or not path.is_file():
            continue
        with writing(key, name):
            content = path.read_bytes()
        if content and not own(key, content):
            raise InputError(f"{key}={name} exists already: name another file, or replace it with overwrite=true")
