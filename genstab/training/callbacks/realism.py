"""Realism in the features of a trained network, in every validation."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from genstab.data.shares import dataset_positions
from genstab.errors import InputError, check_counts
from genstab.metrics.perceptual import incomparable
from genstab.metrics.precision import ImageMean
from genstab.metrics.realism import Realism


class RealismCallback(Callback):
    """Compare the outputs of every validation with their targets in the features of a network trained on ImageNet.

    Logs `val/perceptual`, `val/frechet_patches` and `val/frechet_patches_STRIDE`, `val/kid` and `val/kid_error`, see
    `genstab.metrics.realism`. The outputs are those that `validation_step` returns: no pass of the generator more. Each
    image counts once on any number of processes.

    Args:
        images: number of images of the first validation loader to compare, from the first on; None for all.
        enabled: do so; it needs `pip install 'genstab[realism]'`.
        target_key: key of the target in a batch that is a dict; of a tuple it is the second item.

    Raises:
        InputError: a count below 1, a missing package; in the first validation batch also outputs that are no images
            of the size of their targets.
    """

    def __init__(self, images: int | None = 256, enabled: bool = True, target_key: str = "target") -> None:
        check_counts(images=1 if images is None else images)
        self.images, self.target_key = images, target_key
        self.metric = Realism() if enabled else None
        self.mean = ImageMean()
        self._seen = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._seen = 0
        if self.metric is not None:
            device = pl_module.device if pl_module.device.type != "mps" else torch.device("cpu")  # which has no float64
            self.metric.to(device).reset()
            self.mean.to(device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Compare those of the first images that are in this batch."""
        if self.metric is None or dataloader_idx:
            return
        target = batch.get(self.target_key) if isinstance(batch, Mapping) else batch[1]
        reason = incomparable(outputs, target) if isinstance(outputs, Tensor) else "validation_step returns no images"
        if reason or target is None:
            raise InputError(f"realism: not measured, {reason}")
        positions = dataset_positions(trainer, self._seen, len(outputs))
        self._seen += len(outputs)
        counted = (positions >= 0) & (positions < (self.images or torch.inf))
        if counted.any():
            device = self.mean.device
            output, target = (each[counted.to(each.device)].to(device) for each in (outputs, target))
            self.mean.update(self.metric.update(output, target))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the numbers, over all processes."""
        if self.metric is not None:
            values = {"val/perceptual": self.mean.compute(), **self.metric.compute()}
            # Every process holds the same value: the mean changes nothing and says so to Lightning.
            found = {key: value.float().to(pl_module.device) for key, value in values.items()}
            pl_module.log_dict(found, sync_dist=True)
