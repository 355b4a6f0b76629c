"""The progress of a training run in plain numbers, and how Lightning's loops are set to it.

Lightning restores the state of its loops too, but then repeats or leaves out a validation, an epoch's end or a batch,
depending on `max_steps` and on the hook that saved. Here the same numbers mean the same point, whoever noted them. Only
public attributes are set, and counters through the format of Lightning's checkpoints.
"""

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.utilities.combined_loader import CombinedLoader

from genstab.errors import InputError


def takes_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether the optimizers take a step in a batch: in every one, unless gradients are accumulated."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch


def logged_step(trainer: Trainer) -> int:
    """Return the step at which Lightning logs the metrics of this moment: batches, or updates of several batches."""
    return trainer.fit_loop.epoch_loop.on_save_checkpoint()[_LOGGED_STEP]


def held_back(trainer: Trainer) -> int:
    """Return how many of the last batches have not made a step yet: a resumed training run begins with these."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    batch = batches.current.ready
    if batches.is_last_batch or batch >= trainer.num_training_batches:
        return 0
    return batch % trainer.accumulate_grad_batches


def training_progress(trainer: Trainer) -> dict[str, Any]:
    """Return the progress after the last step: complete `epoch`s, `batch`es of the next one, `batches` in all.

    Also how many steps the loggers count (`logged`), the optimizer `steps`, which are fewer where an update was left
    out, the state of the data loaders, the number of training images, and how many a batch has over all processes.
    """
    fit, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop.batch_progress
    epochs, batch = fit.epoch_progress.current, batches.current.ready
    ended = epochs.processed == epochs.ready  # type: ignore[attr-defined]  # it has both
    if ended and 0 < batch < trainer.num_training_batches:
        # max_steps ended the epoch early: with more steps it goes on. The length of a stream is known at its end only.
        ended = trainer.num_training_batches == float("inf") and batches.is_last_batch
    loaders = _loaders(trainer)
    images = next((len(each.dataset) for each in loaders if hasattr(each, "dataset")), None)
    size = next((each.batch_size for each in loaders if hasattr(each, "batch_size")), None)
    held = held_back(trainer)
    batch = 0 if ended else batch - held
    states = [each.state_dict() for each in loaders if hasattr(each, "state_dict")]
    # A `ResumableLoader` counts what it returned and cannot know where `limit_train_batches` ends an epoch.
    place = 0 if batches.is_last_batch or batch >= trainer.num_training_batches else batch
    states = [{**state, "batch": place} if "batch" in state else state for state in states]
    return {
        "epoch": epochs.ready if ended else epochs.ready - 1,
        "batch": batch,
        "batches": batches.total.ready - held,
        "logged": _steps_so_far(trainer),
        "steps": trainer.global_step,
        "loaders": states,
        "images": images,
        "images_per_step": (size or 1) * trainer.world_size,
    }


def restore_progress(trainer: Trainer, progress: dict[str, Any]) -> None:
    """Let the training go on before the batch `batch` of the epoch `epoch`; from `on_train_start`."""
    fit = trainer.fit_loop
    loop = fit.epoch_loop
    epoch, batch, batches = progress["epoch"], progress["batch"], progress["batches"]
    within = batch > 0
    for each in (fit.epoch_progress.total, fit.epoch_progress.current):
        each.ready = each.started = epoch + within  # type: ignore[attr-defined]  # it has them
        each.processed = each.completed = epoch  # type: ignore[attr-defined]
    for each, count in ((loop.batch_progress.total, batches), (loop.batch_progress.current, batch)):
        each.ready = each.started = each.processed = each.completed = count  # type: ignore[attr-defined]
    loop.batch_progress.is_last_batch = False
    loop.val_loop.batch_progress.reset()
    fit.restarting = within  # and of the loops in it
    loop.restarting, loop.val_loop.restarting = within, False
    fit.update_restart_stage()  # in the middle of an epoch, or before a new one
    loop.reset_restart_stage()  # after a complete batch
    # Lightning adds one where it enters an epoch that was begun
    _set_logged_step(trainer, progress.get("logged", batches) - within)
    loaders = [each for each in _loaders(trainer) if hasattr(each, "load_state_dict")]
    if len(loaders) != (count := len(progress["loaders"])):
        raise InputError(f"the checkpoint has the places of {count} data loaders, this training has {len(loaders)}")
    for loader, state in zip(loaders, progress["loaders"], strict=True):
        loader.load_state_dict(state)


def validate_now(trainer: Trainer) -> None:
    """Run a validation as Lightning does after a batch, at the same step and epoch of the logs."""
    loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
    step, epoch = logged_step(trainer), epochs.completed
    _set_logged_step(trainer, _steps_so_far(trainer) - 1)
    if loop.batch_progress.current.ready == 0:  # after the end of an epoch: it belongs to that one
        epochs.completed -= 1
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    epochs.completed = epoch
    _set_logged_step(trainer, step)


_LOGGED_STEP = "_batches_that_stepped"  # what Lightning's checkpoints call the step of the loggers


def _steps_so_far(trainer: Trainer) -> int:
    """Return what `logged_step` will be before the next batch."""
    if trainer.accumulate_grad_batches > 1:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def _set_logged_step(trainer: Trainer, step: int) -> None:
    trainer.fit_loop.epoch_loop.on_load_checkpoint({_LOGGED_STEP: step})


def _loaders(trainer: Trainer) -> list[Any]:
    return [] if trainer.train_dataloader is None else CombinedLoader(trainer.train_dataloader).flattened
