"""Benchmark of single layers at the shapes of the U-Net: blurs of other libraries, plain and blurred layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from genstab.bench.timing import Run, compare, peak_memory, time_in_turn
from genstab.layers.blur import BlurPool2d
from genstab.layers.conv import BlurConv2d, BlurConvTranspose2d
from genstab.layers.filters import taps
from genstab.layers.pooling import MaxBlurPool2d
from genstab.networks.unet import UNet

Build = Callable[[], nn.Module]
Blurs = Mapping[str, Callable[..., nn.Module]]  # library → class of its blur
Shape = tuple[int, int, int, int]  # channels in, channels out, side in, side out
KINDS = ("blur", "conv", "transposed", "pool")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
OWN = "genstab"
# Library → module and class of its blur. All have the same taps; kornia pads with zeros where the others reflect.
OTHERS = {
    "kornia": ("kornia.filters", "BlurPool2D"),
    "timm": ("timm.layers", "BlurPool2d"),
    "antialiased_cnns": ("antialiased_cnns", "BlurPool"),
}


def other_blurs() -> tuple[Blurs, dict[str, str]]:
    """Return the blurs of the other libraries that are installed, and the reasons why others are missing."""
    blurs: dict[str, Callable[..., nn.Module]] = {}
    missing = {}
    for name, (module, layer) in OTHERS.items():
        try:
            blurs[name] = getattr(import_module(module), layer)
        except Exception as error:  # a torchvision that does not fit torch raises anything
            missing[name] = " ".join(f"{type(error).__name__}: {error}".split())
    return blurs, missing


@dataclass(frozen=True)
class Case:
    """Layers to compare, by name, and their input, a square map; ratios are relative to the first layer."""

    kind: str
    name: str
    channels: int
    side: int
    layers: Mapping[str, Build]
    differentiable: bool = True  # the input has a gradient; the U-Net's source has none


def unet_shapes(size: int, channels: int) -> tuple[list[Shape], list[Shape]]:
    """Return the `Shape` of each convolution of the U-Net's encoder and of its decoder, in order."""
    encoder: list[Shape] = []
    decoder: list[Shape] = []

    def note(layer: nn.Conv2d | nn.ConvTranspose2d, inputs: tuple[Tensor], output: Tensor) -> None:
        shapes = decoder if isinstance(layer, nn.ConvTranspose2d) else encoder
        shapes.append((layer.in_channels, layer.out_channels, inputs[0].shape[-1], output.shape[-1]))

    with torch.device("meta"):  # without memory for weights or maps
        network = UNet(channels=channels, levels=unet_levels(size))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_hook(note)
        network.eval()(torch.zeros(1, 3, size, size))
    return encoder, decoder


def unet_levels(size: int) -> int:
    """Return the levels of a U-Net for a given image size: 8 as in the paper, fewer for fewer than 256 pixels."""
    return min(8, size.bit_length() - 1)


def layer_cases(size: int, channels: int, filter: str, blurs: Blurs) -> list[Case]:
    """Return the comparisons of single layers at every shape of the U-Net for a given image size.

    Blurs with stride 1 have the shapes that `pre` blurs, in encoder and decoder, those with stride 2 the ones of
    `post`. Max pooling, which the U-Net does not have, takes the encoder's inputs.
    """
    encoder, decoder = unet_shapes(size, channels)
    maps = {
        1: [(n, side) for n, _, side, _ in encoder] + [(n, side) for _, n, _, side in decoder],
        2: [(n, side) for _, n, side, _ in encoder],
    }
    cases = []
    layers: dict[str, Build]
    for stride in maps:
        for n, side in dict.fromkeys(maps[stride]):
            layers = {OWN: partial(BlurPool2d, filter, stride)}
            for name, blur in blurs.items():
                if name == "kornia":  # for any number of channels
                    layers[name] = partial(blur, taps(filter).numel(), stride)
                else:
                    layers[name] = partial(blur, n, filt_size=taps(filter).numel(), stride=stride)
            cases.append(Case("blur", f"blur, stride {stride}", n, side, layers))
    for n, out, side, _ in encoder:
        layers = {
            "plain": partial(nn.Conv2d, n, out, 4, 2, 1),
            "pre": partial(BlurConv2d, n, out, 4, 2, 1, filter=filter),
            "post": partial(BlurConv2d, n, out, 4, 2, 1, filter=filter, placement="post"),
        }
        cases.append(Case("conv", "strided convolution", n, side, layers, differentiable=side < size))
    for n, out, side, _ in decoder:
        layers = {
            "plain": partial(nn.ConvTranspose2d, n, out, 4, 2, 1),
            "blurred": partial(BlurConvTranspose2d, n, out, 4, 2, 1, filter=filter),
        }
        cases.append(Case("transposed", "transposed convolution", n, side, layers))
    for n, _, side, _ in encoder:
        layers = {"plain": partial(nn.MaxPool2d, 2), "blurred": partial(MaxBlurPool2d, 2, filter=filter)}
        cases.append(Case("pool", "max pooling", n, side, layers))
    return cases


def time_layers(
    case: Case, batch: int, layout: str, dtype: str, device: torch.device, seconds: float, compiled: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Time one case; return a result for each layer, and the layers that failed, with the reason.

    `forward` is timed without a graph, as in inference, `forward_backward` with the gradients of the input and of the
    weights. A layer with another output shape than the first one does other work and is left out.
    """
    if compiled:
        torch.compiler.reset()  # or the shapes of one case would make the code of the next one dynamic
    shape = (batch, case.channels, case.side, case.side)
    x = torch.randn(shape, device=device, dtype=DTYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
    x.requires_grad_(case.differentiable)
    facts = {"case": case.name, "kind": case.kind, "shape": list(shape), "layout": layout, "dtype": dtype}
    forward: dict[str, Run] = {}
    both: dict[str, Run] = {}
    peaks: dict[str, int | None] = {}
    left_out = []
    expected: torch.Size | None = None
    for name, build in case.layers.items():
        layer = build().to(device, DTYPES[dtype]).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]  # not in its stub
        if compiled:
            layer = torch.compile(layer)  # not layer.compile(), which leaves torch's own layers uncompiled
        try:
            output = layer(x)
            expected = expected or output.shape
            if output.shape != expected:
                raise ValueError(f"its output is {tuple(output.shape)}, not {tuple(expected)}")
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            left_out.append(f"{name} in {case.name}, {'×'.join(map(str, shape))}: {reason}")
            continue
        leaves = [*layer.parameters(), *([x] if case.differentiable else [])]
        gradient = torch.randn_like(output)
        forward[name] = partial(_forward, layer, x)
        both[name] = partial(_forward_backward, layer, x, leaves, gradient)
        both[name]()  # compiles, and lets CUDA choose its algorithms
        peaks[name] = peak_memory(both[name], device, [x, gradient, *layer.parameters(), *layer.buffers()])
    times = {
        "forward": compare(time_in_turn(forward, seconds)),
        "forward_backward": compare(time_in_turn(both, seconds)),
    }
    results = [
        {**facts, "contestant": name, "times": {what: each[name] for what, each in times.items()}, "peak_bytes": peak}
        for name, peak in peaks.items()
    ]
    return results, left_out


def _forward(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def _forward_backward(layer: nn.Module, x: Tensor, leaves: Sequence[Tensor], gradient: Tensor) -> None:
    torch.autograd.grad(layer(x), leaves, gradient)
