"""Shift PSNR in every validation of any LightningModule that maps a batch's source to an image."""

import math
from collections.abc import Sequence
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torchmetrics import MetricCollection

from genstab.batches import dataset_positions, source_of
from genstab.errors import InputError, check_choice, check_counts
from genstab.inference import inference, submodule
from genstab.metrics import ShiftPSNR
from genstab.protocols import PROTOCOLS, shift_pairs
from genstab.shift import parse_shifts

EIGHT_TO_THE_RIGHT = tuple((0, dx) for dx in range(1, 9))


class ShiftStability(Callback):
    """Measure the shift PSNR of a module's generator in every validation.

    Logs `val/shift_psnr`, `val/shift_psnr_worst` and `val/shift_psnr_pooled` (protocol `circular`) and
    `val/shift_psnr_crop` (protocol `crop`), in dB. The numbers depend neither on the batch size nor on the number of
    processes, and training is left untouched: weights, modes and random state are as without the callback.

    Args:
        shifts: pairs (dy, dx) in pixels, none zero.
        protocols: any of `circular`, `crop`.
        images: how many images of the first validation loader to measure, from the first on; None for all.
        margin: pixels left out on each side of the overlap in `crop`.
        forward_batch: images a forward pass; several shifts share one.
        multiple: windows of `crop` are cut to a multiple of so many pixels, for generators that need one.
        data_range: R of the PSNR, 2 for images in [−1, 1].
        cap: what no error at all counts as, in dB.
        source_key: where a batch that is a dict holds the source; of a tuple it is the first item.
        generator: name of the submodule that maps the source to an image; None: the module's own `forward`.

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
    ) -> None:
        self.shifts = parse_shifts(shifts)
        for protocol in protocols:
            check_choice("protocol", protocol, PROTOCOLS)
        check_counts(images=1 if images is None else images, forward_batch=forward_batch, multiple=multiple)
        if not isinstance(margin, int) or margin < 0:
            raise InputError(f"margin={margin} is not an integer of at least 0")
        self.images, self.margin, self.forward_batch, self.multiple = images, margin, forward_batch, multiple
        self.seen = 0
        self.source_key, self.generator = source_key, generator
        self.metrics = {}
        for protocol in protocols:
            reductions = (
                {"_crop": "mean"} if protocol == "crop" else {"": "mean", "_worst": "worst", "_pooled": "pooled"}
            )
            self.metrics[protocol] = MetricCollection(
                {f"val/shift_psnr{ending}": ShiftPSNR(data_range, r, cap) for ending, r in reductions.items()}
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fail early where the generator is not there."""
        submodule(pl_module, self.generator)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, on the module's device where it has float64."""
        self.seen = 0
        for metrics in self.metrics.values():
            metrics.to("cpu" if pl_module.device.type == "mps" else pl_module.device).reset()

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
        source = source[counted.to(source.device)]
        if not len(source):
            return
        with inference(submodule(pl_module, self.generator)) as generate:
            for protocol, metrics in self.metrics.items():
                for _, *pair_and_mask in shift_pairs(
                    generate, source, self.shifts, protocol, self.margin, self.forward_batch, self.multiple, False
                ):
                    metrics.update(*pair_and_mask)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the dB of this validation, over all processes."""
        for metrics in self.metrics.values():
            # Every process holds the same value: the mean changes nothing and says so to Lightning.
            pl_module.log_dict(metrics.compute(), sync_dist=True)
