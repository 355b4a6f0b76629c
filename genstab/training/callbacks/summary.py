"""The results of a run in numbers: `summary.json`, `measurements.json` and a table in the terminal."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from genstab.data.collate import source_of
from genstab.evaluation.verdict import verdict
from genstab.loggers.lifecycle import how_to_view
from genstab.loggers.wandb_tables import log_tables
from genstab.metrics.shift_map import map_table
from genstab.report.figures import shift_table
from genstab.report.table import results_table
from genstab.runtime.files import MEASUREMENTS, SUMMARY, FailedWrites, unwritten_lines, write_json
from genstab.runtime.gather import all_gathered
from genstab.runtime.last_checkpoint import LastCheckpoint
from genstab.runtime.loop_state import takes_step
from genstab.runtime.masking import masked
from genstab.runtime.provenance import provenance
from genstab.runtime.signals import Stopped
from genstab.training.callbacks.collapse import CollapseWatch
from genstab.training.callbacks.finite_guard import FiniteGuard
from genstab.training.callbacks.pictures import ShiftPictures
from genstab.training.callbacks.shift_stability import ShiftStability


class RunSummary(Callback):
    """Write `summary.json` at the end of a fit and print its table.

    The file holds the final metrics under their log keys, `checkpoint` (the last one), `best_checkpoint` (of the
    `ModelCheckpoint` with a monitor), `config`, `init_from` (the files of weights that it began from, with their
    SHA-256 and which tensors did not fit), `versions`, `machine` and `git` (see `provenance`; as of the start of
    the program), `processes`, `seconds` (of the whole fit, since it was last resumed), `images_per_second` (training
    only, over all processes: without validation and the first batch, which starts workers and compiles), `skipped`
    (images that `data.on_error=skip` left out, and why), `updates_left_out` by `on_nan=skip`, `unwritten` (files that
    could not be written) and the `warnings` of `CollapseWatch`.

    Args:
        folder: of the run.
        config: the run's configuration, as plain types.
        init_from: what `genstab.training.init_from.begin_from` returned; None for a training from the start.
        to_resume: what to add to the same command to resume the run.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        init_from: Mapping[str, Any] | None = None,
        to_resume: str = "ckpt_path=last",
    ) -> None:
        self.folder, self.config, self.init_from = Path(folder), dict(config), init_from
        self.to_resume = to_resume
        self.provenance: dict[str, Any] = {}
        self.unwritten = FailedWrites("file", "all else is done")
        self.images, self.skipped = 0, list[str]()
        self.batches: int | float | None = None
        self.fit_began = self.batch_ended = self.training = 0.0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the configuration, with which a run that resumes is compared, and the weights that it began from."""
        checkpoint["config"] = self.config
        checkpoint["init_from"] = self.init_from

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the fit."""
        self.fit_began, self.batches, self.batch_ended = time.perf_counter(), None, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Validate after the last batch, wherever in an epoch it is: the summary is about the final weights."""
        if self.batches is None:  # not before every callback has had its on_train_start
            self.batches = trainer.estimated_stepping_batches
        if trainer.global_step + 1 >= self.batches and takes_step(trainer, batch_idx):
            trainer.check_val_every_n_epoch = 1
            trainer.val_check_batch = batch_idx + 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images and time from the second batch on."""
        before, self.batch_ended = self.batch_ended, time.perf_counter()
        if before:
            self.images += len(source_of(batch)) * trainer.world_size
            self.training += self.batch_ended - before

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the images that each process skipped."""
        self.skipped = sorted(set().union(*all_gathered(_skipped(trainer))))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the validation out of the time."""
        if self.batch_ended:
            self.batch_ended = time.perf_counter()

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """Return what `summary.json` holds."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its callback connector
        paths: dict[str, str | None] = {"checkpoint": None, "best_checkpoint": None}
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint) and callback.path.is_file():
                paths["checkpoint"] = _relative(callback.path, self.folder)
            elif isinstance(callback, ModelCheckpoint) and Path(callback.best_model_path).is_file():
                kind = "best_checkpoint" if callback.monitor else "checkpoint"
                paths[kind] = _relative(callback.best_model_path, self.folder)
        return {
            **(metrics := {key: value.item() for key, value in sorted(trainer.callback_metrics.items())}),
            "verdict": verdict(metrics),
            "parameters": sum(parameter.numel() for parameter in trainer.lightning_module.parameters()),
            **paths,
            "steps": trainer.global_step,
            "processes": trainer.world_size,
            "seconds": round(time.perf_counter() - self.fit_began, 2),
            "images_per_second": round(self.images / self.training, 2) if self.training else None,
            "skipped": self.skipped or _skipped(trainer),
            "updates_left_out": [
                each for guard in callbacks if isinstance(guard, FiniteGuard) for each in guard.left_out
            ],
            "unwritten": unwritten_lines(trainer, self.folder),
            "warnings": [text for each in callbacks if isinstance(each, CollapseWatch) for text in each.said.values()],
            **(self.provenance or provenance(devices_of(trainer))),
            "init_from": self.init_from,
            "config": self.config,
        }

    def measurements(self, trainer: Trainer) -> dict[str, Any]:
        """Return what `measurements.json` holds: shift PSNR per shift and image of the last validation, and the map."""
        found: dict[str, Any] = {}
        for each in trainer.callbacks:  # type: ignore[attr-defined]  # set by its callback connector
            if isinstance(each, ShiftStability) and each.tables:
                found["shift_psnr"] = {
                    protocol: shift_table(each.shifts[protocol], each.names, decibels, each.pooled[protocol])
                    for protocol, decibels in each.tables.items()
                }
            elif isinstance(each, ShiftPictures) and each.decibels:
                found["shift_map"] = map_table(each.decibels, min(each.map_images, each.images))
        return found

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files and print the table and the paths."""
        summary, measurements = masked(self.summary(trainer)), self.measurements(trainer)
        for name, content in ((MEASUREMENTS, measurements), (SUMMARY, summary)):
            with self.unwritten.tolerate(self.folder / name):
                write_json(self.folder / name, content)
        for logger in trainer.loggers:
            log_tables(logger, measurements, trainer.global_step)
        console = Console()
        metrics = {key: value for key, value in summary.items() if isinstance(value, float)}
        if "val/shift_psnr" in metrics or "val/l1" in metrics:
            console.print(
                results_table(
                    metrics, f"{summary['steps']} batch{'es' * (summary['steps'] != 1)} in {summary['seconds']:.0f} s"
                )
            )
            for line in summary["verdict"]:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            console.print("No results: no validation ran.")
        self.print_paths(trainer)

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """After Ctrl-C and other signals, print the paths and how to resume."""
        if isinstance(exception, KeyboardInterrupt | Stopped):
            print(f"\nStopped after {trainer.global_step} batches.")
            if self.summary(trainer)["checkpoint"]:
                print(f"To resume: the same command with {self.to_resume}")
            self.print_paths(trainer)

    def print_paths(self, trainer: Trainer) -> None:
        """Print the run folder, the files missing from it, and how to view what each logger recorded."""
        print(f"Run folder: {self.folder}")
        for line in unwritten_lines(trainer, self.folder):
            print(f"not written: {line}")
        for logger in trainer.loggers:
            if hint := how_to_view(logger):
                print(hint)


def devices_of(trainer: Trainer) -> list[torch.device]:
    """Return the devices of this node that a trainer uses."""
    return list(getattr(trainer.strategy, "parallel_devices", None) or [trainer.strategy.root_device])


def _skipped(trainer: Trainer) -> list[str]:
    return list(getattr(trainer.datamodule, "skipped", ()))  # type: ignore[attr-defined]  # set by its data connector


def _relative(path: str | Path, folder: Path) -> str:
    resolved, base = Path(path).resolve(), folder.resolve()
    return str(resolved.relative_to(base)) if resolved.is_relative_to(base) else str(resolved)
