"""A run folder belongs to one training: a second one is refused, at the same time and afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from genstab.errors import InputError

LOCK = ".lock"


def fresh(folder: str) -> str:
    """Make a new folder, `folder` or `folder`-2, `folder`-3, …, and return it: two runs may start in the same second.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as runs:
    ...     [Path(fresh(f"{runs}/10-00-00")).name for _ in range(3)]
    ['10-00-00', '10-00-00-2', '10-00-00-3']
    """
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
    """Check that a training does not overwrite another one.

    Args:
        folder: of the run.
        checkpoint: to resume from; one inside `folder` means the same training.
        signs: files, relative to `folder`, that a training leaves there.

    Raises:
        InputError: one of them exists, or another training is running there.
    """
    folder = Path(folder)
    if checkpoint is not None and folder.resolve() in checkpoint.resolve().parents:
        return
    found = next((sign for sign in signs if (folder / sign).exists()), None)
    if found is not None:
        with suppress(OSError), alone_in(folder):  # raises if it is still running
            pass
        raise InputError(
            f"{folder} already holds a training ({found}): go on with it by ckpt_path=last, or name another folder by "
            "hydra.run.dir or hydra.sweep.dir"
        )


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Lock a folder until this context or the process ends, however it ends.

    Without locks of the file system or the operating system, nothing is locked.

    Raises:
        InputError: another process has the lock.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _lock(file.fileno(), folder)
        yield


def _lock(descriptor: int, folder: str | Path) -> None:
    if os.name != "posix":
        return
    import fcntl

    try:
        # not flock: forked workers of a data loader would hold it for a while after the process was killed
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise InputError(f"another training runs in {folder}: wait for its end, or name another folder") from error
    except OSError:  # no locks here
        return
