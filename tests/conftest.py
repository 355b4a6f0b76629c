import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from genstab import AntiAlias, PatchGAN, Pix2Pix, UNet

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


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no worker waits for another in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def _composed_once():
    """Hydra composes a configuration a first time only to read `hydra.mode`, which no test sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
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
