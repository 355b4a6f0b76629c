"""Stop a run with NaN or infinite losses or weights before a checkpoint is overwritten, or skip such updates."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from genstab.data.paths import shortened
from genstab.errors import InputError, check_choice
from genstab.runtime.gather import all_gathered
from genstab.runtime.loop_state import takes_step
from genstab.training.gradients import gradient_norm

ON_NAN = ("stop", "skip")
MOST_IN_A_ROW = 100
"""Number of consecutive skipped updates after which the training stops."""


class NotFiniteError(InputError):
    """A loss, gradient or weight is NaN or infinite; the command line prints the message as one line."""


class Found(NamedTuple):
    """A value that is not finite: its step, the place of the loss in the step, its description, the batch's images."""

    step: int
    place: int
    what: str
    names: list[str]

    def __str__(self) -> str:
        return f"{self.what} at step {self.step}" + (f" ({shortened(self.names)})" if self.names else "")


class FiniteGuard(Callback):
    """Stop training when a loss or weight is not finite, or skip such updates.

    The error names the loss, the step, the images of the batch and the last checkpoint with finite weights; no further
    checkpoint is saved. Works with any LightningModule that returns a loss or a dict of losses from `training_step`.

    With `stop`, losses are checked every `log_every_n_steps` batches, before validation and at the end of an epoch,
    weights when a checkpoint is saved; this takes no measurable time, and the error still names the first bad step.
    With `skip`, every update is checked before it is made, which synchronizes with the device twice per batch, and the
    BatchNorm statistics are restored; all processes skip the same update. With float16, the gradient scaler skips such
    updates in either mode.

    Args:
        on_nan: `stop`, or `skip` to continue; 100 consecutive skipped updates stop the training, too.

    Raises:
        InputError: an unknown `on_nan`.
        NotFiniteError: while training, if a value is not finite.

    >>> FiniteGuard("skip").left_out
    []
    """

    def __init__(self, on_nan: str = "stop") -> None:
        check_choice("on_nan", on_nan, ON_NAN)
        self.on_nan = on_nan
        self.left_out: list[dict[str, Any]] = []
        self.in_a_row = 0
        self._bad = False
        self._finite: Tensor | None = None
        self._recent: list[tuple[int, list[str], dict[str, Tensor]]] = []
        self._before: list[Tensor] = []
        self._names: list[str] = []  # of the images of the next update

    def state_dict(self) -> dict[str, Any]:
        """Return the skipped updates, for the checkpoint."""
        return {"left_out": self.left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the skipped updates of a checkpoint."""
        self.left_out = list(state_dict["left_out"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the names of batches that an earlier training held back."""
        self._names = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """With `skip`, save the BatchNorm statistics."""
        if self.on_nan == "skip":
            self._bad = False
            self._before = [buffer.clone() for buffer in _statistics(pl_module)]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """With `skip`, check whether the loss is finite."""
        if self.on_nan == "skip":
            finite = loss.detach().isfinite().all()
            self._finite = finite if self._finite is None else self._finite & finite

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """With `skip`, set gradients to None if they or the loss are not finite, so that the optimizer does nothing.

        The loss is checked too, since for a NaN target the gradient of |output − target| is zero.
        """
        if self._finite is None or _scaler(trainer) is not None:
            return
        norm = gradient_norm(p for group in optimizer.param_groups for p in group["params"])
        finite, self._finite = self._finite & norm.to(self._finite.device).isfinite(), None
        # Each process has its own loss. Without a process group, this returns `finite` itself.
        if not trainer.strategy.reduce_boolean_decision(bool(finite), all=True):
            optimizer.zero_grad()
            self._bad = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the losses, and check them every `log_every_n_steps` batches."""
        step = trainer.fit_loop.total_batch_idx
        losses = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        losses = {key: x.detach() for key, x in losses.items() if isinstance(x, Tensor) and x.numel() == 1}
        names = batch.get("name", ()) if isinstance(batch, Mapping) else ()
        self._names += [str(name) for name in names]
        if not losses and not takes_step(trainer, batch_idx):
            return  # an update of several batches is to come
        self._recent.append((step, self._names, losses))
        self._names = []
        if self.on_nan == "skip":
            self._count_skipped(trainer, pl_module)
        elif (step + 1) % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]  # set by a connector
            self._check(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before a validation."""
        self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check before the checkpoint callbacks, which run last."""
        self._check(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save NaN or infinite parameters, or NaN buffers; a buffer may be a mask of −∞."""
        checks = [parameter.isfinite().all() for parameter in pl_module.parameters()]
        checks += [buffer.isnan().logical_not().all() for buffer in _statistics(pl_module)]
        if checks and not torch.stack(checks).all():
            found = _first_bad(self._recent)
            raise _error(trainer, found or Found(trainer.fit_loop.total_batch_idx, 0, "a weight is not finite", []))

    def _check(self, trainer: Trainer) -> None:
        """Stop if a loss since the last check is not finite on any process; all of them check at the same steps."""
        recent, self._recent = self._recent, []
        if recent and (found := _first_of_all(_first_bad(recent))):
            raise _error(trainer, found)

    def _count_skipped(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record a skipped update, and restore the statistics."""
        found = _first_bad(self._recent)
        ((step, names, _),), self._recent = self._recent, []
        scaler = _scaler(trainer)
        if not (self._bad or (scaler is not None and found)):
            self.in_a_row = 0
            if found:  # a bad loss that has no gradient
                raise _error(trainer, found)
            return
        for buffer, before in zip(_statistics(pl_module), self._before, strict=True):
            buffer.copy_(before)
        if scaler is None:  # with a scaler, processes may decide differently
            found = _first_of_all(found)
        found = found or Found(step, 0, "a gradient is not finite", names)
        self.in_a_row += 1
        if self.in_a_row >= MOST_IN_A_ROW:
            what = f"{found.what}, the last of {self.in_a_row} consecutive skipped updates,"
            raise _error(trainer, found._replace(what=what))
        self.left_out.append({"step": step, "images": found.names, "reason": found.what})
        rank_zero_warn(f"on_nan=skip skips an update: {found}")


def _first_bad(recent: list[tuple[int, list[str], dict[str, Tensor]]]) -> Found | None:
    """Return the first loss that is not finite, with one synchronization of the device."""
    losses = [loss.float().reshape(()) for _, _, each in recent for loss in each.values()]
    values = iter(torch.stack(losses).tolist() if losses else ())
    for step, names, each in recent:
        for place, key in enumerate(each):
            if not math.isfinite(value := next(values)):
                return Found(step, place, f"{key} is {value}", names)
    return None


def _first_of_all(found: Found | None) -> Found | None:
    """Return the earliest bad loss of all processes, which makes later ones bad, with the images of each of them."""
    if not (every := [each for each in all_gathered(found) if each]):
        return None
    first = min(every, key=lambda each: each[:2])
    return first._replace(names=[name for each in every if each[:2] == first[:2] for name in each.names])


def _error(trainer: Trainer, found: Found) -> NotFiniteError:
    saved = [
        path
        for callback in trainer.checkpoint_callbacks
        for name in ("path", "best_model_path", "last_model_path")
        if (path := getattr(callback, name, "")) and Path(path).is_file()
    ]
    last = max(saved, key=lambda path: Path(path).stat().st_mtime_ns, default=trainer.ckpt_path)
    kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
    cure = "a lower model.lr may help, or on_nan=skip if single images cause it"
    return NotFiniteError(f"{found}: training stopped, {kept}; {cure}")


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _statistics(module: LightningModule) -> Iterator[Tensor]:
    """Return the persistent buffers, which a forward pass may change."""
    kept = module.state_dict(keep_vars=True).keys()
    return (buffer for name, buffer in module.named_buffers() if name in kept)
