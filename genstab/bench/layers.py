"""Benchmark of single layers at the shapes of the U-Net: blurs of other libraries, plain and blurred layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.bench.timing import Run, compare, interleave, peak_memory
from genstab.layers.blur import BlurPool2d, blur_padding
from genstab.layers.conv import BlurConv2d, BlurConvTranspose2d
from genstab.layers.filters import taps
from genstab.layers.pooling import MaxBlurPool2d
from genstab.networks.unet import UNet

Build = Callable[[], nn.Module]
Layers = Mapping[str, Build]
Blurs = Mapping[str, Callable[..., nn.Module]]  # library → (channels, size, stride) → its blur
KINDS = ("blur", "conv", "transposed", "pool")
OWN = "genstab"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
COPY = "copy"
# Name → the module and the class; the module is imported only for a comparison.
OTHERS = {
    "kornia": ("kornia.filters", "BlurPool2D"),
    "timm": ("timm.layers", "BlurPool2d"),
    "antialiased_cnns": ("antialiased_cnns", "BlurPool"),
}


def other_blurs(names: Sequence[str]) -> tuple[dict[str, Callable[..., nn.Module]], dict[str, str]]:
    """Return the blurs of other libraries, (channels, size, stride) → module, and the reasons why others are missing.

    kornia pads with zeros where the rest reflect, which is less work; all of them have the same taps.

    >>> blurs, missing = other_blurs(["kornia"])
    >>> blurs["kornia"](8, 3, 2)(torch.zeros(1, 8, 6, 6)).shape, missing
    (torch.Size([1, 8, 3, 3]), {})
    """
    blurs: dict[str, Callable[..., nn.Module]] = {}
    missing = {}
    for name in names:
        module, layer = OTHERS[name]
        try:
            blur = getattr(import_module(module), layer)
        except Exception as error:  # a torchvision that does not fit torch raises anything
            problem = "not installed" if isinstance(error, ImportError) else f"not usable, {type(error).__name__}"
            missing[name] = " ".join(f"{problem}: {error}".split())
            continue
        if name == "kornia":  # works on any number of channels
            blurs[name] = partial(_without_channels, blur)
        else:
            blurs[name] = partial(_with_filt_size, blur)
    return blurs, missing


def _without_channels(blur: Callable[..., nn.Module], channels: int, size: int, stride: int) -> nn.Module:
    return blur(size, stride)


def _with_filt_size(blur: Callable[..., nn.Module], channels: int, size: int, stride: int) -> nn.Module:
    return blur(channels, filt_size=size, stride=stride)


def versions() -> dict[str, str | None]:
    """Return the versions of the compared libraries, None if not installed."""
    found: dict[str, str | None] = {}
    for package in ("genstab", "torch", "kornia", "timm", "antialiased-cnns"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


class NaivePost(nn.Module):
    """The placement `post` in plain torch: convolution with stride 1, padding, depthwise convolution with stride 2."""

    kernel: Tensor

    def __init__(self, channels_in: int, channels_out: int, filter: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 4, padding=1)
        row = taps(filter).float()
        self.padding = blur_padding((row, row))
        kernel = torch.outer(row, row).repeat(channels_out, 1, 1, 1)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H / 2, W / 2), H and W even."""
        x = self.conv(x)
        # torch cannot reflect a map that is smaller than the padding
        mode = "reflect" if min(x.shape[-2:]) > max(self.padding) else "replicate"
        x = F.pad(x, self.padding, mode=mode)
        return F.conv2d(x, self.kernel, stride=2, groups=len(self.kernel))


class Copy(nn.Module):
    """Read and write a map once, the lower bound for a blur with stride 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        return x.clone()


@dataclass(frozen=True)
class Case:
    """A comparison: its name, its input, and the layers; ratios are relative to the first one.

    `differentiable` says whether the input has a gradient; the U-Net's source has none.
    """

    kind: str
    name: str
    channels: int
    side: int
    layers: Layers
    differentiable: bool = True


def unet_shapes(size: int, channels: int) -> list[tuple[bool, int, int, int, int]]:
    """Return (transposed, channels in, channels out, side in, side out) of each convolution of the U-Net, in order.

    Read off a U-Net without memory (device `meta`), with as many levels as `size` allows, at most 8.

    >>> unet_shapes(256, 64)[:2], unet_shapes(256, 64)[-1]
    ([(False, 3, 64, 256, 128), (False, 64, 128, 128, 64)], (True, 128, 3, 128, 256))
    """
    shapes = []

    def note(layer: nn.Conv2d | nn.ConvTranspose2d, inputs: tuple[Tensor], output: Tensor) -> None:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        shapes.append((transposed, layer.in_channels, layer.out_channels, inputs[0].shape[-1], output.shape[-1]))

    with torch.device("meta"):
        network = UNet(channels=channels, levels=unet_levels(size))
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.register_forward_hook(note)
        network.eval()(torch.zeros(1, 3, size, size))
    return shapes


def unet_levels(size: int) -> int:
    """Return the levels of a U-Net for a given image size: 8 as in the paper, fewer for fewer than 256 pixels."""
    return min(8, size.bit_length() - 1)


def layer_cases(size: int, channels: int, filter: str, blurs: Blurs) -> list[Case]:
    """Return the comparisons of single layers at every shape of the U-Net for a given image size.

    Blurs with stride 1 have the shapes that `pre` blurs, encoder and decoder, those with stride 2 the ones of `post`.
    Max pooling, which the U-Net has none of, takes the encoder's inputs.
    """
    shapes = unet_shapes(size, channels)
    encoder = [shape[1:] for shape in shapes if not shape[0]]
    decoder = [shape[1:] for shape in shapes if shape[0]]
    blurred = {
        1: [(n, side) for n, _, side, _ in encoder] + [(n, side) for _, n, _, side in decoder],
        2: [(n, side) for _, n, side, _ in encoder],
    }
    cases = []
    for stride, maps in blurred.items():
        for n, side in dict.fromkeys(maps):
            layers: dict[str, Build] = {OWN: partial(BlurPool2d, filter, stride)}
            for name, blur in blurs.items():
                layers[name] = partial(blur, n, taps(filter).numel(), stride)
            layers[COPY] = Copy
            cases.append(Case("blur", f"blur, stride {stride}", n, side, layers))
    for n, out, side, _ in encoder:
        strided: Layers = {
            "plain": partial(nn.Conv2d, n, out, 4, 2, 1),
            "pre": partial(BlurConv2d, n, out, 4, 2, 1, filter=filter),
            "post": partial(BlurConv2d, n, out, 4, 2, 1, filter=filter, placement="post"),
            "naive post": partial(NaivePost, n, out, filter),
        }
        cases.append(Case("conv", "strided convolution", n, side, strided, differentiable=side < size))
    for n, out, side, _ in decoder:
        up: Layers = {
            "plain": partial(nn.ConvTranspose2d, n, out, 4, 2, 1),
            "blurred": partial(BlurConvTranspose2d, n, out, 4, 2, 1, filter=filter),
        }
        cases.append(Case("transposed", "transposed convolution", n, side, up))
    for n, _, side, _ in encoder:
        pools: Layers = {"plain": partial(nn.MaxPool2d, 2), "blurred": partial(MaxBlurPool2d, 2, filter=filter)}
        cases.append(Case("pool", "max pooling", n, side, pools))
    return cases


def blur_bytes(shape: Sequence[int], stride: int, itemsize: int) -> int:
    """Return the bytes of a blur's input and output; the backward pass moves the same number again.

    >>> blur_bytes((1, 64, 128, 128), stride=2, itemsize=4) == 4 * 64 * (128 * 128 + 64 * 64)
    True
    """
    n, channels, height, width = shape
    return itemsize * n * channels * (height * width + -(-height // stride) * -(-width // stride))


def race(
    case: Case, batch: int, layout: str, dtype: str, device: torch.device, seconds: float, compiled: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time one case; return a result for each layer, and the layers that failed, with the reason.

    `forward` is timed without a graph, as in inference, `forward_backward` with the gradients of the input and of the
    weights. A layer whose output has another shape than the first one's would do other work, so it is left out.
    """
    if compiled:
        torch.compiler.reset()  # or the shapes of one case would make the code of the next one dynamic
    memory_format = LAYOUTS[layout]
    shape = (batch, case.channels, case.side, case.side)
    x = torch.randn(shape, device=device, dtype=DTYPES[dtype]).contiguous(memory_format=memory_format)
    x.requires_grad_(case.differentiable)
    facts = {"case": case.name, "kind": case.kind, "shape": list(shape), "layout": layout, "dtype": dtype}
    forward: dict[str, Run] = {}
    both: dict[str, Run] = {}
    peaks: dict[str, int | None] = {}
    left_out = []
    expected: torch.Size | None = None
    for name, build in case.layers.items():
        layer = build().to(device, DTYPES[dtype]).to(memory_format=memory_format)  # type: ignore[call-overload]  # not in its stub
        if compiled and name != COPY:
            layer.compile()
        try:
            output = layer(x)
        except (RuntimeError, ValueError) as error:
            left_out.append({**facts, "contestant": name, "reason": str(error).strip().splitlines()[0]})
            continue
        expected = expected or output.shape
        if name != COPY and output.shape != expected:
            reason = f"its output is {tuple(output.shape)}, not {tuple(expected)}"
            left_out.append({**facts, "contestant": name, "reason": reason})
            continue
        forward[name] = partial(_forward, layer, x)
        if name == COPY:  # its backward pass moves nothing
            continue
        leaves = [*layer.parameters(), *([x] if case.differentiable else [])]
        gradient = torch.randn_like(output)
        both[name] = partial(_forward_backward, layer, x, leaves, gradient)
        both[name]()  # compiles, and lets CUDA choose its algorithms
        peaks[name] = peak_memory(both[name], device, [x, gradient, *layer.parameters(), *layer.buffers()])
    times = {
        "forward": compare(interleave(forward, seconds, device)),
        "forward_backward": compare(interleave(both, seconds, device)),
    }
    results = []
    for name in forward:
        result = {**facts, "compiled": compiled, "contestant": name}
        result["times"] = {what: timings[name] for what, timings in times.items() if name in timings}
        result["peak_bytes"] = peaks.get(name)
        if case.kind == "blur":
            stride = case.side // expected[-1] if expected and name != COPY else 1
            moved = blur_bytes(shape, stride, x.element_size())
            result["bytes_moved"] = (
                {"forward": moved} if name == COPY else {"forward": moved, "forward_backward": 2 * moved}
            )
        results.append(result)
    return results, left_out


def _forward(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def _forward_backward(layer: nn.Module, x: Tensor, leaves: Sequence[Tensor], gradient: Tensor) -> None:
    torch.autograd.grad(layer(x), leaves, gradient)
