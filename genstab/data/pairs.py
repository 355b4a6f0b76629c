"""Pairs of images in folders: find them, check them, and read them as a dataset."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from genstab.data.channels import converted, is_convertible
from genstab.data.formats import is_image
from genstab.data.header_notes import HeaderNotes, orientation_note
from genstab.data.image_io import check_alpha, image_info, read_image
from genstab.data.paths import find_images, hxw, is_seen, listing, natural, printable, shortened
from genstab.data.reading import AS_STORED, Reading, resized
from genstab.errors import InputError, check_choice, check_counts

DIRECTIONS = ("AtoB", "BtoA")
_Size = tuple[int, int]
_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


@dataclass(frozen=True)
class Pair:
    """The files of a pair; `b` is None if one file holds both images, A in its left half and B in its right."""

    name: str
    a: Path
    b: Path | None


@dataclass(frozen=True)
class Wanted:
    """What every pair must have.

    Args:
        channels_a, channels_b: of the images A and B; None allows any.
        least: the least (H, W) that `what`, as named in messages, needs; None allows any.
        what: see `least`.
        same_size: whether A and B of a pair must have the same size; one that lies beside an upright one is refused
            anyway.
        convert: accept other channels where `converted` can convert them.
        reading_a, reading_b: how the pixels of A and B are read; of files with both images, as `reading_a`.
    """

    channels_a: int | None = None
    channels_b: int | None = None
    least: _Size | None = None
    what: str = "crop"
    same_size: bool = True
    convert: bool = False
    reading_a: Reading = AS_STORED
    reading_b: Reading = AS_STORED

    def check(self, pair: Pair, shape_a: Sequence[int], shape_b: Sequence[int] | None) -> tuple[_Size, _Size]:
        """Check the (C, H, W) of the files of a pair, and return the (H, W) of A and B."""
        self._check_channels(pair.a, "A", shape_a[0], self.channels_a)
        size = size_b = shape_a[1], shape_a[2]
        if pair.b is None or shape_b is None:
            read_alike = self.reading_a.value_range == self.reading_b.value_range
            if self.reading_a.labels or self.reading_b.labels or not read_alike:
                raise InputError(
                    f"{pair.a} holds A and B side by side: data.source_labels and a data.value_range of one side need "
                    "two folders"
                )
            self._check_channels(pair.a, "B", shape_a[0], self.channels_b)
            if shape_a[2] % 2:
                raise InputError(f"{pair.a} is {shape_a[2]} pixels wide: images side by side need an even width")
            size = size_b = shape_a[1], shape_a[2] // 2
        else:
            self._check_channels(pair.b, "B", shape_b[0], self.channels_b)
            size_b = shape_b[1], shape_b[2]
            turned = size == size_b[::-1]  # resized to one size they would not match
            if size != size_b and (self.same_size or turned):
                advice = "" if turned else ", or set data.load_size to resize both"
                raise InputError(
                    f"{pair.a} is {hxw(size)} but {pair.b} is {hxw(size_b)}{self._orientations(pair)}: "
                    f"A and B of a pair must have the same size{advice}"
                )
        if self.least and (size[0] < self.least[0] or size[1] < self.least[1]):
            raise InputError(
                f"{pair.a} is {hxw(size)}, smaller than the {self.what} of {hxw(self.least)}: "
                f"{'lower data.crop_size or ' if self.what == 'crop' else ''}set data.load_size"
            )
        return size, size_b

    def _orientations(self, pair: Pair) -> str:
        if pair.b is None or not (pair.a.is_file() and pair.b.is_file()):  # in a shard
            return ""
        return orientation_note(image_info(pair.a, self.reading_a), image_info(pair.b, self.reading_b))

    def _check_channels(self, path: Path, side: str, channels: int, wanted: int | None) -> None:
        if wanted in (None, channels) or (self.convert and is_convertible(channels, wanted)):
            return
        key, other = ("source", "target") if side == "A" else ("target", "source")
        convert = f", or data.convert=true to convert it to {wanted}" if is_convertible(channels, wanted) else ""
        raise InputError(
            f"{path} has {channels} channel{'s' * (channels != 1)}, but side {side} needs {wanted}: "
            f"set data.{key}_channels={channels} (data.{other}_channels with data.direction=BtoA){convert}"
        )


ANY = Wanted()


def find_pairs(root: str | Path, split: str) -> list[Pair]:
    """List the pairs of a split, "train" or "val", in natural order of their names (2 before 10).

    The split "val" is in folders named val, valid or validation; or else test. Of a folder `train` these are the
    layouts; sub-folders are searched, too:

    - side by side: `root/train/*.jpg`, each file A|B
    - two folders: `root/trainA` and `root/trainB`, `train_A` and `train_B`, `train/A` and `train/B`, or `A/train` and
      `B/train`. Images match by the name relative to these, without suffix; those that have no partner, by the name
      without a final `_A` or `_B`.

    No file is opened.

    Raises:
        InputError: the folder or its images are missing, several layouts exist, an image has no partner, or two images
            have the same name.
    """
    root = Path(root)
    check_choice("split", split, _FOLDERS)
    with _readable(root):
        if not root.is_dir():
            raise InputError(f"data.root={root} {'is not a folder' if root.exists() else 'does not exist'}")
        found = _layouts(root, split)
        if not found:
            wanted = [_shown(layout) for layout in _possible(_FOLDERS[split][0])]
            others = f"; or {', '.join(_FOLDERS[split][1:])} in place of val" if split == "val" else ""
            raise InputError(
                f"data.root={root} has no pairs for split={split}: looked for {', '.join(wanted[:-1])} or {wanted[-1]}"
                f"{others}; found {listing(root)}"
            )
        if len(found) > 1:
            both = " and ".join(map(_shown, found))
            raise InputError(f"data.root={root} is ambiguous for split={split}: it has {both}; keep one")
        if len(found[0]) == 1:
            images = _images(root / found[0][0])
            return [Pair(printable(name), path, None) for name, path in images.items()]
        return _matched(root, *found[0])


def has_pairs(root: str | Path, split: str) -> bool:
    """Return whether there are folders for a split, see `find_pairs`."""
    root = Path(root)
    with _readable(root):
        return root.is_dir() and bool(_layouts(root, split))


def check_share(val_share: object, val_seed: object) -> None:
    """Raise an `InputError` unless a share is from 0 to 1 and its seed is an integer."""
    if isinstance(val_share, bool) or not isinstance(val_share, int | float) or not 0 <= val_share <= 1:
        raise InputError(f"val_share={val_share} is not a number from 0 to 1")
    check_counts(least=0, val_seed=val_seed)


def split_pairs(root: str | Path, share: float, seed: int = 0) -> tuple[dict[str, list[Pair]], str]:
    """Hold out a share of the training pairs, at least one, for validation; return both splits and a line that says so.

    The same names and seed give the same split: in training, in measuring, and in every run of a sweep.
    """
    pairs = find_pairs(root, "train")
    count = max(1, round(share * len(pairs)))
    held = set(torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:count].tolist())
    splits = {
        "train": [pair for i, pair in enumerate(pairs) if i not in held],
        "val": [pair for i, pair in enumerate(pairs) if i in held],
    }
    said = f"{root} has no folder for validation: {count} of the {len(pairs)} training pairs are held out for it"
    return splits, f"{said} (val_share={share:g}, val_seed={seed})"


@contextmanager
def _readable(root: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise InputError(f"data.root={root}: cannot open the folder {error.filename}: {error.strerror}") from error


def _possible(stem: str) -> list[tuple[str, ...]]:
    """Return the layouts of a folder of this name: its one folder, or the folders of A and B."""
    return [(stem,), *((at.format(stem, "A"), at.format(stem, "B")) for at in ("{}{}", "{}_{}", "{}/{}", "{1}/{0}"))]


def _shown(layout: Sequence[str]) -> str:
    return f"{layout[0]} (side by side)" if len(layout) == 1 else " + ".join(layout)


def _layouts(root: Path, split: str) -> list[tuple[str, ...]]:
    """Return the layouts of a split that there are, with at least one of their folders."""
    *first, last = _FOLDERS[split]  # the last name counts only where there is no other
    found = [layout for stem in first for layout in _present(root, stem)]
    return found or _present(root, last)


def _present(root: Path, stem: str) -> list[tuple[str, ...]]:
    one, *two = _possible(stem)
    found = [layout for layout in two if any((root / folder).is_dir() for folder in layout)]
    if not (root / stem).is_dir():
        return found
    within = (f"{stem}/A", f"{stem}/B")
    inside = {
        each.name for each in (root / stem).iterdir() if (is_seen(each.name) if each.is_dir() else is_image(each))
    }
    if within in found and inside <= {"A", "B"}:
        return found
    if within in found and not inside >= {"A", "B"}:  # a sub-folder that is called so by chance
        found.remove(within)
    return [one, *found]


def check_pairs(pairs: Sequence[Pair], wanted: Wanted, problems: list[str] | None = None) -> list[tuple[_Size, _Size]]:
    """Check the header of every file, and return the (H, W) of A and of B of each pair.

    Errors are appended to `problems`, and the pair is left out; they are raised if it is None.
    """
    sizes, notes = [], HeaderNotes(wanted.reading_a, wanted.reading_b)
    for pair in tqdm(pairs, desc="checking images", unit="pair", leave=False, delay=1, disable=None):
        try:
            info_a = image_info(pair.a, wanted.reading_a)
            info_b = None if pair.b is None else image_info(pair.b, wanted.reading_b)
            sizes.append(wanted.check(pair, info_a.shape, None if info_b is None else info_b.shape))
            notes.see(pair.a, info_a, info_b)
            for path, info, channels in ((pair.a, info_a, wanted.channels_a), (pair.b, info_b, wanted.channels_b)):
                if path is not None and info is not None:
                    check_alpha(path, info.shape[0], info.extra, channels)
        except InputError as error:
            if problems is None:
                raise
            problems.append(str(error))
    for line in notes.lines():
        rank_zero_warn(line)
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
        wanted: what the files must have, and how they are read.
        on_error: "raise" or "skip".

    Raises:
        InputError: when reading, a file cannot be read or is not as wanted; with "skip", only if no pair can be read.
    """

    def __init__(
        self, direction: str = "AtoB", size: _Size | None = None, wanted: Wanted = ANY, on_error: str = "raise"
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
        self.wanted.check(pair, a.shape, None if b is None else b.shape)
        if b is None:
            # Copy: a view would send the whole image from the worker to the main process.
            a, b = (half.clone(memory_format=torch.contiguous_format) for half in a.chunk(2, dim=2))
        a, b = converted(a, self.wanted.channels_a or len(a)), converted(b, self.wanted.channels_b or len(b))
        if self.size is not None:
            a, b = (
                resized(image, self.size, reading.interpolation)
                for image, reading in ((a, self.wanted.reading_a), (b, self.wanted.reading_b))
            )
        source, target = (a, b) if self.direction == "AtoB" else (b, a)
        return {"source": source, "target": target, "name": pair.name}


class PairedImages(PairDataset):
    """Read pairs of files; `options` are the arguments of `PairDataset`."""

    def __init__(self, pairs: Sequence[Pair], *options: Any, **named: Any) -> None:
        super().__init__(*options, **named)
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def check_headers(self, images: int) -> None:
        """Check the headers of the first pairs; raise the `InputError` of the first one that is not as wanted."""
        check_pairs(self.pairs[:images], self.wanted)

    def _read(self, index: int) -> tuple[Pair, Tensor, Tensor | None]:
        pair = self.pairs[index]
        b = None if pair.b is None else read_image(pair.b, self.wanted.reading_b)
        return pair, read_image(pair.a, self.wanted.reading_a), b


def _images(folder: Path) -> dict[str, Path]:
    """Map the names of the images in a folder, relative and without suffix, to their paths, in natural order."""
    images = _named(folder, find_images(folder), "")
    return dict(sorted(images.items(), key=lambda item: natural(item[0])))


def _named(folder: Path, paths: Iterable[Path], ending: str) -> dict[str, Path]:
    """Map the names of images, relative and without suffix and the pattern `ending`, to their paths."""
    found: dict[str, Path] = {}
    for path in paths:
        # macOS writes "é" as two characters, others as one.
        name = unicodedata.normalize("NFC", re.sub(ending, "", path.relative_to(folder).with_suffix("").as_posix()))
        if name in found:
            first, second = (each.relative_to(folder).as_posix() for each in (found[name], path))
            raise InputError(f"{folder} has two images named {name!r}: {first} and {second}")
        found[name] = path
    return found


def _matched(root: Path, name_a: str, name_b: str) -> list[Pair]:
    """Match the images of two folders by their names, and the rest by their names without a final `_A` or `_B`."""
    folder_a, folder_b = root / name_a, root / name_b
    for folder, other in [(folder_a, folder_b), (folder_b, folder_a)]:
        if not folder.is_dir():
            raise InputError(f"{other} exists but {folder} is missing: pairs need both folders")
    a, b = _images(folder_a), _images(folder_b)
    found = {name: (path, b[name]) for name, path in a.items() if name in b}
    rest_a, rest_b = (
        _named(folder, (path for name, path in images.items() if name not in found), r"_[AB]$")
        for folder, images in ((folder_a, a), (folder_b, b))
    )
    lonely = [
        f"{len(names)} in {folder} ({shortened(names)})"
        for folder, mine, theirs in [(name_a, rest_a, rest_b), (name_b, rest_b, rest_a)]
        if (names := [path.relative_to(root / folder).as_posix() for name, path in mine.items() if name not in theirs])
    ]
    if lonely:
        raise InputError(f"data.root={root} has images without a partner: {' and '.join(lonely)}")
    for name, path in rest_a.items():
        # two pairs must not have one name
        found[f"{name}_A" if name in found else name] = (path, rest_b[name])
    pairs = [Pair(printable(name), *files) for name, files in found.items()]
    return sorted(pairs, key=lambda pair: natural(pair.name))
