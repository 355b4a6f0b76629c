"""Write pairs in folders to shards, and check them: the same folders give the same bytes."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from genstab.data.image_io import decode_image, image_shape
from genstab.data.pairs import Pair, Wanted, find_pairs
from genstab.data.paths import listing
from genstab.data.shards.cache import webdataset
from genstab.data.shards.format import INDEX, KIND, key_of
from genstab.errors import ON_ERROR, InputError, check_choice
from genstab.runtime.files import write_json

CHECKS = ("fast", "full")


@dataclass
class Written:
    """Number of pairs and shards of each split, and the pairs left out, with the reason."""

    pairs: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def summary(self, output: str | Path) -> str:
        """Return a summary in one line."""
        each = [f"{number} pairs for {split} in {self.shards[split]} shards" for split, number in self.pairs.items()]
        return f"{output}: {', '.join(each)}" + (f"; {len(self.left_out)} left out" if self.left_out else "")


def write_shards(
    root: str | Path,
    output: str | Path,
    size: float = 256.0,
    seed: int | None = 1,
    check: str = "full",
    on_error: str = "raise",
) -> Written:
    """Write the pairs in a folder to shards with an index; `output` appears when everything is written.

    The files are stored unchanged. Training pairs are shuffled, so that each shard is a sample of the whole dataset;
    validation pairs stay in the order of their names.

    Args:
        root: folder with training and validation pairs, see `genstab.data.pairs.find_pairs`.
        output: a new or an empty folder.
        size: largest size of a shard in megabytes; a larger pair gets a shard of its own.
        seed: seed of the random order; None keeps the order of the names.
        check: `full` decodes every image, `fast` reads its header.
        on_error: if a pair cannot be read or does not fit, `raise` an error or `skip` the pair.

    Raises:
        InputError: there are no pairs, `output` is not empty or cannot be written, WebDataset is not installed, or a
            pair cannot be read or has other channels than the first one.
    """
    check_choice("check", check, CHECKS)
    check_choice("on_error", on_error, ON_ERROR)
    if not isinstance(size, int | float) or not size > 0:
        raise InputError(f"size={size} is not a positive number of megabytes")
    output = Path(output)
    webdataset()
    try:
        pairs = {split: find_pairs(root, split) for split in ("train", "val")}
    except InputError as error:
        raise InputError(str(error).replace("data.root=", "input=")) from error
    try:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            holds = f"holds {listing(output)}" if output.is_dir() else "is a file"
            raise InputError(f"output={output} {holds}: name a new folder")
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
            folder = Path(scratch, "shards")  # a temporary folder is private
            folder.mkdir()
            written = _write(pairs, folder, 1e6 * size, seed, check == "full", on_error == "skip")
            os.replace(folder, output)
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error}") from error
    return written


class _Read(NamedTuple):
    """A pair, its files by the end of their names, its (H, W), and the channels of A and B."""

    pair: Pair
    files: dict[str, bytes]
    size: tuple[int, int]
    channels: tuple[int, int]


def _write(
    pairs: dict[str, list[Pair]], folder: Path, most: float, seed: int | None, full: bool, skip: bool
) -> Written:
    written, splits = Written(), {}
    channels: tuple[int, int] | None = None
    for split, each in pairs.items():
        if split == "train" and seed is not None:
            order = torch.randperm(len(each), generator=torch.Generator().manual_seed(seed)).tolist()
            each = [each[position] for position in order]
        sizes: set[tuple[int, int]] = set()
        with closing(_Writer(folder, split, most)) as writer:
            bar = tqdm(each, f"writing {split}", unit="pair", leave=False, disable=None)
            for pair, reading in zip(bar, _submitted(each, full), strict=True):
                try:
                    read = reading.result()
                    channels = channels or read.channels
                    if read.channels != channels:
                        raise InputError(
                            f"{pair.a}: A and B have {read.channels} channels, the pairs before have {channels}"
                        )
                except InputError as error:
                    if not skip:
                        raise
                    written.left_out.append(str(error))
                    continue
                sizes.add(read.size)
                writer.add(read)
        if not sizes:
            raise InputError(f"none of the {len(each)} pairs for {split} can be read; {written.left_out[-1]}")
        least = [min(numbers) for numbers in zip(*sizes, strict=True)]
        known = {"size": least if len(sizes) == 1 else None, "least": least, "channels": list(channels or ())}
        splits[split] = {**known, "shards": writer.shards}
        written.pairs[split], written.shards[split] = writer.pairs, len(writer.shards)
    write_json(folder / INDEX, {"kind": KIND, "splits": splits})
    return written


def _submitted(pairs: Sequence[Pair], full: bool) -> Iterator[Future[_Read]]:
    """Read pairs in order with a thread pool, a few at a time: together they would fill the memory."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pairs), 32):
            yield from [pool.submit(_read, pair, full) for pair in pairs[start : start + 32]]


def _read(pair: Pair, full: bool) -> _Read:
    shapes = [image_shape(path) for path in (pair.a, pair.b) if path is not None]
    channels = shapes[0][0], shapes[-1][0]
    size = Wanted(*channels).check(pair, shapes[0], None if pair.b is None else shapes[1])
    files = {}
    for side, path in {"ab": pair.a}.items() if pair.b is None else {"a": pair.a, "b": pair.b}.items():
        files[f"{side}{path.suffix.lower()}"] = data = path.read_bytes()
        if full:
            decode_image(data, str(path))
    return _Read(pair, files, size, channels)


class _Writer:
    """Writes the shards of a split one after the other, and collects their entries for the index."""

    def __init__(self, folder: Path, split: str, most: float) -> None:
        self.folder, self.split, self.most = folder, split, most
        self.shards: list[dict[str, Any]] = []
        self.pairs = self.size = self.first = 0
        self.tar: Any = None

    def add(self, read: _Read) -> None:
        """Add a pair, to a new shard if it does not fit into the current one."""
        size = sum(512 + -(-len(data) // 512) * 512 for data in read.files.values())
        if self.tar is not None and self.size + size > self.most:
            self.close()
        if self.tar is None:
            self.size, self.first = 0, self.pairs
            self.file = (self.folder / f"{self.split}-{len(self.shards):06d}.tar").open("wb")
            # No times or owners, so that the bytes do not change; pax allows names of any length and alphabet.
            options: dict[str, Any] = {"mtime": 0, "user": "", "group": "", "format": "PAX_FORMAT"}
            self.tar = webdataset().TarWriter(self.file, encoder=False, **options)
        self.tar.write({"__key__": key_of(read.pair.name), **read.files})
        self.size, self.pairs = self.size + size, self.pairs + 1

    def close(self) -> None:
        """Finish the current shard."""
        if self.tar is None:
            return
        self.tar.close()
        self.tar = None
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        path = Path(self.file.name)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        shard = {"name": path.name, "pairs": self.pairs - self.first, "bytes": path.stat().st_size, "sha256": digest}
        self.shards.append(shard)
