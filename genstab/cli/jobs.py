"""The jobs of `genstab measure`, `predict`, `export`, `report`, `shard` and `workspace`."""

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import seed_everything
from torch import nn

from genstab.cli.config_errors import chain, input_errors, one_line, quieten
from genstab.cli.model_options import split_options
from genstab.cli.recorded import given, recorded
from genstab.cli.run_folder import claim, keep_config
from genstab.data.datamodules import as_size
from genstab.data.paths import shortened
from genstab.data.shards.write import write_shards
from genstab.errors import InputError
from genstab.evaluation.measure import PartlyMeasuredError, measure
from genstab.evaluation.options import MeasureOptions
from genstab.evaluation.publish import publish
from genstab.inference.export import export
from genstab.inference.load_model import checkpoint_of, load_model, place
from genstab.inference.predict import predict as predict_folder
from genstab.inference.trained_on import read_alike
from genstab.inference.value_range import VALUE_OPTIONS, parse_values
from genstab.loggers.lifecycle import close
from genstab.loggers.wandb_workspace import publish as save_workspace
from genstab.report.differences import differences_table
from genstab.report.figures import animations_beside, save_animation, save_picture
from genstab.report.own_files import WRITTEN_BY_REPORT, is_own
from genstab.report.page import write_page
from genstab.report.pareto import pareto_picture
from genstab.report.runs import READ_BY_REPORT, read_runs, unfinished
from genstab.report.seeds import Option, options_among, options_table, read_costs
from genstab.runtime.files import SUMMARY, check_folder, write_whole, writing
from genstab.runtime.overwriting import check_replaceable
from genstab.runtime.provenance import provenance
from genstab.runtime.run_folder import MEASUREMENT


def run_measure(config: DictConfig) -> float | None:
    """Measure as `config` says; return `val/shift_psnr` in dB, None if it was not measured."""
    quieten()
    began = time.perf_counter()
    with input_errors():
        claim(config, MEASUREMENT)
        given_config = config.copy()
        config.run_name = config.run_name or _name(config)
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a dict
        options = MeasureOptions(**{option.name: plain[option.name] for option in fields(MeasureOptions)})
        check_folder(config.output_dir)
        notes: list[str] = []
        model = nn.Identity() if config.control == "blur" else model_of(config.model, notes)
        device = place(model, config.device)
        seed_everything(config.seed, workers=True, verbose=False)
        if "check" in config.data:
            config.data.check = "off"  # what is measured is read anyway
        if "on_error" in config.data:
            config.data.on_error = "raise"  # the command's own `on_error` decides
        with open_dict(config.data):
            read_alike(model, config.data, given("data"))
        data = instantiate(config.data)
        data.prepare_data()
        data.setup("validate")
        record = recorded(config)
        if isinstance(antialias := getattr(model, "config", {}).get("antialias"), Mapping):
            record["antialias"] = dict(antialias)
        loggers = [instantiate(config.logger)] if config.get("logger") else []
        origin = provenance([device])
        failure: PartlyMeasuredError | None = None
        try:
            found = measure(model, data.val_set, config.output_dir, options, notes, partial(print, flush=True))
        except PartlyMeasuredError as error:
            failure, found = error, error.found
        keep_config(given_config)
        try:
            for each in loggers:
                each.log_hyperparams({**record, **origin})
            summary = publish(found, Path(config.output_dir), record, time.perf_counter() - began, loggers, origin)
        finally:
            for each in loggers:
                close(each)
        if failure is not None:
            raise failure
    return summary.get("val/shift_psnr")


def _name(config: DictConfig) -> str:
    """Name a measurement after its checkpoint, the run folder or the file without its suffix, and its control."""
    model, control = config.model, config.control
    if control == "blur":
        return "targets, blurred"
    if model.checkpoint is None:
        name = str(model.get("_target_", "model")).rpartition(".")[2]
    else:
        path = Path(model.checkpoint)
        inside = path.parent.name == "checkpoints" and len(path.parts) > 2
        name = path.parts[-3] if inside else path.stem or path.name
    return f"{name} + {control}" if control else name


def run_predict(config: DictConfig) -> None:
    """Apply a model to a folder of images as `config` says; print a summary."""
    quieten()
    with input_errors():
        size = None if config.size is None else as_size("size", config.size)
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]  # a dict
        meaning = {key: plain[key] for key in VALUE_OPTIONS}
        values = parse_values(**meaning)
        notes: list[str] = []
        model = model_of(config.model, notes)
        device = place(model, config.device)
        record = recorded(config)
        made_by = {key: record[key] for key in VALUE_OPTIONS}
        made_by["model"] = {key: each for key, each in record["model"].items() if key != "checkpoint"}
        options = {key: plain[key] for key in signature(predict_folder).parameters if key in plain}
        options |= {"size": size, "device": device, "values": values, "notes": notes, "made_by": made_by}
        try:
            result = predict_folder(model, config.input, **options)
        finally:
            for note in notes:
                print(f"note: {note}", file=sys.stderr)
    _conclude(result.summary(config.output), result.failed.values(), "image", f": {shortened([*result.failed])}")


def _conclude(summary: str, left_out: Collection[str], what: str, names: str = "") -> None:
    """Print the summary of a job and why something was left out; the code of the program is not 0 then."""
    print(summary)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if left_out:
        raise InputError(f"{len(left_out)} {what}{' was' if len(left_out) == 1 else 's were'} left out{names}")


def run_export(config: DictConfig) -> None:
    """Export a model as `config` says; print a summary."""
    quieten()
    with input_errors():
        size = as_size("size", config.size)
        reads = [] if config.model.checkpoint is None else [checkpoint_of(config.model.checkpoint)]
        check_replaceable({"output": config.output}, config.overwrite, reads)
        notes: list[str] = []
        model = model_of(config.model, notes)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        options = {key: config[key] for key in ("format", "channels", "dynamic")}
        print(export(model, config.output, size=size, **options))


def run_report(config: DictConfig) -> None:
    """Write the page that `config` describes and, if asked for, the table, the plot and the animation of its runs."""
    if not config.runs:
        raise InputError("report: name at least one folder of a run, as in: genstab report RUN")
    costs = read_costs(config.costs) if config.costs else {}
    outputs = {key: config[key] for key in WRITTEN_BY_REPORT if config[key]}
    runs = read_runs(config.runs)
    reads = [config.costs] if config.costs else []
    reads += [run.folder / name for run in runs for name in READ_BY_REPORT]
    check_replaceable(outputs, config.overwrite, reads, is_own)
    options = options_among(runs, costs)
    writers: dict[str, Callable[[str], None]] = {
        "output": lambda path: write_page(runs, path, config.title),
        # names need not be valid Unicode
        "table": lambda path: write_whole(
            path, lambda file: file.write(_tables(options, config.baseline).encode("utf-8", "backslashreplace"))
        ),
        "plot": lambda path: save_picture(pareto_picture(options, config.title or ""), path),
        "film": lambda path: save_animation(animations_beside(runs), path),
    }
    for key, path in outputs.items():
        with writing(key, path):
            writers[key](path)
        print(f"{'Page' if key == 'output' else key.capitalize()}: {path}")
    if left := unfinished(config.runs):
        print(f"left out, without a {SUMMARY}: {shortened(list(map(str, left)))}", file=sys.stderr)


def _tables(options: Sequence[Option], baseline: str | None) -> str:
    tables = options_table(options), differences_table(options, baseline)
    return "\n\n".join(table for table in tables if table) + "\n"


def run_shard(config: DictConfig) -> None:
    """Write shards as `config` says; print a summary."""
    options = {str(key): value for key, value in config.items() if key not in ("input", "output")}
    with input_errors():
        written = write_shards(config.input, config.output, **options)
    if written.held:
        print(written.held)
    for note in written.notes:
        print(f"note: {note}", file=sys.stderr)
    _conclude(written.summary(config.output), written.left_out, "pair")


def run_workspace(config: DictConfig) -> None:
    """Save the W&B workspace that `config` names and print its URL."""
    with input_errors():
        save_workspace(config.entity, config.project)


def model_of(options: DictConfig, notes: list[str] | None = None) -> nn.Module:
    """Return the model that the keys under `model` describe, in eval mode, on the CPU.

    They are arguments of `load_model`. With `_target_`, the class of a network, the other keys are its arguments. The
    class may be in the current folder. `notes` gets what the loading has to say.
    """
    given = dict(OmegaConf.to_container(options, resolve=True))  # type: ignore[arg-type]  # a dict
    loading, keys = split_options(given)
    checkpoint = loading.pop("checkpoint", None)
    if "_target_" not in keys:
        return load_model(checkpoint, **loading, notes=notes)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        network = instantiate(keys, _convert_="all")
    except InstantiationException as error:
        *_, cause = chain(error)
        module, _, name = str(keys["_target_"]).rpartition(".")
        absent = isinstance(cause, ModuleNotFoundError) and module in sys.modules
        why = f"{module} has no {name}" if absent else one_line(cause)
        raise InputError(f"model._target_={module}.{name}: {why}") from error
    return load_model(checkpoint, network, **loading, notes=notes)
