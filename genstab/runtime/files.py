"""Files that are always whole: a crash, or a full disk, while one is written leaves the one before it as it was."""

import errno
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.errors import InputError

# The world's fault and nobody's defect: no space, no quota, a failing, missing or read-only disk, no permission.
DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENODEV, errno.ESTALE, errno.EROFS, errno.EACCES}
)


class Unwritten:
    """What of one kind could not be written, and why: file → reason. There is one warning, whatever follows it.

    Whoever writes something has one as its attribute `unwritten`, and `unwritten_of` collects them.

    Args:
        kind: what is written, for the warning.
        then: how it goes on, likewise.

    >>> import warnings
    >>> pictures = Unwritten("picture", "the training goes on without it")
    >>> with warnings.catch_warnings(record=True) as warned:
    ...     warnings.simplefilter("always")
    ...     for name in ("a.png", "b.png"):
    ...         with pictures.spare(name):
    ...             raise OSError(errno.ENOSPC, "No space left on device")
    >>> [str(warning.message) for warning in warned]
    ['picture a.png could not be written (No space left on device); the training goes on without it']
    >>> pictures.files
    {'a.png': 'No space left on device', 'b.png': 'No space left on device'}
    """

    def __init__(self, kind: str, then: str) -> None:
        self.kind, self.then, self.said = kind, then, False
        self.files: dict[str, str] = {}

    @contextmanager
    def spare(self, path: str | Path) -> Iterator[None]:
        """Go on after an `OSError` in here; what is written in the end is not missing any more."""
        try:
            yield
        except OSError as error:
            self.note(path, error)
        else:
            self.files.pop(str(path), None)

    def note(self, path: str | Path, error: BaseException, then: str | None = None) -> None:
        """Remember that something was not written; warn if it is the first of its kind."""
        self.files[str(path)] = reason(error)
        if not self.said:
            self.said = True
            rank_zero_warn(f"{self.kind} {path} could not be written ({reason(error)}); {then or self.then}")


def reason(error: BaseException) -> str:
    """Return in one line what an error says: of the system's own its words, without the number and the file.

    >>> reason(OSError(errno.ENOSPC, "No space left on device", "a.png"))
    'No space left on device'
    """
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200] or type(error).__name__


def unwritten_of(trainer: Trainer) -> dict[str, str]:
    """Return what this training could not write: file → reason.

    >>> unwritten_of(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))
    {}
    """
    writers = [*trainer.callbacks, *trainer.loggers, trainer.strategy.checkpoint_io]  # type: ignore[attr-defined]
    kept = [each.unwritten for each in writers if isinstance(getattr(each, "unwritten", None), Unwritten)]
    return {path: why for each in kept for path, why in each.files.items()}


def named(unwritten: dict[str, str], folder: Path) -> list[str]:
    """Return each file, relative to the run's folder where it lies in there, with its reason.

    >>> named({"run/a.png": "No space left on device"}, Path("run"))
    ['a.png: No space left on device']
    """
    base = str(folder) + os.sep
    return [f"{path.removeprefix(base)}: {why}" for path, why in unwritten.items()]


# What stands beside a file while its next version is written.
PART = ".part"


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that takes the place of `path` once it is on the disk; until then nobody sees it.

    Whenever the program or the machine stops, `path` is the old file or the new one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for text in (b"old", b"new"):
    ...         write_whole(f"{folder}/a", lambda file: file.write(text))
    ...     Path(folder, "a").read_bytes(), [found.name for found in Path(folder).iterdir()]
    (b'new', ['a'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    try:
        with part.open("wb") as file:
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


def check_folder(folder: str | Path, least: int = 0) -> None:
    """Make the folder of a run, and see whether it takes a file, before there is anything to lose.

    Args:
        folder: as `output_dir` names it.
        least: bytes that there must be room for.

    Raises:
        InputError: it cannot be made or written, or has no room.

    >>> check_folder("/dev/null/a")
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: output_dir=/dev/null/a cannot be written: Not a directory
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        NamedTemporaryFile(dir=folder).close()
        room = shutil.disk_usage(folder)
    except OSError as error:
        raise InputError(f"output_dir={folder} cannot be written: {reason(error)}") from error
    if room.total > 0 and room.free < least:
        left, needed = (f"{size / 2**20:.1f} MiB" for size in (room.free, least))
        raise InputError(f"output_dir={folder}: {left} are free, and a checkpoint takes {needed} at least")


def write_picture(picture: Image.Image, path: str | Path, kind: str, **options: Any) -> None:
    """Write a picture in a format of Pillow's as `write_whole` does; it does not take the format from the name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_picture(Image.new("L", (2, 1)), f"{folder}/a", "PNG")
    ...     Path(folder, "a").read_bytes()[1:4]
    b'PNG'
    """
    encoded = io.BytesIO()  # for a full disk Pillow has an error of its own, without a reason
    picture.save(encoded, kind, **options)
    write_whole(path, lambda file: file.write(encoded.getvalue()))


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to checkpoint files, but each is whole at any time, on the same disk, and streamed to it.

    (Lightning writes to the system's temporary folder and moves the file: on another disk that is a copy.) A file that
    cannot be written is no reason to lose the training: one warning says so, `unwritten` has it until a later one is
    written, and the old one stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unwritten = Unwritten("checkpoint", "")

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; keep the one before it where that fails."""
        try:
            write_whole(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:
            # torch's writer answers to a full disk with an error of its own
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            kept = "the one before it is kept" if Path(path).is_file() else "there is none yet"
            self.unwritten.note(path, cause, f"{kept}, the training goes on, and the next one is tried again")
        else:
            self.unwritten.files.pop(str(path), None)


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
