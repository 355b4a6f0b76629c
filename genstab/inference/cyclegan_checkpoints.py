"""Load generators of the PyTorch CycleGAN/pix2pix repository (`*_net_G.pth`) into genstab networks.

Such a file is a plain state dict of nested, numbered `nn.Sequential`s without a configuration. Depth, widths, channels
and batch norms are inferred from its keys and shapes. Two things cannot be seen directly:

Norm. Instance norms have no parameters. In the repository they follow convolutions with a bias, which networks without
a norm do not have, so the bias distinguishes the two. For a network with biases and without norms, set `norm="none"`.
A bias before an instance norm has no effect and is dropped.

Dropout. It has no parameters. In ResNet blocks it shifts the numbers of the next layers by one; U-Nets get the dropout
of the paper, which has no effect in eval mode.
"""

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from genstab.errors import InputError
from genstab.inference.weights import mismatches
from genstab.networks.resnet import ResNetGenerator
from genstab.networks.unet import UNet

WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")  # torch.compile outside or inside of DataParallel
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
    """Map the layers of `genstab.ResNetGenerator`, from the first to the last, to their names, numbered in one row."""
    blocks = len({key.split(".")[1] for key in keys if ".conv_block." in key})
    second = 5 if "model.10.conv_block.5.weight" in keys else 6  # 5 is the dropout
    layers = {"stem": "model.1", "stem_norm": "model.2"}
    for i in (0, 1):
        layers |= {f"encoder.{i}.conv": f"model.{4 + 3 * i}", f"encoder.{i}.norm": f"model.{5 + 3 * i}"}
        number = 10 + blocks + 3 * i
        layers |= {f"decoder.{i}.conv": f"model.{number}", f"decoder.{i}.norm": f"model.{number + 1}"}
    for i in range(blocks):
        block = f"model.{10 + i}.conv_block."
        layers |= {f"blocks.{i}.conv1": f"{block}1", f"blocks.{i}.norm1": f"{block}2"}
        layers |= {f"blocks.{i}.conv2": f"{block}{second}", f"blocks.{i}.norm2": f"{block}{second + 1}"}
    return layers | {"head": f"model.{17 + blocks}"}


def which_norm(path: Path, weights: dict[str, Tensor], layers: dict[str, str], requested: str | None) -> str:
    """Return the norm that the keys imply, or the requested one if they allow it."""
    conv = next(iter(layers.values()))
    norm = next(theirs for ours, theirs in layers.items() if "norm" in ours)
    if f"{norm}.weight" in weights:
        allowed = ["batch"]
    elif f"{norm}.running_mean" in weights:
        allowed = ["instance"]  # files of 2018; the repository ignores these statistics, too
    else:
        allowed = ["instance", "none"] if f"{conv}.bias" in weights else ["none", "instance"]
    if requested not in (None, *allowed):
        raise InputError(f"norm={requested!r} does not fit {path}: its keys allow {' or '.join(allowed)}")
    return requested or allowed[0]


def cyclegan_generator(path: Path, checkpoint: object, norm: str | None = None) -> UNet | ResNetGenerator:
    """Return the network of a file's content; `norm` chooses `instance` or `none` if the keys allow both."""
    weights = {str(key): value for key, value in checkpoint.items()} if isinstance(checkpoint, dict) else {}
    weights.pop("_metadata", None)
    for wrapper in WRAPPERS:
        if all(key.startswith(wrapper) for key in weights):
            weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    unet = any(key.startswith("model.model.") for key in weights)
    resnet = any(".conv_block." in key for key in weights)
    if not (unet or resnet) or not all(isinstance(value, Tensor) for value in weights.values()):
        content = f"its first keys: {', '.join([*weights][:3])}" if weights else f"it holds {type(checkpoint).__name__}"
        what = "is not a checkpoint of a genstab U-Net or ResNet, nor a generator of the CycleGAN/pix2pix repository"
        raise InputError(f"{path} {what}; other weights need their network (model._target_=…); {content}")

    kind = "a U-Net" if unet else "a ResNet generator"
    layers = unet_layers(weights) if unet else resnet_layers(weights)
    norm = which_norm(path, weights, layers, norm)
    first, *_, last = layers.values()
    for key, dims in ((f"{first}.weight", 4), (f"{last}.bias", 1)):
        if key not in weights or weights[key].ndim != dims:
            raise InputError(f"{path} does not fit {kind}: {key} is missing or not of a convolution")
    channels, in_channels = weights[f"{first}.weight"].shape[:2]
    out_channels = len(weights[f"{last}.bias"])
    network: UNet | ResNetGenerator
    if unet:
        levels = sum(ours.startswith("encoder.") and ours.endswith(".conv") for ours in layers)
        network = UNet(in_channels, out_channels, channels, levels, norm)
    else:
        blocks = sum(ours.startswith("blocks.") and ours.endswith(".conv1") for ours in layers)
        dropout = 0.5 if layers["blocks.0.conv2"].endswith("6") else 0.0
        network = ResNetGenerator(in_channels, out_channels, channels, blocks, norm, dropout)

    state = network.state_dict()
    biased = f"{first}.bias" in weights
    names = {}  # of our tensors in the file
    for ours, theirs in layers.items():
        for part in ("weight", "bias", *STATISTICS):
            mine, key = f"{ours}.{part}", f"{theirs}.{part}"
            if mine in state:
                names[mine] = key
                if part == "bias" and not biased and "norm" not in ours:
                    weights.setdefault(key, state[mine].zero_())
            elif norm == "instance":
                weights.pop(key, None)  # a bias or statistics without effect
    if problems := mismatches(weights, {key: state[mine] for mine, key in names.items()}):
        raise InputError(f"{path} does not fit {kind} with norm={norm}: {problems}")
    network.load_state_dict({mine: weights.get(key, state[mine]) for mine, key in names.items()})
    return network
