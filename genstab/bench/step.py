"""Benchmark of training steps of pix2pix, with anti-aliased and plain U-Nets."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genstab.bench.layers import unet_levels
from genstab.bench.timing import Run, compare, peak_memory, time_in_turn
from genstab.layers.filters import FILTERS, PLACEMENTS, AntiAlias
from genstab.networks.patchgan import PatchGAN
from genstab.networks.unet import UNet
from genstab.training.pix2pix import Pix2Pix

NONE, STABLE = "none", "stable"
# As in conf/antialias/stable.yaml.
STABLE_HEAD = 10
STABLE_LOSSES = {"equivariance_weight": 60.0, "detail_weight": 60.0}
# What `--antialias` takes.
OPTIONS = {
    NONE: AntiAlias(NONE),
    **{f"{filter}x{placement}": AntiAlias(filter, placement) for filter in FILTERS[1:] for placement in PLACEMENTS},
    "polyphase": AntiAlias(NONE, "pre", "circular", True),
    "polyphasextri3": AntiAlias("tri3", "pre", "circular", True),
    STABLE: AntiAlias("tri3", "pre"),
}
Adams = tuple[torch.optim.Adam, torch.optim.Adam]  # of the discriminator and of the generator


def step_models(
    names: Sequence[str], size: int, channels: int, layout: str, compiled: bool, device: torch.device
) -> dict[str, tuple[Pix2Pix, Adams]]:
    """Return a pix2pix and its optimizers for each option, `none` first.

    An anti-aliased network has the parameters of the plain one, so all of them train the same tensors: they fit into
    memory together and can run in turn, and one fused Adam for each of the two networks has the state. `stable`, whose
    generator has a head, has its own generator and optimizers.
    """
    discriminator = PatchGAN(channels=channels).to(device)
    models: dict[str, tuple[Pix2Pix, Adams]] = {}
    for name in dict.fromkeys([NONE, *names]):
        head, losses = _beside_the_blur(name)
        generator = UNet(channels=channels, levels=unet_levels(size), antialias=OPTIONS[name], head=head).to(device)
        if models and not head:
            plain = models[NONE][0].generator
            generator.load_state_dict(plain.state_dict(keep_vars=True), assign=True)
        settings = {"channels_last": layout == "channels_last", "compile": compiled}
        model = Pix2Pix(generator, discriminator, **losses, **settings)  # type: ignore[arg-type]  # all fit
        models[name] = model, models[NONE][1] if models and not head else model.adams()
    return models


def config_of(name: str) -> dict[str, Any]:
    """Return by dotted key what a run's configuration has if its step is the one that is timed as `name`."""
    antialias, (head, losses) = OPTIONS[name], _beside_the_blur(name)
    config = {"antialias.filter": antialias.filter, "antialias.polyphase": antialias.polyphase}
    if name != NONE:  # which has no blur to place
        config["antialias.placement"] = antialias.placement
    weights = {f"model.{key}": losses.get(key, 0.0) for key in STABLE_LOSSES}
    return {**config, "model.generator.head": head, **weights}


def _beside_the_blur(name: str) -> tuple[int, dict[str, float]]:
    """Return the head and the weights of the losses."""
    return (STABLE_HEAD, STABLE_LOSSES) if name == STABLE else (0, {})


def random_pairs(batch: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """Return a batch of images in [−1, 1], (batch, 3, size, size) each."""
    return {key: torch.rand(batch, 3, size, size, device=device) * 2 - 1 for key in ("source", "target")}


def time_steps(
    models: Mapping[str, tuple[Pix2Pix, Adams]],
    batch: int,
    size: int,
    layout: str,
    dtype: str,
    device: torch.device,
    seconds: float,
) -> list[dict[str, Any]]:
    """Time training steps of `batch` random images; return a result for each model.

    A step is `Pix2Pix.update`: generator forward, discriminator update, generator update. `bfloat16` is what Lightning
    calls bf16-mixed. The peak memory has parameters, Adam's state, gradients, images, activations and temporaries.
    """
    torch.manual_seed(0)
    images = random_pairs(batch, size, device)
    steps: dict[str, Run] = {}
    peaks: dict[str, int | None] = {}
    for name, (model, adams) in tqdm(models.items(), "peak memory", leave=False, disable=None):
        steps[name] = partial(_step, model, adams, {**images, "shift": (3, 5)}, dtype, device)  # overlapping crops
        steps[name]()  # makes Adam's state and what the blur keeps, compiles, lets CUDA choose its algorithms
        moments = [value for adam in adams for state in adam.state.values() for value in state.values()]
        resident = [*model.parameters(), *model.buffers(), *moments, *images.values()]
        for adam in adams:
            adam.zero_grad()
        # the second call finds the gradients of the first, as in the middle of a training run
        peaks[name] = peak_memory(steps[name], device, resident, calls=2)
    shape = [batch, 3, size, size]
    facts = {"case": "training step", "kind": "step", "shape": shape, "layout": layout, "dtype": dtype}
    return [
        {
            **facts,
            "contestant": name,
            "config": config_of(name),
            "times": {"step": timing},
            "images_per_second": batch / timing["seconds"],
            "peak_bytes": peaks[name],
        }
        for name, timing in compare(time_in_turn(steps, seconds)).items()
    ]


def _step(model: Pix2Pix, adams: Adams, images: dict[str, Any], dtype: str, device: torch.device) -> None:
    # As Lightning's bf16-mixed does it, without a cache of weights: each is used once, or changed in between.
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False):
        model.update(images, *adams)
