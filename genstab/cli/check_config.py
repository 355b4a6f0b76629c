"""Whether the options of a config are of the kinds that they must be, before anything is made of them."""

import inspect
import os
import types
from collections.abc import Callable, Iterator, Mapping
from numbers import Number
from pkgutil import resolve_name
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from genstab.data.overlapping_crops import MARGIN
from genstab.errors import InputError


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Check a trainer's accelerator and devices against this machine, before anything starts.

    Raises:
        InputError: more devices than there are, several without a strategy, none.

    >>> check_devices({"accelerator": "cpu", "devices": 0})
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: trainer.devices=0 is not at least 1
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    gpus = torch.cuda.device_count()
    processors = os.cpu_count() or 1
    present = 4 * processors if accelerator == "cpu" else gpus  # a few processes may share a processor
    if isinstance(devices, list):
        wanted, farthest = len(devices), max(devices, default=-1) + 1
    elif str(devices) in ("auto", "-1"):
        wanted = farthest = 1 if accelerator == "cpu" else max(1, gpus)
    elif isinstance(devices, int) or str(devices).isdigit():
        wanted = farthest = int(devices)
    else:
        return  # Lightning's other spellings, such as "0,1"
    if wanted < 1:
        raise InputError(f"trainer.devices={devices} is not at least 1")
    if wanted > 1 and trainer.get("strategy") is None:
        raise InputError(f"trainer.devices={devices} needs several processes: add trainer=ddp or trainer=ddp_cpu")
    if accelerator == "cpu" and farthest > present:
        raise InputError(f"trainer.devices={devices}: this machine has {processors} processors")
    if accelerator in ("gpu", "cuda") and farthest > present:
        raise InputError(
            f"trainer.devices={devices}: this machine has {present} CUDA devices; trainer=ddp_cpu needs none"
        )


MOST_SEED = 2**32 - 1  # of NumPy
_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def check_seed(seed: object) -> None:
    """Raise an `InputError` unless Python, NumPy and torch all take this seed.

    >>> check_seed(-1)
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: seed=-1 is not an integer from 0 to 4294967295
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
        raise InputError(f"seed={_written(seed)} is not an integer from 0 to {MOST_SEED}")


def check_training(config: Mapping[str, Any]) -> None:
    """Check what a training's config must have beside arguments of the right kinds.

    Raises:
        InputError: an invalid seed, a folder that is not text, a strategy for one network, an equivariance loss without
            overlapping crops, such crops without that loss or too small for it, a callback that is not a group of keys,
            validations after less than a batch.

    >>> check_training({"seed": 1, "callbacks": {"watch": 3}})
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: callbacks.watch=3 is neither null nor a group of keys
    """
    check_seed(config["seed"])
    if not isinstance(folder := config.get("output_dir", ""), str):
        raise InputError(f"output_dir={_written(folder)} is not text")
    if (strategy := config.get("trainer", {}).get("strategy")) in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook"):
        raise InputError(f"trainer.strategy={strategy} cannot train two networks in turn: trainer=ddp or ddp_cpu can")
    _check_overlap(config.get("data", {}), config.get("model", {}))
    for name, callback in config.get("callbacks", {}).items():
        if not (callback is None or isinstance(callback, Mapping)):
            raise InputError(f"callbacks.{name}={_written(callback)} is neither null nor a group of keys")
    for name in ("check_val_every_n_epoch", "val_check_interval"):
        apart = config.get("trainer", {}).get(name)
        if isinstance(apart, int | float) and not apart > 0:
            raise InputError(f"trainer.{name}={_written(apart)} is not positive")


def _check_overlap(data: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    weight, key = model.get("equivariance_weight"), "overlap_offset"
    if data.get("twin_reach") is not None:  # its name in version 0.1
        key = "twin_reach"
    offset = data.get(key)
    if not offset:
        if weight:
            raise InputError(
                "model.equivariance_weight needs overlapping crops: set data.overlap_offset, for example to 8"
            )
        return
    if weight == 0:
        raise InputError(f"data.{key}={offset} without a model.equivariance_weight: set that, or data.{key}=0")
    size = data.get("crop_size")
    sides = [side for side in (size if isinstance(size, list) else [size]) if isinstance(side, int)]
    if weight and sides and min(sides) <= 2 * MARGIN + offset:
        least = 2 * MARGIN + offset + 1
        raise InputError(f"data.crop_size={size} is too small for data.{key}={offset}: set at least {least}")


def check_options(config: Mapping[str, Any], group: str = "") -> None:
    """Check the options of each group that names a class or function by `_target_`; only their kinds.

    Raises:
        InputError: there is no such class, or as `check_arguments`.

    >>> check_options({"data": {"_target_": "genstab.data.PairedData", "root": None}})
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: data.root=null is not text
    """
    if "_target_" in config:
        try:
            target = resolve_name(config["_target_"])
        except Exception as error:  # whatever the import of somebody's module raises
            reason = " ".join(str(error).split())
            raise InputError(f"{group}._target_={_written(config['_target_'])} is no class: {reason}") from error
        check_arguments(target, {key: value for key, value in config.items() if key[:1] != "_"}, group)
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_options(value, f"{group}.{key}" if group else str(key))


def check_arguments(target: Callable[..., Any], arguments: Mapping[str, Any], group: str) -> None:
    """Check arguments against the annotations of a class or function, as far as these are plain types.

    Args:
        target: what will be called.
        arguments: plain types, as of a config; others are left alone, as are names that the annotations lack.
        group: what precedes the names in messages.

    Raises:
        InputError: a text for a number, null where there must be something, and the like.

    >>> def network(channels: int, norm: str | None = None): ...
    >>> check_arguments(network, {"channels": "many"}, "model")
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: model.channels='many' is not an integer
    """
    wanted = _annotations(target)
    for name, value in arguments.items():
        if name in wanted:
            kinds = list(_members(wanted[name]))
            if not any(_fits(value, kind) for kind in kinds):
                choices = " or ".join(dict.fromkeys(_word(kind) for kind in kinds))
                raise InputError(f"{group}.{name}={_written(value)} is not {choices}")


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the arguments; where a class hands on `**kwargs`, those of its parents as well."""
    functions = [each.__init__ for each in target.__mro__] if inspect.isclass(target) else [target]  # type: ignore[misc]
    found: dict[str, Any] = {}
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters
            hints = get_type_hints(function)
        except (TypeError, ValueError, NameError):  # of C, or with types that only a type checker imports
            break
        found = {**{name: hints[name] for name in parameters if name in hints}, **found}
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            break
    return found


def _members(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        for each in get_args(hint):
            yield from _members(each)
    else:
        yield hint


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if kind in _PLAIN:
        number = isinstance(value, Number) and not isinstance(value, bool)
        return number if kind is float else isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if value is None:
        return kind is Any
    # a class may be made of anything, a container of a list or a group only
    return not isinstance(origin, type) or isinstance(value, list | tuple | dict) or type(value) not in _PLAIN


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(_written, get_args(kind)))}"
    name = getattr(kind, "__name__", str(kind))
    if kind in _PLAIN:
        return _PLAIN[kind]
    group = isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping)
    return "a group of keys" if group else "a list" if isinstance(get_origin(kind), type) else f"a {name}"


def _written(value: Any) -> str:
    """Write a value as in a config."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
