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
from genstab.networks.resnet import ResNetGenerator
from genstab.networks.unet import UNet

WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")  # torch.compile outside or inside of DataParallel
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def unet_layers(keys: Collection[str]) -> dict[str, str]:
    """Map the layers of `genstab.UNet` to their names in the file, in which each level is nested in the one above.

    The first and last entries are the first and last convolution.

    >>> list(unet_layers(["model.model.1.model.3.weight"]).values())
    ['model.model.0', 'model.model.1.model.1', 'model.model.1.model.3', 'model.model.1.model.4', 'model.model.3']
    """
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
    """Map the layers of `genstab.ResNetGenerator` to their names in the file, which are numbered in one sequence.

    The first and last entries are the first and last convolution.

    >>> resnet_layers(["model.10.conv_block.1.weight"])["blocks.0.conv2"]  # 5 is the dropout
    'model.10.conv_block.6'
    """
    blocks = len({key.split(".")[1] for key in keys if ".conv_block." in key})
    second = 5 if "model.10.conv_block.5.weight" in keys else 6
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


def is_norm(layer: str) -> bool:
    """Return whether a layer is a norm; the others are convolutions."""
    return "norm" in layer


def which_norm(path: Path, weights: dict[str, Tensor], layers: dict[str, str], asked: str | None) -> str:
    """Return the norm that the keys imply, or the requested one if they allow it."""
    conv = next(iter(layers.values()))
    norm = next(theirs for ours, theirs in layers.items() if is_norm(ours))
    if f"{norm}.weight" in weights:
        allowed = ["batch"]
    elif f"{norm}.running_mean" in weights:
        allowed = ["instance"]  # files of 2018; the repository ignores these statistics, too
    else:
        allowed = ["instance", "none"] if f"{conv}.bias" in weights else ["none", "instance"]
    if asked not in (None, *allowed):
        raise InputError(f"norm={asked!r} does not fit {path}: its keys allow {' or '.join(allowed)}")
    return asked or allowed[0]


def check_keys(path: Path, weights: dict[str, Tensor], layers: dict[str, str], norm: str, kind: str) -> None:
    """Raise an `InputError` that names missing and unexpected keys."""
    convs = [theirs for ours, theirs in layers.items() if not is_norm(ours)]
    norms = [theirs for ours, theirs in layers.items() if is_norm(ours)]
    # The last convolution always has a bias; of the others either all have one or none.
    biased = convs if norm != "batch" and f"{convs[0]}.bias" in weights else convs[-1:]
    required = {f"{conv}.weight" for conv in convs} | {f"{conv}.bias" for conv in biased}
    if norm == "batch":
        required |= {f"{name}.{part}" for name in norms for part in ("weight", "bias", "running_mean", "running_var")}
    # Files of 2018 have statistics for instance norms, too; older ones have no num_batches_tracked.
    optional = {f"{name}.{part}" for name in norms for part in STATISTICS if norm != "none"}
    problems = []
    for what, wrong in (
        ("missing", [key for key in sorted(required) if key not in weights]),
        ("unexpected", [key for key in weights if key not in required | optional]),
    ):
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            problems.append(f"{what} {', '.join(wrong[:3])}{more}")
    if problems:
        raise InputError(f"{path} does not fit {kind} with norm={norm}: {'; '.join(problems)}")


def foreign_generator(path: Path, checkpoint: object, norm: str | None = None) -> UNet | ResNetGenerator:
    """Return the network of a plain state dict of the CycleGAN/pix2pix repository.

    Args:
        path: the file, for messages.
        checkpoint: its content.
        norm: `instance` or `none`, if the keys allow both; None infers it from the biases.

    Raises:
        InputError: it is not a generator of the repository, keys are missing or unexpected, or shapes do not match.
    """
    weights = dict(checkpoint) if isinstance(checkpoint, dict) else {}
    weights.pop("_metadata", None)
    for wrapper in WRAPPERS:
        if all(str(key).startswith(wrapper) for key in weights):
            weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    keys = [str(key) for key in weights]
    unet, resnet = any(key.startswith("model.model.") for key in keys), any(".conv_block." in key for key in keys)
    if not (unet or resnet) or not all(isinstance(value, Tensor) for value in weights.values()):
        holds = f"its first keys: {', '.join(keys[:3])}" if keys else f"it holds {type(checkpoint).__name__}"
        what = "is not a checkpoint of a genstab U-Net or ResNet, nor a generator of the CycleGAN/pix2pix repository"
        raise InputError(f"{path} {what}; other weights need their network (model._target_=…); {holds}")

    kind = "a U-Net" if unet else "a ResNet generator"
    layers = unet_layers(keys) if unet else resnet_layers(keys)
    norm = which_norm(path, weights, layers, norm)
    check_keys(path, weights, layers, norm, kind)
    first, *_, last = layers.values()
    for name in (first, last):
        if weights[f"{name}.weight"].ndim != 4:
            raise InputError(f"{path} does not fit {kind}: {name}.weight is not a convolution")
    channels, in_channels = weights[f"{first}.weight"].shape[:2]
    out_channels = weights[f"{last}.bias"].numel()
    network: UNet | ResNetGenerator
    if unet:
        levels = sum(ours.startswith("encoder.") and ours.endswith(".conv") for ours in layers)
        network = UNet(in_channels, out_channels, channels, levels, norm)
    else:
        blocks = sum(ours.startswith("blocks.") and ours.endswith(".conv1") for ours in layers)
        dropout = 0.5 if layers["blocks.0.conv2"].endswith("6") else 0.0
        network = ResNetGenerator(in_channels, out_channels, channels, blocks, norm, dropout)

    state = network.state_dict()
    for ours, theirs in layers.items():
        for part in ("weight", "bias", *STATISTICS):
            mine, key = f"{ours}.{part}", f"{theirs}.{part}"
            if mine not in state:
                continue  # a bias or statistics without effect, because of an instance norm
            if key not in weights:
                # A missing bias is zero, and so is a missing count of batches.
                state[mine].zero_()
                continue
            if weights[key].shape != state[mine].shape:
                found, fits = ("×".join(map(str, t.shape)) for t in (weights[key], state[mine]))
                raise InputError(f"{path} does not fit {kind}: {key} has shape {found}, not {fits}")
            state[mine] = weights[key]
    network.load_state_dict(state)
    return network
