"""Write pairs in folders to shards, and check them: the same folders give the same bytes."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from genstab.data.channels import is_convertible
from genstab.data.header_notes import HeaderNotes
from genstab.data.image_io import ImageInfo, image_info, read_image
from genstab.data.pairs import Pair, Wanted, check_share, find_pairs, has_pairs, split_pairs
from genstab.data.paths import listing
from genstab.data.reading import AS_STORED, Reading
from genstab.data.shards.cache import webdataset
from genstab.data.shards.format import INDEX, KIND, key_of
from genstab.errors import ON_ERROR, InputError, check_choice
from genstab.runtime.files import write_json

CHECKS = ("fast", "full")
ANY_TYPE = (0.0, 1.0)  # a range of values, without which only images of 8 and 16 bits are read; files stay as they are


@dataclass
class Written:
    """Number of pairs and shards of each split, the pairs left out and why, a line if some are held out, and notes."""

    pairs: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    held: str = ""
    notes: list[str] = field(default_factory=list)

    def summary(self, output: str | Path) -> str:
        """Return a summary in one line."""
        each = [
            f"{number} pair{'s' * (number != 1)} for {split} in {shards} shard{'s' * (shards != 1)}"
            for (split, number), shards in zip(self.pairs.items(), self.shards.values(), strict=True)
        ]
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
            read = partial(_read, full=check == "full", reading=reading)
            written = _write(pairs, folder, 1e6 * size, seed, read, on_error == "skip", convert)
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
    """A pair, its headers, files by the end of their names in a shard, the (H, W) and the channels of A and B."""

    pair: Pair
    headers: list[ImageInfo]
    files: dict[str, Path]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    channels: tuple[int, int]


def _read(pair: Pair, full: bool, reading: Reading) -> _Read | InputError:
    """Check the files of a pair: their headers, or if `full` all of them."""
    sides = {"ab": pair.a} if pair.b is None else {"a": pair.a, "b": pair.b}
    try:
        headers = [image_info(path, reading) for path in sides.values()]
        shapes = [header.shape for header in headers]
        channels = shapes[0][0], shapes[-1][0]
        sizes = Wanted(*channels, same_size=False).check(pair, shapes[0], None if pair.b is None else shapes[1])
        for path in sides.values() if full else ():
            read_image(path, reading)
    except InputError as error:
        return error
    files = {f"{side}{path.suffix.lower()}": path for side, path in sides.items()}
    return _Read(pair, headers, files, sizes, channels)


def _write(
    pairs: dict[str, list[Pair]],
    folder: Path,
    most: float,
    seed: int | None,
    read: Callable[[Pair], _Read | InputError],
    skip: bool,
    convert: bool,
) -> Written:
    written = Written()
    splits: dict[str, dict[str, Any]] = {}
    channels: tuple[int, int] | None = None
    notes = HeaderNotes(AS_STORED, AS_STORED)
    for split, each in pairs.items():
        if split == "train" and seed is not None:
            order = torch.randperm(len(each), generator=torch.Generator().manual_seed(seed)).tolist()
            each = [each[position] for position in order]
        good: list[_Read] = []
        with ThreadPoolExecutor() as pool:
            for found in tqdm(pool.map(read, each), f"reading {split}", len(each), leave=False, disable=None):
                if isinstance(found, _Read):
                    channels = channels or found.channels
                    found = _fitting(found, channels, convert)
                if isinstance(found, _Read):
                    good.append(found)
                    notes.see(found.pair.a, *found.headers)
                elif skip:
                    written.left_out.append(str(found))
                else:
                    raise found
        if not good:
            raise InputError(f"none of the {len(each)} pairs for {split} can be read; {written.left_out[-1]}")
        images = {size for pair in good for size in pair.sizes}
        least = [min(numbers) for numbers in zip(*images, strict=True)]
        shards = tqdm(list(_grouped(good, most)), f"writing {split}", unit="shard", leave=False, disable=None)
        splits[split] = {
            "size": least if len(images) == 1 else None,
            "least": least,
            "channels": list(channels or ()) if all(pair.channels == channels for pair in good) else None,
            **({} if all(a == b for a, b in (pair.sizes for pair in good)) else {"same_size": False}),
            "shards": [_shard(folder / f"{split}-{number:06d}.tar", shard) for number, shard in enumerate(shards)],
        }
        written.pairs[split], written.shards[split] = len(good), len(splits[split]["shards"])
    write_json(folder / INDEX, {"kind": KIND, "splits": splits})
    written.notes = notes.lines()
    return written


def _fitting(found: _Read, wanted: tuple[int, int], convert: bool) -> _Read | InputError:
    """Return a pair, or an error if its channels differ from those of the first pair and are not converted later."""
    convertible = all(map(is_convertible, found.channels, wanted))
    if found.channels == wanted or (convert and convertible):
        return found
    advice = " (convert=true keeps them, for data.convert=true)" if convertible else ""
    return InputError(f"{found.pair.a}: A and B have {found.channels} channels, the pairs before have {wanted}{advice}")


def _grouped(pairs: Sequence[_Read], most: float) -> Iterator[list[_Read]]:
    """Group pairs to shards of at most so many bytes; a larger pair gets one of its own."""
    shard: list[_Read] = []
    size = 0
    for pair in pairs:
        # a header, and the content in blocks of 512
        more = sum(512 + -(-path.stat().st_size // 512) * 512 for path in pair.files.values())
        if shard and size + more > most:
            yield shard
            shard, size = [], 0
        shard.append(pair)
        size += more
    yield shard


def _shard(path: Path, pairs: Sequence[_Read]) -> dict[str, Any]:
    """Write a shard, and return its entry for the index."""
    # No times or owners, so that the bytes do not change; pax allows names of any length and alphabet.
    options: dict[str, Any] = {"mtime": 0, "user": "", "group": "", "format": "PAX_FORMAT"}
    with path.open("w+b") as file:
        with webdataset().TarWriter(file, encoder=False, **options) as tar:
            for pair in pairs:
                files = {end: each.read_bytes() for end, each in pair.files.items()}
                tar.write({"__key__": key_of(pair.pair.name), **files})
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "pairs": len(pairs), "bytes": size, "sha256": digest}
