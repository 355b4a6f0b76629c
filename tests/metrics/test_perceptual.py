"""FID and LPIPS against both formulas written out; the networks have random weights, which need no download."""

from http.client import IncompleteRead
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from genstab.errors import InputError
from genstab.evaluation.measure import measure
from genstab.evaluation.options import MeasureOptions as Options
from genstab.metrics.perceptual import SMALLEST, Perceptual
from tests.conftest import Items, noise

pytestmark = pytest.mark.usefixtures("undrawn")
ONLY = {"protocols": ["circular"], "shifts": [[0, 1]], "map": None, "features": None, "corruptions": None}
WIDTHS = (3, 64, 192, 384, 256, 256)


def alexnet():
    """The layers of AlexNet's `features`, as Krizhevsky 2014 and torchvision have them."""
    torch.manual_seed(3)
    convolutions = [
        nn.Conv2d(3, 64, 11, 4, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        *(nn.Conv2d(i, o, 3, padding=1) for i, o in ((192, 384), (384, 256), (256, 256))),
    ]
    layers = [each for convolution in convolutions for each in (convolution, nn.ReLU())]
    layers.insert(2, nn.MaxPool2d(3, 2))
    layers.insert(5, nn.MaxPool2d(3, 2))
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2))


class Corners(nn.Module):
    """Twelve features of an 8-bit image: the mean of each channel in each quarter."""

    num_features = 12

    def forward(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return F.adaptive_avg_pool2d(images.double(), 2).flatten(1)


@pytest.fixture
def networks(monkeypatch):
    """Stand in for what would be downloaded."""
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._get_tv_model_features", lambda *_: alexnet())
    monkeypatch.setattr(
        "genstab.metrics.perceptual.FrechetInceptionDistance", lambda: FrechetInceptionDistance(Corners())
    )


def frechet(ours, theirs):
    """Heusel 2017, equation 6, of (N, 12) features each."""
    c, d = (np.cov(each, rowvar=False) for each in (ours, theirs))
    root = scipy.linalg.sqrtm(c @ d)
    return ((ours.mean(0) - theirs.mean(0)) ** 2).sum() + np.trace(c + d - 2 * root.real)


def lpips(ours, theirs):
    """Zhang 2018, equation 1, of images (3, H, W) in [−1, 1] each."""
    heads = torch.load(
        Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth", map_location="cpu"
    )
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    layers, total = alexnet(), 0.0
    maps = [((image + 1) / 2 - mean) / std for image in (ours, theirs)]
    numbers = iter(range(5))
    for layer in layers[:-1]:
        maps = [layer(each[None])[0].detach() for each in maps]
        if isinstance(layer, nn.ReLU):
            units = [each / each.norm(dim=0) for each in maps]
            weights = heads[f"lin{next(numbers)}.model.1.weight"].flatten()
            total += ((units[0] - units[1]).square() * weights[:, None, None]).sum(0).mean().item()
    return total


class Fading(nn.Module):
    def forward(self, images):
        return 1.3 * images.roll(3, -1)  # beyond [−1, 1] here and there


def test_fid_and_lpips_are_those_of_the_papers(networks, tmp_path):
    sources, targets = noise(20, 3, 40, 48), noise(20, 3, 40, 48, seed=1) * 0.5
    plan = Options(**ONLY, batch_size=7, perceptual=["fid", "lpips"])
    found = measure(Fading(), Items(*sources, targets=targets), tmp_path, plan)
    outputs = [Fading()(source).clamp(-1, 1) for source in sources]
    # means of the quarters of the pictures that a file of 8 bits would hold
    bits = [np.stack([np.rint((image.numpy() + 1) * 127.5) for image in images]) for images in (outputs, targets)]
    features = [each.reshape(20, 3, 2, 20, 2, 24).mean((3, 5)).reshape(20, 12) for each in bits]
    assert found.summary["val/fid"] == pytest.approx(frechet(*features), rel=1e-5)
    expected = [lpips(output, target) for output, target in zip(outputs, targets, strict=True)]
    assert found.measurements["quality"]["lpips"] == pytest.approx(expected, rel=1e-4)
    assert found.summary["val/lpips"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert [note for note in found.notes if not note.startswith("outputs lie in [-1.3,1.3]")] == []


def test_targets_are_at_no_distance_and_grey_is_a_colour(networks, tmp_path):
    plan = Options(**ONLY, perceptual=["lpips", "fid"])
    images = noise(16, 3, 32, 32)  # more than features, so that the covariance has no roots of zero
    same = measure(nn.Identity(), Items(*images, targets=images), tmp_path, plan).summary
    assert (same["val/fid"], same["val/lpips"]) == (pytest.approx(0, abs=1e-6), 0)
    images = images[:, :1]
    grey = measure(Fading(), Items(*images, targets=images), tmp_path, plan).summary
    colours = [image.expand(3, -1, -1) for image in images]
    coloured = measure(Fading(), Items(*colours, targets=colours), tmp_path, plan).summary
    assert grey["val/fid"] == pytest.approx(coloured["val/fid"], rel=1e-9)
    assert grey["val/lpips"] == pytest.approx(coloured["val/lpips"], rel=1e-6)


def test_the_other_numbers_and_the_random_state_stay(networks, tmp_path):
    images = noise(3, 3, 32, 32)
    states, summaries = [], []
    for perceptual in ([], ["fid", "lpips"]):
        torch.manual_seed(5)
        plan = Options(**ONLY, perceptual=perceptual)
        summaries.append(measure(Fading(), Items(*images, targets=images), tmp_path, plan).summary)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert set(summaries[1]) - set(summaries[0]) == {"val/fid", "val/lpips"}
    for key in set(summaries[0]) - {"images_per_second"}:
        assert summaries[0][key] == summaries[1][key], key


@pytest.mark.parametrize(
    ("sizes", "targets", "note"),
    [
        ([(3, 32, 32)] * 2, None, "fid, lpips: not measured, there are no targets"),
        ([(2, 32, 32)] * 2, [(2, 32, 32)] * 2, "fid, lpips: not measured, images of 2 channels, neither 1 nor 3"),
        ([(3, 32, 32)] * 2, [(3, 16, 16)] * 2, "fid, lpips: not measured, outputs and targets differ in size"),
        ([(3, 32, 30)] * 2, [(3, 32, 30)] * 2, "lpips: not measured, images of 32×30 are below 31"),
        ([(3, 32, 32)], [(3, 32, 32)], "fid: not measured, one image is not a set"),
    ],
)
def test_what_cannot_be_measured_is_said_once(networks, tmp_path, sizes, targets, note):
    targets = [noise(*size, seed=1) for size in targets] if targets else None
    data = Items(*(noise(*size) for size in sizes), targets=targets)
    found = measure(nn.Identity(), data, tmp_path, Options(**ONLY, batch_size=1, perceptual=["fid", "lpips"]))
    assert found.notes.count(note) == 1
    assert ("val/lpips" in found.summary) == (len(sizes) == 1)
    assert ("val/fid" in found.summary) == ("30" in note)


def test_a_classifier_draws_nothing(tmp_path):
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    found = measure(classifier, Items(*noise(2, 3, 32, 32)), tmp_path, Options(**ONLY, perceptual=["fid"]))
    assert "fid: not measured, a classifier draws no images" in found.notes


def test_the_smallest_image_is_that_of_alexnet():
    alexnet()[:-1](torch.zeros(1, 3, SMALLEST, SMALLEST))
    with pytest.raises(RuntimeError):
        alexnet()[:-1](torch.zeros(1, 3, SMALLEST - 1, SMALLEST - 1))


@pytest.mark.parametrize("name", ["fid", "lpips"])
def test_missing_packages_are_said_before_any_work(monkeypatch, tmp_path, name):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    text = rf"perceptual=\[{name}\] needs torch-fidelity, torchvision .*: pip install 'genstab\[perceptual\]'"
    with pytest.raises(InputError, match=text):
        measure(nn.Identity(), Items(noise(3, 32, 32)), tmp_path, Options(**ONLY, perceptual=name))


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        IncompleteRead(b"no route to host"),
        UnpicklingError("no route to host"),
        EOFError("no route to host"),
    ],
)
def test_weights_that_cannot_be_had(monkeypatch, error):
    def unreachable():
        raise error

    monkeypatch.setattr("genstab.metrics.perceptual.FrechetInceptionDistance", unreachable)
    with pytest.raises(InputError, match=r"perceptual=\[fid\]: the networks' weights cannot be downloaded or read: "):
        Perceptual(["fid"])


def test_names_are_checked():
    with pytest.raises(InputError, match="perceptual='fod' is not one of fid, lpips"):
        Options(perceptual=["fid", "fod"])
