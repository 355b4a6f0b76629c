"""Shift PSNR in every validation of any LightningModule that maps a batch's source to an image."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from genstab.data.collate import names_of, source_of
from genstab.data.shares import all_gathered, dataset_positions
from genstab.errors import InputError, check_choice, check_counts
from genstab.inference.eval_mode import inference, submodule
from genstab.metrics.protocols import PROTOCOLS, Motion, in_chunks, shift_pairs
from genstab.metrics.shift_ops import EIGHT_TO_THE_RIGHT, PARTS_OF_A_PIXEL, parse_shifts
from genstab.metrics.shift_psnr import ShiftTable, squared_error

MOST_COLUMNS = 1000


class ShiftStability(Callback):
    """Measure the shift PSNR of a module's generator in every validation.

    Logs `val/shift_psnr`, `val/shift_psnr_worst` and `val/shift_psnr_pooled` (protocol `circular`), and
    `val/shift_psnr_NAME` of every other protocol, such as `val/shift_psnr_crop`, in dB. The numbers depend neither on
    the batch size nor on the number of processes, and training is left untouched: weights, modes and random state are
    as without the callback. An output that is not finite makes them NaN.

    After each validation every process has, for each protocol: `tables`, dB of shape (shifts, images) with the images
    in the order of the dataset, NaN where nothing was measured; `pooled`, dB of shape (shifts,), one PSNR over all
    images; and in `names` what the images are called, by the batch's "name" or else by their position. To bound the
    memory, `tables` and `names` end at the first 1000 images; all else counts every image.

    Args:
        shifts: pairs (dy, dx) in pixels, none zero, for `circular` and `crop`.
        protocols: any of `genstab.metrics.protocols.PROTOCOLS`.
        images: how many images of the first validation loader to measure, from the first on; None for all.
        margin: pixels left out on each side of the overlap in `crop` and `fractional`.
        forward_batch: images a forward pass; several shifts share one.
        multiple: windows of `crop` are cut to a multiple of so many pixels, for generators that need one.
        data_range: R of the PSNR, 2 for images in [−1, 1].
        cap: what no error at all counts as, in dB.
        source_key: where a batch that is a dict holds the source; of a tuple it is the first item.
        generator: name of the submodule that maps the source to an image; None: the module's own `forward`.
        fractional_shifts: pairs (dy, dx) in pixels, none zero, for `fractional`.

    Raises:
        InputError: an empty list, a zero shift, an unknown protocol, a count below 1; in the first validation batch
            also images too small for the shifts.
    """

    def __init__(
        self,
        shifts: Sequence[Sequence[int]] = EIGHT_TO_THE_RIGHT,
        protocols: Sequence[str] = ("circular", "crop"),
        images: int | None = 64,
        margin: int = 8,
        forward_batch: int = 32,
        multiple: int = 1,
        data_range: float = 2.0,
        cap: float = 100.0,
        source_key: str = "source",
        generator: str | None = None,
        fractional_shifts: Sequence[Sequence[float]] = PARTS_OF_A_PIXEL,
    ) -> None:
        whole, parts = parse_shifts(shifts), parse_shifts(fractional_shifts, fractional=True)
        for protocol in protocols:
            check_choice("protocol", protocol, PROTOCOLS)
        check_counts(images=1 if images is None else images, forward_batch=forward_batch, multiple=multiple)
        if not isinstance(margin, int) or margin < 0:
            raise InputError(f"margin={margin} is not an integer of at least 0")
        self.images, self.margin, self.forward_batch, self.multiple = images, margin, forward_batch, multiple
        self.seen = 0
        self.source_key, self.generator = source_key, generator
        self.shifts: dict[str, Sequence[Motion]] = {}
        self.sums: dict[str, ShiftTable] = {}
        for protocol in protocols:
            self.shifts[protocol] = parts if PROTOCOLS[protocol].fractional else whole
            columns = min(images or MOST_COLUMNS, MOST_COLUMNS)
            self.sums[protocol] = ShiftTable(len(self.shifts[protocol]), columns, data_range, cap)
        self.tables: dict[str, Tensor] = {}
        self.pooled: dict[str, Tensor] = {}
        self.names: list[str] = []
        self._named: dict[int, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail early where the generator is not there."""
        submodule(pl_module, self.generator)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, on the module's device where it has float64."""
        self.seen, self._named = 0, {}
        for sums in self.sums.values():
            sums.to(torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the images of this batch that are within the budget."""
        if dataloader_idx:
            return
        source = source_of(batch, self.source_key)
        positions = dataset_positions(
            trainer.val_dataloaders, self.seen, len(source), trainer.world_size, trainer.global_rank
        )
        self.seen += len(source)
        counted = (positions >= 0) & (positions < (self.images or math.inf))
        if not counted.any():
            return
        source = source[counted.to(source.device)]
        named = dict(zip(positions.tolist(), names_of(batch, positions), strict=True))
        positions = positions[counted]
        self._named.update({place: named[place] for place in positions.tolist() if place < MOST_COLUMNS})
        options: dict[str, Any] = {
            "margin": self.margin,
            "forward_batch": self.forward_batch,
            "multiple": self.multiple,
            "check_finite": False,  # a training that diverges logs NaN and goes on
        }
        with inference(submodule(pl_module, self.generator)) as generate:
            if not all(PROTOCOLS[protocol].windows for protocol in self.shifts):
                options["output"] = in_chunks(generate, source, self.forward_batch)  # once for all protocols
            for protocol, shifts in self.shifts.items():
                pairs = shift_pairs(generate, source, shifts, protocol, **options)
                for index, (_, *pair_and_mask) in enumerate(pairs):
                    self.sums[protocol].update(index, positions, *squared_error(*pair_and_mask))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the dB of this validation, over all processes."""
        for protocol, sums in self.sums.items():
            self.tables[protocol], self.pooled[protocol], reductions = sums.tables()
            # Every process holds the same value: the mean changes nothing and says so to Lightning.
            keys = PROTOCOLS[protocol].keys()
            pl_module.log_dict({key: reductions[reduction] for reduction, key in keys.items()}, sync_dist=True)
        named = {place: name for part in all_gathered(self._named) for place, name in part.items()}
        self.names = [named.get(place, str(place)) for place in range(max(named, default=-1) + 1)]
