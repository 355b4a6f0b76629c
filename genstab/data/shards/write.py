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

from genstab.data.channels import is_convertible
from genstab.data.image_io import decode_image, image_shape
from genstab.data.pairs import Pair, Wanted, check_share, find_pairs, has_pairs, split_pairs
from genstab.data.paths import listing
from genstab.data.reading import Reading
from genstab.data.shards.cache import webdataset
from genstab.data.shards.format import INDEX, KIND, key_of
from genstab.errors import ON_ERROR, InputError, check_choice
from genstab.runtime.files import write_json

CHECKS = ("fast", "full")
ANY_TYPE = (0.0, 1.0)  # a range of values, without which only images of 8 and 16 bits are read; files stay as they are


@dataclass
class Written:
    """Number of pairs and shards of each split, the pairs left out and why, and a line if some are held out."""

    pairs: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    held: str = ""

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
    convert: bool = False,
    val_share: float = 0.1,
    val_seed: int = 0,
    max_megapixels: float | None = None,
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
        convert: pairs may have other channels than the first one, where `data.convert=true` can convert them.
        val_share: without a folder for validation, hold out this share of the training pairs; 0: training pairs alone.
        val_seed: another seed holds out other pairs.
        max_megapixels: the most pixels of an image, in millions; None: 179.

    Raises:
        InputError: there are no pairs, `output` is not empty or cannot be written, WebDataset is not installed, or a
            pair cannot be read or has other channels than the first one.
    """
    check_choice("check", check, CHECKS)
    check_choice("on_error", on_error, ON_ERROR)
    if not isinstance(size, int | float) or not size > 0:
        raise InputError(f"size={size} is not a positive number of megabytes")
    check_share(val_share, val_seed)
    reading = Reading(ANY_TYPE, max_megapixels=max_megapixels)
    output = Path(output)
    webdataset()
    try:
        pairs, held = _splits(root, val_share, val_seed)
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
            written = _write(pairs, folder, 1e6 * size, seed, check == "full", on_error == "skip", convert, reading)
            os.replace(folder, output)
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error}") from error
    written.held = held
    return written


def _splits(root: str | Path, val_share: float, val_seed: int) -> tuple[dict[str, list[Pair]], str]:
    """Return the pairs of each split that has some, and a line if some are held out."""
    if has_pairs(root, "val"):
        return {split: find_pairs(root, split) for split in ("train", "val")}, ""
    splits, said = split_pairs(root, val_share, val_seed) if val_share else ({"train": find_pairs(root, "train")}, "")
    return {split: pairs for split, pairs in splits.items() if pairs}, said


class _Read(NamedTuple):
    """A pair, its files by the end of their names, and the (H, W) and the channels of A and B."""

    pair: Pair
    files: dict[str, bytes]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    channels: tuple[int, int]


def _write(
    pairs: dict[str, list[Pair]],
    folder: Path,
    most: float,
    seed: int | None,
    full: bool,
    skip: bool,
    convert: bool,
    reading: Reading,
) -> Written:
    written, splits = Written(), {}
    channels: tuple[int, int] | None = None
    for split, each in pairs.items():
        if split == "train" and seed is not None:
            order = torch.randperm(len(each), generator=torch.Generator().manual_seed(seed)).tolist()
            each = [each[position] for position in order]
        sizes: set[tuple[tuple[int, int], tuple[int, int]]] = set()
        alike = True
        with closing(_Writer(folder, split, most)) as writer:
            bar = tqdm(each, f"writing {split}", unit="pair", leave=False, disable=None)
            for pair, future in zip(bar, _submitted(each, full, reading), strict=True):
                try:
                    read = future.result()
                    channels = channels or read.channels
                    if read.channels != channels:
                        if not (convert and all(map(is_convertible, read.channels, channels))):
                            raise InputError(
                                f"{pair.a}: A and B have {read.channels} channels, the pairs before have {channels}"
                                f"{_advice(read.channels, channels)}"
                            )
                        alike = False
                except InputError as error:
                    if not skip:
                        raise
                    written.left_out.append(str(error))
                    continue
                sizes.add(read.sizes)
                writer.add(read)
        if not sizes:
            raise InputError(f"none of the {len(each)} pairs for {split} can be read; {written.left_out[-1]}")
        images = {size for both in sizes for size in both}
        least = [min(numbers) for numbers in zip(*images, strict=True)]
        known = {
            "size": least if len(images) == 1 else None,
            "least": least,
            "channels": list(channels or ()) if alike else None,
            **({} if all(a == b for a, b in sizes) else {"same_size": False}),
        }
        splits[split] = {**known, "shards": writer.shards}
        written.pairs[split], written.shards[split] = writer.pairs, len(writer.shards)
    write_json(folder / INDEX, {"kind": KIND, "splits": splits})
    return written


def _advice(channels: tuple[int, int], wanted: tuple[int, int]) -> str:
    return " (convert=true keeps them, for data.convert=true)" if all(map(is_convertible, channels, wanted)) else ""


def _submitted(pairs: Sequence[Pair], full: bool, reading: Reading) -> Iterator[Future[_Read]]:
    """Read pairs in order with a thread pool, a few at a time: together they would fill the memory."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pairs), 32):
            yield from [pool.submit(_read, pair, full, reading) for pair in pairs[start : start + 32]]


def _read(pair: Pair, full: bool, reading: Reading) -> _Read:
    shapes = [image_shape(path, reading) for path in (pair.a, pair.b) if path is not None]
    channels = shapes[0][0], shapes[-1][0]
    sizes = Wanted(*channels, same_size=False).check(pair, shapes[0], None if pair.b is None else shapes[1])
    files = {}
    for side, path in {"ab": pair.a}.items() if pair.b is None else {"a": pair.a, "b": pair.b}.items():
        files[f"{side}{path.suffix.lower()}"] = data = path.read_bytes()
        if full:
            decode_image(data, str(path), reading)
    return _Read(pair, files, sizes, channels)


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
