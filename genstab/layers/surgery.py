"""Put a blur into the resampling layers of a network that exists already, and take it out again.

Only layers are found: what a `forward` calls itself (`F.interpolate`, `F.max_pool2d`, slicing) stays as it is.
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
# Reversed, so that of the three kinds of upsampling the general one comes back.
PLAIN: dict[type[nn.Module], type[nn.Module]] = {blurred: plain for plain, blurred in reversed(BLURRED.items())}
UPSAMPLE_MODES = ("nearest", "nearest-exact", "bilinear")
WANTED = "strided Conv2d, ConvTranspose2d, MaxPool2d, AvgPool2d; nearest or bilinear Upsample"

Patterns = Sequence[str] | str | None
Module = TypeVar("Module", bound=nn.Module)


def names_of(module: nn.Module) -> dict[nn.Module, list[str]]:
    """Return every submodule with its qualified names: a shared one has several, the root ``""``."""
    names: dict[nn.Module, list[str]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        names.setdefault(layer, []).append(name)
    return names


def matches(names: list[str], patterns: Patterns, default: bool) -> bool:
    """Return whether a glob pattern fits one of the names; `default` if there are no patterns."""
    if patterns is None:
        return default
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def resamples(layer: nn.Module) -> bool:
    """Return whether a plain layer or a subclass of one changes the resolution in a way that a blur would help."""
    if isinstance(layer, nn.Upsample):
        return layer.mode in UPSAMPLE_MODES and (layer.size is not None or pair(layer.scale_factor) != (1, 1))
    return isinstance(layer, tuple(BLURRED)) and max(pair(layer.stride)) > 1


def refuse_if_impossible(name: str, layer: nn.Module) -> None:
    """Raise an `InputError` that names the layer if there is no blurred one for it."""
    reason = ""
    if type(layer) not in BLURRED:
        plain = next(kind.__name__ for kind in BLURRED if isinstance(layer, kind))
        reason = f"is a subclass of {plain}, whose forward may be its own"
    elif isinstance(layer, nn.MaxPool2d) and layer.return_indices:
        reason = "has return_indices=True, and a blurred maximum has no index"
    elif isinstance(layer, nn.Upsample) and layer.size is None and min(pair(layer.scale_factor)) < 1:
        reason = f"shrinks, scale_factor={layer.scale_factor}; a blur would have to come before it"
    if reason:
        raise InputError(
            f"antialias: cannot handle {name or 'the module'} ({type(layer).__name__}): it {reason}; exclude it"
        )


def recast(layer: nn.Module, kind: type[Module]) -> Module:
    """Return a module of another class with the same attributes: the very same tensors, hooks, mode and settings."""
    new = kind.__new__(kind)
    # The containers are copied, so that a buffer added to one of the two is not in the other.
    new.__dict__ = {k: copy.copy(v) if isinstance(v, dict | set) else v for k, v in layer.__dict__.items()}
    return new


def swap(module: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replace submodules wherever they are registered; return the module, or what replaces it."""
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out a layer's second name
            if child in new:
                setattr(parent, name, new[child])
    return new.get(module, module)


def antialias(
    module: nn.Module,
    filter: Filter = "tri3",
    placement: str = "pre",
    include: Patterns = None,
    exclude: Patterns = None,
    padding_mode: str | None = None,
) -> nn.Module:
    """Replace the layers that alias by blurred ones, in place; the weights stay the very same tensors.

    Strided `Conv2d`, `ConvTranspose2d`, `MaxPool2d` and `AvgPool2d`, and nearest or bilinear `Upsample`, become the
    layers of `genstab.layers.conv`; all their settings and output shapes stay. Everything else is left alone, adaptive
    pooling and layers of other dimensions too. A second call changes nothing, also with another filter: call
    `remove_antialias` first. A layer registered twice is replaced by one object, and is chosen by any of its names. If
    an error is raised, nothing has been replaced.

    Args:
        module: any network, or a single layer.
        filter: one of `genstab.layers.filters.FILTERS`, or taps of your own.
        placement: `pre` or `post`, of the convolutions; see `genstab.BlurConv2d`.
        include: glob patterns of qualified names, as in `module.named_modules()`; `*` goes across dots. None is all.
        exclude: the same; it wins over `include`.
        padding_mode: of the blur; None takes the convolution's own, and `reflect` where that is zeros or there is none.

    Returns:
        The module; if the module itself is such a layer, what replaces it.

    Raises:
        InputError: no such layer was found; one cannot be handled: a subclass of these classes, `return_indices`, a
            shrinking `Upsample`; a `BlurPool2d` says that the network is anti-aliased by hand. Exclude those.

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
        if isinstance(layer, BlurPool2d):
            raise InputError(f"antialias: {names[0] or 'the module'} is a BlurPool2d: anti-aliased by hand; exclude it")
        if getattr(layer, "polyphase", False) is True:  # as the U-Net's `Down` says of itself
            raise InputError(f"antialias: {names[0]} samples on the picture's own grid, which a blur would break")
        if isinstance(layer, Blurred):
            done = True
        elif resamples(layer):
            refuse_if_impossible(names[0], layer)
            new[layer] = blurred(layer, blur, padding_mode, device)
    if not new and not done:
        raise InputError(
            f"antialias: nothing to replace in {type(module).__name__} with include={include!r}, exclude={exclude!r}; "
            f"looked for {WANTED}"
        )
    return swap(module, new)


def blurred(layer: nn.Module, blur: AntiAlias, padding_mode: str | None, device: torch.device | None) -> nn.Module:
    """Return the blurred layer with a plain one's tensors."""
    new = recast(layer, BLURRED[type(layer)])
    own = getattr(layer, "padding_mode", "zeros")
    if padding_mode is None and own != "zeros":
        blur = AntiAlias(blur.filter, blur.placement, own)
    new.set_blur(blur, getattr(layer, "weight", torch.empty(0, device=device)).device)
    return new


def plain(layer: Blurred) -> nn.Module:
    """Return the plain layer with a blurred one's tensors."""
    new: Any = recast(layer, next(PLAIN[kind] for kind in type(layer).__mro__ if kind in PLAIN))
    del new.antialias, new.taps
    return new


def remove_antialias(module: nn.Module) -> nn.Module:
    """Put the plain layers back, in place, with the same tensors; return the module, or what replaces it.

    Raises:
        InputError: the module has no layer of `conv`, or a subclass of one (a parametrisation makes one).

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
        raise InputError(f"remove_antialias: {type(module).__name__} has no layer that antialias put there")
    return swap(module, new)


def surgery_table(module: nn.Module) -> str:
    """Return what was replaced as a table of text: qualified names, the plain layers and the blurred ones."""
    rows = [("name", "old", "new")]
    for layer, names in names_of(module).items():
        if isinstance(layer, Blurred):
            blur = layer.antialias
            words = [str(blur.filter), blur.padding_mode, *([blur.placement] if isinstance(layer, BlurConv2d) else [])]
            rows.append((", ".join(names), repr(plain(layer)), f"{type(layer).__name__}({', '.join(words)})"))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {old:{widths[1]}}  {new}" for name, old, new in rows)
