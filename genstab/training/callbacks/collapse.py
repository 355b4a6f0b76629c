"""Warn of mode collapse and of a discriminator that is never wrong or only guesses."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from genstab.data.shares import dataset_positions
from genstab.errors import check_counts
from genstab.metrics.measurements import SAME
from genstab.metrics.output_spread import OutputSpread
from genstab.training.losses import CHANCE

WINS, GUESSES = 0.01, 0.99
"""Mean loss of the discriminator relative to guessing: below `WINS` it is never wrong, from `GUESSES` on it guesses.

Successful training runs on the embedded façades had 7 to 50 % (bce) and 6 to 91 % (lsgan) over any 200 batches."""
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
    for different images, and `val/output_std`, the standard deviation within an output; and `val/constant_outputs`, the
    share of images with a constant output. They do not depend on the number of processes or the batch size. Losses are
    read from the device every `log_every_n_steps` batches.

    Args:
        window: number of batches over which the loss is averaged.

    Raises:
        InputError: the window is not at least 1.

    >>> CollapseWatch().said
    {}
    """

    def __init__(self, window: int = 200) -> None:
        check_counts(window=window)
        self.window = window
        self.said: dict[str, str] = {}
        self.alike = self.seen = self.batches = 0
        self._recent: list[Tensor] = []
        self._losses: deque[float] = deque(maxlen=window)
        self._outputs, self._targets = OutputSpread(), OutputSpread()

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
        if len(self._losses) < self.window:
            return
        mean, chance = sum(self._losses) / self.window, CHANCE[kind]
        shown = f"its loss has a mean of {mean:.2g} over {self.window} batches, {100 * mean / chance:.3g} % of guessing"
        if mean < WINS * chance:
            learns = f"({chance:.2g}); the generator learns nothing from it"
            self._warn_once("wins", f"the discriminator is never wrong: {shown} {learns}")
        elif mean >= GUESSES * chance and self.batches >= 2 * self.window:
            self._warn_once("guesses", f"the discriminator tells outputs from targets no better than chance: {shown}")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the statistics of the outputs."""
        self.seen = 0
        self._outputs, self._targets = OutputSpread(), OutputSpread()

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
        positions = dataset_positions(trainer, self.seen, len(outputs))
        self.seen += len(outputs)
        counted = (positions >= 0).to(outputs.device)
        self._outputs.add(outputs[counted])
        if isinstance(batch, Mapping) and isinstance(batch.get("target"), Tensor):
            self._targets.add(batch["target"][counted])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how much the outputs differ over all processes, and check the generator."""
        (spread, deviation, constant), (wanted, *_) = self._outputs.compute(), self._targets.compute()
        logged = {"val/output_spread": spread, "val/output_std": deviation, "val/constant_outputs": constant}
        known = {key: value for key, value in logged.items() if value is not None}
        # Every process has the same value; sync_dist avoids a warning of Lightning.
        pl_module.log_dict(known, sync_dist=True)
        if trainer.global_step < self.window or spread is None or wanted is None:
            return
        self.alike = self.alike + 1 if spread < SAME and wanted > 10 * spread else 0
        if self.alike >= VALIDATIONS:
            differ = f"its outputs for different images differ by {100 * spread:.2g} % of the value range"
            targets = f"their targets by {100 * wanted:.2g} %"
            self._warn_once("constant", f"the generator ignores its input: {differ}, {targets}")

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self.said:
            self.said[kind] = text
            rank_zero_warn(text)
