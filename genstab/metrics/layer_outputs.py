"""Choose layers of a network by name, and record their outputs while it runs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from genstab.data.paths import shortened
from genstab.errors import InputError
from genstab.layers.surgery import Patterns, matches, names_of

Forward = Callable[[Tensor], Tensor]
# Default number of layers.
FEWEST, MOST = 4, 24
# Layers that return their input in eval mode.
COPIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# Layers that are followed by an activation, a pooling or a block with a similar output.
INNER = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip


def refusal(features: Any, images: int) -> str:
    """Return why the features of a layer cannot be compared with those of shifted images, or an empty string."""
    if not isinstance(features, Tensor):
        return f"returns a {type(features).__name__}, not a tensor"
    shape = tuple(features.shape)
    if features.ndim == 3:
        return f"returns a sequence {shape} without rows and columns to shift"
    if features.ndim not in (2, 4) or shape[0] != images or 0 in shape or features.is_complex():
        return f"returns {features.dtype} of shape {shape}, neither (N, C, H, W) nor (N, C)"
    return ""


@contextmanager
def hooked(layers: Mapping[str, nn.Module], callback: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `callback` with the name and the features of each layer after it ran; remove the hooks on exit.

    The features are the output of the layer, or the first item of a tuple or list.
    """

    def hook(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        callback(name, output[0] if isinstance(output, tuple | list) and output else output)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(hook, name)))
        yield


def record(
    forward: Forward, layers: Mapping[str, nn.Module], images: Tensor, reduce: Callable[[str, int, Tensor], Tensor]
) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """Run a model; return its output and `reduce(name, call, features)` of every call of each layer.

    The function is applied inside the hook, since later layers may change the features in place.
    """
    calls: dict[str, list[Tensor]] = {name: [] for name in layers}

    def callback(name: str, features: Tensor) -> None:
        if reason := refusal(features, len(images)):
            raise InputError(f"layer {name} {reason}; leave it out of the layers")
        calls[name].append(reduce(name, len(calls[name]), features))

    with hooked(layers, callback):
        return forward(images), calls


def default_layers(model: nn.Module, usable: Collection[nn.Module]) -> list[nn.Module]:
    """Choose about 4 to 24 of the layers that return feature maps.

    These are the blocks at the first level of nesting that has at least four, such as the levels of a U-Net or the
    stages of a ResNet. If there are more than 24, as in the sequence of a VGG, convolutions, linear layers and norms
    are left out, except for the last layer; if there are still too many, every second, third, … counted from the last
    is kept. `Identity` and dropout are never chosen. A list of blocks (`ModuleList`) is no level: its blocks are.
    """

    def parts_of(parent: nn.Module) -> list[nn.Module]:
        parts: list[nn.Module] = []
        for child in parent.children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict):
                parts += parts_of(child)
            elif any(part in usable for part in child.modules()):
                parts.append(child)
        return parts

    level: list[nn.Module] = [model]
    found: list[nn.Module] = []
    while len(found) < FEWEST:
        finer = [child for parent in level for child in parts_of(parent) or [parent]]
        finer = list(dict.fromkeys(finer))  # a layer may be shared
        if finer == level:
            break
        level = finer
        found = [layer for layer in usable if layer in level and not isinstance(layer, COPIES)]
    if len(found) > MOST:
        found = [layer for layer in found if layer is found[-1] or not isinstance(layer, INNER)]
    step = -(-len(found) // MOST) or 1
    return found[::-step][::-1]


def choose_layers(
    model: nn.Module, forward: Forward, images: Tensor, patterns: Patterns = None
) -> dict[str, nn.Module]:
    """Run a model once and return the layers that match the patterns, by name, in the order of execution.

    One image (N, C, H, W) is enough; without patterns it returns the `default_layers`.
    """
    # TorchScript modules do not support Python hooks.
    names = {layer: names for layer, names in names_of(model).items() if not isinstance(layer, torch.jit.ScriptModule)}
    names.pop(model, None)
    by_name = {found[0]: layer for layer, found in names.items()}
    reasons: dict[nn.Module, str] = {}

    def callback(name: str, output: Any) -> None:
        layer = by_name[name]
        reasons[layer] = reasons.get(layer) or refusal(output, len(images))

    with hooked(by_name, callback):
        forward(images)
    usable = [layer for layer, reason in reasons.items() if not reason]
    kind = type(model).__name__
    if not usable:
        raise InputError(
            f"layers: {kind} has no layer with a feature map that can be seen; exported programs have none"
        )
    if patterns is None:
        return {names[layer][0]: layer for layer in default_layers(model, usable)}
    choices = f"these have a feature map: {shortened([names[layer][0] for layer in usable], 40)}"
    if not patterns:
        raise InputError(f"layers={patterns!r} is empty; {choices}")
    chosen = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [layer for layer in names if matches(names[layer], pattern, False)]
        if not found:
            raise InputError(f"layers={pattern!r} matches no layer of {kind}; {choices}")
        if not any(layer in usable for layer in found):
            reason = reasons.get(found[0], "does not run")
            raise InputError(f"layers={pattern!r}: {names[found[0]][0]} {reason}; {choices}")
        chosen |= {layer for layer in found if layer in usable}
    return {names[layer][0]: layer for layer in usable if layer in chosen}
