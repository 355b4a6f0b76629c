"""The cost of the checks in a training run: short training runs with and without them, in turn."""

import logging
import warnings
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader

from genstab.bench.step import NONE, random_pairs, step_models
from genstab.bench.timing import Run, compare, time_in_turn
from genstab.runtime.last_checkpoint import LastCheckpoint
from genstab.training.callbacks.collapse import CollapseWatch
from genstab.training.callbacks.finite_guard import FiniteGuard
from genstab.training.pix2pix import Pix2Pix

BATCHES = 20  # of one training run
LOOK = 10  # batches from one look at the losses to the next, the default of conf/trainer


def checks(on_nan: str) -> list[Callback]:
    """Return the callbacks of conf/callbacks that check a training run: losses, collapse, signals and clock."""
    return [FiniteGuard(on_nan), CollapseWatch(), LastCheckpoint("checkpoints")]


def time_guards(batch: int, size: int, channels: int, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Time training runs of `BATCHES` batches, start and end included; return a result for each set of checks."""
    torch.manual_seed(0)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # no line on every device
    model, _ = step_models(["tri3xpre"], size, channels, "channels_last", False, device)["tri3xpre"]
    batches: Any = [random_pairs(batch, size, device)] * BATCHES
    sets = {NONE: [], "all, on_nan=stop": checks("stop"), "all, on_nan=skip": checks("skip")}
    trainings: dict[str, Run] = {
        name: partial(_train, model, DataLoader(batches, None), each, device) for name, each in sets.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's on a training run as small as this
        times = time_in_turn(trainings, seconds)
    timings = compare({name: [value / BATCHES for value in values] for name, values in times.items()})
    shape = [batch, 3, size, size]
    facts = {"case": "training", "kind": "guards", "shape": shape, "layout": "channels_last", "dtype": "float32"}
    return [
        {**facts, "contestant": name, "times": {"step": timing}, "peak_bytes": None} for name, timing in timings.items()
    ]


class _WithoutFiles(Trainer):  # the time for those depends on the disk
    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        pass


def _train(model: Pix2Pix, loader: Any, callbacks: list[Callback], device: torch.device) -> None:
    _WithoutFiles(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1,
        max_epochs=1,
        callbacks=callbacks,
        log_every_n_steps=LOOK,
        logger=False,
        enable_checkpointing=bool(callbacks),  # or Lightning adds a callback of its own
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, loader)
