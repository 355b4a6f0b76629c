"""The checkpoint from which a training goes on as if it had never ended: when it is written, and what follows it."""

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
from genstab.runtime.files import WholeCheckpoints, unwritten_of, write_whole
from genstab.runtime.loop_state import go_to, place_of, validate_now
from genstab.runtime.random_state import random_states, set_random_states
from genstab.runtime.signals import Stopped, StopSignals, by_submitit, requeue, requeue_signal


def take_over(state: dict[str, Any], beside: Path, here: Path, copy: bool) -> None:
    """Let a `ModelCheckpoint`'s state name the files of this run's folder, copied from beside the checkpoint."""

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
    """Let the loggers go on with the logs of the run that is continued; before anything is logged.

    W&B gets the id of the run. `metrics.csv`, where it lies in this run's folder, keeps the rows of the first `batches`
    batches, where Lightning would delete it; the others will be written again, and with `again` those of the validation
    after them, too. TensorBoard adds a file to its folder.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and wandb_id:
            logger.run_id = wandb_id  # type: ignore[attr-defined]  # of our own logger, see `genstab.loggers.wandb`
        elif isinstance(logger, CSVLogger):
            _continue_table(logger, batches, again)


def _continue_table(logger: CSVLogger, batches: int, again: bool) -> None:
    path = Path(logger.log_dir) / "metrics.csv"
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                row = {key: value for key, value in line.items() if value}
                step = int(row["step"]) if (row.get("step") or "").isdecimal() else batches
                repeated = again and step == batches - 1 and any(key.startswith("val/") for key in row)
                rows += [row] if step < batches and not repeated else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the folder is not empty
        writer = logger.experiment
    writer.metrics = rows + writer.metrics


# The key of a checkpoint under which the place in the training is kept.
RESUME = "resume"


class LastCheckpoint(Checkpoint):
    """Keep `DIRPATH/last.ckpt`, from which a training goes on bit for bit on the same machine, wherever it was killed.

    It is written at the end of epochs, within them as often as asked for, at the end of the training, and within one
    step after Ctrl-C, SIGTERM or, in a SLURM job, SIGUSR1, which also requeues the job; the program then ends with 128
    plus the signal's number (see `signals`). On several processes a validation is finished before that. Every
    checkpoint of the trainer, the best one too, gets what is needed to go on, and is written whole or not at all.

    Args:
        dirpath: where `last.ckpt` goes.
        every_n_epochs: epochs from one checkpoint to the next.
        every_n_train_steps: batches likewise; None: whenever the minutes are over.
        every_minutes: minutes likewise, looked at after each batch; None: never.

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
        self.resumed: dict[str, Any] | None = None
        self.limits: tuple[int | None, int] | None = None
        self.epochs: int | None = None

    # ------------------------------------------------------------------ when it is written

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let every checkpoint of the trainer be whole at any time."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, or a signal wants to end it; at an epoch's end later, when that is complete."""
        loop = trainer.fit_loop.epoch_loop
        self.pending = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]  # there
        if self.pending:
            self.random = random_states(pl_module.device)
        elif loop._is_training_done:
            return
        steps = self.every_n_train_steps
        try:
            self._save_or_stop(trainer, steps is not None and trainer.global_step % steps == 0)
        except Stopped:
            trainer._logger_connector.update_train_step_metrics()  # as Lightning does after this hook
            raise

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the validation and all else that belongs to the epoch."""
        fit = trainer.fit_loop
        if self.limits:  # the last epoch was only to be closed
            fit.max_epochs, fit.epoch_loop.max_steps = self.limits
            self.limits = None
        fit.epoch_loop.on_iteration_done()  # an epoch that was only to be closed has no batch that would do it
        over = trainer.should_stop or _over(trainer)
        self._save_or_stop(trainer, over or (trainer.current_epoch + 1) % self.every_n_epochs == 0)
        self.signals.at_once = over

    def on_validation_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop in a validation, on one process: the weights are those before it, and it will be repeated."""
        if _fitting(trainer) and trainer.world_size == 1 and self.signals.received:
            self._save_or_stop(trainer, False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after a validation on several processes: they leave it together only."""
        if _fitting(trainer):
            self._save_or_stop(trainer, False, clock=False)
            self.pending = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self.signals.stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End with an error, after all else, if the final weights could not be saved."""
        if why := unwritten_of(trainer).get(str(self.path)):
            cure = "and there are none from before"
            if self.path.is_file():
                again = f"ckpt_path={shlex.quote(str(self.path))}"
                cure = f"those from before are whole: see to the disk and go on with {again}"
            raise InputError(f"the final weights could not be saved: {self.path}: {why}; {cure}")

    def _save_or_stop(self, trainer: Trainer, due: bool, clock: bool = True) -> None:
        """Let all processes agree on what the first one's clock and anybody's signal want, and do it."""
        due = due or (clock and time.monotonic() - self.saved_at >= self.seconds)
        word = 2 * self.signals.received + (due and trainer.is_global_zero)
        if trainer.world_size > 1:
            shared = torch.tensor(word, device=trainer.strategy.root_device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            word = int(shared)
        signum, save = divmod(word, 2)
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
        """Add the place in the training and the random states of every process."""
        random = self.random if self.pending else random_states(pl_module.device)
        checkpoint[RESUME] = {
            **place_of(trainer),
            "pending": self.pending,
            "metrics": {key: value.cpu() for key, value in trainer.callback_metrics.items()},
            "random": _of_all(trainer, random),
            "optimizers": [type(optimizer).__name__ for optimizer in trainer.optimizers],
            "wandb": next((each.version for each in trainer.loggers if isinstance(each, WandbLogger)), None),
        }

    # ------------------------------------------------------------------ how it goes on

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the place to go on from; take over what other `ModelCheckpoint`s had kept in another folder."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if RESUME not in checkpoint:
            raise InputError(f"{trainer.ckpt_path} was not written by a training with a LastCheckpoint")
        self.resumed = checkpoint[RESUME]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath and trainer.ckpt_path:
                state = checkpoint["callbacks"].get(callback.state_key)
                if state:
                    take_over(state, Path(trainer.ckpt_path).parent, Path(callback.dirpath), trainer.is_global_zero)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the optimizers; let Lightning enter a training whose last batch is done, to end it properly."""
        if self.resumed is None:
            return
        found = [type(optimizer).__name__ for optimizer in trainer.optimizers]
        if found != self.resumed["optimizers"]:
            raise InputError(f"{trainer.ckpt_path} does not fit: optimizers {self.resumed['optimizers']} → {found}")
        fit, limits = trainer.fit_loop, (trainer.max_epochs, trainer.max_steps)
        if 0 <= (limits[0] or -1) <= self.resumed["epoch"] or 0 <= limits[1] <= self.resumed["steps"]:
            self.limits = limits
            fit.max_epochs, fit.epoch_loop.max_steps = -1, -1
        elif self.resumed["batch"] and trainer.max_epochs == self.resumed["epoch"] + 1:
            # The last epoch, ended early by max_steps, is over to Lightning, which would leave without a word.
            self.epochs, fit.max_epochs = trainer.max_epochs, self.resumed["epoch"] + 2

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to the place, make up for a validation that did not end, and end what has no batches left."""
        self.saved_at = time.monotonic()
        self.signals.start()
        if self.resumed is None:
            return
        place, self.resumed = self.resumed, None
        go_to(trainer, place)
        if self.epochs:
            trainer.fit_loop.max_epochs, self.epochs = self.epochs, None
        trainer._logger_connector._callback_metrics.update(place["metrics"])
        rank = trainer.global_rank
        if rank < len(place["random"]):
            set_random_states(place["random"][rank], pl_module.device)
        if len(place["random"]) != trainer.world_size:
            before = len(place["random"])
            rank_zero_warn(f"the checkpoint is of {before} processes, this run has {trainer.world_size}: not exact")
        self.pending, self.random = place["pending"], random_states(pl_module.device)
        if self.pending or self.limits:
            self.pending = True
            validate_now(trainer)
        fit = trainer.fit_loop
        if self.limits and not place["batch"]:
            fit.max_epochs, fit.epoch_loop.max_steps = self.limits
            self.limits, self.signals.at_once = None, True
        elif self.limits or place["batch"] >= trainer.num_training_batches:
            fit.epoch_loop.batch_progress.is_last_batch = True  # nothing to train: only the epoch's end


def _fitting(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _over(trainer: Trainer) -> bool:
    """Whether no batch is left, at the end of an epoch."""
    epochs = 0 <= (trainer.max_epochs or -1) <= trainer.current_epoch + 1
    return epochs or 0 <= trainer.max_steps <= trainer.global_step


def _of_all(trainer: Trainer, mine: dict[str, Any]) -> list[dict[str, Any]]:
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return [mine]
    gathered: list[dict[str, Any]] = [{}] * trainer.world_size
    torch.distributed.all_gather_object(gathered, mine)
    return gathered
