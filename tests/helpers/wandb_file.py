"""Read back what a W&B run wrote to its `.wandb` file: a LevelDB log of protobuf records."""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK = 32768
HEADER = struct.Struct("<IHB")  # checksum, length, kind: 1 whole, 2 first, 3 middle, 4 last


def _records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    data = path.read_bytes()
    assert data[:4] == b":W&B", f"{path} is not a .wandb file"
    position = 7
    payload = b""
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:  # the rest of a block is padding
            position += left
            continue
        _, length, kind = HEADER.unpack_from(data, position)
        position += HEADER.size
        payload += data[position : position + length]
        position += length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(payload)
            payload = b""


def _update(target: dict[str, Any], items: Iterable[Any]) -> dict[str, Any]:
    for item in items:
        *parents, key = list(item.nested_key) or [item.key]
        inner = target
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[key] = json.loads(item.value_json)
    return target


def finish() -> None:
    """End the open run and wait for its whole file: on a busy machine, `run.finish` returns too early."""
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


def run_file(save_dir: Path) -> Path:
    """Return the only `.wandb` file under a folder."""
    (path,) = save_dir.glob("wandb/*run-*/*.wandb")
    return path


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return what each call of `run.log` wrote, in order."""
    return [_update({}, record.history.item) for record in _records(path) if record.HasField("history")]


def read_summary(path: Path) -> dict[str, Any]:
    """Return the summary at the end of the run."""
    summary: dict[str, Any] = {}
    for record in _records(path):
        if record.HasField("run"):
            _update(summary, record.run.summary.update)
        if record.HasField("summary"):
            _update(summary, record.summary.update)
    return summary


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration at the end of the run."""
    config: dict[str, Any] = {}
    for record in _records(path):
        if record.HasField("run"):
            _update(config, record.run.config.update)
        if record.HasField("config"):
            _update(config, record.config.update)
    return config
