"""Find the weights of a network in the content of a file."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from genstab.errors import InputError


def fitting_weights(path: Path, content: object, network: nn.Module) -> dict[str, Tensor]:
    """Return the weights in a file's content that fit a network, under the network's keys.

    They may be nested in dicts and have a prefix: the ones with which all keys and shapes fit are taken.
    """
    expected = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    first = next(iter(expected), "")
    fitting: dict[str, dict[str, Tensor]] = {}
    nearest, most = "it holds no weights", -1
    for place, weights in _state_dicts(content):
        prefixes = [key.removesuffix(first) for key in weights if key.endswith(first)]
        for prefix in dict.fromkeys(["", *prefixes]):
            stripped = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            shared = len(stripped.keys() & expected.keys())
            if not (problems := mismatches(stripped, expected)):
                fitting[f"{place}{prefix}"] = stripped
            elif shared > most:
                nearest, most = problems, shared
    if not fitting:
        raise InputError(f"{path} does not fit {type(network).__name__}: {nearest}")
    found, *others = fitting.values()
    if any(not all(value.equal(other[key]) for key, value in found.items()) for other in others):
        raise InputError(
            f"{path} holds {len(fitting)} different sets of weights that fit {type(network).__name__}: "
            f"{', '.join(fitting)}; save the one that you want in a file of its own"
        )
    return found


def mismatches(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Describe the keys and shapes that differ, the first three of each kind; an empty string if there are none."""
    kinds = {
        # Files from before torch 1.0 do not count the batches of a norm.
        "missing": [key for key in expected if key not in weights and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in weights if key not in expected],
        "shape mismatch:": [
            f"{key} ({_shape(weights[key])}, not {_shape(value)})"
            for key, value in expected.items()
            if key in weights and weights[key].shape != value.shape
        ],
    }
    return "; ".join(
        f"{kind} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for kind, keys in kinds.items()
        if keys
    )


def _state_dicts(content: object, place: str = "", depth: int = 2) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(content, dict):
        if weights := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
            yield place, weights
        if depth:
            for key, value in content.items():
                yield from _state_dicts(value, f"{place}{key}: ", depth - 1)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
