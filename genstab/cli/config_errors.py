"""What the jobs of all commands share: errors of a composed config in one line, and no chatter."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

import torch
from hydra.errors import InstantiationException
from omegaconf import MissingMandatoryValue
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from genstab.errors import InputError
from genstab.runtime.files import DISK, reason


def quieten() -> None:
    """Leave out Lightning's hints about hardware and products that the user did not ask for."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file, our own line says
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run that goes on in place


@contextmanager
def input_errors() -> Iterator[None]:
    """Bring out the `InputError` that Hydra wraps when a constructor raises it, and make one of a disk's error."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from error.__cause__
            # An argument that a constructor does not have is a misspelt option.
            misspelt = isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause)
            late = isinstance(cause, ValueError) and "val_check_interval" in str(cause)  # known when the data are
            if misspelt or late or isinstance(cause, MisconfigurationException | MissingMandatoryValue):
                raise InputError(one_line(cause)) from error
            if isinstance(cause, OSError) and cause.errno in DISK:
                last = extract_tb(cause.__traceback__)[-1]
                where = cause.filename or f"{last.name} of {Path(last.filename).name}"
                raise InputError(f"{where}: {reason(cause)}") from error
            cause = cause.__cause__
        if isinstance(error, InstantiationException):
            root = _root(error)
            if isinstance(root, TypeError | ValueError | ImportError | MisconfigurationException):
                raise InputError(f"{_key(error)}: {one_line(root)}") from error
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            said = (str(error).strip().splitlines() or ["no more"])[0]
            raise InputError(f"out of memory: smaller batches or images need less ({said})") from error
        raise


def _root(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _root(error.__cause__)


def _key(error: InstantiationException) -> str:
    """Return the group of options of which something could not be made."""
    found = re.search(r"full_key: (\S+)", str(error))
    return found[1] if found else "an option"


def one_line(error: BaseException) -> str:
    """Return what an error of Hydra says, without its lists of paths and its hints, in one line."""
    message = re.split("Config search path:|full_key:|To append to your|See https://hydra", str(error))[0]
    return " ".join(message.split()) + (
        " (--help lists all options)" if message.startswith("Could not override") else ""
    )
