"""Load a model from a file of any kind: checkpoints, programs, and weights for a network of your own."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from genstab.errors import InputError, reason
from genstab.inference.conventions import Conventions, follow_conventions
from genstab.inference.cyclegan_checkpoints import cyclegan_generator
from genstab.inference.exported_programs import EXPORTED, ONNX, TORCHSCRIPT, load_program
from genstab.inference.trained_on import trained_on
from genstab.inference.weights import below, described_state, fitting_weights, mismatches
from genstab.layers.filters import AntiAlias
from genstab.networks.resnet import ResNetGenerator
from genstab.networks.unet import UNet
from genstab.runtime.checkpoint_file import check_archive, read_weights

CHECKPOINT, SAFETENSORS = "a checkpoint", "a safetensors file"
LAST = Path("checkpoints/last.ckpt")
KINDS = (
    "a checkpoint or run folder of genstab, a *_net_G.pth of the CycleGAN/pix2pix repository, TorchScript, "
    "an exported program (.pt2), ONNX, or weights (.safetensors, .pth) together with model._target_=package.Class"
)


def load_model(
    checkpoint: str | Path | None,
    network: nn.Module | None = None,
    norm: str | None = None,
    *,
    padding: str | None = None,
    prefix: str | None = None,
    weights: str | None = None,
    output: int | str | None = None,
    layout: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    notes: list[str] | None = None,
) -> nn.Module:
    """Load a model from a file of any kind, in eval mode and on the CPU.

    The kind of a file is recognized by its content, not by its suffix. TorchScript, exported and ONNX files are
    programs: load only files that you trust, see `genstab.inference.exported_programs.Program`. Nothing in other files
    is executed.

    Args:
        checkpoint: a checkpoint of genstab or the folder of a run (for its last checkpoint), a `*_net_G.pth` of the
            PyTorch CycleGAN/pix2pix repository or of CUT, a TorchScript file, an exported program, or an ONNX file
            (needs `genstab[onnx]`). With `network`, a file of its weights: safetensors, or any that
            `torch.load(weights_only=True)` reads. The weights may be nested in dicts (`state_dict`, `netG`, …) and
            have a prefix (`module.`, `generator.`, …).
        network: the network to load the weights into; without a checkpoint it keeps its own.
        norm, padding: see `genstab.load_generator`.
        prefix: of several sets of weights in a file, the one under this key or prefix, such as `netG_A`.
        weights: `ema` for those that were averaged over the training, `raw` for the others.
        output: which of several outputs is the image or the logits: an index, or a key of a dict.
        layout: `nhwc` for a model that takes (N, H, W, C); by default that is found for ONNX and exported programs.
        inputs: constants for further inputs by their names, see `genstab.inference.conventions.follow_conventions`.
        notes: gets a line for what was left out, and for what the file does not tell.

    Raises:
        InputError: the file does not exist or is of another kind, its weights do not fit the network, or an option does
            not fit the file.

    >>> load_model(None, nn.Sequential(nn.Tanh())).training
    False
    """
    if network is not None and not isinstance(network, nn.Module):
        raise InputError(f"network is a {type(network).__name__}, not a torch.nn.Module")
    conventions = Conventions(output, layout, dict(inputs or {}))
    if checkpoint is None:
        if network is None:
            raise InputError(f"no model: set model.checkpoint to {KINDS}")
        return follow_conventions(network.cpu().eval(), conventions)
    path = checkpoint_of(checkpoint)
    kind = file_kind(path)
    if kind in (TORCHSCRIPT, EXPORTED, ONNX):
        if network is not None:
            raise InputError(f"{path} is {kind}, which contains its network: leave out model._target_")
        why = f"{path} is {kind}, which has no choice of weights"
        _leave_out(why, norm=norm, padding=padding, prefix=prefix, weights=weights)
        check_archive(path, kind)
        return load_program(path, kind, conventions)
    if network is None:
        found = load_generator(path, norm, padding=padding, prefix=prefix, weights=weights, notes=notes)
        return follow_conventions(found, conventions)
    _leave_out("norm and padding are for files that name no network", norm=norm, padding=padding)
    network.load_state_dict(fitting_weights(path, read_content(path, kind, notes), network, prefix, weights))
    return follow_conventions(network.cpu().eval(), conventions)


def _leave_out(why: str, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{why}: leave out model.{name}={value}")


def checkpoint_of(path: str | Path) -> Path:
    """Return the file that a path names: itself, or the last checkpoint of the folder of a run.

    Raises:
        InputError: it does not exist, or the folder has no checkpoint.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if not (path / LAST).is_file():
            raise InputError(f"{path} is a folder without {LAST}; expected {KINDS}")
        path /= LAST
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    return path


def read_content(path: Path, kind: str, notes: list[str] | None = None) -> Any:
    """Return what a file of weights holds, of the kind `CHECKPOINT` or `SAFETENSORS`; nothing in it is executed."""
    if kind != SAFETENSORS:
        return read_weights(path, notes)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as {kind}: {error}") from error


def place(model: nn.Module, device: str = "auto") -> torch.device:
    """Move a model to a device, and return the device.

    Args:
        model: the model.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, …; `auto` takes a GPU if there is one on which the model can run.

    Raises:
        InputError: this machine has no such device, or the model cannot run on it.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(device)):
        raise InputError(f"device={device!r} is not one of auto, cpu, mps, cuda, cuda:0, cuda:1, …")
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    chosen = torch.device(next(kind for kind, count in counts.items() if count) if device == "auto" else device)
    if (chosen.index or 0) >= counts[chosen.type]:
        raise InputError(f"device={device}: this machine has {counts[chosen.type]} {chosen.type.upper()} devices")
    try:
        model.to(chosen)
    except InputError:  # an ONNX file, and an onnxruntime for CPUs only
        if device != "auto":
            raise
        chosen = torch.device("cpu")
    return chosen


def file_kind(path: Path) -> str:
    """Recognize the kind of a model file by its first bytes, and by the members of an archive."""
    with open(path, "rb") as file:
        head = file.read(16)
    if head[:2] == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2] or name for name in archive.namelist()}
        if {"archive_format", "serialized_exported_program.json"} & members:
            return EXPORTED
        if "constants.pkl" in members:
            return TORCHSCRIPT
        if "data.pkl" in members:
            return CHECKPOINT
    elif head[:4] == b"PK\x03\x04":
        raise InputError(f"{path} is cut off: it begins as a file of torch.save and has no end")
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return SAFETENSORS
    elif head[:1] == b"\x80":  # pickle, as torch wrote it before 1.6
        return CHECKPOINT
    elif re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", head):  # the version, then another field
        return ONNX
    raise InputError(f"{path} {'is not a model file' if head else 'is empty'}; expected {KINDS}")


def load_generator(
    path: str | Path,
    norm: str | None = None,
    *,
    padding: str | None = None,
    prefix: str | None = None,
    weights: str | None = None,
    notes: list[str] | None = None,
) -> nn.Module:
    """Load the generator of a checkpoint, in eval mode and on the CPU.

    Args:
        path: a checkpoint of genstab, the folder of a run, or weights of the PyTorch CycleGAN/pix2pix repository or of
            CUT, see `genstab.load_model`. Nothing in it is executed.
        norm: `instance` or `none`, for a file of those repositories whose keys allow both. By default a bias in the
            convolutions means `instance`, as in the networks of the repositories.
        padding: `reflect` (the default) or `replicate`, in the residual blocks of such a file, which keys do not tell.
        prefix, weights, notes: see `genstab.load_model`.

    Raises:
        InputError: the file does not exist, holds no such generator, or has another norm or padding.
    """
    path = checkpoint_of(path)
    checkpoint = read_content(path, file_kind(path), notes)
    config = checkpoint.get("generator") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        return cyclegan_generator(path, checkpoint, norm, padding, prefix, weights, notes).eval()
    for name, value, has in (("norm", norm, config.get("norm")), ("padding", padding, config.get("block_padding"))):
        if value not in (None, has):
            raise InputError(f"{name}={value!r} does not fit {path}: its generator has {has}")
    _leave_out(f"{path} is a checkpoint of genstab, which holds one generator", prefix=prefix, weights=weights)
    network = ResNetGenerator if "blocks" in config else UNet
    state = below(checkpoint["state_dict"], "generator.")
    problems = mismatches(state, described_state(path, network, config, state))
    if problems:
        raise InputError(f"{path} does not fit the generator that it describes: {problems}")
    try:
        generator = network(**{**config, "antialias": AntiAlias(**config["antialias"])})
        generator.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} does not fit the generator that it describes: {reason(error)}") from error
    generator.trained_on = trained_on(checkpoint)  # type: ignore[assignment]  # not a tensor
    return generator.eval()
