"""Warn of mode collapse and of a discriminator that is never wrong or only guesses."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from genstab.data.shares import all_gathered, dataset_positions
from genstab.errors import check_counts
from genstab.evaluation.verdict import SAME
from genstab.training.losses import CHANCE

WINS, GUESSES = 0.01, 0.99
"""Mean loss of the discriminator relative to guessing: below `WINS` it is never wrong, from `GUESSES` on it guesses.

Successful trainings on the embedded façades had 7 to 50 % (bce) and 6 to 91 % (lsgan) over any 200 batches."""
VALIDATIONS = 3
"""Number of consecutive validations with similar outputs before a warning; early outputs are always similar."""


class CollapseWatch(Callback):
    """Warn once of each sign that a GAN has collapsed.

    - The discriminator is never wrong: the mean of `loss_d` over the last `window` batches is below 1 % of that of a
      discriminator that guesses (ln 2 for `bce`, 1/4 for `lsgan`), so that the generator learns nothing from it.
    - The discriminator guesses: that mean is 99 % or more, not counting the first `window` batches.
    - The generator ignores its input: the outputs for different images differ by less than 1 % of the value range in
      three consecutive validations, after `window` batches, and the targets by more than ten times as much.

    Logs in validation, as shares of the value range: `val/output_spread`, the root mean square distance between outputs
    for different images, and `val/output_std`, the standard deviation within an output. They do not depend on the
    number of processes or the batch size. Losses are read from the device every `log_every_n_steps` batches.

    Args:
        window: number of batches over which the loss is averaged.

    Raises:
        InputError: the window is not at least 1.

    >>> CollapseWatch().said
    {}
    """

    def __init__(self, window: int = 200) -> None:
        check_counts(window=window)
        self.said: dict[str, str] = {}
        self.alike = self.seen = self.batches = 0
        self._recent: list[Tensor] = []
        self._losses: deque[float] = deque(maxlen=window)
        self._outputs, self._targets = Spread(), Spread()

    def state_dict(self) -> dict[str, Any]:
        """Return the losses, counts and warnings so far, for the checkpoint."""
        self._fetch_losses()
        return {"said": self.said, "alike": self.alike, "batches": self.batches, "losses": list(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint; its warnings are not repeated."""
        self.said, self.alike, self.batches = dict(state_dict["said"]), state_dict["alike"], state_dict["batches"]
        self._losses.extend(state_dict["losses"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the discriminator's loss, and check it every `log_every_n_steps` batches."""
        if isinstance(outputs, Mapping) and "loss_d" in outputs:
            self._recent.append(outputs["loss_d"].detach())
            if len(self._recent) >= max(1, trainer.log_every_n_steps):  # type: ignore[attr-defined]  # set elsewhere
                self._fetch_losses()
                self._check_discriminator(getattr(pl_module, "gan_loss", "bce"))

    def _fetch_losses(self) -> None:
        """Read the losses from the device."""
        if self._recent:
            self.batches += len(self._recent)
            self._losses.extend(filter(math.isfinite, torch.stack(self._recent).tolist()))
            self._recent = []

    def _check_discriminator(self, kind: str) -> None:
        if len(self._losses) < (window := self._losses.maxlen or 0):
            return
        mean, chance = sum(self._losses) / window, CHANCE[kind]
        shown = f"its loss has a mean of {mean:.2g} over {window} batches, {100 * mean / chance:.3g} % of guessing"
        if mean < WINS * chance:
            self._warn_once(
                "wins",
                f"the discriminator is never wrong: {shown} ({chance:.2g}); the generator learns nothing from it",
            )
        elif mean >= GUESSES * chance and self.batches >= 2 * window:
            self._warn_once("guesses", f"the discriminator tells outputs from targets no better than chance: {shown}")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the statistics of the outputs."""
        self.seen = 0
        self._outputs, self._targets = Spread(), Spread()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the outputs of `validation_step`, and the targets."""
        if dataloader_idx or not isinstance(outputs, Tensor) or outputs.ndim != 4:
            return
        positions = dataset_positions(
            trainer.val_dataloaders, self.seen, len(outputs), trainer.world_size, trainer.global_rank
        )
        self.seen += len(outputs)
        counted = (positions >= 0).to(outputs.device)
        self._outputs.add(outputs[counted])
        if isinstance(batch, Mapping) and isinstance(batch.get("target"), Tensor):
            self._targets.add(batch["target"][counted])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how much the outputs differ over all processes, and check the generator."""
        outputs, targets = self._outputs.compute(pl_module.device), self._targets.compute(pl_module.device)
        found = dict(zip(("val/output_spread", "val/output_std"), outputs, strict=True))
        known = {key: value for key, value in found.items() if value is not None}
        # Every process has the same value; sync_dist avoids a warning of Lightning.
        pl_module.log_dict(known, sync_dist=True)
        if trainer.global_step < (self._losses.maxlen or 0) or outputs[0] is None or targets[0] is None:
            return
        spread, wanted = 100 * outputs[0], 100 * targets[0]
        self.alike = self.alike + 1 if outputs[0] < SAME and targets[0] > 10 * outputs[0] else 0
        if self.alike >= VALIDATIONS:
            differ = f"its outputs for different images differ by {spread:.2g} % of the value range"
            self._warn_once("constant", f"the generator ignores its input: {differ}, their targets by {wanted:.2g} %")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self.said:
            self.said[kind] = text
            rank_zero_warn(text)


class Spread:
    """The root mean square distance between images and the standard deviation within them, relative to the range 2.

    >>> spread = Spread()
    >>> spread.add(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))  # black and white
    >>> spread.compute(torch.device("cpu"))
    (1.0, 0.0)
    """

    def __init__(self) -> None:
        # for each shape the sums of the images and of their squares; the number of images and the sum of deviations
        self.sums: dict[tuple[int, ...], Tensor] = {}
        self.counts: dict[tuple[int, ...], Tensor] = {}

    def add(self, images: Tensor) -> None:
        """Add a batch (N, C, H, W)."""
        if not len(images):
            return
        images = (images.cpu() if images.device.type == "mps" else images).detach().double()  # mps has no float64
        shape = tuple(images.shape[1:])
        deviations = images.std((1, 2, 3), correction=0).sum()
        count = torch.stack([deviations.new_tensor(float(len(images))), deviations])
        sums = torch.stack([images.sum(0), images.square().sum(0)])
        self.counts[shape] = self.counts[shape] + count if shape in self.counts else count
        self.sums[shape] = self.sums[shape] + sums if shape in self.sums else sums

    def compute(self, device: torch.device) -> tuple[float | None, float | None]:
        """Return both over all processes, each of which must call this; the distance is for the most common shape.

        Args:
            device: where the processes exchange tensors.
        """
        # a process may have no images of a shape
        shapes = sorted(set().union(*all_gathered(list(self.sums))))
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        best, total, deviations = None, 0.0, 0.0
        for shape in shapes:
            zero = torch.zeros((), dtype=torch.float64, device=device)
            sums = self.sums.get(shape, zero.expand(2, *shape)).contiguous()
            count = self.counts.get(shape, zero.expand(2)).contiguous()
            if several:
                torch.distributed.all_reduce(sums)
                torch.distributed.all_reduce(count)
            number, deviation = count.tolist()
            total, deviations = total + number, deviations + deviation
            if number > 1 and (best is None or number > best[0]):
                # E (a − b)² = 2 · variance, with the unbiased variance of each pixel
                variance = (sums[1] - sums[0].square() / number).clamp(min=0).mean() / (number - 1)
                best = number, (2 * variance).sqrt().item() / 2
        return (None if best is None else best[1]), (deviations / total / 2 if total else None)
