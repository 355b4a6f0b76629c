"""The job of `genstab train`: train as a config says, in one process or as one of several."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write
from pytorch_lightning import Callback, LightningDataModule, LightningModule, seed_everything
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from genstab.cli.config_errors import input_errors, quieten
from genstab.cli.main import WORKER_CONFIG
from genstab.cli.recorded import recorded
from genstab.cli.run_folder import claim, keep_config
from genstab.cli.signatures import signature_of
from genstab.distributed.lost_process import ReportedByFirst, report_lost_process
from genstab.distributed.rendezvous import Rendezvous
from genstab.errors import InputError
from genstab.inference.trained_on import trained_on
from genstab.loggers.lifecycle import close, outlive
from genstab.runtime.files import SUMMARY, check_folder, read_json
from genstab.runtime.last_checkpoint import RESUME, continue_logs
from genstab.runtime.masking import masked
from genstab.runtime.process_state import process_state_restored
from genstab.runtime.provenance import provenance
from genstab.runtime.resume import (
    BEGINNING,
    CHECKPOINT,
    LAST,
    changes,
    check_begun,
    check_fit,
    find_checkpoint,
    is_over,
    read_resumable,
)
from genstab.runtime.run_folder import TRAINING, alone_in
from genstab.training.callbacks.summary import RunSummary, devices_of
from genstab.training.init_from import begin_from

# Arguments of the Trainer that a model may take in its place, and their values that change nothing.
OFF: dict[str, Any] = {"accumulate_grad_batches": 1, "gradient_clip_val": None, "gradient_clip_algorithm": None}


def run_train(config: DictConfig, processes: Rendezvous | None = None) -> float | None:
    """Train as `config` says, a composed `conf/train.yaml`; return the last `val/shift_psnr` in dB, None without one.

    Raises:
        InputError: something is wrong with the config, the data or the machine; before training starts if possible.
    """
    quieten()
    check_devices(config.trainer)
    say = rank_zero_only(print)
    with input_errors():
        wanted = "" if config.ckpt_path is None else str(config.ckpt_path)  # a folder may be called 5
        path = _checkpoint_of(config, wanted)
        checkpoint = read_resumable(path) if path else None
        _claim(config, path)
        given_config = config.copy()
        config.ckpt_path = None if path is None else str(path)
        if path and checkpoint:
            config.update(check_begun(path, checkpoint, recorded(config)))
        record = recorded(config)
        place = checkpoint[RESUME] if checkpoint else {}
        over = bool(place) and is_over(place, config.trainer)
        if checkpoint and over and (written := Path(config.output_dir) / SUMMARY).is_file():
            summary = read_json(written)
            if summary.get("steps") == place["steps"] and not changes(checkpoint.get("config", {}), record):
                say(f"Nothing left to do: all {summary['steps']} batches are done, see {written}")
                return summary.get("val/shift_psnr")
        if wanted:
            say(
                f"Resuming from {path} of {datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M:%S}"
                if path
                else f"Starting in {config.output_dir}: no checkpoint yet"
            )
        seed_everything(config.seed, workers=True, verbose=False)
        # Lightning's own do not work with two optimizers.
        accepted = signature.types if (signature := signature_of(str(config.model.get("_target_")))) else {}
        given = {name: config.trainer[name] for name in OFF if name in accepted and name in config.trainer}
        ranges = trained_on(checkpoint).get("value_range") if checkpoint else None
        read_on = {"value_range": ranges} if ranges else {}  # `auto` is found once, when a training begins
        data, model = instantiate(config.data, **read_on), instantiate(config.model, **given)
        begun = checkpoint.get("init_from") if checkpoint else None
        if config.init_from and not checkpoint:
            notes: list[str] = []
            file, file_d, prefix = (None if config[key] is None else str(config[key]) for key in BEGINNING)
            begun = masked(begin_from(model, str(file), file_d, prefix, notes))
            for line in notes:
                say(line)
        callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback is not None]
        if config.trainer.get("enable_progress_bar") is False:  # Lightning would refuse the bar of conf/callbacks
            callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
        logger = instantiate(config.logger) if config.get("logger") else False
        for made, kind in ((model, LightningModule), (data, LightningDataModule), *((c, Callback) for c in callbacks)):
            if not isinstance(made, kind):
                raise InputError(f"the config builds a {type(made).__name__} instead of a {kind.__name__}")
        callbacks.append(ending := RunSummary(config.output_dir, record, begun, _to_resume(config)))
        off = {name: OFF[name] for name in given}
        trainer = instantiate(config.trainer, logger=logger, callbacks=callbacks, _convert_="all", **off)
        if 0 < trainer.overfit_batches < 1:  # a share of the training set; Lightning takes it of the validation set too
            limit = config.trainer.get("limit_val_batches")
            trainer.limit_val_batches = 1.0 if limit is None else limit
        for each in trainer.checkpoint_callbacks:
            if not trainer.limit_val_batches and str(getattr(each, "monitor", "")).startswith("val/"):
                each.save_top_k = 0  # there will be no number to choose the best by
        if processes is not None:
            processes.check_size(trainer.num_devices, trainer.num_nodes)
        data.trainer = trainer  # which tells whether there is a validation
        if trainer.is_global_zero:
            data.prepare_data()
        data.setup("fit")  # errors in the data come before a run is logged
        if checkpoint:
            step = data.batch_size * trainer.world_size
            check_fit(path, checkpoint, model, len(data.train_set), step, record, trainer.max_epochs)  # type: ignore[arg-type]
            del checkpoint  # Lightning reads it again
        # the weights, and Adam's two means of each
        check_folder(config.output_dir, 3 * sum(each.nbytes for each in model.parameters()))
        with alone_in(config.output_dir, TRAINING) if trainer.is_global_zero else nullcontext():
            rank_zero_only(keep_config)(given_config)
            if wanted:
                again = over or place.get("pending", False)
                continue_logs(trainer.loggers, place.get("wandb"), place.get("logged", place.get("batches", 0)), again)
            if trainer.is_global_zero:  # the commit now, not at the end of the training
                ending.provenance = provenance(devices_of(trainer))
            try:
                for each in trainer.loggers:
                    outlive(each)
                    each.log_hyperparams({**record, **ending.provenance})
                with (
                    _workers_follow(config, record, processes),
                    report_lost_process(trainer, _to_resume(config), processes),
                ):
                    trainer.fit(model, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
            finally:
                for each in trainer.loggers:
                    close(each)
    measured = trainer.callback_metrics.get("val/shift_psnr")
    return None if measured is None else measured.item()


def follow(processes: Rendezvous) -> None:
    """Train with the configs that the first process sends, until there are no more."""
    with processes.sign_off_on_exit():
        for config in processes.received_configs():
            with suppress(ReportedByFirst):  # the first process says what happened, and whether there is another job
                run_train(OmegaConf.create(config), processes)  # type: ignore[arg-type]  # a dict


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Raise an `InputError` for several devices without a strategy, or more than this machine has."""
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    gpus, processors = torch.cuda.device_count(), os.cpu_count() or 1
    if isinstance(devices, list | ListConfig):
        count = len(devices)
    elif str(devices) in ("auto", "-1"):
        count = 1 if accelerator == "cpu" else max(1, gpus)
    else:
        count = int(devices) if str(devices).isdigit() else 1  # Lightning checks other notations
    if count > 1 and trainer.get("strategy") is None:
        raise InputError(f"trainer.devices={devices} needs several processes: add trainer=ddp or trainer=ddp_cpu")
    if accelerator == "cpu" and count > 4 * processors:  # several processes may share a processor
        raise InputError(f"trainer.devices={devices}: this machine has {processors} processors")
    if accelerator in ("gpu", "cuda") and count > gpus:
        raise InputError(f"trainer.devices={devices}: this machine has {gpus} CUDA devices; trainer=ddp_cpu needs none")


def _job(config: DictConfig) -> HydraConf | None:
    """Return the config of Hydra itself; None if Hydra did not start this job."""
    if not HydraConfig.initialized():
        return None
    hydra: Any = HydraConfig.get()
    return hydra if OmegaConf.select(hydra, "runtime.output_dir") == config.output_dir else None


@rank_zero_only
def _claim(config: DictConfig, checkpoint: Path | None) -> None:
    """Refuse a folder of others, before anything is written into it."""
    ended = (CHECKPOINT, Path(SUMMARY)) if config.ckpt_path in (None, "") else (CHECKPOINT,)
    claim(config, TRAINING, checkpoint, ended)


def _checkpoint_of(config: DictConfig, wanted: str) -> Path | None:
    """Return the checkpoint that `ckpt_path` stands for; None to train from the start."""
    if not wanted:
        return None
    fixed = True
    if hydra := _job(config):
        sweep = hydra.mode == RunMode.MULTIRUN
        name = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        fixed = any(override.startswith(f"{name}=") for override in hydra.overrides.hydra)
        if sweep and not fixed and wanted == LAST:
            raise InputError("ckpt_path=last in a sweep needs the sweep's folder: hydra.sweep.dir=multirun/DATE/TIME")
    return find_checkpoint(wanted, config.output_dir, fixed, begins=bool(config.init_from))


def _to_resume(config: DictConfig) -> str:
    """Return the overrides with which the same command resumes from the last checkpoint of this run."""
    hydra = _job(config)
    if hydra and hydra.mode == RunMode.MULTIRUN:
        return f"ckpt_path=last hydra.sweep.dir={shlex.quote(hydra.sweep.dir)}"
    return f"ckpt_path=last hydra.run.dir={shlex.quote(config.output_dir)}"


@contextmanager
def _workers_follow(config: DictConfig, record: dict[str, Any], processes: Rendezvous | None) -> Iterator[None]:
    """Make the other processes use the config of this job and not their command line.

    Lightning starts ranks 1, 2, … with the command line of rank 0; torchrun and SLURM start all ranks with the same
    one. With `-m` that would be the whole sweep, without it another run folder. Each process reads the environment
    variables that the config names itself. Afterwards the process group is destroyed and the environment restored, for
    the next job of a sweep.
    """
    text = OmegaConf.to_yaml(OmegaConf.create(record))
    with process_state_restored():
        if processes is None:
            os.environ[WORKER_CONFIG] = text
            if hydra := _job(config):  # Lightning adds it to the command line; in a sweep it is another folder
                with read_write(hydra):  # type: ignore[arg-type]  # a config
                    hydra.run.dir = config.output_dir
        elif processes.rank == 0:
            processes.send_config(text)
        try:
            yield
        finally:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
