"""Any model from any file: checkpoints, programs, and weights for a network of one's own."""

import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genstab.errors import InputError
from genstab.inference.cyclegan_checkpoints import foreign_generator
from genstab.inference.exported_programs import EXPORTED, ONNX, TORCHSCRIPT, load_program
from genstab.layers.filters import AntiAlias
from genstab.networks.resnet import ResNetGenerator
from genstab.networks.unet import UNet
from genstab.runtime.checkpoint_file import check_archive, read_checkpoint

CHECKPOINT, SAFETENSORS = "a checkpoint", "a safetensors file"
LAST = Path("checkpoints/last.ckpt")
KINDS = (
    "a checkpoint or run folder of genstab, a *_net_G.pth of the CycleGAN/pix2pix repository, TorchScript, "
    "an exported program (.pt2), ONNX, or weights (.safetensors, .pth) together with model._target_=package.Class"
)


def load_model(checkpoint: str | Path | None, network: nn.Module | None = None, norm: str | None = None) -> nn.Module:
    """Return a model in eval mode, on the CPU, from any kind of file; what it is, its content says and not its suffix.

    Args:
        checkpoint: a checkpoint of genstab or a folder of a run (its last checkpoint), a `*_net_G.pth` of the PyTorch
            CycleGAN/pix2pix repository, TorchScript, an exported program, or ONNX (needs `genstab[onnx]`); with
            `network`, a file of its weights: safetensors, or what `torch.load(weights_only=True)` reads. Those may lie
            deeper in the file (`state_dict`, `generator`, …) and under a prefix (`module.`, `model.`, …): what makes
            every key and shape fit is taken.
        network: gets the weights; without a checkpoint it keeps those that it has.
        norm: see `genstab.load_generator`.

    A program (TorchScript, exported, ONNX) is code, so load only what you trust; see `Program`. Of
    every other file nothing is executed.

    Raises:
        InputError: there is no such file, it is none of these, or its weights do not fit the network.

    >>> load_model(None, nn.Sequential(nn.Tanh())).training
    False
    """
    if network is not None and not isinstance(network, nn.Module):
        raise InputError(f"network is a {type(network).__name__}, not a torch.nn.Module")
    if checkpoint is None:
        if network is None:
            raise InputError(f"no model: model.checkpoint wants {KINDS}")
        return network.cpu().eval()
    path = _file(Path(checkpoint).expanduser())
    kind = file_kind(path)
    if kind in (TORCHSCRIPT, EXPORTED, ONNX):
        if network is not None:
            raise InputError(f"{path} is {kind}, which has its network: leave out model._target_")
        check_archive(path, kind)
        return load_program(path, kind)
    if network is None:
        if kind == SAFETENSORS:
            raise InputError(f"{path} holds weights only: name their network with model._target_=package.Class")
        return load_generator(path, norm)
    if kind == SAFETENSORS:
        try:
            holds: object = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read as {kind}: {error}") from error
    else:
        holds = read_checkpoint(path)
    network.load_state_dict(fitting_weights(path, holds, network))
    return network.cpu().eval()


def place(model: nn.Module, device: str = "auto") -> torch.device:
    """Move a model to a device, and return it: "cpu", "cuda", "cuda:1", "mps", …, or "auto" for a GPU where it can.

    Raises:
        InputError: there is no such device here, or the model cannot run on it.

    >>> place(nn.Conv2d(1, 1, 1), "cpu")
    device(type='cpu')
    """
    gpus = torch.cuda.device_count()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(device)):
        raise InputError(f"device={device!r} is not one of auto, cpu, mps, cuda, cuda:0, cuda:1, …")
    mps = torch.backends.mps.is_available()
    wanted = torch.device(("cuda" if gpus else "mps" if mps else "cpu") if device == "auto" else device)
    if wanted.type == "mps" and not mps:
        raise InputError("device=mps: this machine has none")
    if wanted.type == "cuda" and (wanted.index or 0) >= gpus:
        raise InputError(f"device={device}: this machine has {gpus} CUDA devices")
    try:
        model.to(wanted)
    except InputError:  # an ONNX file, and an onnxruntime for CPUs
        if device != "auto":
            raise
        wanted = torch.device("cpu")
    return wanted


def file_kind(path: Path) -> str:
    """Say what a file is by its first bytes and, of an archive, its members.

    Raises:
        InputError: nothing that holds a model.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "x.pth").write_bytes(b"\\x80\\x02")
    ...     file_kind(Path(folder, "x.pth"))
    'a checkpoint'
    """
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
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return SAFETENSORS
    elif head[:1] == b"\x80":  # pickle, as torch wrote it before 1.6
        return CHECKPOINT
    elif re.match(rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]", head):  # the version, then another field
        return ONNX
    raise InputError(f"{path} {'is no model' if head else 'is empty'}: wanted is {KINDS}")


def fitting_weights(path: Path, holds: object, network: nn.Module) -> dict[str, Tensor]:
    """Return the weights in what a file holds, with the keys of the network.

    Raises:
        InputError: none fit, or several do that differ; the message names the first keys that are missing or left over.

    >>> layer = nn.Linear(1, 1)
    >>> holds = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in layer.state_dict().items()}}
    >>> list(fitting_weights(Path("x.pth"), holds, layer))
    ['weight', 'bias']
    """
    wanted = {key: value for key, value in network.state_dict().items() if isinstance(value, Tensor)}
    fitting: dict[str, dict[str, Tensor]] = {}
    nearest: tuple[int, list[str]] = (-1, ["it holds no weights"])
    for where, weights in _state_dicts(holds):
        # Every prefix under which at least one key of the network lies; "" in any case.
        prefixes = Counter({"": 0})
        for key in weights:
            cuts = [0, *(match.end() for match in re.finditer(r"\.", key))]
            prefixes.update(key[:cut] for cut in cuts if key[cut:] in wanted)
        for prefix, shared in prefixes.items():
            stripped = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
            problems = _problems(stripped, wanted)
            if not problems:
                fitting[f"{where}{prefix}"] = stripped
            elif shared > nearest[0]:
                nearest = (shared, problems)
    if not fitting:
        raise InputError(f"{path} does not fit {type(network).__name__}: {'; '.join(nearest[1])}")
    first, *others = fitting.values()
    if any(not all(value.equal(other[key]) for key, value in first.items()) for other in others):
        raise InputError(
            f"{path} holds {len(fitting)} different sets of weights that fit {type(network).__name__}: "
            f"{', '.join(fitting)}; save the one that you want by itself"
        )
    return first


def _file(path: Path) -> Path:
    if path.is_dir():
        if not (path / LAST).is_file():
            raise InputError(f"{path} is a folder without {LAST}, so no run of genstab: wanted is {KINDS}")
        return path / LAST
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    return path


def _state_dicts(holds: object, where: str = "", depth: int = 2) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if isinstance(holds, dict):
        if weights := {str(key): value for key, value in holds.items() if isinstance(value, Tensor)}:
            yield where, weights
        if depth:
            for key, value in holds.items():
                yield from _state_dicts(value, f"{where}{key}: ", depth - 1)


def _problems(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """Say what is wrong with the keys and shapes, the first three of each kind."""
    wrong = {
        # Files from before torch 1.0 do not count the batches.
        "missing": [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in weights if key not in wanted],
        "of another shape": [
            f"{key} ({_shape(weights[key])}, not {_shape(value)})"
            for key, value in wanted.items()
            if key in weights and weights[key].shape != value.shape
        ],
    }
    return [
        f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for what, keys in wrong.items()
        if keys
    ]


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


PREFIX = "generator."


def load_generator(path: str | Path, norm: str | None = None) -> nn.Module:
    """Return the generator of a checkpoint in eval mode, on the CPU.

    Either of genstab (`checkpoints/*.ckpt` of a run) or a `*_net_G.pth` of the PyTorch CycleGAN/pix2pix repository:
    its U-Nets and ResNet generators become a plain `genstab.UNet` or `genstab.ResNetGenerator`. The file is read with
    `weights_only=True`: nothing in it is executed.

    Args:
        path: the file.
        norm: `instance` or `none` for a file of that repository whose keys allow both. By default convolutions with a
            bias mean `instance`, as that repository builds its networks.

    Raises:
        InputError: there is no such file, it holds no such generator, or its norm is another one.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint.get("generator") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        return foreign_generator(path, checkpoint, norm).eval()
    if norm not in (None, config.get("norm")):
        raise InputError(f"norm={norm!r} does not fit {path}: its generator has {config.get('norm')}")
    network = ResNetGenerator if "blocks" in config else UNet
    weights = checkpoint["state_dict"].items()
    try:
        generator = network(**{**config, "antialias": AntiAlias(**config["antialias"])})
        generator.load_state_dict({key.removeprefix(PREFIX): value for key, value in weights if key.startswith(PREFIX)})
    except (KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the generator that it describes: {reason}") from error
    return generator.eval()
