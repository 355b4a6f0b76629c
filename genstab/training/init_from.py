"""Begin a new training from weights alone: what fits is loaded, and what does not is listed.

Resuming (`ckpt_path`) continues the same training and refuses every difference. Beginning (`init_from`) keeps nothing
but weights: optimizers, schedule, epochs and random numbers are new, and the networks may differ.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genstab.errors import InputError
from genstab.inference.cyclegan_checkpoints import cyclegan_generator, generators_in
from genstab.inference.load_model import CHECKPOINT as TORCH_FILE
from genstab.inference.load_model import LAST, SAFETENSORS, file_kind, read_content
from genstab.inference.weights import Weights, below, same, shape_text, state_dicts, unnamed
from genstab.networks.patchgan import PatchGAN, PixelGAN
from genstab.networks.unet import UNet

OURS = (PatchGAN, PixelGAN)
LISTED = 3  # keys of each kind that a line names
# How files of several networks name the discriminator: discriminator., netD, D_A, model.D.
_LAYERS = re.compile(r"(^|\.)(?:model|net)\.(?=\d+\.\w+$)")
_DISCRIMINATOR = re.compile(r"discriminator|netD|(?<![A-Za-z])D(?![A-Za-z])")


def begin_from(
    model: nn.Module,
    file: str | Path,
    file_d: str | Path | None = None,
    prefix: str | None = None,
    notes: list[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Load the weights that fit into the `generator` and `discriminator` of a model; return what was loaded of each.

    Nothing in the files is executed. The result has for each network its `file` with `sha256`, how many of its
    `tensors` were `loaded`, and the keys of those that are `missing`, `unexpected`, `mismatched` or loaded `partly`.

    Args:
        model: with a `generator` and, perhaps, a `discriminator`, as `Pix2Pix`.
        file: a checkpoint or run folder of genstab, which has both networks; a `*_net_G.pth` of the CycleGAN/pix2pix
            repository; or a state dict (safetensors or `torch.save`), nested in dicts and with a prefix or not. The
            networks may differ in filter, depth, head, norm and so on: tensors of the same name and shape are loaded.
        file_d: a file with the discriminator, a `*_net_D.pth` for example.
        prefix: of several generators in `file`, the one under this key or prefix, `netG_A` or `params_ema` for example.
        notes: gets a line for each network.

    Raises:
        InputError: a file does not exist, is no file of weights, or none of its tensors fits; it holds several networks
            that fit; a weight is not finite.
    """
    notes = [] if notes is None else notes
    generator, discriminator = (getattr(model, name, None) for name in ("generator", "discriminator"))
    if not isinstance(generator, nn.Module):
        raise InputError(f"init_from needs a model with a generator, which {type(model).__name__} does not have")
    path, content = _read("init_from", file, notes)
    begun = {"generator": _load("init_from", path, _generator_weights(path, content, generator, prefix), generator)}
    notes.append(f"generator: {_line(begun['generator'])}")
    if not isinstance(discriminator, nn.Module):
        return begun
    if file_d is not None:
        path, content = _read("init_from_d", file_d, notes)
        weights = _best(path, dict(_found(content, discriminator)), discriminator)
        begun["discriminator"] = _load("init_from_d", path, weights, discriminator)
        notes.append(f"discriminator: {_line(begun['discriminator'])}")
        return begun
    sets = {place: each for place, each in _found(content, discriminator) if _DISCRIMINATOR.search(place)}
    try:
        weights, why = _best(path, sets, discriminator), ""
    except InputError as error:
        weights, why = {}, f", since {error}"
    if weights:
        begun["discriminator"] = _load("init_from", path, weights, discriminator)
        notes.append(f"discriminator: {_line(begun['discriminator'])}")
    else:
        beside = path.with_name(path.name.replace("net_G", "net_D"))
        hint = f"; init_from_d={beside} loads it" if beside != path and beside.is_file() else ""
        notes.append(f"discriminator: starts from random weights{why}{hint}")
    return begun


def _line(begun: Mapping[str, Any]) -> str:
    """Say in one line what was loaded of a network, with the first keys of each kind that does not fit."""
    kinds = {"in part": "partly", "missing": "missing", "unexpected": "unexpected", "shape mismatch:": "mismatched"}
    said = [f"loaded {begun['loaded']} of {begun['tensors']} tensors from {begun['file']}"]
    for words, kind in kinds.items():
        if keys := begun[kind]:
            more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
            said.append(f"{words} {', '.join(keys[:LISTED])}{more}")
    return "; ".join(said)


def _read(name: str, file: str | Path, notes: list[str]) -> tuple[Path, object]:
    path = Path(file).expanduser()
    if path.is_dir():
        if not (path / LAST).is_file():
            raise InputError(f"{name}={file} is a folder without {LAST}")
        path /= LAST
    if not path.is_file():
        raise InputError(f"{name}={file} does not exist")
    kind = file_kind(path)
    if kind not in (TORCH_FILE, SAFETENSORS):
        raise InputError(
            f"{name}={file} is {kind}, a program: init_from takes a checkpoint, a state dict or safetensors"
        )
    return path, read_content(path, kind, notes)


def _found(content: object, network: nn.Module) -> Iterator[tuple[str, Weights]]:
    """Yield the state dicts in a file's content, with and without each prefix of keys, by their places."""
    expected = network.state_dict().keys()
    for place, weights in state_dicts(content):
        if isinstance(network, OURS):  # whose layers have another name in the CycleGAN/pix2pix repository
            weights = {_LAYERS.sub(r"\1layers.", key): value for key, value in weights.items()}
        dots = ((key, dot.end()) for key in weights for dot in re.finditer(r"\.", key))
        for prefix in sorted({"", *(key[:end] for key, end in dots if key[end:] in expected)}):
            inside = below(weights, prefix)
            for i, layer in enumerate([*network.layers][1:] if isinstance(network, OURS) else ()):
                if isinstance(layer, nn.InstanceNorm2d):
                    inside.pop(f"layers.{i}.bias", None)  # it has no effect
            yield f"{place}{prefix}", inside


def _generator_weights(path: Path, content: object, generator: nn.Module, prefix: str | None) -> Weights:
    """Return the weights of a file that fit a generator best, under its names."""
    sets = {
        place: _from_the_outermost(weights, generator)
        for place, weights in _found(content, generator)
        if not _DISCRIMINATOR.search(place)
    }
    named = sets if prefix is None else {place: each for place, each in sets.items() if _ends_with(place, prefix)}
    if fitting := _best(path, named, generator, "init_from_prefix"):
        return fitting
    published = generators_in(content)
    if prefix is not None and not any(_ends_with(place, prefix) for place in published):
        places = ", ".join(place.rstrip(".") for place in sets if place)
        raise InputError(f"init_from_prefix={prefix} names no weights in {path} that fit; it has {places or 'none'}")
    if not published:
        keys = [key for weights in sets.values() for key in weights]
        what = f"its first keys are {', '.join(keys[:LISTED])}" if keys else unnamed(content)
        raise InputError(
            f"init_from={path}: nothing in it has the name and the shape of a tensor of {_name(generator)}; {what}"
        )
    theirs = cyclegan_generator(path, content, prefix=prefix)
    if theirs.config["norm"] == "instance" and getattr(generator, "config", {}).get("norm") == "none":
        theirs = cyclegan_generator(path, content, "none", prefix=prefix)  # with the biases
    return _from_the_outermost(theirs.state_dict(), generator)


def _name(network: nn.Module) -> str:
    return f"this {type(network).__name__}"


def _ends_with(place: str, prefix: str) -> bool:
    return f".{place}".rstrip(".").endswith(f".{prefix.strip('.')}")


def _best(path: Path, sets: Mapping[str, Weights], network: nn.Module, option: str | None = None) -> Weights:
    """Return the state dict of which most tensors fit a network; an empty one if none of any does.

    Raises:
        InputError: two of them fit equally well, with different values; `option` chooses one.
    """
    own = list(network.named_parameters())  # every file fits the count of batches of a norm
    counts = {
        place: sum(key in weights and weights[key].shape == value.shape for key, value in own)
        for place, weights in sets.items()
    }
    most = max(counts.values(), default=0)
    best = {place: sets[place] for place, count in counts.items() if count == most > 0}
    found, *others = [*best.values()] or [{}]
    if not all(same(found, other) for other in others):
        cure = f"{option}={next(iter(best)).rstrip('.')} chooses one" if option else "save one in a file of its own"
        raise InputError(
            f"{path} holds {len(best)} different sets of weights that fit {_name(network)}: "
            f"{', '.join(place.rstrip('.') for place in best)}; {cure}"
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
    if key == f"{last}.weight":
        return tensor[:, :channels]
    return tensor[:channels] if key == f"{last}.bias" else None


@torch.no_grad()
def _load(name: str, path: Path, weights: Weights, network: nn.Module) -> dict[str, Any]:
    """Copy the tensors that fit into a network; see `begin_from` for what is returned."""
    own, loaded = network.state_dict(), 0
    missing, mismatched, partly = [], [], []
    for key, mine in own.items():
        if key not in weights:
            # Files from before torch 1.0 do not count the batches of a norm.
            missing += [] if key.endswith("num_batches_tracked") else [key]
            continue
        value = weights[key]
        if not value.isfinite().all():
            raise InputError(f"{name}={path} cannot be begun from: {key} is not finite")
        if value.shape == mine.shape:
            mine.copy_(value)
        elif (picture := _picture(key, mine, network)) is not None and picture.shape == value.shape:
            picture.copy_(value)
            partly.append(f"{key} ({shape_text(value)} of {shape_text(mine)})")
        else:
            mismatched.append(f"{key} ({shape_text(value)}, not {shape_text(mine)})")
            continue
        loaded += 1
    begun = {
        "file": str(path), "sha256": "", "loaded": loaded, "tensors": len(own), "missing": missing,
        "unexpected": [key for key in weights if key not in own], "mismatched": mismatched, "partly": partly,
    }  # fmt: skip
    if not loaded:
        raise InputError(f"{name}={path} does not fit {_name(network)}: {_line(begun)}")
    with path.open("rb") as file:
        begun["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return begun
