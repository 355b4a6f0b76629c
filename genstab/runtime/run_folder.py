"""A run folder belongs to one training run or one measurement: others are refused, before anything is written."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

from genstab.errors import InputError
from genstab.runtime.lock import lock

LOCK = ".lock"  # it also says which kind of run the folder belongs to
MEASURED = (
    "measurements.json", "summary.json", "report.html", "samples.png", "shift_map.png", "features.png",
    "corruptions.png", "shift.gif", "slide_source.webp", "slide_output.webp",
)  # fmt: skip
"""What a measurement leaves in its folder; a second one there replaces all of it."""
NAMES = (*MEASURED, "checkpoints", "csv", ".hydra")
"""What the runs of both kinds replace in their folder."""
TRAINING, MEASUREMENT = "training run", "measurement"


def fresh(folder: str) -> str:
    """Make and return a new folder, `folder` or `folder`-2, `folder`-3, …: two runs may start in the same second."""
    for number in count(1):
        path = folder if number == 1 else f"{folder}-{number}"
        try:
            os.makedirs(path)
        except FileExistsError:
            continue
        except OSError:
            return folder  # `check_folder` says what is wrong with it
        return path
    raise AssertionError


def check_free(folder: str | Path, kind: str, checkpoint: Path | None = None, ended: Collection[Path] = ()) -> None:
    """Raise an `InputError` unless a run may write into a folder: what it would replace there is its own.

    That is a new folder, or one that holds nothing of a run's names. The file that `alone_in` leaves tells whose others
    are: a measurement replaces an earlier one, a training run one that left none of the files `ended` behind.

    Args:
        folder: of the run; whatever is in it stays as it is.
        kind: `TRAINING` or `MEASUREMENT`.
        checkpoint: what the training run resumes from; in its own folder it goes on.
        ended: files that tell a training run that is worth keeping.
    """
    folder = Path(folder)
    if (folder / LOCK).exists():
        with suppress(OSError), _locked(folder, "r+"):  # raises if a run is still writing there
            pass
    if checkpoint is not None and folder.resolve() in checkpoint.resolve().parents:
        return
    found = [str(name) for name in ended if (folder / name).exists()]
    held = [name for name in NAMES if (folder / name).exists()]
    mark = _mark(folder)
    if not held or (mark == kind and not found):
        return
    what = f"a {mark}" if mark in (TRAINING, MEASUREMENT) else f"{', '.join(held)} that may be of others"
    resumable = mark == kind == TRAINING
    if resumable:
        what += f" ({found[0]})"
    raise InputError(
        f"{folder} already holds {what}: {'resume it with ckpt_path=last, or ' if resumable else ''}choose another "
        "folder with hydra.run.dir or hydra.sweep.dir"
    )


def _mark(folder: Path) -> str:
    """Return the kind of the run that a folder belongs to; an empty text if none says so."""
    try:
        return (folder / LOCK).read_text()
    except (OSError, ValueError):
        return ""


@contextmanager
def alone_in(folder: str | Path, kind: str) -> Iterator[None]:
    """Lock a folder until this context or the process ends, however it ends, where the file system has locks.

    From then on the folder is marked as that of a run of this kind.

    Raises:
        InputError: another process has the lock.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, "a+") as file:
        file.truncate(0)
        file.write(kind)
        file.flush()
        yield


@contextmanager
def _locked(folder: Path, mode: str) -> Iterator[IO[str]]:
    with (folder / LOCK).open(mode) as file:
        if not lock(file):
            raise InputError(f"another run is writing into {folder}: wait for it to end, or choose another folder")
        yield file
