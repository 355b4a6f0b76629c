"""Reading checkpoint files without executing anything in them, and checking their checksums."""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter
from zipfile import ZipFile

import torch

from genstab.errors import InputError

# More kinds of objects than any training script leaves beside its weights.
_MOST_KINDS = 200


class StandIn:
    """An object of a checkpoint that is neither a tensor nor a plain value: it takes any arguments and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_weights(path: Path, notes: list[str] | None = None) -> Any:
    """Return what a file of `torch.save` holds, with a `StandIn` for each object that is no tensor and no plain value.

    Old checkpoints have an `argparse.Namespace`, numbers of NumPy or objects of the training script beside the weights.
    No code of theirs is imported or executed, and only what is beside them is read.

    Args:
        path: the file.
        notes: gets a line that names the kinds of objects that were left out.

    Raises:
        InputError: see `read_checkpoint`; also a file of such objects without any tensor.
    """
    _check(path)
    kinds: dict[str, type[StandIn]] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(kind, name) for name, kind in kinds.items()]):
                content = _load(path)
            break
        except InputError as error:
            kind = _refused_kind(error.__cause__)
            if not kind or kind in kinds or len(kinds) == _MOST_KINDS:
                raise
            kinds[kind] = type("StandIn", (StandIn,), {})
            refusal = error
    if kinds and not any(True for _ in tensors(content)):
        raise refusal
    if kinds and notes is not None:
        notes.append(
            f"{path.name}: {', '.join(kinds)} left out; only tensors and plain values are read, no code is run"
        )
    return content


def tensors(content: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors in nested dicts and lists, each with the keys that lead to it, as in `state_dict.weight`."""
    left, seen = [("", content)], set[int]()  # a hostile file may hold a list that holds itself
    while left:
        place, value = left.pop()
        if isinstance(value, torch.Tensor):
            yield place, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(f"{place}.{key}".lstrip("."), each) for key, each in items]


def read_checkpoint(path: Path) -> Any:
    """Return what a file of `torch.save` holds, on the CPU: weights and plain values; nothing in it is executed.

    Raises:
        InputError: the file does not exist, is damaged, or holds other Python objects, which could execute code.
    """
    _check(path)
    return _load(path)


def _check(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        head = file.read(2)
    if head != b"PK" and head[:1] != b"\x80":  # an archive, or pickle alone as before torch 1.6
        what = "not a file of torch.save" if head else "empty"
        raise InputError(f"{path} cannot be read as a checkpoint: it is {what}; nothing in it was run")
    check_archive(path)


def _load(path: Path) -> Any:
    try:
        with catch_warnings():
            simplefilter("ignore")  # about old protocols of pickle, before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any
        if kind := _refused_kind(error):
            reason = f"it holds Python objects ({kind}), not weights alone; refused, nothing in it was run; "
            reason += "save a state_dict()"
        elif isinstance(error, pickle.UnpicklingError):
            reason = "it is damaged or holds more than weights; nothing in it was run"
        else:
            reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error
    for key, value in tensors(content):
        kinds = {"nested": value.is_nested, "quantized": value.is_quantized, "meta": value.is_meta}
        kinds["sparse"] = value.layout != torch.strided and not value.is_nested
        for kind in (name for name, found in kinds.items() if found):
            raise InputError(f"{path} cannot be read as a checkpoint: {key} is a {kind} tensor: save a dense one")
    return content


def _refused_kind(error: BaseException | None) -> str:
    """Return the kind of object that `torch.load(weights_only=True)` refuses, from its message; else nothing."""
    found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return found[1] if found else ""


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
