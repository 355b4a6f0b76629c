"""Load generators of the PyTorch CycleGAN/pix2pix repository and of CUT (`*_net_G.pth`) into genstab networks.

Such a file is a plain state dict of nested, numbered `nn.Sequential`s without a configuration. Depth, widths, channels,
batch norms and blurs are inferred from its keys and shapes. Three things cannot be seen directly:

Norm. Instance norms have no parameters. In the repository they follow convolutions with a bias, which networks without
a norm do not have, so the bias distinguishes the two. For a network with biases and without norms, set `norm="none"`.
A bias before an instance norm has no effect and is dropped.

Dropout. It has no parameters. In ResNet blocks it shifts the numbers of the next layers by one; U-Nets get the dropout
of the paper, which has no effect in eval mode.

Padding of the ResNet blocks. Zeros are part of a convolution, so that the numbers of the layers show them. Reflection,
which the paper and the repository have, and replication are layers without parameters: set `padding="replicate"`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genstab.errors import InputError
from genstab.inference.weights import Weights, below, choose, described_state, mismatches, state_dicts
from genstab.layers.filters import AntiAlias, taps
from genstab.networks.resnet import ResNetGenerator
from genstab.networks.unet import UNet

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Keys of the first and of the last layer of the U-Net, and those of a residual block, after any prefix.
_UNET = re.compile(r"^(|.*\.)model\.model\.(?:0\.weight|3\.bias)$")
_RESNET = re.compile(r"^(|.*?\.)model\.\d+\.conv_block\.")
_BLURS = {3: "tri3", 5: "bin5", 7: "bin7"}  # even filters of CUT move the map
_DOUBLING = "bin4"


def unet_layers(keys: Collection[str]) -> dict[str, str]:
    """Map the layers of `genstab.UNet`, from the first to the last, to their names: each level is in the one above."""
    levels, prefix = 2, "model.model.1.model."
    while any(key.startswith(f"{prefix}3.model.") for key in keys):
        levels, prefix = levels + 1, f"{prefix}3.model."
    layers, prefix = {"encoder.0.conv": "model.model.0"}, "model.model.1.model."
    for i in range(1, levels - 1):
        encoder, decoder = f"encoder.{i}", f"decoder.{levels - 1 - i}"
        layers |= {f"{encoder}.conv": f"{prefix}1", f"{encoder}.norm": f"{prefix}2"}
        layers |= {f"{decoder}.conv": f"{prefix}5", f"{decoder}.norm": f"{prefix}6"}
        prefix = f"{prefix}3.model."
    layers |= {f"encoder.{levels - 1}.conv": f"{prefix}1", "decoder.0.conv": f"{prefix}3"}
    return layers | {"decoder.0.norm": f"{prefix}4", f"decoder.{levels - 1}.conv": "model.model.3"}


def resnet_layers(keys: Collection[str]) -> dict[str, str]:
    """Map the layers of `genstab.ResNetGenerator`, from the first to the last, to their names, numbered in one row.

    The blurs of CUT are `down.0`, `down.1`, `up.0` and `up.1`.
    """
    layers, number = {"stem": "model.1", "stem_norm": "model.2"}, 4
    for i in (0, 1):
        layers |= {f"encoder.{i}.conv": f"model.{number}", f"encoder.{i}.norm": f"model.{number + 1}"}
        number += 3
        if f"model.{number}.filt" in keys:
            layers[f"down.{i}"] = f"model.{number}"
            number += 1
    first = 0 if f"model.{number}.conv_block.0.weight" in keys else 1  # zeros are padded by the convolution itself
    second = 5 if first else 3
    second += f"model.{number}.conv_block.{second}.weight" not in keys  # the dropout
    blocks = len({key.split(".")[1] for key in keys if ".conv_block." in key})
    for i in range(blocks):
        block = f"model.{number}.conv_block."
        layers |= {f"blocks.{i}.conv1": f"{block}{first}", f"blocks.{i}.norm1": f"{block}{first + 1}"}
        layers |= {f"blocks.{i}.conv2": f"{block}{second}", f"blocks.{i}.norm2": f"{block}{second + 1}"}
        number += 1
    for i in (0, 1):
        if f"model.{number}.filt" in keys:
            layers[f"up.{i}"] = f"model.{number}"
            number += 1
        layers |= {f"decoder.{i}.conv": f"model.{number}", f"decoder.{i}.norm": f"model.{number + 1}"}
        number += 3
    return layers | {"head": f"model.{number + 1}"}


def which_norm(path: Path, weights: Weights, layers: dict[str, str], requested: str | None) -> str:
    """Return the norm that the keys imply, or the requested one if they allow it."""
    conv = next(iter(layers.values()))
    norm = next(theirs for ours, theirs in layers.items() if "norm" in ours)
    if f"{norm}.weight" in weights:
        allowed = ["batch"]
    elif f"{norm}.running_mean" in weights:
        allowed = ["instance"]  # files of 2018; the repository ignores these statistics, too
    else:
        allowed = ["instance", "none"] if f"{conv}.bias" in weights else ["none", "instance"]
    return _allowed("norm", requested, allowed, path)


def which_padding(path: Path, layers: dict[str, str], requested: str | None, notes: list[str] | None) -> str:
    """Return the padding of the residual blocks that the keys imply, or the requested one if they allow it."""
    allowed = ("zeros",) if layers["blocks.0.conv1"].endswith(".0") else ("reflect", "replicate")
    if requested is None and len(allowed) > 1 and notes is not None:
        notes.append(f"{path.name}: its keys do not tell reflection from replication; model.padding=replicate if so")
    return _allowed("padding", requested, allowed, path)


def _allowed(name: str, requested: str | None, allowed: Sequence[str], path: Path) -> str:
    if requested not in (None, *allowed):
        raise InputError(f"{name}={requested!r} does not fit {path}: its keys allow {' or '.join(allowed)}")
    return requested or allowed[0]


def generators_in(content: object) -> dict[str, Weights]:
    """Return the weights of each generator of the repository in a file, by its place and without its prefix."""
    found: dict[str, Weights] = {}
    for place, weights in state_dicts(content):
        for pattern in (_UNET, _RESNET):
            for prefix in dict.fromkeys(match[1] for key in weights if (match := pattern.match(key))):
                found.setdefault(f"{place}{prefix}", below(weights, prefix))
    return found


def cyclegan_generator(
    path: Path,
    checkpoint: object,
    norm: str | None = None,
    padding: str | None = None,
    prefix: str | None = None,
    kind: str | None = None,
    notes: list[str] | None = None,
) -> UNet | ResNetGenerator:
    """Return the network of a file's content.

    Args:
        path: the file.
        checkpoint: its content.
        norm: `instance` or `none` if the keys allow both.
        padding: `reflect` or `replicate`, of the residual blocks, if the keys allow both.
        prefix, kind: which weights of several, see `genstab.inference.weights.choose`.
        notes: gets a line for what the keys do not tell.

    Raises:
        InputError: there is no such generator, or it does not fit the keys.
    """
    found = generators_in(checkpoint)
    if not found:
        keys = [key for _, weights in state_dicts(checkpoint) for key in weights]
        content = f"its first keys: {', '.join(keys[:3])}" if keys else f"it holds {type(checkpoint).__name__}"
        what = "is not a checkpoint of a genstab U-Net or ResNet, nor a generator of the CycleGAN/pix2pix repository"
        raise InputError(f"{path} {what}; other weights need their network (model._target_=…); {content}")
    weights = dict(choose(path, found, "are of a generator", prefix, kind))
    unet = not any(".conv_block." in key for key in weights)
    what = "a U-Net" if unet else "a ResNet generator"
    layers = unet_layers(weights) if unet else resnet_layers(weights)
    norm = which_norm(path, weights, layers, norm)
    if unet and padding is not None:
        raise InputError(f"padding={padding!r} does not fit {path}: it holds a U-Net, which pads with zeros")
    blurs = {ours: layers.pop(ours) for ours in list(layers) if ours.startswith(("down.", "up."))}
    first, *_, last = layers.values()
    for key, dims in ((f"{first}.weight", 4), (f"{last}.bias", 1)):
        if key not in weights or weights[key].ndim != dims:
            raise InputError(f"{path} does not fit {what}: {key} is missing or not of a convolution")
    channels, in_channels = weights[f"{first}.weight"].shape[:2]
    config: dict[str, Any] = {"in_channels": in_channels, "out_channels": len(weights[f"{last}.bias"])}
    config |= {"channels": channels, "norm": norm}
    if unet:
        config["levels"] = sum(ours.startswith("encoder.") and ours.endswith(".conv") for ours in layers)
    else:
        config["blocks"] = sum(ours.startswith("blocks.") and ours.endswith(".conv1") for ours in layers)
        config["dropout"] = 0.5 if layers["blocks.0.conv2"].endswith(("6", "4")) else 0.0
        config["block_padding"] = which_padding(path, layers, padding, notes)
        config |= _blurs(path, weights, blurs)
    network: type[UNet] | type[ResNetGenerator] = UNet if unet else ResNetGenerator
    state = described_state(path, network, config, weights)
    biased = f"{first}.bias" in weights
    names = {}  # of our tensors in the file
    for ours, theirs in layers.items():
        for part in ("weight", "bias", *STATISTICS):
            mine, key = f"{ours}.{part}", f"{theirs}.{part}"
            if mine in state:
                names[mine] = key
                if part == "bias" and not biased and "norm" not in ours:
                    weights.setdefault(key, torch.zeros(state[mine].shape))
            elif norm == "instance":
                weights.pop(key, None)  # a bias or statistics without effect
    if problems := mismatches(weights, {key: state[mine] for mine, key in names.items()}):
        raise InputError(f"{path} does not fit {what} with norm={norm}: {problems}")
    generator = network(**config)
    state = generator.state_dict()
    generator.load_state_dict({mine: weights.get(key, state[mine]) for mine, key in names.items()})
    return generator


def _blurs(path: Path, weights: Weights, layers: Mapping[str, str]) -> dict[str, Any]:
    """Take the fixed blurs of CUT out of the weights; return them as arguments of `genstab.ResNetGenerator`."""
    filters = {}
    for ours, theirs in layers.items():
        kernel = weights.pop(f"{theirs}.filt")
        gain, names = (1, _BLURS) if ours.startswith("down") else (4, {4: _DOUBLING})
        name = names.get(kernel.shape[-1])
        row = taps(name).to(kernel.dtype) if name else kernel.new_zeros(())
        if kernel.ndim != 4 or name is None or not torch.allclose(kernel, gain * torch.outer(row, row), atol=1e-3):
            raise InputError(f"{path}: the blur {theirs}.filt of {tuple(kernel.shape)} is none that CUT has by default")
        filters[ours] = name
    down, up = ([filters.get(f"{way}.{i}") for i in (0, 1)] for way in ("down", "up"))
    if down[0] != down[1] or up[0] != up[1]:
        raise InputError(f"{path}: the two blurs of a ResNet generator differ: {filters}")
    upsampling = "interpolated" if up[0] else "plain" if down[0] else "transposed"
    return {"antialias": AntiAlias(down[0] or "none", "post"), "upsampling": upsampling}
