"""Shift PSNR in every validation of any LightningModule that maps a batch's source to an image."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from genstab.data.collate import names_of, source_of
from genstab.data.datamodules import PairData
from genstab.data.paths import hxw
from genstab.data.shares import dataset_positions
from genstab.errors import InputError, check_choice, check_counts
from genstab.inference.eval_mode import inference, submodule
from genstab.metrics.protocols import PROTOCOLS, Motion, by_passes, in_chunks
from genstab.metrics.shift_ops import EIGHT_TO_THE_RIGHT, PARTS_OF_A_PIXEL, parse_shifts
from genstab.metrics.shift_psnr import errors_by_protocol, psnr_table, shift_period
from genstab.runtime.gather import all_gathered

MOST_COLUMNS = 1000


class ShiftStability(Callback):
    """Measure the shift PSNR of a module's generator in every validation.

    Logs `val/shift_psnr` (protocol `circular`) and `val/shift_psnr_NAME` of every other protocol, such as
    `val/shift_psnr_crop`, and with it `val/shift_psnr_crop_edge` without a margin, each also with `_pooled` and
    `_worst_shift`, and `val/shift_psnr_worst`, in dB; and `val/shift_period`, that of `crop`, or else of
    `circular`, in pixels. The numbers do not depend on the batch size or the number of processes. Weights, modes
    and the random state are not changed. An output that is not finite makes the numbers NaN.

    After each validation every process has, for each protocol: `tables`, dB of shape (shifts, images) with the images
    in the order of the dataset, NaN where nothing was measured; `pooled`, dB of shape (shifts,), one PSNR over all
    images; and in `names` the images' names, from the batch's "name" or else their positions. `tables` and `names` hold
    the first 1000 images; all other numbers count every image.

    Args:
        shifts: pairs (dy, dx) in pixels, not zero, for `circular` and `crop`.
        protocols: any of `genstab.metrics.protocols.PROTOCOLS`.
        images: number of images of the first validation loader to measure, from the first on; None for all.
        margin: pixels left out on each side of the overlap in `crop` and `fractional`.
        forward_batch: images in a forward pass; several shifts share one.
        multiple: windows of `crop` are cut to a multiple of this many pixels, for generators that need one.
        data_range: R of the PSNR, 2 for images in [−1, 1].
        cap: largest value in dB, for outputs without any error.
        source_key: key of the source in a batch that is a dict; of a tuple it is the first item.
        generator: name of the submodule that maps the source to an image; None: the module's own `forward`.
        fractional_shifts: pairs (dy, dx) in pixels, not zero, for `fractional`.

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
        check_counts(images=1 if images is None else images, forward_batch=forward_batch, multiple=multiple)
        if not isinstance(margin, int) or margin < 0:
            raise InputError(f"margin={margin} is not an integer of at least 0")
        if data_range <= 0 or cap <= 0:
            raise InputError(f"data_range={data_range} and cap={cap} must be positive")
        whole, parts = parse_shifts(shifts), parse_shifts(fractional_shifts, fractional=True)
        self.shifts: dict[str, Sequence[Motion]] = {}
        for protocol in protocols:
            check_choice("protocol", protocol, PROTOCOLS)
        self.passes = by_passes(protocols)
        for protocol in (each for group in self.passes.values() for each in group):
            self.shifts[protocol] = PROTOCOLS[protocol].measured(whole, parts)
        self.images, self.data_range, self.cap = images, data_range, cap
        self.options = {"margin": margin, "forward_batch": forward_batch, "multiple": multiple}
        self.source_key, self.generator = source_key, generator
        self.tables: dict[str, Tensor] = {}
        self.pooled: dict[str, Tensor] = {}
        self.names: list[str] = []
        self._sizes: set[tuple[int, ...]] = set()  # of images that are large enough
        self._seen = 0
        self._named: dict[int, str] = {}
        # by protocol and batch: positions, errors and numbers of pixels
        self._errors: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail early if there is no such generator."""
        submodule(pl_module, self.generator)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fail early if the first validation image is too small for the shifts."""
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by its data connector
        if isinstance(data, PairData) and trainer.limit_val_batches:
            self._check_size(data.val_set[0]["source"].shape[-2:])

    def _check_size(self, size: Sequence[int]) -> None:
        """Raise an `InputError` if images of this size have no pixels to compare."""
        if tuple(size) in self._sizes:
            return
        blank = torch.zeros(1, 1, *size)
        try:
            for first, group in self.passes.items():
                list(errors_by_protocol(lambda images: images, blank, self.shifts[first], group, **self.options))
        except InputError as error:
            raise InputError(
                f"{error}, of validation images of {hxw(size)}: set callbacks.stability.margin or "
                "callbacks.stability.shifts to less, or data.crop_size to more"
            ) from error
        self._sizes.add(tuple(size))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._seen, self._named = 0, {}
        self._errors = {protocol: [] for protocol in self.shifts}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure those of the first images that are in this batch."""
        if dataloader_idx:
            return
        source = source_of(batch, self.source_key)
        positions = dataset_positions(trainer, self._seen, len(source))
        self._seen += len(source)
        counted = (positions >= 0) & (positions < (self.images or math.inf))
        if not counted.any():
            return
        source = source[counted.to(source.device)]
        self._check_size(source.shape[-2:])
        named = dict(zip(positions.tolist(), names_of(batch, positions), strict=True))
        positions = positions[counted]
        self._named.update({place: named[place] for place in positions.tolist() if place < MOST_COLUMNS})
        options: dict[str, Any] = {**self.options, "check_finite": False}  # a training run that diverges logs NaN
        with inference(submodule(pl_module, self.generator)) as generate:
            if not all(PROTOCOLS[protocol].windows for protocol in self.shifts):
                options["output"] = in_chunks(generate, source, self.options["forward_batch"])  # for all protocols
            for first, group in self.passes.items():
                by_shift = [
                    errors
                    for _, errors, _ in errors_by_protocol(generate, source, self.shifts[first], group, **options)
                ]
                for protocol in group:
                    errors, pixels = zip(*(each[protocol] for each in by_shift), strict=True)
                    self._errors[protocol].append((positions, torch.stack(errors), torch.stack(pixels)))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the dB of this validation, over all processes."""
        own = {
            protocol: [tuple(each.cpu() for each in part) for part in parts] for protocol, parts in self._errors.items()
        }
        gathered = all_gathered((self._named, own))
        named = {place: name for names, _ in gathered for place, name in names.items()}
        self.names = [named.get(place, str(place)) for place in range(max(named, default=-1) + 1)]
        for protocol, shifts in self.shifts.items():
            nothing = torch.zeros(0, dtype=torch.long), *torch.zeros(2, len(shifts), 0, dtype=torch.float64)
            parts = [nothing, *(part for _, errors in gathered for part in errors[protocol])]
            self.tables[protocol], self.pooled[protocol], reductions = psnr_table(
                parts, len(self.names), self.data_range, self.cap
            )
            values = {key: reductions[each].float() for each, key in PROTOCOLS[protocol].keys().items()}
            if protocol == ("crop" if "crop" in self.shifts else "circular"):
                period = shift_period(shifts, self.pooled[protocol].tolist())
                values |= {} if period is None else {"val/shift_period": torch.tensor(float(period))}
            # Every process holds the same value: the mean changes nothing and says so to Lightning.
            pl_module.log_dict({key: each.to(pl_module.device) for key, each in values.items()}, sync_dist=True)
