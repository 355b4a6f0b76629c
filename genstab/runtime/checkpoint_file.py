"""Reading checkpoint files without executing anything in them, and checking their checksums."""

import pickle
import re
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter
from zipfile import ZipFile

import torch

from genstab.errors import InputError


def read_checkpoint(path: Path) -> Any:
    """Return what a file of `torch.save` holds, on the CPU: weights and plain values; nothing in it is executed.

    Raises:
        InputError: the file does not exist, is damaged, or holds other Python objects, which could execute code.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        head = file.read(2)
    if head != b"PK" and head[:1] != b"\x80":  # an archive, or pickle alone as before torch 1.6
        what = "not a file of torch.save" if head else "empty"
        raise InputError(f"{path} cannot be read as a checkpoint: it is {what}; nothing in it was run")
    check_archive(path)
    try:
        with catch_warnings():
            simplefilter("ignore")  # about old protocols of pickle, before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any
        unsafe = isinstance(error, pickle.UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            reason = f"it holds Python objects ({unsafe[1]}), not weights alone; refused, nothing in it was run"
            raise InputError(f"{path} cannot be read as a checkpoint: {reason}; save a state_dict()") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged or holds more than weights; nothing in it was run"
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error


def check_archive(path: Path, kind: str = "a checkpoint") -> None:
    """Raise an `InputError` unless the checksums of a zip archive match, which torch does not check."""
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # zlib.error and NotImplementedError too
        damaged = str(error)
    if damaged:
        raise InputError(f"{path} cannot be read as {kind}: it is cut off or damaged ({damaged})")
