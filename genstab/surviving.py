"""What a training can do without: what cannot be written is one warning a kind, and is named at the end."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

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
