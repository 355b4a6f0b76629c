"""What made the results in an output folder: a small file beside them, which several processes may add to."""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from genstab.errors import InputError, reason
from genstab.runtime.files import writing
from genstab.runtime.lock import lock

RECORD = "predict.jsonl"
Stamp = list[int]


@dataclass
class Record:
    """What a record says: the model and options, and for each image the stamp of its source, or None if unfinished.

    `values` is what `value_range=auto` took, so that later images get the same.
    """

    made_by: dict[str, Any] | None = None
    values: str = ""
    images: dict[str, Stamp | None] = field(default_factory=dict)

    def check(self, output: Path, made_by: Mapping[str, Any]) -> None:
        """Raise an `InputError` that says what differs, unless the results are of this model and these options."""
        if self.made_by in (None, made_by) or not any(self.images.values()):
            return  # a run that failed before its first result leaves nothing to mix with
        before, now = self.made_by or {}, made_by
        different = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
        said = ["of another model"] if "sha256" in different else []
        said += [f"{key}={before.get(key)}, not {now.get(key)}" for key in different if key != "sha256"]
        raise InputError(
            f"output={output} holds results {', '.join(said)}: overwrite=true replaces them, output=DIR names another "
            "folder"
        )


def stamp(path: Path) -> Stamp:
    """Return the size and the time of the last change of a file, by which a changed one is noticed."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return [state.st_size, state.st_mtime_ns]


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a module: its parts as it prints them, its weights and buffers.

    A program that was read from a file has none of them; it is the content of its file, its `sha256`.

    Raises:
        InputError: weights of a lazy module have no values yet.

    >>> first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> model_digest(first) == model_digest(second), model_digest(first) == model_digest(first)
    (False, True)
    """
    digest = hashlib.sha256()
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(model)).encode())
    digest.update(str(getattr(model, "sha256", "")).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(f"the network's {name} has no values before its first call: set model.checkpoint")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_record(output: Path) -> Record:
    """Read the record of an output folder; an empty one if there is none.

    Raises:
        InputError: it cannot be read, or is another file of that name.
    """
    if not os.path.lexists(output / RECORD):
        return Record()
    with _open(output, os.O_RDONLY) as file:
        return _parse(output, file)


@contextmanager
def recording(
    output: Path, made_by: Mapping[str, Any], images: Sequence[str], overwrite: bool
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Say in the record that images will be written, and yield a function that adds to it: that one was, say.

    Several processes with the same model and options may do so at a time. What a killed process did not finish has no
    stamp, and the next one does it again.

    Raises:
        InputError: the record is of another model or other options, unless `overwrite`; or another process with other
            ones is running; or the record cannot be written.
    """
    with writing("output", output):
        output.mkdir(parents=True, exist_ok=True)
    with _open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
        while not (alone := lock(file)) and not lock(file, shared=True):
            time.sleep(0.01)  # another process is just here
        record = _parse(output, file)
        unfinished: dict[str, Stamp | None] = dict.fromkeys(images)
        if record.made_by == made_by:
            _append(output, file, {"images": unfinished})
        else:
            if not overwrite:
                record.check(output, made_by)
            if not alone:
                raise InputError(
                    f"another genstab predict is writing to output={output}: wait for it to end, or name another folder"
                )
            os.truncate(file.fileno(), 0)
            # what others wrote is not made by this model
            _append(output, file, {"made_by": made_by, "images": {**dict.fromkeys(record.images), **unfinished}})
        os.fsync(file.fileno())
        lock(file, shared=True)

        yield partial(_append, output, file)


def _open(output: Path, flags: int) -> BinaryIO:
    path = output / RECORD
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise InputError(f"{path} is not a record of genstab predict: name another output folder")
    with writing("output", output):
        # nor through a link that is made meanwhile
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    return os.fdopen(descriptor, "rb" if flags == os.O_RDONLY else "a+b")


def _append(output: Path, file: BinaryIO, content: Mapping[str, Any]) -> None:
    """Append a line in one write, which the lines of other processes cannot get into."""
    with writing("output", output):
        file.write(b"\n" + json.dumps(content).encode())  # a line that was cut off ends here
        file.flush()


def _parse(output: Path, file: BinaryIO) -> Record:
    file.seek(0)
    record = Record()
    for line in file.read().splitlines():
        try:
            content = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            content = {}  # cut off when its process was killed
        if isinstance(content, dict) and isinstance(content.get("made_by"), dict):
            record.made_by = content["made_by"]
        if isinstance(content, dict) and isinstance(content.get("values"), str):
            record.values = content["values"]
        if isinstance(content, dict) and isinstance(content.get("images"), dict):
            record.images |= content["images"]
    if record.made_by is None and file.tell():
        raise InputError(f"{output / RECORD} is not a record of genstab predict: name another output folder")
    return record
