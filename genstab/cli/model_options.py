"""Which of the keys under `model` say how to load a model, and which are arguments of its network."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from genstab.cli.check_config import check_arguments, check_options
from genstab.cli.signatures import signature_of
from genstab.errors import InputError

LOADER = "genstab.inference.load_model.load_model"


def split_options(model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys that are arguments of `load_model`, and those of the network that `_target_` names.

    What both may take is the network's: the keys in its signature, and norm and padding, which `load_model` takes for
    files that need no `_target_`.

    >>> split_options({"_target_": "timm.create_model", "padding": 2, "output": 0})
    ({'output': 0}, {'_target_': 'timm.create_model', 'padding': 2})
    """
    own = _loader_keys()
    if "_target_" in model:
        network = signature_of(str(model["_target_"]))
        own -= {"norm", "padding", *(network.types if network else ())}
    ours = {key: value for key, value in model.items() if key in own}
    return ours, {key: value for key, value in model.items() if key not in own}


def check_model(model: Mapping[str, Any]) -> None:
    """Raise an `InputError` for the first key under `model` that is not known or has the wrong type."""
    ours, others = split_options(model)
    check_arguments(LOADER, ours, "model")
    if others and "_target_" not in others:
        first = next(iter(others))
        meant = "".join(f"; did you mean model.{each}?" for each in get_close_matches(first, _loader_keys(), 1, 0.7))
        raise InputError(f"model.{first} is an argument of a network: name it with model._target_{meant}")
    check_options(others, "model")


def _loader_keys() -> set[str]:
    loader = signature_of(LOADER)
    assert loader is not None
    return loader.types.keys() - {"network", "notes"}
