"""Choose layers of a network by name, and listen to what they give while it runs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genstab.errors import InputError
from genstab.layers.surgery import Patterns, matches, names_of

Forward = Callable[[Tensor], Tensor]
# How many heat maps are worth a picture.
FEWEST, MOST = 4, 24
# In eval mode these hand on what they got.
COPIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# What an activation, a pooling or a block follows, with a map much like it.
INNER = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def features_of(output: Any) -> Any:
    """Return what counts of a layer's output: of a tuple the first item."""
    return output[0] if isinstance(output, tuple | list) and output else output


def refusal(features: Any, images: int) -> str:
    """Say why what a layer gives cannot be compared with what it gives for a shifted image; "" if it can.

    >>> refusal(torch.zeros(2, 9, 8), 2)
    'gives a sequence (2, 9, 8), whose places have no rows and columns to shift'
    """
    if not isinstance(features, Tensor):
        return f"gives a {type(features).__name__}, not a tensor"
    shape = tuple(features.shape)
    if features.ndim == 3:
        return f"gives a sequence {shape}, whose places have no rows and columns to shift"
    if features.ndim not in (2, 4) or shape[0] != images or 0 in shape or features.is_complex():
        return f"gives {features.dtype} of shape {shape}, neither (N, C, H, W) nor (N, C)"
    return ""


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hear: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `hear` with the name and the features of each layer as soon as it has run; the hooks do not outlive this.

    >>> layer = nn.ReLU()
    >>> with hooked({"relu": layer}, lambda name, features: print(name, features)):
    ...     layer(torch.tensor(-1.0))
    relu tensor(0.)
    tensor(0.)
    """

    def listener(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: hear(name, features_of(output))

    handles = [layer.register_forward_hook(listener(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def heard(
    forward: Forward, layers: Mapping[str, nn.Module], images: Tensor, reduce: Callable[[str, int, Tensor], Tensor]
) -> dict[str, list[Tensor]]:
    """Run a model and return what `reduce` makes of the name, the number and the features of each layer's calls.

    It is called within the hook, at once: what comes after a layer may change its output in place.

    Raises:
        InputError: a layer gives no feature map of these images.

    >>> import torch
    >>> relu = nn.ReLU()
    >>> heard(lambda x: relu(relu(x) - 1), {"relu": relu}, torch.eye(2), lambda name, call, features: features.sum())
    {'relu': [tensor(2.), tensor(0.)]}
    """
    calls: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hear(name: str, features: Tensor) -> None:
        if reason := refusal(features, len(images)):
            raise InputError(f"layer {name} {reason}; leave it out of the layers")
        calls[name].append(reduce(name, len(calls[name]), features))

    with hooked(layers, hear):
        forward(images)
    return calls


def default_layers(model: nn.Module, usable: Collection[nn.Module]) -> list[nn.Module]:
    """Choose from the layers that give feature maps those that read well side by side: about 4 to 24.

    The blocks of the first level of nesting that has at least four: the levels of a U-Net, the stages of a ResNet. If
    these are more than 24, as in a VGG's one long sequence, convolutions, linear layers and norms are left out except
    for the last layer; if that is not enough, every second or third, … of the rest counted from the last. Layers that
    only hand on what they got (`Identity`, dropout) never count.
    """
    level: list[nn.Module] = [model]
    found: list[nn.Module] = []
    while len(found) < FEWEST:
        finer = [child for parent in level for child in _parts_with(parent, usable) or [parent]]
        finer = list(dict.fromkeys(finer))  # a layer may sit in two places
        if finer == level:
            break
        level = finer
        found = [layer for layer in usable if layer in level and not isinstance(layer, COPIES)]
    if len(found) > MOST:
        found = [layer for layer in found if layer is found[-1] or not isinstance(layer, INNER)]
    step = -(-len(found) // MOST) or 1
    return found[::-step][::-1]


def _parts_with(parent: nn.Module, usable: Collection[nn.Module]) -> list[nn.Module]:
    return [child for child in parent.children() if any(part in usable for part in child.modules())]


def choose_layers(
    model: nn.Module, forward: Forward, images: Tensor, patterns: Patterns = None
) -> dict[str, nn.Module]:
    """Run the model once and return the layers that fit the patterns, by name, in the order in which they end.

    Args:
        model: any network.
        forward: calls it, see `genstab.inference.eval_mode.inference`.
        images: what to call it on; one image will do.
        patterns: names or glob patterns; None for `default_layers`.

    Raises:
        InputError: nothing has such a name, or what has never runs or gives no feature map.
    """
    # Python's hooks are not called within TorchScript, and its modules refuse them.
    names = {layer: names for layer, names in names_of(model).items() if not isinstance(layer, torch.jit.ScriptModule)}
    names.pop(model, None)
    by_name = {found[0]: layer for layer, found in names.items()}
    reasons: dict[nn.Module, str] = {}

    def hear(name: str, output: Any) -> None:
        layer = by_name[name]
        reasons[layer] = reasons.get(layer) or refusal(output, len(images))

    with hooked(by_name, hear):
        forward(images)
    usable = [layer for layer, reason in reasons.items() if not reason]
    kind = type(model).__name__
    if not usable:
        raise InputError(
            f"layers: {kind} shows no layer with a feature map; a program (TorchScript, ONNX, torch.export) never does"
        )
    if patterns is None:
        return {names[layer][0]: layer for layer in default_layers(model, usable)}
    some = [names[layer][0] for layer in usable[:40]]
    choices = ", ".join(some) + (f" and {len(usable) - 40} more" if len(usable) > 40 else "")
    if not patterns:
        raise InputError(f"layers={patterns!r} names none; these have a feature map: {choices}")
    chosen = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = [layer for layer in names if matches(names[layer], pattern, False)]
        if not found:
            raise InputError(f"layers={pattern!r} matches no layer of {kind}; these have a feature map: {choices}")
        if not any(layer in usable for layer in found):
            reason = reasons.get(found[0], "never runs")
            raise InputError(f"layers={pattern!r}: {names[found[0]][0]} {reason}; these have a feature map: {choices}")
        chosen |= {layer for layer in found if layer in usable}
    return {names[layer][0]: layer for layer in usable if layer in chosen}
