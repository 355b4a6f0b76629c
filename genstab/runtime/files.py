"""Atomic writes: a crash or a full disk while a file is written leaves the previous file as it was."""

import io
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.errors import InputError, reason
from genstab.runtime.lock import lock


class FailedWrites:
    """The files of one kind that could not be written: file → reason. The first failure is a warning.

    Callbacks, loggers and the checkpoint plugin keep one as their attribute `unwritten`; `unwritten_files` collects it.

    Args:
        kind: what is written, for the warning.
        consequence: how the program continues, for the warning.
    """

    def __init__(self, kind: str, consequence: str) -> None:
        self.kind, self.consequence, self.warned = kind, consequence, False
        self.files: dict[str, str] = {}

    @contextmanager
    def tolerate(self, path: str | Path) -> Iterator[None]:
        """Record an `OSError` and continue; forget an earlier one if the file could be written this time."""
        try:
            yield
        except OSError as error:
            self.record(path, error)
        else:
            self.files.pop(str(path), None)

    def record(self, path: str | Path, error: BaseException) -> None:
        """Remember that a file was not written; warn if it is the first one."""
        self.files[str(path)] = reason(error)
        if not self.warned:
            self.warned = True
            rank_zero_warn(f"{self.kind} {path} could not be written ({reason(error)}); {self.consequence}")


def unwritten_files(trainer: Trainer) -> dict[str, str]:
    """Return the files that this training run could not write: file → reason."""
    writers = [*trainer.callbacks, *trainer.loggers, trainer.strategy.checkpoint_io]  # type: ignore[attr-defined]
    kept = [each.unwritten for each in writers if isinstance(getattr(each, "unwritten", None), FailedWrites)]
    return {path: why for each in kept for path, why in each.files.items()}


def unwritten_lines(trainer: Trainer, folder: Path) -> list[str]:
    """Return one line for each file that was not written: its path, relative to the run folder, and the reason."""
    return [f"{path.removeprefix(f'{folder}{os.sep}')}: {why}" for path, why in unwritten_files(trainer).items()]


# The file that is being written, and then takes the place of the old one: a name that no other process has.
_PART = re.compile(r"\.[0-9a-f]{16}\.part")


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: whenever the program or the machine stops, `path` is the old file or the new one.

    Any number of processes may write the same file: the last one to finish wins. A link at `path` is replaced, not
    followed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, file = _new_part(path.parent)
    try:
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk does not say it
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)  # the new name must be on the disk, too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _new_part(folder: Path) -> tuple[Path, BinaryIO]:
    while True:
        part = folder / f".{secrets.token_hex(8)}.part"
        file = part.open("xb")  # O_EXCL: neither an existing file nor a link
        lock(file)
        if part.exists():  # `remove_parts` of another process may have come before the lock
            return part, file
        file.close()


def remove_parts(folder: str | Path) -> None:
    """Remove the unfinished files of `write_whole` that killed processes left in a folder."""
    with suppress(OSError):  # no such folder, or no permission: then nothing can be written, which will be said
        for part in Path(folder).iterdir():
            if _PART.fullmatch(part.name) and part.is_file() and not part.is_symlink():
                with suppress(OSError), part.open("r+b") as file:
                    if lock(file):
                        part.unlink(missing_ok=True)


@contextmanager
def writing(option: str, path: str | Path) -> Iterator[None]:
    """Raise an `InputError` that names the option and its file or folder if that cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{option}={path} cannot be written: {reason(error)}") from error


def check_folder(folder: str | Path, least: int = 0) -> None:
    """Make `output_dir` and raise an `InputError`, before any work is done, unless `least` bytes fit into it."""
    with writing("output_dir", folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        NamedTemporaryFile(dir=folder).close()
        for each in (folder, Path(folder, "checkpoints")):
            remove_parts(each)
        room = shutil.disk_usage(folder)
    if room.total > 0 and room.free < least:
        left, needed = (f"{size / 2**20:.1f} MiB" for size in (room.free, least))
        raise InputError(f"output_dir={folder}: {left} are free, but a checkpoint takes at least {needed}")


def write_picture(picture: Image.Image, path: str | Path, kind: str, **options: Any) -> None:
    """Write a picture atomically, in a format of Pillow that is given and not taken from the name."""
    encoded = io.BytesIO()  # Pillow's own error for a full disk gives no reason
    picture.save(encoded, kind, **options)
    write_whole(path, lambda file: file.write(encoded.getvalue()))


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's plugin for checkpoint files, but atomic and on the same disk.

    (Lightning writes to the system's temporary folder and moves the file, which copies it if that is another disk.)
    A checkpoint that cannot be written does not end the training: one warning says so, the previous one is kept, and
    `unwritten` holds its path until a later one succeeds.
    """

    def __init__(self) -> None:
        super().__init__()
        then = "an earlier one is kept, the training goes on, and the next one is tried again"
        self.unwritten = FailedWrites("checkpoint", then)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; keep the previous one if that fails."""
        with self.unwritten.tolerate(path):
            try:
                write_whole(path, lambda file: torch.save(checkpoint, file))
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # of which torch's writer makes an error of its own
                    raise error.__context__ from error
                raise


SUMMARY, MEASUREMENTS = "summary.json", "measurements.json"
DEEPEST = 64  # objects and lists within each other in a JSON file
SLIDE_SOURCE, SLIDE_OUTPUT = "slide_source.webp", "slide_output.webp"


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write plain types as JSON, atomically; NaN and infinity, which JSON does not have, become null."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"
    # names of files that are not valid UTF-8 become JSON escapes
    write_whole(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def parse_json(text: bytes) -> Any:
    """Parse JSON that others may have written; numbers that are not finite, or no float holds, become None.

    Raises:
        ValueError: it is no JSON, or nested so deeply that what reads it would run out of stack.

    >>> parse_json(b'{"a": [1, NaN, -Infinity, 1e999]}')
    {'a': [1, None, None, None]}
    """

    def integer(digits: str) -> int | None:
        return int(digits) if len(digits) < 300 else None

    try:
        content = json.loads(text, parse_int=integer)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} deep") from error
    level = [content]
    for _ in range(DEEPEST):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return _finite(content)
    raise ValueError(f"nested more than {DEEPEST} deep")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a file of `write_json`; raise an `InputError` if it cannot be read or is not a JSON object."""
    try:
        content = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"cannot read {path}: it holds a {type(content).__name__}, not an object of keys and values")
    return content
