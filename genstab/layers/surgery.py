"""Add a blur to the resampling layers of an existing network, and remove it again.

Layers may be parametrized (spectral norm, weight norm).
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar
from warnings import warn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from genstab.errors import InputError
from genstab.layers.blur import BlurPool2d
from genstab.layers.conv import BlurConv2d, BlurConvTranspose2d, Blurred, BlurSelfPaddedConv2d, BlurUpsample2d, pair
from genstab.layers.filters import AntiAlias, Filter
from genstab.layers.pooling import BlurAvgPool2d, MaxBlurPool2d
from genstab.layers.resampling import resampling, shallow_copy

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
PADDERS: dict[type[nn.Module] | str, Callable[[Any, Tensor], Tensor]] = {}
UPSAMPLE_MODES = ("nearest", "nearest-exact", "bilinear")
WANTED = "strided Conv2d, ConvTranspose2d, MaxPool2d, AvgPool2d; nearest or bilinear Upsample"

Patterns = Sequence[str] | str | None
Module = TypeVar("Module", bound=nn.Module)


def register(kind: type[nn.Conv2d] | str, pad: Callable[[Any, Tensor], Tensor] | None = None) -> None:
    """Let `antialias` replace a subclass of `Conv2d` that pads its input itself and then calls `F.conv2d`.

    Only subclasses of `Conv2d` can be registered. `antialias` compares the layer with what it is told here and refuses
    a layer that computes something else. `Conv2dStaticSamePadding` and `Conv2dDynamicSamePadding` of EfficientNet and
    `Conv2dSame` of timm are known.

    Args:
        kind: the class, or its name in a package that need not be installed.
        pad: called with the layer and its input, returns the padded input; None if the class adds nothing to the
            forward of `Conv2d`.

    >>> class Conv2dTop(nn.Conv2d):
    ...     def forward(self, x):
    ...         return super().forward(F.pad(x, (0, 0, 1, 0)))
    >>> register(Conv2dTop, lambda layer, x: F.pad(x, (0, 0, 1, 0)))
    >>> antialias(Conv2dTop(3, 8, (2, 1), stride=2))(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 8, 4, 4])
    """
    PADDERS[kind] = pad or no_padding


def no_padding(layer: nn.Module, input: Tensor) -> Tensor:
    """Return the input as it is."""
    return input


def same_padding(layer: nn.Conv2d, input: Tensor) -> Tensor:
    """Pad as TensorFlow's "same": ⌈size / stride⌉ outputs, and the odd pixel at the end."""
    sides: list[int] = []
    for i in (1, 0):  # columns first, as F.pad has it
        size, stride = input.shape[i - 2], layer.stride[i]
        missing = max(0, (-(-size // stride) - 1) * stride + layer.dilation[i] * (layer.kernel_size[i] - 1) + 1 - size)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(input, sides)


def static_padding(layer: Any, input: Tensor) -> Tensor:
    """Pad by the layer's own `static_padding`."""
    return layer.static_padding(input)


register("Conv2dStaticSamePadding", static_padding)
register("Conv2dDynamicSamePadding", same_padding)
register("Conv2dSame", same_padding)


def padder_of(layer: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    """Return how a subclass of `Conv2d` pads its input, if it is registered."""
    kind = type_before_parametrizations(layer)
    return PADDERS.get(kind, PADDERS.get(kind.__name__)) if isinstance(layer, nn.Conv2d) else None


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
    kind = type_before_parametrizations(layer)
    pad = padder_of(layer)
    if kind not in BLURRED and pad is None:
        plain = next(each.__name__ for each in BLURRED if isinstance(layer, each))
        advice = f" (genstab.surgery.register({kind.__name__}, …) if it only pads)" if plain == "Conv2d" else ""
        return f"is a subclass of {plain}, which may have another forward{advice}"
    if pad and not only_pads(layer, pad):
        return "computes something else than genstab.surgery.register says"
    if isinstance(layer, nn.MaxPool2d) and layer.return_indices:
        return "has return_indices=True, but a blurred maximum has no index"
    if isinstance(layer, nn.Upsample) and layer.size is None and min(pair(layer.scale_factor)) < 1:
        return f"downsamples, scale_factor={layer.scale_factor}, and would need a blur before it"
    return None


def only_pads(layer: Any, pad: Callable[[Any, Tensor], Tensor]) -> bool:
    """Return whether a layer computes what `Conv2d` does with an input that `pad` has padded."""
    modes = [(part, part.training) for part in layer.modules()]
    layer.eval()  # the power iteration of a spectral norm goes on in training mode
    try:
        height, width = (layer.dilation[i] * layer.kernel_size[i] + 2 * layer.stride[i] + i for i in (0, 1))
        values = torch.arange(layer.in_channels * height * width, device=layer.weight.device)
        input = (values * 0.7).sin().to(layer.weight.dtype).reshape(1, layer.in_channels, height, width)
        with torch.no_grad():
            own, plain = type(layer).forward(layer, input), nn.Conv2d.forward(layer, pad(layer, input))
        return own.shape == plain.shape and (own.is_meta or torch.allclose(own, plain, 1e-2, 1e-2))
    finally:
        for part, training in modes:
            part.training = training


def recast(layer: nn.Module, kind: type[Module]) -> Module:
    """Return a module of another class with the same attributes: parameters, buffers, hooks, mode and settings."""
    if is_parametrized(layer):
        # torch gives each parametrized layer a class of its own, whose properties compute the tensors.
        own = {k: v for k, v in vars(type(layer)).items() if k not in ("__module__", "__doc__")}
        kind = type(f"Parametrized{kind.__name__}", (kind,), own)
    return shallow_copy(layer, kind)


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

    A warning lists what resamples and stays as it is: layers such as `PixelShuffle` or a bicubic `Upsample`, and what
    the forwards of the network's own classes call, such as `F.interpolate`, as far as `torch.fx` can trace them.
    `exclude` leaves something out of that list, too.

    The weights were trained without the blur: this is no cure by itself, fine-tune afterwards.

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
        InputError: no layer was found, or one cannot be replaced and must be excluded: a subclass of these classes that
            is not known (see `register`), a layer with `return_indices`, an `Upsample` that downsamples, or a
            `BlurPool2d`, which shows that the network has a blur already.

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
    left: dict[str, list[str]] = {}
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
        else:
            for what in resampling(layer):
                left.setdefault(what, []).append(names[0] or type(layer).__name__)
    if not new and not done:
        raise InputError(
            f"antialias: nothing to replace in {type(module).__name__} with include={include!r}, exclude={exclude!r}; "
            f"looked for {WANTED}{' but found ' * bool(left)}{listed(left)}"
        )
    if left and new:
        warn(f"antialias: not replaced, so its aliasing remains: {listed(left)}", stacklevel=2)
    return swap(module, new)


def listed(left: dict[str, list[str]]) -> str:
    """Return {kind: names} as text, at most three names of each kind.

    >>> listed({"PixelShuffle": ["up"], "F.interpolate": ["a", "b", "c", "d"]})
    'PixelShuffle in up; F.interpolate in a, b, c and 1 more'
    """
    parts = []
    for what, names in left.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{what} in {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def blurred(layer: nn.Module, blur: AntiAlias, padding_mode: str | None, device: torch.device | None) -> nn.Module:
    """Return a layer with a blur that shares the tensors of a plain one."""
    own = getattr(layer, "padding_mode", "zeros")
    if padding_mode is None and own != "zeros":
        blur = AntiAlias(blur.filter, blur.placement, own)
    device = next((parameter.device for parameter in layer.parameters()), device)
    kind = type_before_parametrizations(layer)
    new: Any
    if kind in BLURRED:
        new = recast(layer, BLURRED[kind])
    else:
        new = recast(layer, BlurSelfPaddedConv2d)
        new.plain_kind, new.pad = kind, padder_of(layer)
    new.set_blur(blur, device)
    return new


def plain(layer: Blurred) -> nn.Module:
    """Return a plain layer that shares the tensors of one with a blur."""
    kind = type_before_parametrizations(layer)
    new: Any = recast(layer, layer.plain_kind if isinstance(layer, BlurSelfPaddedConv2d) else PLAIN[kind])
    for name in ("antialias", "taps", *(("plain_kind", "pad") if hasattr(new, "plain_kind") else ())):
        delattr(new, name)
    return new


def remove_antialias(module: nn.Module) -> nn.Module:
    """Replace layers with a blur by the plain ones, in place; return the module, or its replacement.

    Raises:
        InputError: the module has no layer with a blur, or one is of a subclass.

    >>> remove_antialias(antialias(nn.MaxPool2d(2)))
    MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    """
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, Blurred):
            if type_before_parametrizations(layer) not in (*PLAIN, BlurSelfPaddedConv2d):
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
            old = plain(layer)
            text = f"{type(old).__name__}({old.extra_repr()})"  # of a layer with submodules, too
            rows.append((", ".join(names), text, f"{type(layer).__name__}({', '.join(words)})"))
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {old:{widths[1]}}  {new}" for name, old, new in rows)
