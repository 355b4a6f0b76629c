"""DataModules that deliver pairs: dicts of `source`, `target` in [−1, 1] and `name`."""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from genstab.data.augment import PairAugment, Size
from genstab.data.collate import collate_pairs
from genstab.data.download import FACADES_URL, facades
from genstab.data.image_io import pixel_range
from genstab.data.overlapping_crops import overlapping_crops
from genstab.data.pairs import (
    DIRECTIONS,
    Pair,
    PairDataset,
    PairedImages,
    Wanted,
    check_pairs,
    check_share,
    find_pairs,
    has_pairs,
    split_pairs,
)
from genstab.data.reading import SIDES, Range, Reading, almost_constant, parse_ranges
from genstab.data.sampler import EpochSampler, ResumableLoader
from genstab.data.shares import share_of_crops
from genstab.data.synthetic import SyntheticFacades
from genstab.errors import ON_ERROR, InputError, check_choice, check_counts

T = TypeVar("T")
CHECKS = ("fast", "full", "off")
SSIM_WINDOW = 6  # pixels; SSIM reflects its window at the border, which a smaller image does not allow
CACHE = "~/.cache/genstab"
LOOKED_AT = 16  # training images after which a line says that the sources are almost constant
TIMEOUT = 600  # seconds to wait for a batch of a loader's worker


def as_size(name: str, size: int | Iterable[int]) -> Size:
    """Return (height, width) from one number or two."""
    values = (size, size) if isinstance(size, int) else tuple(size)
    if len(values) != 2 or not all(isinstance(value, int) and value > 0 for value in values):
        raise InputError(f"{name}={size!r} is neither a positive integer nor a pair [height, width] of them")
    return values[0], values[1]


class PairData(LightningDataModule):
    """Data loaders for pairs of images; training pairs are resized, randomly cropped and flipped on the device.

    Subclasses set `train_set` and `val_set` in `setup`. The list `skipped` names the pairs that this process could not
    read and left out, with the reason.

    Args:
        crop_size: size of a training image, a number or [height, width].
        load_size: size before the random crop, 286 for a crop of 256 in the paper; None keeps the sizes of the files,
            each of which is cropped by itself.
        flip: flip half of the training pairs horizontally.
        batch_size: pairs in a training batch, per process.
        val_batch_size: pairs in a validation batch, per process; no metric depends on it. Pairs of several sizes are
            validated one by one.
        num_workers: worker processes of the loader; None: two less than the processors, at most 8. (On two processors
            a worker would take more time from the training than it saves.)
        overlap_offset: if positive, crop a quarter of each training batch of all processes, at least one image, twice,
            up to this many pixels apart; see `overlapping_crops`. A batch of one has no overlapping crops, and a
            warning says so.
        twin_reach: the name of `overlap_offset` in version 0.1.

    Raises:
        InputError: a size or count is not positive, or load_size is smaller than crop_size.
    """

    train_set: Dataset
    val_set: Dataset
    val_sizes_differ = False

    def __init__(
        self,
        crop_size: int | Iterable[int] = 256,
        load_size: int | Iterable[int] | None = 286,
        flip: bool = True,
        batch_size: int = 1,
        val_batch_size: int = 8,
        num_workers: int | None = None,
        overlap_offset: int = 0,
        twin_reach: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(batch_size=batch_size, val_batch_size=val_batch_size)
        overlap_offset = overlap_offset if twin_reach is None else twin_reach
        check_counts(least=0, overlap_offset=overlap_offset)
        self.crop_size = as_size("crop_size", crop_size)
        self.load_size = None if load_size is None else as_size("load_size", load_size)
        self.overlap_offset = overlap_offset
        self.augment = PairAugment(self.crop_size, self.load_size, flip, extra=overlap_offset)
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num_workers = min(8, max(0, processors - 2)) if num_workers is None else num_workers
        check_counts(least=0, num_workers=self.num_workers)
        self.skipped: list[str] = []
        # the least and the greatest value of the first images of each side
        self.spans: dict[str, list[Tensor]] | None = {side: [] for side in SIDES}

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "timeout": TIMEOUT if self.num_workers else 0,
        }

    def train_dataloader(self) -> ResumableLoader:
        """Return this process's training pairs, reshuffled every epoch by the seed of `seed_everything`, or 0."""
        trainer, seed = self.trainer, int(os.environ.get("PL_GLOBAL_SEED", 0))
        processes, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        if self.overlap_offset and self.batch_size * processes == 1:
            rank_zero_warn(
                f"data.overlap_offset={self.overlap_offset} does nothing with one process and data.batch_size=1: set "
                "data.batch_size=2 or more"
            )
        order = self._sampler(processes, rank, seed)
        collate = partial(collate_pairs, mixed=self.load_size is None)  # pairs of several sizes are cropped later
        return ResumableLoader(self.train_set, order, collate_fn=collate, **self._loading())

    def _sampler(self, processes: int, rank: int, seed: int) -> EpochSampler:
        return EpochSampler(self.train_set, self.batch_size, processes, rank, seed)

    def val_dataloader(self) -> DataLoader:
        """Return the validation pairs in order."""
        # A generator of its own, or the workers' seeds would be drawn from the one that draws dropout masks.
        size = 1 if self.val_sizes_differ else self.val_batch_size
        generator = torch.Generator()
        return DataLoader(self.val_set, size, generator=generator, collate_fn=collate_pairs, **self._loading())

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Remove the notes on skipped pairs from a batch, and warn once of each, and of sources without content."""
        if self.spans is not None and self.trainer is not None and self.trainer.training:
            for side, spans in self.spans.items():
                spans += [torch.stack(image.aminmax()) for image in batch[side]]
            if len(self.spans["source"]) >= LOOKED_AT:
                for side, spans in self.spans.items():
                    if line := almost_constant(spans, f"{side}s"):
                        rank_zero_warn(f"data: in the first {len(spans)} images, {line}")
                self.spans = None
        self._skip("\n".join(batch.pop("skipped", ())), warnings.warn)
        return batch

    def _skip(self, problems: str, warn: Callable[[str], None]) -> None:
        for problem in problems.split("\n"):
            if problem and problem not in self.skipped:
                self.skipped.append(problem)
                warn(f"data.on_error=skip leaves out a pair: {problem}")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augment a training batch on its device; leave a validation batch as it is."""
        if self.trainer is not None and self.trainer.training:
            batch["source"], batch["target"] = self._augmented(batch["source"], batch["target"])
            if self.overlap_offset:
                batch |= self._crops(batch["source"], batch["target"])
        return batch

    def _augmented(self, source: Tensor | list[Tensor], target: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """Augment a batch, or pairs of several sizes one by one."""
        if isinstance(source, Tensor):
            return self.augment(source, target)
        pairs = [self.augment(a[None], b[None]) for a, b in zip(source, target, strict=True)]
        sources, targets = zip(*pairs, strict=True)
        return torch.cat(sources), torch.cat(targets)

    def _crops(self, source: Tensor, target: Tensor) -> dict[str, Any]:
        """Return the overlapping crops of this process, and their weights."""
        trainer = self.trainer
        assert trainer is not None
        batch_idx = trainer.fit_loop.batch_idx + 1  # of the batch that is about to begin
        rows, *weights = share_of_crops(
            trainer.train_dataloader, batch_idx, len(source), trainer.world_size, trainer.global_rank
        )
        crops = overlapping_crops(source, target, self.overlap_offset, rows)
        return {**crops._asdict(), "pairs": len(rows.twice), "weights": tuple(weights)}


class SyntheticData(PairData):
    """Procedural façades, drawn on the fly: label maps to photos, nothing to download.

    Args:
        train_images: number of training pairs.
        val_images: number of validation pairs; none of them is a training pair.
        size: height and width before the random crop.
        crop_size, batch_size: see `PairData`.
        seed: another seed draws other façades.
        kwargs: the other arguments of `PairData`.

    Raises:
        InputError: a count or size is not positive, or size is smaller than crop_size; a `load_size` is given.
    """

    def __init__(
        self,
        train_images: int = 400,
        val_images: int = 16,
        size: int = 128,
        crop_size: int | Iterable[int] = 128,
        seed: int = 0,
        batch_size: int = 4,
        **kwargs: Any,
    ) -> None:
        if "load_size" in kwargs:
            raise InputError(f"load_size={kwargs['load_size']}: façades are drawn in any size, which size sets")
        super().__init__(crop_size, None, batch_size=batch_size, **kwargs)
        if max(self.crop_size) > size:
            raise InputError(f"size={size} is smaller than crop_size={self.crop_size}")
        self.train_set = SyntheticFacades(train_images, size, seed=seed)
        self.val_set = SyntheticFacades(val_images, size, seed=seed + 1)


class PairedData(PairData):
    """Pairs of images in a folder, side by side or in two folders; see `genstab.data.pairs.find_pairs`.

    Args:
        root: folder with the images for training and validation; `~` is expanded.
        direction: `AtoB` or `BtoA`, from source to target.
        source_channels, target_channels: number of channels that every file must have.
        check: before training, `fast` reads the header of every file, `full` decodes every file, `off` does nothing.
        on_error: if a file cannot be read or used, `raise` an error that names it, or `skip` the pair: the next
            readable pair takes its place, also in validation, where it then counts twice.
        value_range: [least, greatest] of the pixels, which become −1 and 1, for files that are not of 8 bits; `auto`
            finds them in the training split; {source: …, target: …} sets them for each. None: the range of the type.
        source_interpolation: how sources are resized, `bilinear` or `nearest`, which keeps the colours of label maps.
        source_labels: number of classes of sources that hold class indices, in one channel or as a palette: each class
            becomes a channel, see `genstab.data.reading.Reading`. It takes the place of `source_channels`.
        max_megapixels: the most pixels of an image, in millions; None: 179.
        convert: convert images with other channels, see `genstab.data.channels.converted`, in place of an error.
        val_share: without a folder for validation, hold out this share of the training pairs, at least one; 0 does not.
            With `limit_val_batches=0` of the trainer there is no validation at all.
        val_seed: another seed holds out other pairs.
        kwargs: the arguments of `PairData`. Validation images are resized to crop_size; with `load_size=None` they
            keep their size.

    Raises:
        InputError: the folder is missing or empty, an image has no partner, or a file cannot be read, is too small, or
            has another number of channels.
    """

    def __init__(
        self,
        root: str,
        direction: str = "AtoB",
        source_channels: int = 3,
        target_channels: int = 3,
        check: str = "fast",
        on_error: str = "raise",
        value_range: str | Sequence[float] | Mapping[str, Any] | None = None,
        source_interpolation: str = "bilinear",
        source_labels: int | None = None,
        max_megapixels: float | None = None,
        convert: bool = False,
        val_share: float = 0.1,
        val_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("direction", direction, DIRECTIONS)
        check_choice("check", check, CHECKS)
        check_choice("on_error", on_error, ON_ERROR)
        check_share(val_share, val_seed)
        self.root, self.direction, self.check = os.path.expanduser(root), direction, check
        self.on_error, self.convert = on_error, convert
        self.val_share, self.val_seed = val_share, val_seed
        self.channels = (source_labels or source_channels, target_channels)
        ranges = parse_ranges(value_range)
        self.auto = [side for side, each in ranges.items() if each == "auto"]
        given, of_target = ({**ranges, **dict.fromkeys(self.auto)}[side] for side in SIDES)
        self.readings = {
            "source": Reading(given, source_labels, source_interpolation, max_megapixels),
            "target": Reading(of_target, max_megapixels=max_megapixels),
        }
        self.augment.source_interpolation = self.readings["source"].interpolation
        self.decoded = False
        self.sizes: dict[str, set[Size]] = {}  # by split, of pairs whose headers were checked

    def prepare_data(self) -> None:
        """With `check=full`, read every pair once, on one process."""
        if self.check != "full" or self.decoded:
            return
        for split in ("train", "val") if self._validates() else ("train",):
            pairs = self._pairs(split)
            loader = DataLoader(pairs, None, num_workers=self.num_workers, generator=torch.Generator())
            for item in tqdm(loader, f"reading {split}", len(pairs), unit="pair", leave=False, disable=None):
                self._skip(item.get("skipped", ""), rank_zero_warn)
        self.decoded = True

    def setup(self, stage: str) -> None:
        """Find the pairs and check their headers; for the stage "validate", only those of the validation split."""
        if stage != "validate":
            self.train_set = self._dataset("train")
        self.val_set = self._dataset("val") if stage == "validate" or self._validates() else PairedImages([])

    def _validates(self) -> bool:
        return self.trainer is None or self.trainer.limit_val_batches != 0

    def _listed(self, split: str) -> list[Pair]:
        """Return the pairs of a split; without a folder for validation, both splits are made of the training pairs."""
        if not self.val_share or has_pairs(self.root, "val") or not (split == "val" or self._validates()):
            return find_pairs(self.root, split)
        if not self._by_share["train"]:
            raise InputError(f"data.val_share={self.val_share} of the training pairs leaves none for training")
        return self._by_share[split]

    @cached_property
    def _by_share(self) -> dict[str, list[Pair]]:
        pairs, said = split_pairs(self.root, self.val_share, self.val_seed)
        rank_zero_only(print)(said)
        return pairs

    def _pairs(self, split: str) -> PairDataset:
        """Return a split as it is in the files, unchecked."""
        return PairedImages(self._listed(split), self.direction, None, self._wanted(split), self.on_error)

    def _dataset(self, split: str) -> PairDataset:
        pairs, wanted = self._listed(split), self._wanted(split)
        if split not in self.sizes:  # Lightning sets up what the command has set up already
            problems: list[str] = []
            skip = problems if self.on_error == "skip" else None
            found = check_pairs([] if self.check == "off" else pairs, wanted, skip)
            if problems and not found:
                raise InputError(f"{self.root}: none of the {len(pairs)} pairs for {split} can be used; {problems[0]}")
            self._skip("\n".join(problems), rank_zero_warn)  # every process finds the same
            self.sizes[split] = {size for both in found for size in both}
        sizes = self.sizes[split]
        self.val_sizes_differ |= split == "val" and self.load_size is None and len(sizes) > 1
        return PairedImages(pairs, self.direction, self._size(split, sizes), wanted, self.on_error)

    @property
    def described(self) -> dict[str, Any]:
        """How files are read, where that is not the default, and which pairs are held out, for later jobs."""
        source, ranges = self.readings["source"], {side: self.readings[side].value_range for side in SIDES}
        options: dict[str, Any] = {
            "value_range": ranges if any(ranges.values()) else None,
            "source_labels": source.labels,
            "source_interpolation": source.interpolation if source.interpolation != "bilinear" else None,
        }
        if "_by_share" in vars(self):
            options |= {"val_share": self.val_share, "val_seed": self.val_seed}
        return {key: value for key, value in options.items() if value is not None}

    def _find_ranges(self) -> None:
        """Find the values of `value_range=auto` in the training pairs; every process finds the same."""
        if not self.auto:
            return
        found: dict[str, list[Range]] = {side: [] for side in self.auto}
        for pair in tqdm(self._listed("train"), "finding values", unit="pair", leave=False, delay=1, disable=None):
            files = dict(zip(SIDES, self._ab(pair.a, pair.b or pair.a), strict=True))
            for side, values in found.items():
                try:
                    values += filter(None, [pixel_range(files[side], self.readings[side])])
                except InputError:
                    if self.on_error == "raise":
                        raise  # otherwise it is skipped and named later
        if not any(found.values()):
            rank_zero_warn("data.value_range=auto has no effect: all images have 8 bits, which are read as 0 to 255")
        for side, each in found.items():
            if each:
                least, greatest = min(low for low, _ in each), max(high for _, high in each)
                if not least < greatest:
                    raise InputError(f"data.value_range=auto: all pixels of the {side}s are {least:g}")
                self.readings[side] = replace(self.readings[side], value_range=(least, greatest))
                rank_zero_only(print)(f"data.value_range=auto: {side}s hold {least:g} to {greatest:g}")
        self.auto = []

    def _ab(self, source: T, target: T) -> tuple[T, T]:
        return (source, target) if self.direction == "AtoB" else (target, source)

    def _wanted(self, split: str) -> Wanted:
        self._find_ranges()
        least, what = (self.crop_size, "crop") if split == "train" else ((SSIM_WINDOW, SSIM_WINDOW), "window of SSIM")
        native = self.load_size is None  # otherwise images are resized, so that none is too small
        readings = self._ab(self.readings["source"], self.readings["target"])
        return Wanted(*self._ab(*self.channels), least if native else None, what, native, self.convert, *readings)

    def _size(self, split: str, sizes: set[Size]) -> Size | None:
        """Return the size to which the dataset resizes images of these sizes; None: it does not resize them."""
        if self.load_size is None:
            return None
        if split == "val":
            return self.crop_size
        # Images of one size that need not shrink are enlarged later, on the device.
        on_device = len(sizes) == 1 and all(map(int.__le__, *sizes, self.load_size))
        return None if on_device else self.load_size


class FacadesData(PairedData):
    """CMP Façades (Tyleček and Šára 2013) as pix2pix uses it, from labels to photos.

    Args:
        root: a folder with the pairs, or an empty one into which they are downloaded (29 MB); None is
            `~/.cache/genstab`.
        url: where the archive is.
        direction: `BtoA` for labels to photos, or `AtoB`.
        kwargs: the other arguments of `PairedData`.

    Raises:
        InputError: as `PairedData`; `root` does not exist; the download failed.
    """

    def __init__(self, root: str | None = None, url: str = FACADES_URL, direction: str = "BtoA", **kwargs: Any) -> None:
        super().__init__(root or CACHE, direction, **kwargs)
        self.url = url
        if root is not None and not os.path.isdir(self.root):
            raise InputError(f"data.root={root} does not exist: create an empty folder to download the façades into")

    def _present(self) -> bool:
        return has_pairs(self.root, "train")

    def prepare_data(self) -> None:
        """Download and unpack the pairs if they are missing, then check them; on one process."""
        if not self._present():
            self.root = str(facades(self.root, self.url))
        super().prepare_data()

    def setup(self, stage: str) -> None:
        """Find the pairs and check every file's header, as `PairedData`."""
        if not self._present():
            self.root = os.path.join(self.root, "facades")
        super().setup(stage)
