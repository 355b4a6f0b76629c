"""An estimate of how long the training will take, printed once."""

import math
import time
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
        left = trainer.estimated_stepping_batches - trainer.global_step
        if not 0 < left < math.inf:
            return
        say = print if trainer.progress_bar_callback is None else trainer.progress_bar_callback.print
        say(f"{left} batches to go at {seconds:.3g} s each: about {duration(left * seconds)}, and the validations")


def duration(seconds: float) -> str:
    """Format seconds in the two largest units.

    >>> [duration(each) for each in (8.2, 220, 8000, 200000)]
    ['8 s', '3 min 40 s', '2 h 13 min', '2 d 7 h']
    """
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // part)} {smaller}"
    return f"{seconds:.0f} s"
