import functools
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.grammar_parser import parse
from torch.utils.data import DataLoader, Dataset

from genstab import AntiAlias, PatchGAN, Pix2Pix, UNet
from tests.helpers.commands import SERVER, server

# Several test processes with two threads each on two processors would wait for each other most of the time.
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
torch.set_num_threads(1)


class Pairs(Dataset):
    """Random pairs of 32×32 pixels, the same at every call."""

    def __init__(self, length, size=32):
        generator = torch.Generator().manual_seed(length)
        self.source = torch.rand(length, 1, size, size, generator=generator) * 2 - 1
        self.target = torch.rand(length, 3, size, size, generator=generator) * 2 - 1

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return {"source": self.source[index], "target": self.target[index], "name": str(index)}


def pairs_loader(length, batch_size, shuffle=False):
    return DataLoader(Pairs(length), batch_size, shuffle=shuffle)


def tiny_pix2pix(seed=0, **kwargs):
    torch.manual_seed(seed)
    generator = UNet(1, 3, channels=4, levels=3, antialias=AntiAlias("tri3"))
    return Pix2Pix(generator, PatchGAN(1, 3, channels=4), **kwargs)


def pytest_configure(config):
    """Let all workers of a whole run fork their programs from one server."""
    if config.getoption("numprocesses", None) and not config.option.markexpr and not hasattr(config, "workerinput"):
        os.environ[SERVER] = server()


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no worker waits for another in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """Leave out what is imported from every later collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _composed_quickly():
    """Let hundreds of tests read each config file once and parse each interpolation once.

    Hydra composes a configuration a first time only to read `hydra.mode`, which no test sets.
    """
    known, tree = functools.cache(lambda text: yaml.load(text, get_yaml_loader())), functools.cache(parse)

    def load(file):
        return OmegaConf.create(known(file.read() if hasattr(file, "read") else Path(file).read_text()) or {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        patch.setattr(OmegaConf, "load", load)
        for module in ("omegaconf._utils", "omegaconf.base"):
            patch.setattr(f"{module}.parse", tree)
        yield


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Keep W&B offline and every file of a test in its own folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user who never used W&B; afterwards every run is closed and what wandb remembers is forgotten."""
    import wandb

    wandb.teardown()  # before its variables are noted, or those of a service that is gone would come back
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("config", "cache", "data"):
        monkeypatch.setenv(f"WANDB_{name.upper()}_DIR", str(home / name))
    yield
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


class Items(Dataset):
    def __init__(self, *sources, targets=None):
        self.sources, self.targets = sources, targets

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, index):
        item = {"source": self.sources[index], "name": f"{index}.png"}
        return item if self.targets is None else {**item, "target": self.targets[index]}


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def drawn():
    """Asked for by tests that look at the pictures of a measurement, where all others leave them out."""


@pytest.fixture
def undrawn(request, monkeypatch):
    """Leave out the pictures of a measurement, which take nine tenths of the time of a small one."""
    if "drawn" not in request.fixturenames:
        blank = np.zeros((1, 1, 3), dtype=np.uint8)
        for name, found in (("write_exhibits", {}), ("feature_map_picture", blank), ("corruption_picture", blank)):
            monkeypatch.setattr(f"genstab.evaluation.measure.{name}", lambda *_, found=found: found)
