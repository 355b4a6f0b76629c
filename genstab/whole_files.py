"""Files that are always whole: a crash, or a full disk, while one is written leaves the one before it as it was."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from PIL import Image

from genstab.errors import InputError
from genstab.surviving import Unwritten, reason

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
