"""The jobs of the commands: from a composed config to what it asks for; with `cli`, all that knows Hydra."""

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from inspect import signature
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, MissingMandatoryValue, OmegaConf
from pytorch_lightning import seed_everything
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from genstab.continued import continue_logs
from genstab.data import as_size
from genstab.devices import check_devices
from genstab.errors import InputError
from genstab.inference import value_range
from genstab.last_checkpoint import RESUME
from genstab.listing import shortened
from genstab.loggers import close
from genstab.measure import measure
from genstab.models import load_model, place
from genstab.page import write_page
from genstab.plan import Plan
from genstab.predict import predict as predict_folder
from genstab.publish import publish
from genstab.results import SUMMARY
from genstab.resume import LAST, changes, check_fit, find_checkpoint, is_over, read_place, summary_of
from genstab.runs import unfinished
from genstab.summary import RunSummary
from genstab.team import Team
from genstab.workspace import publish as save_workspace

# Holds a job's composed config for the processes that it starts, see `_workers_follow`.
WORKER_CONFIG = "GENSTAB_WORKER_CONFIG"


def run_train(config: DictConfig, processes: Team | None = None) -> float | None:
    """Train as `config` says; return the last `val/shift_psnr` in dB, None where it is not measured.

    `processes` are those that torchrun or SLURM started; the first of them hands the config to the others.

    Raises:
        InputError: the config, the data or the machine cannot do it; before any training where possible.
    """
    _quieten()
    check_devices(OmegaConf.to_container(config.trainer))  # type: ignore[arg-type]  # a dict
    wanted, say = config.ckpt_path, rank_zero_only(print)
    config.ckpt_path = path = _checkpoint_of(config)
    with _input_errors():
        checkpoint = read_place(Path(path)) if path else None
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a dict
        place = checkpoint[RESUME] if checkpoint else {}
        over = bool(place) and is_over(place, plain)
        summary = summary_of(config.output_dir, place) if over else None
        if checkpoint and summary and not changes(checkpoint.get("config", {}), plain):
            say(f"Nothing is left to do: {config.output_dir} has its {summary['steps']} batches and its summary")
            return summary.get("val/shift_psnr")
        if wanted:
            say(f"Goes on from {path}" if path else f"Begins in {config.output_dir}: no checkpoint there yet")
        seed_everything(config.seed, workers=True, verbose=False)
        data, model = instantiate(config.data), instantiate(config.model)
        callbacks = [instantiate(callback) for callback in config.callbacks.values() if callback is not None]
        logger = instantiate(config.logger) if config.get("logger") else False
        callbacks.append(RunSummary(config.output_dir, plain))
        trainer = instantiate(config.trainer, logger=logger, callbacks=callbacks)
        if processes is not None:
            processes.check(trainer.num_devices, trainer.num_nodes)
        if trainer.is_global_zero:
            data.prepare_data()
        data.setup("fit")  # what is wrong with the data is said before a run is logged
        if checkpoint:
            step = data.batch_size * trainer.world_size
            check_fit(Path(path), checkpoint, model, len(data.train_set), step, plain)  # type: ignore[arg-type]
            del checkpoint  # Lightning reads it again
        if wanted:
            again = over or place.get("pending", False)
            continue_logs(trainer.loggers, place.get("wandb"), place.get("batches", 0), again)
        for each in trainer.loggers:
            each.log_hyperparams(plain)
        try:
            with _workers_follow(config, processes):
                trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
        finally:
            for each in trainer.loggers:
                close(each)
    measured = trainer.callback_metrics.get("val/shift_psnr")
    return None if measured is None else measured.item()


def _checkpoint_of(config: DictConfig) -> str | None:
    """Return the file that `ckpt_path` means, None for a training from the start."""
    if not config.ckpt_path:
        return None
    fixed = True
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        sweep = hydra.mode == RunMode.MULTIRUN
        name = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        fixed = any(override.startswith(f"{name}=") for override in hydra.overrides.hydra)
        if sweep and not fixed and config.ckpt_path == LAST:
            raise InputError("ckpt_path=last in a sweep wants the sweep's folder: hydra.sweep.dir=multirun/DATE/TIME")
    path = find_checkpoint(config.ckpt_path, config.output_dir, fixed)
    return None if path is None else str(path)


def run_measure(config: DictConfig) -> float | None:
    """Measure as `config` says; return `val/shift_psnr` in dB, None where it is not measured.

    Raises:
        InputError: the model, the images and the options do not fit together.
    """
    _quieten()
    began = time.perf_counter()
    with _input_errors():
        config.run_name = config.run_name or _name(config.model)
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a dict
        _range(config.value_range)
        plan = Plan(**{option.name: plain[option.name] for option in fields(Plan)})
        _make(config.output_dir)
        model = model_of(config.model)
        place(model, config.device)
        seed_everything(config.seed, workers=True, verbose=False)
        if "check" in config.data:
            config.data.check = "off"  # what is measured is read anyway, and named if it cannot be
        if "on_error" in config.data:
            config.data.on_error = "raise"  # the command's own `on_error` decides
        data = instantiate(config.data)
        data.prepare_data()
        data.setup("validate")
        if isinstance(antialias := getattr(model, "config", {}).get("antialias"), Mapping):
            plain["antialias"] = dict(antialias)
        logger = instantiate(config.logger) if config.get("logger") else None
        loggers = [] if logger is None else [logger]
        found = measure(model, data.val_set, config.output_dir, plan)
        try:
            for each in loggers:
                each.log_hyperparams(plain)
            summary = publish(found, Path(config.output_dir), plain, time.perf_counter() - began, loggers)
        finally:
            for each in loggers:
                close(each)
    return summary.get("val/shift_psnr")


def _make(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        NamedTemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"output_dir={folder} cannot be written: {error.strerror}") from error


def _name(model: DictConfig) -> str:
    """Call a measurement by its checkpoint: a run's folder, or a file's name without suffix."""
    if model.checkpoint is None:
        return str(model.get("_target_", "model")).rpartition(".")[2]
    path = Path(model.checkpoint)
    return path.parts[-3] if path.parent.name == "checkpoints" and len(path.parts) > 2 else path.stem or path.name


def run_predict(config: DictConfig) -> None:
    """Apply a model to a folder of images as `config` says; say what was done.

    Raises:
        InputError: the config or the data cannot do it; at the end, if images were left out.
    """
    _quieten()
    with _input_errors():
        source, output = config.input, config.output
        size = None if config.size is None else as_size("size", config.size)
        model = model_of(config.model)
        device = place(model, config.device)
        options = {key: config[key] for key in ("batch_size", "recursive", "overwrite", "on_error")}
        with value_range(model, *_range(config.value_range)):
            result = predict_folder(model, source, output, size=size, device=device, **options)
    print(result.summary(output))
    for reason in result.failed.values():
        print(f"left out: {reason}", file=sys.stderr)
    if result.failed:
        raise InputError(f"{len(result.failed)} images were left out: {shortened(list(result.failed))}")


def _range(given: Any) -> tuple[float, float]:
    """Check the least and the greatest value of a generator's images."""
    numbers = list(given) if isinstance(given, ListConfig) else []
    if len(numbers) != 2 or not all(isinstance(n, int | float) for n in numbers) or not numbers[0] < numbers[1]:
        raise InputError(f"value_range={given} is not [least,greatest], such as [0,1]")
    return numbers[0], numbers[1]


def run_report(config: DictConfig) -> None:
    """Write the page that `config` describes.

    Raises:
        InputError: a folder holds no run, or the output is a folder.
    """
    if not config.runs:
        raise InputError("report: name at least one folder of a run, as in: genstab report RUN")
    output = write_page(list(config.runs), config.output, config.title)
    print(f"Page: {output}")
    if left := unfinished(config.runs):
        print(f"left out, without a {SUMMARY}: {shortened(list(map(str, left)))}", file=sys.stderr)


def run_workspace(config: DictConfig) -> None:
    """Save the W&B workspace that `config` names, and print its URL.

    Raises:
        InputError: nobody is logged in, or the server does not answer.
    """
    with _input_errors():
        save_workspace(config.entity, config.project)


def model_of(options: DictConfig) -> nn.Module:
    """Return what the keys under `model` describe, in eval mode, on the CPU.

    `checkpoint` alone is any file of `load_model` (and `norm` an argument of it). `_target_` names a network's class,
    the keys beside it are its arguments, and `checkpoint` has its weights. A class in the current folder is found, too.

    Raises:
        InputError: there is no such class, it does not take these arguments, or as `load_model`.
    """
    keys = dict(OmegaConf.to_container(options, resolve=True))  # type: ignore[arg-type]  # a dict
    checkpoint = keys.pop("checkpoint", None)
    if "_target_" not in keys:
        norm = keys.pop("norm", None)
        if keys:
            raise InputError(f"model.{next(iter(keys))} is an argument of a network: name it with model._target_")
        return load_model(checkpoint, norm=norm)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        network = instantiate(keys, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(f"model._target_={keys['_target_']}: {_why(str(keys['_target_']), cause)}") from error
    return load_model(checkpoint, network)


def _why(target: str, cause: BaseException) -> str:
    """Say why there is no such network, or what it takes."""
    module, _, name = target.rpartition(".")
    if isinstance(cause, ModuleNotFoundError) and module in sys.modules:
        return f"{module} has no {name}"
    reason = one_line(cause)
    if isinstance(cause, TypeError) and "unexpected keyword argument" in reason:
        with suppress(Exception):  # built-in classes may have no signature
            return f"{reason}; it takes {', '.join(signature(get_object(target)).parameters)}"
    return reason


def _quieten() -> None:
    # Lightning's hints about hardware and products that the user did not ask for
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a run that goes on in place


@contextmanager
def _input_errors() -> Iterator[None]:
    """Bring out the `InputError` that Hydra wraps when a constructor raises it."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from error.__cause__
            # An argument that a constructor does not have is a misspelt option.
            misspelt = isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause)
            if misspelt or isinstance(cause, MisconfigurationException | MissingMandatoryValue):
                raise InputError(one_line(cause)) from error
            cause = cause.__cause__
        raise


@contextmanager
def _workers_follow(config: DictConfig, processes: Team | None) -> Iterator[None]:
    """Let the other processes take this job's config, instead of their command line.

    Lightning starts rank 1, 2, … with the command line of rank 0, as torchrun and SLURM do with all. Under `-m` that is
    the whole sweep, and without it another run folder. Afterwards the process group and the environment are put back,
    for the next job of a sweep.
    """
    before = dict(os.environ)
    text = OmegaConf.to_yaml(config, resolve=True)
    try:
        if processes is None:
            os.environ[WORKER_CONFIG] = text
        elif processes.rank == 0:
            processes.publish(text)
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)


def one_line(error: BaseException) -> str:
    """Return what an error of Hydra says, without its lists of paths and its hints, in one line."""
    message = re.split("Config search path:|full_key:|To append to your|See https://hydra", str(error))[0]
    return " ".join(message.split()) + (
        " (--help lists all options)" if message.startswith("Could not override") else ""
    )
