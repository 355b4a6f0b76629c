"""A training whose numbers are no longer finite: stopped before a checkpoint is written over, or stepped over."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from genstab.data.paths import shortened
from genstab.data.shares import all_gathered
from genstab.errors import InputError, check_choice

ON_NAN = ("stop", "skip")
MOST_IN_A_ROW = 100
"""Updates left out one after the other, after which a training stops: it will not mend."""


class NotFiniteError(InputError):
    """A training whose numbers are no longer finite; the command line prints it as one line."""


@dataclass(frozen=True)
class Found:
    """What is not finite: at which step, which of its losses (counted from 0), in a batch of which images.

    >>> print(Found(7, "loss_d is nan", names=["a.png"]))
    loss_d is nan at step 7 (a.png)
    """

    step: int
    what: str
    place: int = 0
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.what} at step {self.step}" + (f" ({shortened(self.names)})" if self.names else "")


class FiniteGuard(Callback):
    """Stop a training whose losses or weights are not finite, or leave out such updates.

    The message names the loss, the step, the images of that batch and the last checkpoint with finite weights; nothing
    is saved after it. It works in any LightningModule whose `training_step` returns its losses, a tensor or a dict.

    `stop` costs nothing that can be measured: losses are kept where they are and looked at every `log_every_n_steps`
    batches, before a validation and at the end of an epoch; weights are looked at when a checkpoint is written. The
    step and the images named are those of the first bad loss all the same. `skip` looks at every update before it is
    made, so that the device is waited for twice a batch, and puts back what the batch did to BatchNorm's statistics;
    every process leaves out the same update. Under float16 a scaler leaves such updates out anyway, in either mode.

    Args:
        on_nan: `stop`, or `skip` to go on; a hundred left out in a row stop the training, too.

    Raises:
        InputError: an unknown `on_nan`.
        NotFiniteError: in training.

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

    def state_dict(self) -> dict[str, Any]:
        """Return what was left out, for the checkpoint."""
        return {"left_out": self.left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the list of a checkpoint."""
        self.left_out = list(state_dict["left_out"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the statistics that a bad batch would spoil; only with `skip`."""
        if self.on_nan == "skip":
            self._bad = False
            self._before = [buffer.clone() for buffer in _statistics(pl_module)]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remember whether the loss is finite; only with `skip`."""
        self._finite = loss.detach().isfinite().all() if self.on_nan == "skip" else None

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take away gradients that, or whose loss, are not finite: without any, an optimizer changes nothing.

        Only with `skip`. The loss tells more: where a target is NaN, the gradient of |output − target| is zero.
        """
        if self._finite is None or _scaler(trainer) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = self._finite & _sum(gradients, self._finite.device).isfinite()
        if trainer.world_size > 1:  # a loss is each process's own
            whole = finite.int()
            torch.distributed.all_reduce(whole, torch.distributed.ReduceOp.MIN)
            finite = whole.bool()
        if not finite:
            optimizer.zero_grad()
            self._bad = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the losses, and look at them now and then."""
        step = trainer.fit_loop.total_batch_idx
        self._recent.append((step, _names(batch), _losses(outputs)))
        if self.on_nan == "skip":
            self._step_over(trainer, pl_module)
        elif (step + 1) % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]  # set by a connector
            self._check(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before a validation that would measure nothing."""
        self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the checkpoint callbacks do their work, which come last."""
        self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save no weights that are not finite."""
        if not _whole(pl_module):
            found = _first_bad(self._recent)
            raise _error(trainer, found or Found(trainer.fit_loop.total_batch_idx, "a weight is not finite"))

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a loss since the last look is not finite, in any process; all of them look at the same steps."""
        recent, self._recent = self._recent, []
        if not recent:
            return
        found = _first_bad(recent)
        if trainer.world_size > 1:
            some = torch.tensor(int(found is not None), device=pl_module.device)
            torch.distributed.all_reduce(some)
            found = _merged(all_gathered(found)) if some else None
        if found:
            raise _error(trainer, found)

    def _step_over(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note an update that was left out, and put back the statistics."""
        found = _first_bad(self._recent)
        ((step, names, _),), self._recent = self._recent, []
        scaler = _scaler(trainer)
        if not (self._bad or (scaler is not None and found)):
            self.in_a_row = 0
            if found:  # a bad number that no gradient comes from
                raise _error(trainer, found)
            return
        for buffer, before in zip(_statistics(pl_module), self._before, strict=True):
            buffer.copy_(before)
        if scaler is None and trainer.world_size > 1:
            found = _merged(all_gathered(found))
        found = found or Found(step, "a gradient is not finite", names=names)  # every loss is
        self.in_a_row += 1
        if self.in_a_row >= MOST_IN_A_ROW:
            what = f"{found.what}, the last of {self.in_a_row} updates left out in a row,"
            raise _error(trainer, replace(found, what=what))
        self.left_out.append({"step": step, "images": found.names, "reason": found.what})
        rank_zero_warn(f"on_nan=skip leaves out an update: {found}")


def _sum(gradients: list[Tensor], device: torch.device) -> Tensor:
    """Add everything up: what is not finite stays so; 16 times as fast on a CPU as to look for the largest."""
    zero = torch.zeros((), device=device)
    sums = [each.sum(dtype=torch.promote_types(each.dtype, torch.float32)).to(zero) for each in gradients]
    return torch.stack([zero, *sums]).sum()


def _losses(outputs: Any) -> dict[str, Tensor]:
    """Return the losses that a training step returned."""
    found = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
    return {key: value.detach() for key, value in found.items() if isinstance(value, Tensor) and value.numel() == 1}


def _names(batch: Any) -> list[str]:
    found = batch.get("name", ()) if isinstance(batch, Mapping) else ()
    return [str(name) for name in found]


def _first_bad(recent: list[tuple[int, list[str], dict[str, Tensor]]]) -> Found | None:
    """Return the first loss that is not finite; waits for the device once."""
    losses = [
        (step, names, place, key, loss)
        for step, names, each in recent
        for place, (key, loss) in enumerate(each.items())
    ]
    if losses:
        values = torch.stack([loss.float().reshape(()) for *_, loss in losses]).tolist()
        for (step, names, place, key, _), value in zip(losses, values, strict=True):
            if not math.isfinite(value):
                return Found(step, f"{key} is {value}", place, names)
    return None


def _merged(found: list[Found | None]) -> Found | None:
    """Join what several processes found first; a step's first bad loss spoils the later ones of all processes."""
    first = min(((each.step, each.place) for each in found if each), default=None)
    culprits = [each for each in found if each and (each.step, each.place) == first]
    return replace(culprits[0], names=[name for each in culprits for name in each.names]) if culprits else None


def _error(trainer: Trainer, found: Found) -> NotFiniteError:
    path = last_checkpoint(trainer)
    kept = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
    cure = "a lower model.lr may help, or on_nan=skip where single images are to blame"
    return NotFiniteError(f"{found}: training stopped, {kept}; {cure}")


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Return the newest checkpoint of this training, else what it went on from; None where there is neither.

    >>> last_checkpoint(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)) is None
    True
    """
    found = {
        Path(path)
        for callback in trainer.checkpoint_callbacks
        for key in ("path", "best_model_path", "last_model_path")
        if (path := getattr(callback, key, "")) and Path(path).is_file()
    }
    if found:
        return max(found, key=lambda path: path.stat().st_mtime_ns)
    return Path(trainer.ckpt_path) if trainer.ckpt_path else None


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _statistics(module: LightningModule) -> Iterator[Tensor]:
    """The buffers that a forward pass changes and a checkpoint keeps."""
    kept = module.state_dict(keep_vars=True).keys()
    return (buffer for name, buffer in module.named_buffers() if name in kept)


def _whole(module: LightningModule) -> bool:
    """Whether all parameters are finite and no statistic is NaN; a mask of −∞ is none."""
    tests = [parameter.isfinite().all() for parameter in module.parameters()]
    tests += [buffer.isnan().logical_not().all() for buffer in _statistics(module)]
    return not tests or bool(torch.stack(tests).all())
