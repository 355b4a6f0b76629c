"""Where a training stands, in plain numbers, and how Lightning's loops are set to such a place.

Lightning's own restart repeats or leaves out a validation, an epoch's end or a batch, depending on the hook that saved
and on `max_steps`; here a place means the same wherever it was noted.
"""

from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.loops.fit_loop import RestartStage
from pytorch_lightning.loops.training_epoch_loop import RestartStage as BatchStage


def place_of(trainer: Trainer) -> dict[str, Any]:
    """Return the place after the last batch: complete `epoch`s, `batch`es of the next one, `batches` in all.

    With it the `steps`, which are fewer where a batch was left out, the state of the loaders, the number of training
    images, and how many a step takes over all processes.
    """
    fit, progress = trainer.fit_loop, trainer.fit_loop.epoch_loop.batch_progress
    epochs, batch = fit.epoch_progress.current, progress.current.ready
    closed = epochs.processed == epochs.ready  # type: ignore[attr-defined]  # it has both
    if closed and 0 < batch < trainer.num_training_batches:
        # max_steps ended the epoch early: with a larger one it goes on. A stream's length is known at its end only.
        closed = trainer.num_training_batches == float("inf") and progress.is_last_batch
    loaders = fit._combined_loader.flattened if fit._combined_loader else []
    images = next((len(each.dataset) for each in loaders if hasattr(each, "dataset")), None)
    size = next((each.batch_size for each in loaders if hasattr(each, "batch_size")), None)
    return {
        "epoch": epochs.ready if closed else epochs.ready - 1,
        "batch": 0 if closed else batch,
        "batches": progress.total.ready,
        "steps": trainer.global_step,
        "loaders": [] if fit._combined_loader is None else fit._combined_loader._state_dicts(),
        "images": images,
        "images_per_step": (size or 1) * trainer.world_size,
    }


def go_to(trainer: Trainer, place: dict[str, Any]) -> None:
    """Set Lightning's loops to a place in the training: before the batch `batch` of the epoch `epoch`."""
    fit = trainer.fit_loop
    loop = fit.epoch_loop
    epoch, batch, batches = place["epoch"], place["batch"], place["batches"]
    within = batch > 0
    fit._restarting = loop.val_loop._restarting = False
    loop._restarting = within
    fit._restart_stage = RestartStage.RESTARTED_MID_EPOCH if within else RestartStage.NONE
    loop._restart_stage = BatchStage.NONE
    for each in (fit.epoch_progress.total, fit.epoch_progress.current):
        each.ready = each.started = epoch + within  # type: ignore[attr-defined]  # it has them
        each.processed = each.completed = epoch  # type: ignore[attr-defined]
    for each, count in ((loop.batch_progress.total, batches), (loop.batch_progress.current, batch)):
        each.ready = each.started = each.processed = each.completed = count  # type: ignore[attr-defined]
    loop.batch_progress.is_last_batch = False
    loop.val_loop.batch_progress.reset()
    loop._batches_that_stepped = batches - within  # Lightning adds one where it enters an epoch that was begun
    loaders = [each for each in fit._combined_loader.flattened if hasattr(each, "load_state_dict")]  # type: ignore[union-attr]
    for loader, state in zip(loaders, place["loaders"], strict=False):
        loader.load_state_dict(state)


def validate_now(trainer: Trainer) -> None:
    """Run a validation as Lightning does after a batch, at the same step and epoch of the logs."""
    fit, connector = trainer.fit_loop, trainer._logger_connector
    loop, epochs = fit.epoch_loop, fit.epoch_progress.current
    step, epoch, first = loop._batches_that_stepped, epochs.completed, connector._first_loop_iter
    loop._batches_that_stepped = loop.batch_progress.total.ready - 1
    if loop.batch_progress.current.ready == 0:  # after the end of an epoch: it belongs to that one
        epochs.completed -= 1
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped, epochs.completed, connector._first_loop_iter = step, epoch, first
