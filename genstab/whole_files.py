"""Checkpoint files that are always whole: a crash while one is written leaves the one before it as it was."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

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
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)  # the new name must be on the disk, too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to checkpoint files, but each is whole at any time, on the same disk, and streamed to it.

    (Lightning writes to the system's temporary folder and moves the file: on another disk that is a copy.) A file that
    cannot be written is no reason to lose the training: one warning says so, `problem` holds it, and the old one stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problem: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; keep the one before it where that fails."""
        try:
            write_whole(path, lambda file: torch.save(checkpoint, file))
        except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
            kept = "the one before it is kept" if Path(path).is_file() else "there is none"
            self.problem = f"checkpoint {path} could not be written ({' '.join(str(error).split())[:200]}); {kept}"
            rank_zero_warn(self.problem)
        else:
            self.problem = None
