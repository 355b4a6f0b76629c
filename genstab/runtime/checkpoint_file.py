"""Checkpoint files, read without running anything in them, and checked against their checksums."""

import pickle
import re
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter
from zipfile import ZipFile

import torch

from genstab.errors import InputError


def read_checkpoint(path: Path) -> Any:
    """Return what a file of `torch.save` holds, on the CPU, if it is weights and plain values: nothing is executed.

    Raises:
        InputError: there is no such file, it is damaged, or it holds other Python objects, which would run their code.
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
            simplefilter("ignore")  # on old or odd protocols of pickle, before it refuses them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes it raise anything
        unsafe = isinstance(error, pickle.UnpicklingError) and re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            reason = f"it holds Python objects ({unsafe[1]}), not weights alone; refused, nothing in it was run"
            raise InputError(f"{path} cannot be read as a checkpoint: {reason}; save a state_dict()") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged or holds more than weights; nothing in it was run"
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error


def check_archive(path: Path, kind: str = "a checkpoint") -> None:
    """Compare each part of an archive with its checksum, which torch does not; other files are left alone.

    Raises:
        InputError: some part is damaged, or the end is missing.

    >>> check_archive(Path(__file__))
    """
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # as a damaged one has it, NotImplementedError and zlib.error too
        damaged = str(error)
    if damaged:
        raise InputError(f"{path} cannot be read as {kind}: it is cut off or damaged ({damaged})")
