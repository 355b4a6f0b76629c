"""Pairs of images in folders: find them, check them, and read them as a dataset."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from genstab.data.image_io import image_shape, read_image, resized
from genstab.data.paths import find_images, hxw, listing, natural, printable, shortened
from genstab.errors import InputError, check_choice

DIRECTIONS = ("AtoB", "BtoA")
_FOLDERS = {"train": ("train",), "val": ("val", "test")}


@dataclass(frozen=True)
class Pair:
    """The files of a pair; `b` is None if one file holds both images, A in its left half and B in its right."""

    name: str
    a: Path
    b: Path | None


@dataclass(frozen=True)
class Wanted:
    """What every pair must have: channels of A and B, and the least (H, W) that `what`, as named in messages, needs."""

    channels_a: int
    channels_b: int
    least: tuple[int, int] | None = None
    what: str = "crop"

    def check(self, pair: Pair, shape_a: Sequence[int], shape_b: Sequence[int] | None) -> tuple[int, int]:
        """Check the (C, H, W) of the files of a pair, and return the (H, W) of its images."""
        _check_channels(pair.a, "A", shape_a[0], self.channels_a)
        size = shape_a[1], shape_a[2]
        if pair.b is None or shape_b is None:
            _check_channels(pair.a, "B", shape_a[0], self.channels_b)
            _check_even(pair.a, shape_a[2])
            size = shape_a[1], shape_a[2] // 2
        else:
            _check_channels(pair.b, "B", shape_b[0], self.channels_b)
            if size != (shape_b[1], shape_b[2]):
                raise InputError(
                    f"{pair.a} is {hxw(size)} but {pair.b} is {hxw(shape_b[1:])}: "
                    "A and B of a pair must have the same size"
                )
        if self.least and (size[0] < self.least[0] or size[1] < self.least[1]):
            raise InputError(
                f"{pair.a} is {hxw(size)}, smaller than the {self.what} of {hxw(self.least)}: "
                f"{'lower data.crop_size or ' if self.what == 'crop' else ''}set data.load_size"
            )
        return size


def find_pairs(root: str | Path, split: str) -> list[Pair]:
    """List the pairs of a split, "train" or "val", in natural order of their names (2 before 10).

    There are two layouts. Side by side: `root/train/*.jpg`, each file A|B. Two folders: `root/trainA` and
    `root/trainB`, matched by name without suffix and without a final `_A` or `_B`. The split "val" is in folders named
    val or test. No file is opened.

    Raises:
        InputError: the folder or its images are missing, both layouts exist, an image has no partner, or two images
            have the same name.
    """
    root = Path(root)
    check_choice("split", split, _FOLDERS)
    try:
        return _found(root, split)
    except PermissionError as error:
        raise InputError(f"data.root={root}: cannot open the folder {error.filename}: {error.strerror}") from error


def _found(root: Path, split: str) -> list[Pair]:
    if not root.is_dir():
        raise InputError(f"data.root={root} {'is not a folder' if root.exists() else 'does not exist'}")
    stems = _FOLDERS[split]
    single = next((root / stem for stem in stems if (root / stem).is_dir()), None)
    double = next((stem for stem in stems if (root / f"{stem}A").is_dir() or (root / f"{stem}B").is_dir()), None)
    if single and double:
        raise InputError(
            f"data.root={root} is ambiguous for split={split}: it has both {single.name} (side by side) and "
            f"{double}A/{double}B (two folders); keep one"
        )
    if single:
        return [Pair(printable(name), path, None) for name, path in _images(single, r"$").items()]
    if double:
        return _matched(root / f"{double}A", root / f"{double}B")
    wanted = " or ".join(f"{stem} (side by side) or {stem}A + {stem}B" for stem in stems)
    raise InputError(f"data.root={root} has no pairs for split={split}: looked for {wanted}; found {listing(root)}")


def check_pairs(pairs: Sequence[Pair], wanted: Wanted, problems: list[str] | None = None) -> list[tuple[int, int]]:
    """Check the header of every file, and return the (H, W) of each pair.

    Errors are appended to `problems`, and the pair is left out; they are raised if it is None.
    """
    sizes = []
    for pair in tqdm(pairs, desc="checking images", unit="pair", leave=False, delay=1, disable=None):
        try:
            shape_b = None if pair.b is None else image_shape(pair.b)
            sizes.append(wanted.check(pair, image_shape(pair.a), shape_b))
        except InputError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return sizes


class PairDataset(Dataset[dict[str, Any]]):
    """Base of datasets of pairs; a subclass has a length and reads the images of a pair, see `_read`.

    An item is {"source": (C, H, W) float32 in [-1, 1], "target": likewise, "name": str}. With `size=(H, W)`, images of
    another size are resized: bilinear, anti-aliased, clamped to [-1, 1].

    With `on_error="skip"` a pair that cannot be read is replaced by the next readable one (the first comes after the
    last), so that the number of pairs and their order are the same in every process and epoch. The item then has the
    key "skipped": the errors, one in a line, or an empty string.

    Args:
        direction: "AtoB" (the source is A) or "BtoA".
        size: (H, W) to resize to; None does not resize.
        wanted: what the files must have; None does not check them.
        on_error: "raise" or "skip".

    Raises:
        InputError: when reading, a file cannot be read or is not as wanted; with "skip", only if no pair can be read.
    """

    def __init__(
        self,
        direction: str = "AtoB",
        size: tuple[int, int] | None = None,
        wanted: Wanted | None = None,
        on_error: str = "raise",
    ) -> None:
        self.direction, self.size, self.wanted, self.on_error = direction, size, wanted, on_error

    def __len__(self) -> int:
        raise NotImplementedError

    def _read(self, index: int) -> tuple[Pair, Tensor, Tensor | None]:
        """Return a pair and its images A and B; if A holds both side by side, B is None."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        if self.on_error == "raise":
            return self._item(index % len(self))
        problems: list[str] = []
        # Bad pairs are not remembered: every process and every epoch must find the same ones.
        for place in range(index, index + len(self)):
            try:
                return {**self._item(place % len(self)), "skipped": "\n".join(dict.fromkeys(problems))}
            except InputError as error:
                problems.append(str(error))
        raise InputError(f"none of the {len(self)} pairs can be read; {problems[0]}")

    def _item(self, index: int) -> dict[str, Any]:
        pair, a, b = self._read(index)
        if self.wanted is not None:
            self.wanted.check(pair, a.shape, None if b is None else b.shape)
        if b is None:
            _check_even(pair.a, a.shape[2])
            # Copy: a view would send the whole image from the worker to the main process.
            a, b = (half.clone(memory_format=torch.contiguous_format) for half in a.chunk(2, dim=2))
        source, target = (a, b) if self.direction == "AtoB" else (b, a)
        if self.size is not None:
            source, target = resized(source, self.size), resized(target, self.size)
        return {"source": source, "target": target, "name": pair.name}


class PairedImages(PairDataset):
    """Read pairs of files; `options` are the arguments of `PairDataset`."""

    def __init__(self, pairs: Sequence[Pair], *options: Any, **named: Any) -> None:
        super().__init__(*options, **named)
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def _read(self, index: int) -> tuple[Pair, Tensor, Tensor | None]:
        pair = self.pairs[index]
        return pair, read_image(pair.a), None if pair.b is None else read_image(pair.b)


def _images(folder: Path, ending: str) -> dict[str, Path]:
    """Map the names of the images in a folder, without the pattern `ending`, to their paths, in natural order."""
    found: dict[str, Path] = {}
    for path in find_images(folder, recursive=False):
        # macOS writes "é" as two characters, others as one.
        name = unicodedata.normalize("NFC", re.sub(ending, "", path.stem))
        if name in found:
            raise InputError(f"{folder} has two images named {name!r}: {found[name].name} and {path.name}")
        found[name] = path
    return dict(sorted(found.items(), key=lambda item: natural(item[0])))


def _matched(folder_a: Path, folder_b: Path) -> list[Pair]:
    for folder, other in [(folder_a, folder_b), (folder_b, folder_a)]:
        if not folder.is_dir():
            raise InputError(f"{other} exists but {folder} is missing: pairs need both folders")
    a, b = _images(folder_a, r"_[AB]$"), _images(folder_b, r"_[AB]$")
    lonely = [
        f"{len(names)} in {folder.name} ({shortened(names)})"
        for folder, mine, theirs in [(folder_a, a, b), (folder_b, b, a)]
        if (names := [path.name for name, path in mine.items() if name not in theirs])
    ]
    if lonely:
        raise InputError(f"data.root={folder_a.parent} has images without a partner: {' and '.join(lonely)}")
    return [Pair(printable(name), path, b[name]) for name, path in a.items()]


def _check_channels(path: Path, side: str, channels: int, wanted: int) -> None:
    if channels != wanted:
        key, other = ("source", "target") if side == "A" else ("target", "source")
        raise InputError(
            f"{path} has {channels} channel{'s' * (channels != 1)}, but side {side} needs {wanted}: "
            f"set data.{key}_channels={channels} (data.{other}_channels with data.direction=BtoA)"
        )


def _check_even(path: Path, width: int) -> None:
    if width % 2:
        raise InputError(f"{path} is {width} pixels wide: images side by side need an even width")
