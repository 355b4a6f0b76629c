"""Images without targets, and images in a folder per class: for measuring, not for training."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from genstab.data.augment import Size
from genstab.data.datamodules import as_size
from genstab.data.header_notes import HeaderNotes
from genstab.data.image_io import image_info, image_shape, read_image
from genstab.data.paths import find_images, hxw, is_seen, listing, natural, printable, shortened
from genstab.data.reading import AS_STORED, Reading, parse_range, resized
from genstab.errors import InputError, check_counts, reason


class FolderImages(Dataset[dict[str, Any]]):
    """Read the images in a folder as {"source": (C, H, W) float32 in [-1, 1], "name": relative path}.

    With `size=(H, W)`, images of another size are resized: bilinear, anti-aliased, clamped to [-1, 1].
    """

    def __init__(
        self, root: str | Path, size: Size | None = None, recursive: bool = True, reading: Reading = AS_STORED
    ) -> None:
        self.root, self.size, self.reading = Path(root).expanduser(), size, reading
        self.paths = find_images(self.root, recursive)

    def __len__(self) -> int:
        return len(self.paths)

    def check_headers(self, images: int) -> None:
        """Read the headers of the first images; raise the `InputError` of the first one that cannot be read."""
        notes = HeaderNotes(self.reading)
        for path in tqdm(self.paths[:images], "checking images", leave=False, delay=1, disable=None):
            notes.see(path, image_info(path, self.reading))
        for line in notes.lines():
            rank_zero_warn(line)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        image = read_image(path, self.reading)
        return {
            "source": image if self.size is None else resized(image, self.size, self.reading.interpolation),
            "name": printable(path.relative_to(self.root).as_posix()),
        }


class ClassImages(FolderImages):
    """Read a folder with a sub-folder for each class as {"source", "label": index of the class, "name"}.

    `classes` are the names of the sub-folders, in natural order, or those in a file: see `read_classes`.
    """

    def __init__(
        self,
        root: str | Path,
        size: Size | None = None,
        class_file: str | Path | None = None,
        reading: Reading = AS_STORED,
    ) -> None:
        super().__init__(root, size, reading=reading)
        self.class_file = class_file  # for messages
        folders = [path.name for path in self.root.iterdir() if path.is_dir() and is_seen(path.name)]
        self.classes = sorted(folders, key=natural)
        of = [path.relative_to(self.root).parts for path in self.paths]
        loose = [parts[0] for parts in of if len(parts) == 1]
        if len(self.classes) < 2:
            raise InputError(
                f"data.root={self.root} has {len(self.classes)} sub-folders, but needs one for each of at least two "
                f"classes: found {listing(self.root)}"
            )
        if loose:
            raise InputError(f"data.root={self.root} has images outside of its class folders: {shortened(loose)}")
        if empty := [name for name in self.classes if name not in {parts[0] for parts in of}]:
            raise InputError(f"data.root={self.root} has classes without images: {shortened(empty)}")
        self.labels = {name: index for index, name in enumerate(self.classes)}
        if class_file is not None:
            names = read_classes(class_file)
            known = [each[0] for each in names]
            found = {folder: _classes_named(folder, names) for folder in self.classes}
            if unknown := [folder for folder, indices in found.items() if not indices]:
                raise InputError(f"data.classes={class_file} has no {shortened(unknown)}: it names {shortened(known)}")
            for folder, (index, *others) in found.items():
                if others:
                    raise InputError(f"data.classes={class_file} names two classes {folder}: {index} and {others[0]}")
                self.labels[folder] = index
            self.classes = known

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        return {"source": item["source"], "label": self.labels[item["name"].split("/")[0]], "name": item["name"]}


def _classes_named(folder: str, names: Sequence[Sequence[str]]) -> list[int]:
    """Return the indices of the classes of a name: those whose whole line it is, or else a part of the line."""
    found = [index for index, each in enumerate(names) if folder in each]
    return [index for index in found if names[index][0] == folder] or found


def read_classes(path: str | Path) -> list[list[str]]:
    """Read the names of a network's classes, in the order of its outputs.

    The file is text with a class in each line (the whole line, its first word and the rest are names), or JSON: a list
    of names, {"0": name, "1": [name, name], …} as ImageNet's class index, or {name: 0, …}. Numbers before or after all
    names of a text, from 0 or 1 on, are the order of the classes.

    Raises:
        InputError: the file cannot be read, has no such names, or an empty one.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text("utf-8-sig")
        found = json.loads(text) if text.lstrip()[:1] in ("[", "{") else _lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"data.classes={path} cannot be read: {reason(error)}") from error
    try:
        if isinstance(found, dict):
            numbered = all(isinstance(each, int) for each in found.values())
            numbers = {(each if numbered else int(name)): (name if numbered else each) for name, each in found.items()}
            found = [numbers[index] for index in range(len(found))]
        names = [[str(name).strip() for name in (each if isinstance(each, list) else [each])] for each in found]
    except (TypeError, ValueError, KeyError):
        names = []
    if not names or not all(names):
        raise InputError(
            f"data.classes={path} names no classes: a name in each line, or JSON as of ImageNet, is expected"
        )
    for index, row in enumerate(names):
        if "" in row:
            raise InputError(f"data.classes={path} has an empty name for class {index}")
        first, _, rest = row[0].partition(" ")
        row[:] = dict.fromkeys([row[0], first.rstrip(",:"), rest.strip(), *row]) if len(row) == 1 and rest else row
    return names


def _lines(text: str) -> list[str]:
    """Return the lines of a text in the order of the numbers that all of them begin or end with, if they do."""
    lines = text.strip().splitlines()
    for pattern in (r"(?P<index>\d+)[\s,;:]+(?P<name>.+)", r"(?P<name>.+?)[\s,;:]+(?P<index>\d+)"):
        found = [re.fullmatch(pattern, line.strip()) for line in lines if line.strip()]
        numbered = {int(match["index"]): match["name"] for match in found if match}
        count = len(found)
        # names like "class 0" are numbers themselves
        distinct = len({*numbered.values()}) > 1
        if len(numbered) == count and distinct and sorted(numbered) in ([*range(count)], [*range(1, count + 1)]):
            return [numbered[index] for index in sorted(numbered)]
    return lines


class FolderData(LightningDataModule):
    """The images in a folder as a validation set, for measuring; there is no training set.

    Args:
        root: the folder; `~` is expanded.
        size: resize to [height, width], or a number for both; None does not resize.
        recursive: search sub-folders, too.
        val_batch_size: images in a batch.
        num_workers: worker processes of the loader.
        convert: convert images with other channels than `source_channels`, for example grey ones among RGB.
        source_channels: of all images, with `convert`.
        value_range, source_labels, source_interpolation, max_megapixels: how files are read, see
            `genstab.data.reading.Reading`.

    Raises:
        InputError: a size or count is invalid; in `setup`, the folder is missing or has no images, or the stage is
            "fit"; in `val_dataloader`, the images differ in size or channels.
    """

    val_set: FolderImages
    untrained = "data=folder has no targets: train with data=paired"

    def __init__(
        self,
        root: str,
        size: int | Iterable[int] | None = None,
        recursive: bool = True,
        val_batch_size: int = 8,
        num_workers: int = 0,
        convert: bool = False,
        source_channels: int = 3,
        value_range: Sequence[float] | None = None,
        source_labels: int | None = None,
        source_interpolation: str = "bilinear",
        max_megapixels: float | None = None,
    ) -> None:
        super().__init__()
        self.reading = Reading(
            parse_range("data.value_range", value_range), source_labels, source_interpolation, max_megapixels,
            source_channels if convert else None,
        )  # fmt: skip
        check_counts(val_batch_size=val_batch_size)
        check_counts(least=0, num_workers=num_workers)
        self.root, self.recursive = root, recursive
        self.size = None if size is None else as_size("size", size)
        self.val_batch_size, self.num_workers = val_batch_size, num_workers

    def _images(self) -> FolderImages:
        return FolderImages(self.root, self.size, self.recursive, self.reading)

    def setup(self, stage: str) -> None:
        """List the images."""
        if stage == "fit":
            self.train_dataloader()
        self.val_set = self._images()

    def train_dataloader(self) -> DataLoader:
        """Raise an `InputError`: there is nothing to train on."""
        raise InputError(self.untrained)

    def val_dataloader(self) -> DataLoader:
        """Check that the headers of all images are alike, and return the images in order."""
        first = self.val_set.paths[0]
        channels, *size = image_shape(first, self.reading)
        for path in tqdm(self.val_set.paths[1:], "checking images", leave=False, delay=1, disable=None):
            others, *other = image_shape(path, self.reading)
            if others != channels:
                advice = "" if self.reading.channels else ", or set data.convert=true"
                raise InputError(
                    f"{path} has {others} channels but {first} has {channels}: all images must have the same{advice}"
                )
            if self.size is None and other != size:
                raise InputError(f"{path} is {hxw(other)} but {first} is {hxw(size)}: set data.size=[height,width]")
        return DataLoader(self.val_set, self.val_batch_size, num_workers=self.num_workers)


class ClassData(FolderData):
    """A folder with a sub-folder of images for each class as a validation set, for measuring classifiers.

    The arguments are those of `FolderData`; sub-folders of a class are always searched.

    Args:
        classes: a file with the names of the network's classes in the order of its outputs, see `read_classes`; None:
            the sub-folders in natural order.
        kwargs: those of `FolderData`.
    """

    untrained = "data=classes is for measuring classifiers: genstab does not train them"

    def __init__(self, *args: Any, classes: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.classes = classes

    def _images(self) -> ClassImages:
        return ClassImages(self.root, self.size, self.classes, self.reading)
