"""Find what resamples in a network besides the layers that `genstab.antialias` replaces, by tracing its forwards."""

import copy
import inspect
import operator
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import fx, nn

from genstab.layers.conv import pair

# Classes and functions that always resample, and those that do so with a stride above 1.
ALWAYS = (nn.PixelShuffle, nn.PixelUnshuffle, nn.FractionalMaxPool2d, nn.MaxUnpool2d, nn.Fold)
STRIDED = (nn.LPPool2d, nn.Unfold, nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.AvgPool3d)
FUNCTIONS = {
    "interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "pixel_shuffle", "pixel_unshuffle",
    "grid_sample", "fold", "max_unpool2d",
}  # fmt: skip
ADAPTIVE_FUNCTIONS = {"adaptive_avg_pool2d", "adaptive_max_pool2d"}
STRIDED_FUNCTIONS = {"conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "lp_pool2d", "unfold"}
Module = TypeVar("Module", bound=nn.Module)
UNREAD = "functions in a forward that cannot be traced"


class _OneForward(fx.Tracer):
    """Trace the forward of one module: those of its submodules are traced by themselves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Enter no submodule."""
        return True


def shallow_copy(layer: nn.Module, kind: type[Module]) -> Module:
    """Return a module of the class `kind` with the attributes of a layer, among them the same tensors."""
    new = kind.__new__(kind)
    # Copy the containers, so that a buffer added to one module does not appear in the other.
    new.__dict__ = {k: copy.copy(v) if isinstance(v, dict | set) else v for k, v in layer.__dict__.items()}
    return new


def resampling(layer: nn.Module) -> Iterator[str]:
    """Yield what a layer resamples with, in words: the layer itself, functions that it calls, slices with a step.

    What its submodules do is not looked at.

    >>> class Half(nn.Module):
    ...     def forward(self, x):
    ...         return nn.functional.interpolate(x, scale_factor=2)[..., ::4, ::4]
    >>> Half.__module__ = "elsewhere"
    >>> list(resampling(Half())), list(resampling(nn.PixelShuffle(2)))
    (['F.interpolate', 'a slice with a step'], ['PixelShuffle'])
    """
    name = type(layer).__name__
    if isinstance(layer, nn.Upsample) and (layer.size is not None or layer.scale_factor != 1):
        yield f"{layer.mode} {name}"
    elif isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        if pair(layer.output_size) != (1, 1):
            yield name
    elif isinstance(layer, ALWAYS) or (
        isinstance(layer, STRIDED) and _steps(layer.kernel_size if layer.stride is None else layer.stride)
    ):
        yield name
    if not type(layer).__module__.startswith(("torch.", "genstab.")):  # their forwards are known
        yield from dict.fromkeys(_in_forward(layer))


def _in_forward(layer: nn.Module) -> Iterator[str]:
    parameters = inspect.signature(layer.forward).parameters.values()
    simple = {each.name: each.default for each in parameters if isinstance(each.default, bool | int | str | None)}
    try:  # a copy, since a forward may store what it computes
        graph = _OneForward().trace(shallow_copy(layer, type(layer)), simple)
    except Exception:  # of any kind: it runs code of others on stand-ins for tensors
        yield UNREAD
        return
    for node in graph.nodes:
        if node.op == "call_function":
            name = getattr(node.target, "__name__", "").lstrip("_")
            if (
                name in FUNCTIONS
                or (name in STRIDED_FUNCTIONS and _calls_with_stride(name, node))
                or (name in ADAPTIVE_FUNCTIONS and _given(node, 1, "output_size", 1) not in (1, (1, 1), [1, 1]))
            ):
                yield f"F.{name}"
            elif node.target is operator.getitem:
                parts = node.args[1] if isinstance(node.args[1], tuple | list) else (node.args[1],)
                if any(isinstance(part, slice) and part.step is not None and _steps(part.step) for part in parts):
                    yield "a slice with a step"
        elif node.op == "call_method" and node.target == "unfold" and _steps(_given(node, 3, "step", 1)):
            yield "Tensor.unfold"


def _given(node: fx.Node, place: int, name: str, default: Any) -> Any:
    """Return an argument of a call, by its place or its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _calls_with_stride(name: str, node: fx.Node) -> bool:
    convolves = name in ("conv2d", "conv_transpose2d", "unfold")
    place = 4 if name == "unfold" else 3 if convolves or name == "lp_pool2d" else 2
    stride = _given(node, place, "stride", None)
    if stride is None or stride == ():  # that of a pooling is then its window
        stride = 1 if convolves else _given(node, place - 1, "kernel_size", 2)
    return _steps(stride)


def _steps(stride: Any) -> bool:
    """Return whether a stride is above 1; a computed one may be."""
    return any(not isinstance(v, int) or v > 1 for v in (stride if isinstance(stride, tuple | list) else (stride,)))
