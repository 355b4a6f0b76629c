"""Write pairs in folders to shards, and check them: the same folders give the same bytes."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from tqdm import tqdm

from genstab.data.image_io import decode_image, image_shape
from genstab.data.pairs import Pair, Wanted, find_pairs
from genstab.data.paths import listing, printable
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
        """Return a summary in one line.

        >>> Written({"train": 3}, {"train": 1}).summary("out")
        'out: 3 pairs for train in 1 shards'
        """
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
    if not (seed is None or isinstance(seed, int)):
        raise InputError(f"seed={seed!r} is not an integer")
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
        if output.parent.exists() and not output.parent.is_dir():
            raise InputError(f"output={output} cannot be written: {output.parent} is no folder")
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(mkdtemp(dir=output.parent, prefix=f".{output.name}."))
        try:
            written = _write(pairs, scratch, 1e6 * size, seed, check == "full", on_error == "skip")
            scratch.chmod(0o755)  # mkdtemp makes it private
            os.replace(scratch, output)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}") from error
    return written


@dataclass
class _Read:
    """The files of a pair by the end of their names; the pair, its (H, W) and its channels."""

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
        with _Writer(folder, split, most) as writer:
            bar = tqdm(_read(each, full), f"writing {split}", len(each), unit="pair", leave=False, disable=None)
            for read in bar:
                try:
                    if isinstance(read, InputError):
                        raise read
                    channels = channels or read.channels
                    if read.channels != channels:
                        raise InputError(
                            f"{read.pair.a}: A and B have {read.channels} channels, the pairs before have {channels}"
                        )
                except InputError as error:
                    if not skip:
                        raise
                    written.left_out.append(printable(str(error)))
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


def _read(pairs: Sequence[Pair], full: bool) -> Iterator[_Read | InputError]:
    """Read pairs in order, with a thread pool."""
    with ThreadPoolExecutor() as pool:
        waiting = iter(pairs)
        while some := list(islice(waiting, 32)):
            yield from pool.map(lambda pair: _read_one(pair, full), some)


def _read_one(pair: Pair, full: bool) -> _Read | InputError:
    try:
        shapes = [image_shape(path) for path in (pair.a, pair.b) if path is not None]
        channels = shapes[0][0], shapes[-1][0]
        size = Wanted(*channels).check(pair, shapes[0], None if pair.b is None else shapes[1])
        sides = {"ab": pair.a} if pair.b is None else {"a": pair.a, "b": pair.b}
        files = {}
        for side, path in sides.items():
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror}") from error
            if full:
                decode_image(data, str(path))
            files[f"{side}{path.suffix.lower()}"] = data
    except InputError as error:
        return error
    return _Read(pair, files, size, channels)


class _Writer:
    """Writes the shards of a split one after the other, and collects their entries for the index."""

    def __init__(self, folder: Path, split: str, most: float) -> None:
        self.folder, self.split, self.most = folder, split, most
        self.shards: list[dict[str, Any]] = []
        self.pairs = self.size = self.first = 0
        self.tar: Any = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
