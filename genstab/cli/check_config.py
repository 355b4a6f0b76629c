"""Whether the options of a config are known and of the right types, before anything heavy is imported."""

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter, ValidationError

from genstab.cli.signatures import Instance, signature_of
from genstab.errors import InputError

GREATEST_SEED = 2**32 - 1  # of NumPy
_NO_TEST = "genstab train only trains and validates"
# Arguments of Lightning's Trainer that do not work here: the values that change nothing, and the reason.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "limit_test_batches": ((None,), _NO_TEST),
    "limit_predict_batches": ((None,), _NO_TEST),
    "logger": ((None,), "logger=wandb, tensorboard or csv chooses one, ~logger leaves it out"),
    "callbacks": ((None,), "+callbacks.NAME={_target_: …} adds one"),
    "reload_dataloaders_every_n_epochs": (
        (None, 0),
        "a resumed training would see other batches; each epoch has an order of its own anyway",
    ),
    "barebones": ((False,), "it forbids the logger and the callbacks of genstab train"),
}
# Errors of pydantic in the words of a config.
_WORDS = {
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a group of keys",
    **dict.fromkeys(("list_type", "tuple_type", "iterable_type"), "a list"),
    **dict.fromkeys(("missing", "too_long"), "of the right length"),
}


def check_keys(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise an `InputError` for a group that is left out although the job needs it, and for a misspelt key.

    Keys of a user's own that resemble none of the known ones are fine: other options may refer to them.

    Args:
        config: as composed.
        defaults: the command's own config file.
    """
    groups = {name for each in defaults["defaults"] if isinstance(each, Mapping) for name in each}
    for group in ("antialias", "data", "model", "trainer", "callbacks"):
        if group in groups and group not in config:
            raise InputError(f"~{group} leaves out what this command needs: {group}=NAME chooses another one")
    known = groups | defaults.keys()
    for key in config.keys() - known:
        if close := get_close_matches(key, known, n=1, cutoff=0.75):
            raise InputError(f"{key} is not known: did you mean {close[0]}?")


def check_training(config: Mapping[str, Any]) -> None:
    """Raise an `InputError` for options of a training run that have the right types but make no sense together."""
    check_seed(config["seed"])
    check_type("output_dir", config.get("output_dir", ""), str)
    path, file = config.get("ckpt_path"), config.get("init_from")
    if file is not None and path not in (None, "last"):
        raise InputError(
            f"ckpt_path={path} resumes a training and init_from={file} begins another one: leave one of them out "
            "(with ckpt_path=last, init_from counts as long as there is no checkpoint)"
        )
    for key in ("init_from_d", "init_from_prefix"):
        if file is None and config.get(key) is not None:
            raise InputError(f"{key}={config[key]} needs init_from=FILE, for the generator")
    trainer, callbacks = config.get("trainer", {}), config.get("callbacks", {})
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(name) in (0, 0.0) and not isinstance(trainer[name], bool):
            raise InputError(f"trainer.{name}={trainer[name]} trains nothing: genstab measure needs no training")
    if trainer.get("max_time") is not None and not re.search("[1-9]", str(trainer["max_time"])):
        raise InputError(f"trainer.max_time={written(trainer['max_time'])} trains nothing: leave it out, or set more")
    for name, (harmless, reason) in REFUSED.items():
        if name in trainer and trainer[name] not in harmless:
            raise InputError(f"trainer.{name}={written(trainer[name])} does not work: {reason}")
    if (strategy := trainer.get("strategy")) in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook"):
        raise InputError(
            f"trainer.strategy={strategy} does not support two optimizers: use trainer=ddp or trainer=ddp_cpu"
        )
    for name in ("check_val_every_n_epoch", "val_check_interval"):
        count = trainer.get(name)
        if isinstance(count, int | float) and not count > 0:
            raise InputError(f"trainer.{name}={written(count)} is not positive")
    if trainer.get("enable_checkpointing") is False and (callbacks.get("best") or callbacks.get("last")):
        raise InputError("trainer.enable_checkpointing=false also needs callbacks.best=null callbacks.last=null")
    for name, callback in callbacks.items():
        if not (callback is None or isinstance(callback, Mapping)):
            raise InputError(f"callbacks.{name}={written(callback)} is neither null nor a group of keys")
    _check_overlapping_crops(config.get("data", {}), config.get("model", {}))


def check_seed(seed: object) -> None:
    """Raise an `InputError` unless Python, NumPy and torch all take this seed."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= GREATEST_SEED:
        raise InputError(f"seed={written(seed)} is not an integer from 0 to {GREATEST_SEED}")


def _check_overlapping_crops(data: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    weight, size = model.get("equivariance_weight"), data.get("crop_size")
    key = "overlap_offset" if data.get("twin_reach") is None else "twin_reach"  # its name in version 0.1
    offset = data.get(key)
    if weight and not offset:
        raise InputError("model.equivariance_weight needs overlapping crops: set data.overlap_offset, for example to 8")
    if offset and weight == 0:
        raise InputError(f"data.{key}={offset} without a model.equivariance_weight: set that, or data.{key}=0")
    sides = [side for side in (size if isinstance(size, list) else [size]) if isinstance(side, int)]
    if offset and weight and sides:
        from genstab.data.overlapping_crops import MARGIN  # imports torch

        least = 2 * MARGIN + offset + 1
        if min(sides) < least:
            raise InputError(f"data.crop_size={size} is too small for data.{key}={offset}: set at least {least}")


def check_options(config: Mapping[str, Any], group: str = "") -> None:
    """Check the options of each group that names a class or function by `_target_`, as `check_arguments` does."""
    if "_target_" in config:
        check_type(f"{group}._target_", config["_target_"], str)
        check_arguments(config["_target_"], {key: each for key, each in config.items() if key[:1] != "_"}, group)
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_options(value, f"{group}.{key}".lstrip("."))


def check_arguments(target: str, arguments: Mapping[str, Any], group: str = "") -> None:
    """Check arguments against the signature of the class or function at a dotted path, as far as its source tells."""
    types, is_open = signature_of(target) or ({}, True)
    for name, value in arguments.items():
        key = f"{group}.{name}".lstrip(".")
        if name in types:
            check_type(key, value, types[name])
        elif not is_open and key == "model.generator.head":
            raise InputError(
                f"{key}={written(value)}, which antialias=stable sets, is not known to {target}: choose another "
                f"antialias, or ~{key} for the other parts of the recipe"
            )
        elif not is_open:
            close = [f"{group}.{each}".lstrip(".") for each in get_close_matches(name, types, n=2, cutoff=0.7)]
            takes = f": did you mean {' or '.join(close)}?" if close else f"; {target} takes {', '.join(types)}"
            raise InputError(f"{key} is not known{takes}")


def check_type(key: str, value: Any, kind: Any) -> None:
    """Raise an `InputError` that names the key and the value unless this is of a type, as pydantic sees it."""
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        # In JSON, as in a config, a list may stand for a tuple. Names of files need not be UTF-8.
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except Exception:  # a type that pydantic does not know, an object that somebody put into the config
        return
    problems = _problems(adapter, text)
    if not problems:
        return
    words = [_WORDS.get(each["type"]) or each["msg"].removeprefix("Input should be ") for each in problems]
    if kind == Instance:
        words = ["a group of keys"]
    elif not _problems(adapter, b"null"):
        words.append("null")
    if len(problems) == 1 and problems[0]["type"] != "missing":  # perhaps of an element of a list
        key = ".".join([key, *map(str, problems[0]["loc"])])
        value = problems[0]["input"]
    *others, last = dict.fromkeys(each for choices in words for each in re.split(", | or ", choices))
    allowed = f"{', '.join(others)} or {last}" if others else last
    raise InputError(f"{key}={written(value)} is not {allowed}")


def _problems(adapter: TypeAdapter[Any], text: bytes) -> list[Any]:
    try:
        adapter.validate_json(text, strict=True)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def written(value: Any) -> str:
    """Write a value as in a config."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
