"""Find the weights of a network in the content of a file, wherever they lie, and check what they claim."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_choice, reason
from genstab.runtime.checkpoint_file import tensors

Weights = dict[str, Tensor]
KINDS = ("raw", "ema")
# In the names of weights that were averaged over the training: of timm, diffusers, torch.optim.swa_utils, …
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|shadow)(?![a-z])", re.IGNORECASE)


def fitting_weights(
    path: Path, content: object, network: nn.Module, prefix: str | None = None, kind: str | None = None
) -> Weights:
    """Return the weights in a file's content that fit a network, under the network's keys.

    They may be nested in dicts and have a prefix: the ones with which all keys and shapes fit are taken, of several
    sets those that `choose` allows.
    """
    expected = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    first = next(iter(expected), "")
    fitting: dict[str, Weights] = {}
    nearest, most = unnamed(content), -1
    for place, weights in state_dicts(content):
        before = [key.removesuffix(first) for key in weights if key.endswith(first)]
        for each in dict.fromkeys(["", *before]):
            stripped = below(weights, each)
            shared = len(stripped.keys() & expected.keys())
            if not (problems := mismatches(stripped, expected)):
                fitting[f"{place}{each}"] = stripped
            elif shared > most:
                nearest, most = problems, shared
    if not fitting:
        raise InputError(f"{path} does not fit {type(network).__name__}: {nearest}")
    return choose(path, fitting, f"fit {type(network).__name__}", prefix, kind)


def state_dicts(content: object, place: str = "", depth: int = 8) -> Iterator[tuple[str, Weights]]:
    """Yield the sets of tensors in nested dicts, each with the keys that lead to it, as in `state_dict.`."""
    if isinstance(content, Mapping):
        if weights := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
            yield place, weights
        if depth:
            for key, value in content.items():
                yield from state_dicts(value, f"{place}{key}.", depth - 1)


def unnamed(content: object) -> str:
    """Say why a file's content has no set of tensors with names."""
    return "its tensors are in lists, without names" if any(tensors(content)) else "it holds no weights"


def below(weights: Mapping[str, Any], prefix: str) -> Weights:
    """Return the tensors whose names have a prefix, without it.

    >>> below({"net.w": torch.zeros(1), "epoch": 3}, "net.")
    {'w': tensor([0.])}
    """
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, Tensor)
    }


def choose(path: Path, found: Mapping[str, Weights], what: str, prefix: str | None, kind: str | None) -> Weights:
    """Return the set of weights that the options name, of several in a file.

    Args:
        path: the file.
        found: sets by their place in the file, such as `state_dict.netG.`.
        what: end of a sentence about them.
        prefix: the place, or its end.
        kind: `ema` for weights that were averaged over the training, `raw` for the others.

    Raises:
        InputError: there is no such set, or several different ones.

    >>> sets = {"params.": {"w": torch.zeros(1)}, "params_ema.": {"w": torch.ones(1)}}
    >>> choose(Path("x.pth"), sets, "fit Net", None, "ema")
    {'w': tensor([1.])}
    """
    names = ", ".join(place.rstrip(".") or "its top level" for place in found)
    sets = dict(found)
    if prefix is not None:
        wanted = "." + prefix.strip(".")
        sets = {place: each for place, each in sets.items() if f".{place}".rstrip(".").endswith(wanted)}
        if not sets:
            raise InputError(f"model.prefix={prefix} names no weights in {path} that {what}: there are {names}")
    if kind is not None:
        check_choice("model.weights", kind, KINDS)
        sets = {place: each for place, each in sets.items() if is_averaged(place) == (kind == "ema")}
        if not sets:
            raise InputError(f"model.weights={kind}: {path} has no such weights that {what}: there are {names}")
    (place, first), *others = sets.items()
    if any(not same(first, other) for _, other in others):
        averaged = [is_averaged(each) for each in sets]
        cure = f"model.prefix={place.rstrip('.')}" if all(averaged) or not any(averaged) else "model.weights=ema or raw"
        raise InputError(f"{path} holds {len(sets)} different sets of weights that {what}: {names}; {cure} chooses one")
    return first


def is_averaged(place: str) -> bool:
    """Return whether weights at this place of a file are averages over the training (EMA, SWA)."""
    return _AVERAGED.search(place) is not None


def same(weights: Weights, others: Weights) -> bool:
    """Return whether two sets of weights have the same values under the keys that both have."""
    pairs = [(weights[key], others[key]) for key in weights.keys() & others.keys()]
    return all(one.dtype == other.dtype and one.equal(other) for one, other in pairs)


def mismatches(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe the keys and shapes that differ, the first three of each kind; an empty string if there are none."""
    kinds = {
        # Files from before torch 1.0 do not count the batches of a norm.
        "missing": [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in weights if key not in expected],
        "shape mismatch:": [
            f"{key} ({shape_text(weights[key])}, not {shape_text(value)})"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
    }
    return "; ".join(
        f"{kind} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for kind, keys in kinds.items()
        if keys
    )


def described_state(
    path: Path, network: Callable[..., nn.Module], config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> Weights:
    """Return the state of the network that a file describes, without values: compare it with the tensors in the file.

    A file of a few bytes can claim a network that fills the memory. So the network is built on the device `meta`, which
    takes no memory, and without blurs, which have no keys.

    Args:
        path: the file.
        network: `genstab.UNet` or `genstab.ResNetGenerator`.
        config: its arguments.
        weights: the tensors in the file.

    Raises:
        InputError: there are more levels or blocks than tensors, or a tensor claims more numbers than it has memory.
    """
    for key in ("levels", "blocks"):
        if isinstance(count := config.get(key), int) and count > len(weights):
            raise InputError(f"{path} claims {count} {key}, but holds {len(weights)} tensors")
    for key, value in weights.items():
        if value.layout is torch.strided and value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise InputError(f"{path} claims {shape_text(value)} numbers in {key}, but holds fewer")
    try:
        with torch.device("meta"):
            return network(**{**config, "antialias": None}).state_dict()
    except (KeyError, TypeError, RuntimeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{path} does not fit the generator that it describes: {reason(error)}") from error


def shape_text(tensor: Tensor) -> str:
    """Write the shape of a tensor, as in 3×4."""
    return "×".join(map(str, tensor.shape)) or "a number"
