"""Benchmark of training steps of pix2pix, with anti-aliased and plain U-Nets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from genstab.bench.layers import unet_levels
from genstab.bench.timing import Run, compare, interleave, peak_memory
from genstab.errors import check_choice
from genstab.layers.filters import FILTERS, PLACEMENTS, AntiAlias
from genstab.networks.patchgan import PatchGAN
from genstab.networks.unet import UNet
from genstab.training.pix2pix import Pix2Pix

NONE, STABLE = "none", "stable"
# As in conf/antialias/stable.yaml.
STABLE_HEAD = 10
STABLE_LOSSES = {"equivariance_weight": 60.0, "detail_weight": 60.0}
_BLURS = [filter for filter in FILTERS if filter != NONE]
# What `--antialias` takes: FILTERxPLACEMENT, or an option of conf/antialias, whose placement is `pre`.
EVERY = {NONE: AntiAlias(NONE), **{f"{f}x{p}": AntiAlias(f, p) for f in _BLURS for p in PLACEMENTS}}
EVERY |= {
    "polyphase": AntiAlias(NONE, "pre", "circular", True),
    "polyphasextri3": AntiAlias("tri3", "pre", "circular", True),
}
EVERY[STABLE] = AntiAlias("tri3", "pre")
OPTIONS = {**EVERY, **{filter: AntiAlias(filter) for filter in _BLURS}}
Adams = tuple[torch.optim.Adam, torch.optim.Adam]  # of the discriminator and of the generator


@dataclass(frozen=True)
class Contest:
    """Models that share their parameters, those of a head excepted, and the optimizers of each."""

    models: dict[str, Pix2Pix]
    optimizers: dict[str, Adams]


def contest(
    names: Sequence[str], size: int, channels: int, layout: str, compiled: bool, device: torch.device
) -> Contest:
    """Return a pix2pix for each option, `none` first.

    An anti-aliased network has the parameters of the plain one, so all of them train the same tensors: they fit into
    memory together and can run in turn, and one fused Adam for each of the two networks has the state. `stable`, whose
    generator has a head, is by itself.

    Raises:
        InputError: an unknown option.
    """
    for name in names:
        check_choice("antialias", name, OPTIONS)
    discriminator = PatchGAN(channels=channels).to(device)
    models: dict[str, Pix2Pix] = {}
    for name in dict.fromkeys([NONE, *names]):
        head, losses = _beside_the_blur(name)
        generator = UNet(channels=channels, levels=unet_levels(size), antialias=OPTIONS[name], head=head).to(device)
        if models and not head:
            generator.load_state_dict(models[NONE].generator.state_dict(keep_vars=True), assign=True)
        settings = {"channels_last": layout == "channels_last", "compile": compiled}
        models[name] = Pix2Pix(generator, discriminator, **losses, **settings)  # type: ignore[arg-type]  # all fit
    shared = models[NONE].adams()
    return Contest(models, {name: model.adams() if name == STABLE else shared for name, model in models.items()})


def config_of(name: str) -> dict[str, Any]:
    """Return by dotted key what a run's configuration has if its step is the one that is timed as `name`.

    >>> config_of("none")["antialias.filter"]
    'none'
    """
    antialias, (head, losses) = OPTIONS[name], _beside_the_blur(name)
    config = {"antialias.filter": antialias.filter, "antialias.polyphase": antialias.polyphase}
    if name != NONE:  # which has no blur to place
        config["antialias.placement"] = antialias.placement
    weights = {f"model.{key}": losses.get(key, 0.0) for key in STABLE_LOSSES}
    return {**config, "model.generator.head": head, **weights}


def _beside_the_blur(name: str) -> tuple[int, dict[str, float]]:
    """The head and the weights of the losses."""
    return (STABLE_HEAD, STABLE_LOSSES) if name == STABLE else (0, {})


def race(
    contest: Contest,
    batch: int,
    size: int,
    layout: str,
    dtype: str,
    device: torch.device,
    seconds: float,
    compiled: bool = False,
    tick: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Time training steps of that many random images; return a result for each model.

    A step is `Pix2Pix.update`: generator forward, discriminator update, generator update. `bfloat16` is what Lightning
    calls bf16-mixed. The peak memory has parameters, Adam's state, gradients, images, activations and temporaries.
    """
    if compiled:
        torch.compiler.reset()  # or the second batch size would get dynamic code
    torch.manual_seed(0)
    source, target = (torch.rand(batch, 3, size, size, device=device) * 2 - 1 for _ in range(2))
    images = {"source": source, "target": target, "shift": (3, 5)}  # as for overlapping crops
    steps: dict[str, Run] = {}
    peaks: dict[str, int | None] = {}
    for name, model in contest.models.items():
        optimizers = contest.optimizers[name]
        steps[name] = partial(_step, model, optimizers, images, dtype, device)
        steps[name]()  # makes Adam's state and what the blur keeps, compiles, lets CUDA choose its algorithms
        states = [state for optimizer in optimizers for state in optimizer.state.values()]
        moments = [value for state in states for value in state.values()]
        resident = [*model.parameters(), *model.buffers(), *moments, source, target]
        for optimizer in optimizers:
            optimizer.zero_grad()
        peaks[name] = peak_memory(partial(_in_training, steps[name], list(model.parameters())), device, resident)
        tick()
    timings = compare(interleave(steps, seconds, device, tick=tick))
    shape = [batch, 3, size, size]
    return [
        {
            "case": "training step",
            "kind": "step",
            "shape": shape,
            "layout": layout,
            "dtype": dtype,
            "compiled": compiled,
            "contestant": name,
            "config": config_of(name),
            "times": {"step": timing},
            "images_per_second": batch / timing["seconds"],
            "peak_bytes": peaks[name],
        }
        for name, timing in timings.items()
    ]


def _step(
    model: Pix2Pix,
    optimizers: Adams,
    images: dict[str, Any],
    dtype: str,
    device: torch.device,
) -> None:
    # As Lightning's bf16-mixed does it, without a cache of weights: each is used once, or changed in between.
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False):
        model.update(images, optimizers[0], optimizers[1])


def _in_training(step: Run, parameters: Sequence[nn.Parameter]) -> None:
    # In the middle of a training the gradients of the last step are there until an optimizer drops them.
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    step()
