"""Begin a new training from weights alone: what fits is loaded, and what does not is listed.

Resuming (`ckpt_path`) continues the same training and refuses every difference. Beginning (`init_from`) keeps nothing
but weights: optimizers, schedule, epochs and random numbers are new, and the networks may differ.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genstab.errors import InputError
from genstab.inference.cyclegan_checkpoints import cyclegan_generator
from genstab.inference.load_model import CHECKPOINT as TORCH_FILE
from genstab.inference.load_model import LAST, SAFETENSORS, file_kind
from genstab.inference.weights import _shape, state_dicts
from genstab.networks.patchgan import PatchGAN
from genstab.networks.unet import UNet
from genstab.runtime.checkpoint_file import read_weights

LISTED = 3  # keys of each kind that a line names
# How files of several networks name the discriminator: discriminator., netD, D_A, model.D.
_DISCRIMINATOR = re.compile(r"discriminator|netD|(?<![A-Za-z])D(?![A-Za-z])")


@dataclass
class Begun:
    """What of a network was loaded from a file: numbers of its tensors and, for those that do not fit, their keys.

    >>> Begun("old.ckpt", loaded=7, tensors=9, missing=["head.draw.weight", "head.draw.bias"]).line()
    'loaded 7 of 9 tensors from old.ckpt; missing head.draw.weight, head.draw.bias'
    """

    file: str
    sha256: str = ""
    loaded: int = 0
    tensors: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Say it in one line, with the first keys of each kind."""
        kinds = {
            "in part": self.partly, "missing": self.missing, "unexpected": self.unexpected,
            "shape mismatch:": self.mismatched,
        }  # fmt: skip
        said = [
            f"{kind} {', '.join(keys[:LISTED])}" + (f" and {len(keys) - LISTED} more" if len(keys) > LISTED else "")
            for kind, keys in kinds.items()
            if keys
        ]
        return "; ".join([f"loaded {self.loaded} of {self.tensors} tensors from {self.file}", *said])


def begin_from(model: nn.Module, file: str | Path, file_d: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Load the weights that fit into the `generator` and `discriminator` of a model; return a `Begun` as dict for each.

    Nothing in the files is executed.

    Args:
        model: with a `generator` and, perhaps, a `discriminator`, as `Pix2Pix`.
        file: a checkpoint or run folder of genstab, which has both networks; a `*_net_G.pth` of the CycleGAN/pix2pix
            repository; or a state dict (safetensors or `torch.save`), nested in dicts and with a prefix or not. The
            networks may differ in filter, depth, head, norm and so on: tensors of the same name and shape are loaded.
        file_d: a file with the discriminator, a `*_net_D.pth` for example.

    Raises:
        InputError: a file does not exist, is no file of weights, or none of its tensors fits; a weight is not finite.
    """
    networks = {name: getattr(model, name, None) for name in ("generator", "discriminator")}
    if not isinstance(generator := networks["generator"], nn.Module):
        raise InputError(f"init_from needs a model with a generator, which {type(model).__name__} does not have")
    path, content = _read("init_from", file)
    fitting = _generator_weights(path, content, generator)
    begun = {"generator": _load("init_from", path, fitting, generator)}
    if isinstance(discriminator := networks["discriminator"], nn.Module):
        if file_d is not None:
            path, content = _read("init_from_d", file_d)
            fitting = _best(path, _named_as_ours(_found(content, discriminator), discriminator), discriminator)
            begun["discriminator"] = _load("init_from_d", path, fitting, discriminator)
        else:
            named = (each for each in _found(content, discriminator) if _DISCRIMINATOR.search(each[0]))
            if fitting := _best(path, _named_as_ours(named, discriminator), discriminator):
                begun["discriminator"] = _load("init_from", path, fitting, discriminator)
    return {name: asdict(each) for name, each in begun.items()}


def lines(begun: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what to print about `begin_from`: a line for each network."""
    for name, each in begun.items():
        yield f"{name}: {Begun(**each).line()}"
    if "discriminator" not in begun:
        path = Path(begun["generator"]["file"])
        beside = path.with_name(path.name.replace("net_G", "net_D"))
        found = beside != path and beside.is_file()
        yield "discriminator: begins anew" + (f"; init_from_d={beside} loads it" if found else "")


def _read(name: str, file: str | Path) -> tuple[Path, object]:
    path = Path(file).expanduser()
    if path.is_dir():
        if not (path / LAST).is_file():
            raise InputError(f"{name}={file} is a folder without {LAST}")
        path /= LAST
    if not path.is_file():
        raise InputError(f"{name}={file} does not exist")
    kind = file_kind(path)
    if kind == TORCH_FILE:
        return path, read_weights(path)
    if kind != SAFETENSORS:
        raise InputError(f"{name}={file} is {kind}, a program: begin from a checkpoint, a state dict or safetensors")
    try:
        return path, load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as {kind}: {error}") from error


Weights = dict[str, Tensor]


def _found(content: object, network: nn.Module) -> Iterator[tuple[str, Weights]]:
    """Yield the state dicts in a file's content, with and without each prefix of keys, and what they are called."""
    expected = network.state_dict().keys() | set(_repository_keys(network))
    for place, weights in state_dicts(content):
        prefixes = {""} | {
            key[: dot.end()] for key in weights for dot in re.finditer(r"\.", key) if key[dot.end() :] in expected
        }
        for prefix in sorted(prefixes):
            inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            yield f"{place}{prefix}", inside


def _repository_keys(network: nn.Module) -> list[str]:
    """Return the names of a PatchGAN's tensors in the CycleGAN/pix2pix repository, where its layers are a `model`."""
    if not isinstance(network, PatchGAN):
        return []
    return [key.replace("layers.", "model.", 1) for key in network.state_dict()]


def _named_as_ours(found: Iterable[tuple[str, Weights]], network: nn.Module) -> Iterator[tuple[str, Weights]]:
    """Yield state dicts with our own PatchGAN's names, without biases before an instance norm, which have no effect."""
    for place, weights in found:
        if isinstance(network, PatchGAN):
            weights = {re.sub(r"^model\.(?=\d+\.)", "layers.", key): value for key, value in weights.items()}
            before = zip(network.layers, [*network.layers][1:], strict=False)
            for i, (_, layer) in enumerate(before):
                if isinstance(layer, nn.InstanceNorm2d):
                    weights.pop(f"layers.{i}.bias", None)
        yield place, weights


def _generator_weights(path: Path, content: object, generator: nn.Module) -> Weights:
    """Return the weights of a file that fit a generator best, under its names."""
    candidates = [
        (place, _from_the_outermost(weights, generator))
        for place, weights in _found(content, generator)
        if not _DISCRIMINATOR.search(place)
    ]
    if fitting := _best(path, candidates, generator):
        return fitting
    theirs = cyclegan_generator(path, content)  # or the error that says what the file is
    if theirs.config["norm"] == "instance" and getattr(generator, "config", {}).get("norm") == "none":
        theirs = cyclegan_generator(path, content, "none")  # with the biases
    return _from_the_outermost(theirs.state_dict(), generator)


def _best(path: Path, candidates: Iterable[tuple[str, Weights]], network: nn.Module) -> Weights:
    """Return the state dict of which most tensors fit a network; an empty one if none of any does.

    Raises:
        InputError: two of them fit equally well, with different values.
    """
    own = network.state_dict()
    best: dict[str, Weights] = {}
    most = 1
    for place, weights in candidates:
        count = sum(key in weights and weights[key].shape == value.shape for key, value in own.items())
        if count > most:
            best, most = {}, count
        if count == most:
            best[place] = weights
    found, *others = best.values() or [{}]
    for other in others:
        if any(key not in other or not torch.equal(other[key], value) for key, value in found.items() if key in own):
            raise InputError(
                f"{path} holds {len(best)} different sets of weights that fit {type(network).__name__}: "
                f"{', '.join(best)}; save the one that you want in a file of its own"
            )
    return found


def _from_the_outermost(weights: Weights, network: nn.Module) -> Weights:
    """Number the decoder of a U-Net with fewer or more levels so that its layers of one size have one name.

    A U-Net numbers its decoder from the innermost layer on.
    """
    if not isinstance(network, UNet):
        return weights
    deeper = network.levels - len({key for key in weights if re.fullmatch(r"encoder\.\d+\.conv\.weight", key)})
    return {
        re.sub(r"^decoder\.(\d+)\.", lambda found: f"decoder.{int(found[1]) + deeper}.", key): value
        for key, value in weights.items()
    }


def _picture(key: str, tensor: Tensor, network: nn.Module) -> Tensor | None:
    """Return the part of the last convolution of a U-Net with a head that draws the picture, as it does without one."""
    if not (isinstance(network, UNet) and network.head is not None):
        return None
    channels, last = network.config["out_channels"], f"decoder.{network.levels - 1}.conv"
    return {f"{last}.weight": tensor[:, :channels] if tensor.ndim > 1 else None, f"{last}.bias": tensor[:channels]}.get(
        key
    )


@torch.no_grad()
def _load(name: str, path: Path, weights: Weights, network: nn.Module) -> Begun:
    """Copy the tensors that fit into a network."""
    own = network.state_dict()
    begun = Begun(str(path), tensors=len(own), unexpected=[key for key in weights if key not in own])
    for key, mine in own.items():
        if key not in weights:
            # Files from before torch 1.0 do not count the batches of a norm.
            begun.missing += [] if key.endswith("num_batches_tracked") else [key]
            continue
        value = weights[key]
        if not value.isfinite().all():
            raise InputError(f"{name}={path} cannot be begun from: {key} is not finite")
        if value.shape == mine.shape:
            mine.copy_(value)
        elif (picture := _picture(key, mine, network)) is not None and picture.shape == value.shape:
            picture.copy_(value)
            begun.partly.append(f"{key} ({_shape(value)} of {_shape(mine)})")
        else:
            begun.mismatched.append(f"{key} ({_shape(value)}, not {_shape(mine)})")
            continue
        begun.loaded += 1
    if not begun.loaded:
        raise InputError(f"{name}={path} does not fit {type(network).__name__}: {begun.line()}")
    with path.open("rb") as file:
        begun.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return begun
