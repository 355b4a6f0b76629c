"""The checkpoint from which a training run resumes bit for bit: when it is written, what it holds, how it is read."""

import csv
import shlex
import shutil
import signal
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from genstab.errors import InputError, check_counts
from genstab.runtime.files import WholeCheckpoints, unwritten_files, write_whole
from genstab.runtime.gather import all_gathered
from genstab.runtime.loop_state import held_back, restore_progress, takes_step, training_progress, validate_now
from genstab.runtime.random_state import random_states, set_random_states
from genstab.runtime.signals import Stopped, StopSignals, by_submitit, requeue, requeue_signal


def adopt_kept_files(state: dict[str, Any], beside: Path, here: Path, copy: bool) -> None:
    """Let the state of a `ModelCheckpoint` name files in this run's folder, copied from beside the checkpoint."""

    def moved(path: str) -> str:
        if not path:
            return path
        source, target = beside / Path(path).name, here / Path(path).name
        if copy and source.is_file() and source.resolve() != target.resolve():
            with source.open("rb") as file:
                write_whole(target, lambda new: shutil.copyfileobj(file, new))
        return str(target)

    state["dirpath"] = str(here)
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])


@rank_zero_only
def continue_logs(loggers: Iterable[Logger], wandb_id: str | None, batches: int, again: bool) -> None:
    """Let the loggers append to the logs of the run that is resumed; before anything is logged.

    The W&B run keeps its id. `metrics.csv` in this run's folder, which Lightning would delete, keeps the rows of the
    first `batches` batches; later ones are written anew, and with `again` those of the validation after them too.
    TensorBoard adds a file to its folder.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and wandb_id:
            logger.run_id = wandb_id  # type: ignore[attr-defined]  # of our own logger, see `genstab.loggers.wandb`
        elif isinstance(logger, CSVLogger) and (path := Path(logger.log_dir) / "metrics.csv").is_file():
            rows: list[dict[str, Any]] = []
            with path.open(newline="") as file:
                for line in csv.DictReader(file):
                    row = {key: value for key, value in line.items() if value}
                    step = int(row["step"]) if (row.get("step") or "").isdecimal() else batches
                    repeated = again and step == batches - 1 and any(key.startswith("val/") for key in row)
                    rows += [row] if step < batches and not repeated else []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the folder is not empty
                logger.experiment.metrics = rows + logger.experiment.metrics


# The key of a checkpoint that holds the progress of the training.
RESUME = "resume"


class LastCheckpoint(Checkpoint):
    """Keep `DIRPATH/last.ckpt`, from which a killed training run resumes, bit for bit on the same machine.

    It is written at the end of epochs, within them as often as asked for, at the end of the training, and within one
    step after Ctrl-C, SIGTERM or, in a SLURM job, SIGUSR1, which also requeues the job; the program then ends with 128
    plus the signal's number (see `signals`). On several processes a validation is finished before that. Every
    checkpoint of the trainer, the best one too, holds what is needed to resume, and is written whole or not at all.

    Args:
        dirpath: where `last.ckpt` goes.
        every_n_epochs: epochs from one checkpoint to the next.
        every_n_train_steps: batches likewise; None: never within an epoch, but for the minutes.
        every_minutes: minutes likewise, checked after each batch; None: never.

    Raises:
        InputError: a number that is not positive; a checkpoint from another kind of training.

    >>> LastCheckpoint("checkpoints", every_minutes=0)
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: every_minutes=0 is not a positive number
    """

    def __init__(
        self,
        dirpath: str | Path,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        every_minutes: float | None = 10.0,
    ) -> None:
        check_counts(every_n_epochs=every_n_epochs, every_n_train_steps=every_n_train_steps or 1)
        if every_minutes is not None and not every_minutes > 0:
            raise InputError(f"every_minutes={every_minutes} is not a positive number")
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs, every_n_train_steps
        self.seconds = float("inf") if every_minutes is None else 60 * every_minutes
        self.signals = StopSignals()
        self.saved_at = 0.0
        self.pending = False  # whether a validation is due, or begun and not yet ended
        self.random: dict[str, Any] = {}  # the random states before it
        self.after_step: dict[str, Any] = {}  # the random states before the batches that are held back
        self.resumed: dict[str, Any] | None = None
        self.groups: list[list[int]] = []  # how many parameters each group of its optimizers has
        self.limits: tuple[int | None, int] | None = None
        self.epochs: int | None = None

    # ------------------------------------------------------------------ when it is written

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write every checkpoint of the trainer atomically."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is due or a signal came; at the end of an epoch only after `on_train_epoch_end`."""
        self._note_random(trainer, pl_module)
        # private: whether a validation follows this batch, for any `val_check_interval`; None: no dataloader_iter
        self.pending = trainer.fit_loop.epoch_loop._should_check_val_fx(None)  # type: ignore[arg-type]
        if self.pending:
            self.random = random_states(pl_module.device)
        elif trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches or _steps_done(trainer):
            return  # the epoch ends: `on_train_epoch_end` saves
        steps = self.every_n_train_steps
        try:
            due = steps is not None and takes_step(trainer, batch_idx) and trainer.global_step % steps == 0
            self._save_or_stop(trainer, due)
        except Stopped:
            # private: log the metrics of this batch, as Lightning would after this hook
            trainer._logger_connector.update_train_step_metrics()
            raise

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the validation and everything else that belongs to the epoch."""
        fit = trainer.fit_loop
        self._note_random(trainer, pl_module)
        if self.limits:  # the last epoch was only to be closed
            fit.max_epochs, fit.epoch_loop.max_steps = self.limits
            self.limits = None
        fit.epoch_loop.on_iteration_done()  # an epoch that was only to be closed has no batch that would do it
        epochs = trainer.current_epoch + 1
        over = trainer.should_stop or _steps_done(trainer) or 0 <= (trainer.max_epochs or -1) <= epochs
        self._save_or_stop(trainer, over or epochs % self.every_n_epochs == 0)
        self.signals.at_once = over

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop in the middle of a validation, on one process: it is repeated when the training is resumed."""
        if _fitting(trainer) and trainer.world_size == 1 and self.signals.received:
            self._save_or_stop(trainer, False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation, on several processes: they can only leave it together."""
        if _fitting(trainer):
            self._note_random(trainer, pl_module)
            self._save_or_stop(trainer, False, clock=False)
            self.pending = False

    def _note_random(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the random states, from which the batches are repeated that a checkpoint after the next ones lacks."""
        if trainer.accumulate_grad_batches > 1 and not held_back(trainer):
            self.after_step = random_states(pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers."""
        self.signals.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self.signals.stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise an error at the very end if the final weights could not be saved."""
        if why := unwritten_files(trainer).get(str(self.path)):
            cure = "and there are no earlier ones"
            if self.path.is_file():
                again = f"ckpt_path={shlex.quote(str(self.path))}"
                cure = f"the earlier ones are intact: make room on the disk and resume with {again}"
            raise InputError(f"the final weights could not be saved: {self.path}: {why}; {cure}")

    def _save_or_stop(self, trainer: Trainer, due: bool, clock: bool = True) -> None:
        """Save if the first process is due to; save and stop if any process received a signal. All processes agree."""
        due = due or (clock and time.monotonic() - self.saved_at >= self.seconds)
        request = 2 * self.signals.received + (due and trainer.is_global_zero)
        if trainer.world_size > 1:
            highest = torch.tensor(request, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
            request = int(highest)
        signum, save = divmod(request, 2)
        if signum or save:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved_at = time.monotonic()
        if signum:
            queued = by_submitit() and signum == requeue_signal()  # by submitit itself, when all is closed
            if trainer.is_global_zero and signum == signal.SIGUSR1 and not queued:
                print(requeue())
            raise Stopped(signum)

    # ------------------------------------------------------------------ what it holds

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the progress of the training and the random states of every process."""
        random = self.random if self.pending else random_states(pl_module.device)
        if held := held_back(trainer):
            random = self.after_step
        checkpoint[RESUME] = {
            **training_progress(trainer),
            "pending": self.pending and not held,
            "metrics": {key: value.cpu() for key, value in trainer.callback_metrics.items()},
            "random": all_gathered(random),
            "optimizers": [type(optimizer).__name__ for optimizer in trainer.optimizers],
            "wandb": next((each.version for each in trainer.loggers if isinstance(each, WandbLogger)), None),
        }

    # ------------------------------------------------------------------ how it goes on

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the progress to resume from, and adopt the files that `ModelCheckpoint`s kept in another folder."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if RESUME not in checkpoint:
            raise InputError(f"{trainer.ckpt_path} was not written by a training run with LastCheckpoint")
        self.resumed = checkpoint[RESUME]
        self.groups = [_groups(state) for state in checkpoint["optimizer_states"]]
        for callback in trainer.checkpoint_callbacks:
            if not (isinstance(callback, ModelCheckpoint) and callback.dirpath and trainer.ckpt_path):
                continue
            if state := checkpoint["callbacks"].get(callback.state_key):
                beside, here = Path(trainer.ckpt_path).parent, Path(callback.dirpath)
                adopt_kept_files(state, beside, here, copy=trainer.is_global_zero)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the optimizers; let Lightning enter a training run whose last batch is done, to close it properly."""
        if self.resumed is None:
            return
        found = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        if found != self.resumed["optimizers"]:
            raise InputError(f"{trainer.ckpt_path} does not fit: optimizers {self.resumed['optimizers']} → {found}")
        groups = [_groups(optimizer.state_dict()) for optimizer in trainer.optimizers]
        if groups != self.groups:
            raise InputError(f"{trainer.ckpt_path} does not fit: parameters of the optimizers {self.groups} → {groups}")
        fit, limits = trainer.fit_loop, (trainer.max_epochs, trainer.max_steps)
        if 0 <= (limits[0] or -1) <= self.resumed["epoch"] or 0 <= limits[1] <= self.resumed["steps"]:
            self.limits = limits
            fit.max_epochs, fit.epoch_loop.max_steps = -1, -1
        elif self.resumed["batch"] and trainer.max_epochs == self.resumed["epoch"] + 1:
            # The last epoch, ended early by max_steps, is over to Lightning, which would leave without a word.
            self.epochs, fit.max_epochs = trainer.max_epochs, self.resumed["epoch"] + 2

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the progress, repeat a validation that did not finish, and close an epoch without batches left."""
        self.saved_at = time.monotonic()
        self.signals.start()
        if self.resumed is None:
            self._note_random(trainer, pl_module)
            return
        progress, self.resumed = self.resumed, None
        restore_progress(trainer, progress)
        if self.epochs:
            trainer.fit_loop.max_epochs, self.epochs = self.epochs, None
        trainer.callback_metrics.update(progress["metrics"])
        states = progress["random"]
        if trainer.global_rank < len(states):
            set_random_states(states[trainer.global_rank], pl_module.device)
        if len(states) != (size := trainer.world_size):
            rank_zero_warn(f"the checkpoint is of {len(states)} processes, this run has {size}: not bit for bit")
        self.pending, self.random = progress["pending"], random_states(pl_module.device)
        self._note_random(trainer, pl_module)
        if self.pending or self.limits:
            self.pending = True
            validate_now(trainer)
        fit = trainer.fit_loop
        if self.limits and not progress["batch"]:
            fit.max_epochs, fit.epoch_loop.max_steps = self.limits
            self.limits, self.signals.at_once = None, True
        elif self.limits or progress["batch"] >= trainer.num_training_batches:
            fit.epoch_loop.batch_progress.is_last_batch = True  # nothing to train: only the epoch's end


def _groups(optimizer: dict[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer["param_groups"]]


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _steps_done(trainer: Trainer) -> bool:
    return 0 <= trainer.max_steps <= trainer.global_step
