"""A run folder belongs to one training run or one measurement: others are refused, before anything is written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from genstab.errors import InputError
from genstab.runtime.lock import lock

LOCK = ".lock"
MEASURED = (
    "measurements.json", "summary.json", "report.html", "samples.png", "shift_map.png", "features.png",
    "corruptions.png", "shift.gif", "slide_source.webp", "slide_output.webp",
)  # fmt: skip
"""What a measurement leaves in its folder; a second one there replaces all of it."""


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


def check_unused(folder: str | Path, checkpoint: Path | None, signs: tuple[Path, ...]) -> None:
    """Raise an `InputError` if a training run is running in `folder`, or has left one of the files `signs` there.

    With a `checkpoint` inside `folder` it is the same training run, which may go on.
    """
    folder = Path(folder)
    if (folder / LOCK).exists():
        with suppress(OSError), alone_in(folder):  # raises if it is still running
            pass
    if checkpoint is not None and folder.resolve() in checkpoint.resolve().parents:
        return
    found = next((sign for sign in signs if (folder / sign).exists()), None)
    if found is not None:
        raise InputError(
            f"{folder} already holds a training run ({found}): resume it with ckpt_path=last, or choose another folder "
            "with hydra.run.dir or hydra.sweep.dir"
        )


def check_measurable(folder: str | Path) -> None:
    """Raise an `InputError` unless a measurement in `folder` replaces nothing but an earlier measurement."""
    folder = Path(folder)
    trained = any((folder / name).exists() for name in ("checkpoints", LOCK))
    with suppress(OSError, ValueError, TypeError, RecursionError):  # a training may keep no checkpoint
        trained |= "steps" in json.loads((folder / "summary.json").read_bytes())
    if trained:
        raise InputError(f"{folder} holds a training run: hydra.run.dir=DIR names a folder of its own")
    found = [name for name in MEASURED if (folder / name).exists()]
    if found and MEASURED[0] not in found:
        raise InputError(
            f"{folder} holds {', '.join(found)} that no measurement wrote ({MEASURED[0]} is missing): "
            "hydra.run.dir=DIR names a folder of its own"
        )


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Lock a folder until this context or the process ends, however it ends, where the file system has locks.

    Raises:
        InputError: another process has the lock.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not lock(file):
            raise InputError(
                f"another training run is running in {folder}: wait for it to end, or choose another folder"
            )
        yield
