"""Add a blur to the resampling layers of an existing network, and remove it again.

Only layers are replaced, not functions called in a `forward` (`F.interpolate`, `F.max_pool2d`, slicing).
"""

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn

from genstab.errors import InputError
from genstab.layers.blur import BlurPool2d
from genstab.layers.conv import BlurConv2d, BlurConvTranspose2d, Blurred, BlurUpsample2d, pair
from genstab.layers.filters import AntiAlias, Filter
from genstab.layers.pooling import BlurAvgPool2d, MaxBlurPool2d

BLURRED: dict[type[nn.Module], type[Blurred]] = {
    nn.Conv2d: BlurConv2d,
    nn.ConvTranspose2d: BlurConvTranspose2d,
    nn.MaxPool2d: MaxBlurPool2d,
    nn.AvgPool2d: BlurAvgPool2d,
    nn.Upsample: BlurUpsample2d,
    nn.UpsamplingNearest2d: BlurUpsample2d,
    nn.UpsamplingBilinear2d: BlurUpsample2d,
}
# Reversed, so that `BlurUpsample2d` maps to `nn.Upsample`.
PLAIN: dict[type[nn.Module], type[nn.Module]] = {blurred: plain for plain, blurred in reversed(BLURRED.items())}
UPSAMPLE_MODES = ("nearest", "nearest-exact", "bilinear")
WANTED = "strided Conv2d, ConvTranspose2d, MaxPool2d, AvgPool2d; nearest or bilinear Upsample"

Patterns = Sequence[str] | str | None
Module = TypeVar("Module", bound=nn.Module)


def names_of(module: nn.Module) -> dict[nn.Module, list[str]]:
    """Return the qualified names of every submodule: several if it is shared, ``""`` for the root."""
    names: dict[nn.Module, list[str]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        names.setdefault(layer, []).append(name)
    return names


def matches(names: list[str], patterns: Patterns, default: bool) -> bool:
    """Return whether a glob pattern matches one of the names; `default` if there are no patterns."""
    if patterns is None:
        return default
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def resamples(layer: nn.Module) -> bool:
    """Return whether a layer, or a subclass of one, changes the resolution so that it needs a blur."""
    if isinstance(layer, nn.Upsample):
        return layer.mode in UPSAMPLE_MODES and (layer.size is not None or pair(layer.scale_factor) != (1, 1))
    return isinstance(layer, tuple(BLURRED)) and max(pair(layer.stride)) > 1


def obstacle(layer: nn.Module) -> str | None:
    """Return why a layer must be excluded, if it must."""
    if isinstance(layer, BlurPool2d):
        return "is a blur, so the network has one already"
    if getattr(layer, "polyphase", False) is True:  # as in the U-Net's `Down`
        return "samples on an adaptive grid, which a blur would break"
    if not resamples(layer):
        return None
    if type(layer) not in BLURRED:
        plain = next(kind.__name__ for kind in BLURRED if isinstance(layer, kind))
        return f"is a subclass of {plain}, which may have another forward"
    if isinstance(layer, nn.MaxPool2d) and layer.return_indices:
        return "has return_indices=True, but a blurred maximum has no index"
    if isinstance(layer, nn.Upsample) and layer.size is None and min(pair(layer.scale_factor)) < 1:
        return f"downsamples, scale_factor={layer.scale_factor}, and would need a blur before it"
    return None


def recast(layer: nn.Module, kind: type[Module]) -> Module:
    """Return a module of another class with the same attributes: parameters, buffers, hooks, mode and settings."""
    new = kind.__new__(kind)
    # Copy the containers, so that a buffer added to one module does not appear in the other.
    new.__dict__ = {k: copy.copy(v) if isinstance(v, dict | set) else v for k, v in layer.__dict__.items()}
    return new


def swap(module: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replace submodules under all of their names; return the module, or its own replacement."""
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if name and child in new:
            module.set_submodule(name, new[child])
    return new.get(module, module)


def antialias(
    module: nn.Module,
    filter: Filter = "tri3",
    placement: str = "pre",
    include: Patterns = None,
    exclude: Patterns = None,
    padding_mode: str | None = None,
) -> nn.Module:
    """Replace the layers that cause aliasing by layers with a blur, in place; the weights stay the same tensors.

    Strided `Conv2d`, `ConvTranspose2d`, `MaxPool2d` and `AvgPool2d`, and nearest or bilinear `Upsample`, become the
    layers of `genstab.layers.conv` and `genstab.layers.pooling`, with the same settings and output shapes. Other layers
    are not changed, nor are layers that have a blur already: to change the filter, call `remove_antialias` first. A
    shared layer is replaced by one shared layer, and is matched by any of its names. If an error is raised, no layer
    has been replaced.

    Args:
        module: any network, or a single layer.
        filter: one of `genstab.layers.filters.FILTERS`, or taps of your own.
        placement: `pre` or `post`, for convolutions; see `genstab.BlurConv2d`.
        include: glob patterns of qualified names, as in `module.named_modules()`; `*` matches dots too. None matches
            all.
        exclude: glob patterns of layers to leave out; they take precedence over `include`.
        padding_mode: padding of the blur; None takes that of the convolution, or `reflect` if it has zeros or none.

    Returns:
        The module, or its replacement if it is itself such a layer.

    Raises:
        InputError: no layer was found, or one cannot be replaced and must be excluded: a subclass of these classes, a
            layer with `return_indices`, an `Upsample` that downsamples, or a `BlurPool2d`, which shows that the network
            has a blur already.

    >>> net = antialias(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)), "bin5")
    >>> print(surgery_table(net))
    name  old                                                        new
    0     Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), ...)  BlurConv2d(bin5, reflect, pre)
    2     MaxPool2d(kernel_size=2, stride=2, padding=0, ...)  MaxBlurPool2d(bin5, reflect)
    """
    blur = AntiAlias(filter, placement, padding_mode or "reflect")
    device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
    new: dict[nn.Module, nn.Module] = {}
    done = False
    for layer, names in names_of(module).items():
        if not matches(names, include, True) or matches(names, exclude, False):
            continue
        if isinstance(layer, Blurred):
            done = True
        elif reason := obstacle(layer):
            name = f"{names[0] or 'the module'} ({type(layer).__name__})"
            raise InputError(f"antialias: cannot handle {name}: it {reason}; exclude it")
        elif resamples(layer):
            new[layer] = blurred(layer, blur, padding_mode, device)
    if not new and not done:
        raise InputError(
            f"antialias: nothing to replace in {type(module).__name__} with include={include!r}, exclude={exclude!r}; "
            f"looked for {WANTED}"
        )
    return swap(module, new)


def blurred(layer: nn.Module, blur: AntiAlias, padding_mode: str | None, device: torch.device | None) -> nn.Module:
    """Return a layer with a blur that shares the tensors of a plain one."""
    new = recast(layer, BLURRED[type(layer)])
    own = getattr(layer, "padding_mode", "zeros")
    if padding_mode is None and own != "zeros":
        blur = AntiAlias(blur.filter, blur.placement, own)
    new.set_blur(blur, getattr(layer, "weight", torch.empty(0, device=device)).device)
    return new


def plain(layer: Blurred) -> nn.Module:
    """Return a plain layer that shares the tensors of one with a blur."""
    new: Any = recast(layer, next(PLAIN[kind] for kind in type(layer).__mro__ if kind in PLAIN))
    del new.antialias, new.taps
    return new


def remove_antialias(module: nn.Module) -> nn.Module:
    """Replace layers with a blur by the plain ones, in place; return the module, or its replacement.

    Raises:
        InputError: the module has no layer with a blur, or one is of a subclass (a parametrization makes one).

    >>> remove_antialias(antialias(nn.MaxPool2d(2)))
    MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    """
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, Blurred):
            if type(layer) not in PLAIN:
                raise InputError(f"remove_antialias: {name or 'the module'} is a subclass, {type(layer).__name__}")
            new[layer] = plain(layer)
    if not new:
        raise InputError(f"remove_antialias: {type(module).__name__} has no layers with a blur")
    return swap(module, new)


def surgery_table(module: nn.Module) -> str:
    """Return a table of the replaced layers: qualified names, plain layers and layers with a blur."""
    rows = [("name", "old", "new")]
    for layer, names in names_of(module).items():
        if isinstance(layer, Blurred):
            blur = layer.antialias
            words = [str(blur.filter), blur.padding_mode, *([blur.placement] if isinstance(layer, BlurConv2d) else [])]
            rows.append((", ".join(names), repr(plain(layer)), f"{type(layer).__name__}({', '.join(words)})"))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {old:{widths[1]}}  {new}" for name, old, new in rows)
