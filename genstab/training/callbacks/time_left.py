"""An estimate of how long the training will take, printed once."""

import math
import time
from datetime import timedelta
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from genstab.errors import check_counts


class TimeEstimate(Callback):
    """Print once how long the rest of the training will take, without validations.

    Args:
        after: number of batches to measure. The first batch is not one of them: it starts workers and compiles.

    Raises:
        InputError: `after` is not a positive integer.

    >>> TimeEstimate(after=20).after
    20
    """

    def __init__(self, after: int = 20) -> None:
        check_counts(after=after)
        self.after, self.seen, self.began = after, 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the counter."""
        self.seen = 0

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock after the first batch; print the estimate `after` batches later."""
        self.seen += 1
        if self.seen == 1:
            self.began = time.perf_counter()
        if self.seen != self.after + 1:
            return
        seconds = (time.perf_counter() - self.began) / self.after
        left = (trainer.estimated_stepping_batches - trainer.global_step) * trainer.accumulate_grad_batches
        if not 0 < left < math.inf:
            return
        rest = timedelta(seconds=round(left * seconds))
        say = print if trainer.progress_bar_callback is None else trainer.progress_bar_callback.print
        say(f"{left} batches to go at {seconds:.3g} s each: about {rest} plus validations")
