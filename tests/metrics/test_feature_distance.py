import copy
from fractions import Fraction
from math import floor, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genstab import FeatureDistance, InputError, MaxBlurPool2d, UNet
from genstab.inference.eval_mode import inference
from genstab.metrics.feature_distance import feature_distance, feature_maps
from genstab.metrics.layer_outputs import choose_layers
from genstab.metrics.shift_ops import grid_shifts


def circular_conv(channels_in, channels_out, stride=1):
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, padding_mode="circular")


def materialised(features, of_shifted, shift, size):
    """The definition in words: enlarge by nearest neighbours, roll, compare pixel by pixel in 64 bits."""
    (height, width), (h, w) = size, features.shape[2:]
    rows = [floor(Fraction(y * h, height)) for y in range(height)]
    columns = [floor(Fraction(x * w, width)) for x in range(width)]
    reference, other = (f.double().numpy()[:, :, rows][..., columns] for f in (features, of_shifted))
    reference = np.roll(reference, shift, (2, 3))
    lengths = [np.sqrt((f**2).sum(1)) for f in (reference, other)]
    product = (reference * other).sum(1)
    both = (lengths[0] > 0) & (lengths[1] > 0)
    cosine = np.divide(product, lengths[0] * lengths[1], out=np.zeros_like(product), where=both)
    distance = np.where((lengths[0] == 0) & (lengths[1] == 0), 0, 1 - cosine)
    return torch.from_numpy(distance.mean((1, 2)))


@pytest.mark.parametrize("size", [(7, 12), (9, 5), (13, 13)])
@pytest.mark.parametrize("map_size", [(7, 12), (3, 5), (1, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("shift", [(0, 1), (3, -2), (-8, 31)])
def test_the_same_as_with_enlarged_maps_at_any_ratio(size, map_size, shift):
    h, w = min(map_size[0], size[0]), min(map_size[1], size[1])
    generator = torch.Generator().manual_seed(0)
    a, b = (F.relu(torch.randn(3, 2, h, w, generator=generator)) for _ in range(2))  # a quarter are zero vectors
    b[0] = a[0]
    torch.testing.assert_close(feature_distance(a, b, shift, size), materialised(a, b, shift, size), atol=1e-6, rtol=0)


def test_maps_larger_than_the_image():
    """Moved by one of four pixels, a map of twice the size moves by two; one of 6 is compared on 12 places."""
    a, b = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 1, 8)
    for first, second, shift, size in (
        (a, a.roll(2, -1), (0, 1), (1, 4)),
        (a, b, (0, 1), (1, 4)),
        (a[..., :6], b[..., :6], (0, 1), (1, 4)),
    ):
        fine = [f.repeat_interleave(24 // f.shape[-1], -1) for f in (first, second)]
        expected = (1 - F.cosine_similarity(fine[0].roll(6 * shift[1], -1), fine[1])).mean((1, 2))
        torch.testing.assert_close(feature_distance(first, second, shift, size).float(), expected)
    assert feature_distance(a, a.roll(2, -1), (0, 1), (1, 4)).max() == 0


def test_angles_by_hand():
    """One place with the vectors (1, 0) and (1, 1): 1 − 1/√2; their lengths do not count, nor do tiny numbers."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    for scale in (1.0, 1e-30, 1e30):
        distance = feature_distance(a * scale, 3 * b, (1, 0), (8, 8))
        assert distance.item() == pytest.approx(1 - 1 / sqrt(2), abs=1e-6)
    assert feature_distance(a, -a, (1, 0), (8, 8)).item() == 2
    assert feature_distance(a, a.flip(1), (1, 0), (8, 8)).item() == pytest.approx(1)
    assert feature_distance(b, b * 7, (1, 0), (8, 8)).item() < 1e-12


def test_zero_vectors():
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    pairs = [(zero, zero), (zero, one), (one, zero), (one, one)]
    assert [feature_distance(a, b, (0, 1), (4, 4)).item() for a, b in pairs] == [0, 1, 1, 0]


def test_small_differences_survive_rounding():
    """1 − cos of an angle of 1e-3 is 5e-7: lost in 32 bits, unless differences are squared."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-3]])
    assert feature_distance(a, b, (0, 1), (4, 4)).item() == pytest.approx(5e-7, rel=1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_large_map_is_compared_in_parts(monkeypatch, channels_last):
    a, b = torch.randn(5, 4, 6, 6), torch.randn(5, 4, 6, 6)
    if channels_last:
        a, b = a.to(memory_format=torch.channels_last), b.to(memory_format=torch.channels_last)
    whole = feature_distance(a, b, (1, 2), (12, 12))
    monkeypatch.setattr("genstab.metrics.feature_distance._AT_ONCE", 2 * 5 * 12 * 12)
    assert torch.equal(feature_distance(a, b, (1, 2), (12, 12)), whole)


def test_equivariant_layers_have_no_distance():
    model = nn.Sequential(circular_conv(3, 4), nn.ReLU(), circular_conv(4, 4), nn.BatchNorm2d(4), nn.Identity())
    for distance in feature_maps(model, torch.rand(2, 3, 9, 14), grid_shifts(2), "*").values():
        assert distance.shape == (24, 2)
        assert distance.max() < 1e-6


def test_a_stride_is_exact_at_its_multiples_only():
    model = nn.Sequential(circular_conv(3, 8, stride=2), circular_conv(8, 8, stride=2))
    shifts = [(0, 1), (0, 2), (2, 2), (1, 2), (4, 0), (4, -8), (3, 3)]
    distances = feature_maps(model, torch.rand(2, 3, 16, 24), shifts)
    exact = {name: (distance < 1e-6).all(1).tolist() for name, distance in distances.items()}
    assert exact == {"0": [s % 2 == t % 2 == 0 for s, t in shifts], "1": [s % 4 == t % 4 == 0 for s, t in shifts]}


class Everything(nn.Module):
    """What a network may do: call a layer twice, change maps in place, return tuples and sequences, never run."""

    def __init__(self):
        super().__init__()
        self.conv = circular_conv(3, 4)
        self.twice = nn.ReLU()
        self.dropout = nn.Dropout(0.5)
        self.unused = nn.Conv2d(4, 4, 1)
        self.pair = nn.Sequential(nn.Identity())
        self.sequence = nn.Flatten(2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.lstm = nn.LSTM(4, 4)
        self.seven = nn.Linear(4, 7)

    def forward(self, x):
        x = self.conv(x)
        kept = x
        x = self.twice(x)[..., ::2, ::2]
        kept.mul_(0)  # what conv gave is gone
        x = self.dropout(self.twice(x))
        self.sequence(x)
        vectors = self.flat(self.pool(x))
        self.lstm(vectors[None])
        return self.seven(vectors)


def test_every_layer_by_what_it_gave_itself():
    torch.manual_seed(0)
    model, images, shifts = Everything(), torch.randn(3, 3, 8, 10), [(0, 1), (2, 2), (1, 1)]
    state = copy.deepcopy(model.state_dict())
    distances = feature_maps(model, images, shifts, ["conv", "twice", "flat", "pool", "s*n"])
    assert list(distances) == ["conv", "twice", "pool", "flat", "seven"]

    with torch.no_grad():
        for row, shift in enumerate(shifts):
            maps, maps_of_moved = [], []
            for x, found in ((images, maps), (images.roll(shift, (2, 3)), maps_of_moved)):
                conv = model.conv(x)
                found += [conv, F.relu(conv), F.relu(conv[..., ::2, ::2])]
                found += [found[2].mean((2, 3), keepdim=True), model.seven(found[2].mean((2, 3)))]
            conv, first, second, pool, seven = (
                materialised(*(f.reshape(*f.shape[:2], *(f.shape[2:] or (1, 1))) for f in pair), shift, (8, 10))
                for pair in zip(maps, maps_of_moved, strict=True)
            )
            expected = {"conv": conv, "twice": (first + second) / 2, "pool": pool, "flat": pool, "seven": seven}
            for name, value in expected.items():
                torch.testing.assert_close(distances[name][row], value, atol=1e-6, rtol=0)

    assert model.training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("forward_batch", [1, 3, 7, 100])
def test_the_batch_size_changes_nothing(forward_batch):
    torch.manual_seed(0)
    model, images = UNet(channels=4, levels=3, norm="instance", antialias="tri3"), torch.rand(5, 3, 16, 24) * 2 - 1
    model.encoder[0].act = nn.LeakyReLU(0.2, inplace=True)
    sizes = []
    within = feature_maps(nn.Sequential(model).eval(), images, grid_shifts(1), "*coder.?", forward_batch)
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for name, distance in feature_maps(model, images, grid_shifts(1), forward_batch=forward_batch).items():
        torch.testing.assert_close(distance, within[f"0.{name}"], atol=1e-6, rtol=0)
        one = feature_maps(model, images[1:2], [(-1, 0)], name)[name]
        torch.testing.assert_close(distance[1:2, 1:2], one, atol=1e-6, rtol=0)
    assert max(sizes) <= max(forward_batch, 1)


def names(model, images, layers=None):
    with inference(model) as forward:
        return list(choose_layers(model, forward, images, layers))


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head, self.norm, self.act = nn.Tanh(), nn.Tanh(), nn.BatchNorm2d(3), nn.ReLU()
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))
        self.up = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1)})

    def forward(self, images):
        images = self.down[1](self.down[0](self.stem(images)))
        return self.act(self.norm(self.head(self.up["a"](images))))


def test_default_layers_read_well():
    images = torch.rand(1, 3, 32, 32)
    for levels in (2, 3, 5):
        blocks = [f"{part}.{i}" for part in ("encoder", "decoder") for i in range(levels)]
        assert names(UNet(channels=4, levels=levels), images) == blocks
    # a long sequence, as in VGG: activations and poolings and the last layer
    layers = [layer for _ in range(8) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())]
    vgg = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Dropout(), nn.Conv2d(3, 3, 1))
    assert names(nn.Sequential(vgg), images) == [f"0.{i}" for i in (*range(2, 24, 3), 24, 26)]
    # still too many: every third, the last one among them
    assert names(nn.Sequential(*(nn.Tanh() for _ in range(50))), images) == [str(i) for i in range(1, 50, 3)]
    # lists of blocks are no level: without the blocks in them, four layers would be enough
    lists = Lists()
    assert names(lists, images) == ["stem", "down.0", "down.1", "up.a", "head", "norm", "act"]
    # of a small network, all
    assert names(nn.Sequential(nn.Sequential(nn.Tanh(), nn.Identity())), images) == ["0.0"]


def test_names_and_patterns():
    model, images = UNet(channels=4, levels=2), torch.rand(1, 3, 8, 8)
    assert names(model, images, "encoder.0") == ["encoder.0"]
    assert names(model, images, ["*conv", "encoder.?"]) == [
        "encoder.0.conv", "encoder.0", "encoder.1.conv", "encoder.1", "decoder.0.conv", "decoder.1.conv",
    ]  # fmt: skip
    shared = nn.Tanh()
    assert names(nn.ModuleDict({"net": nn.Sequential(shared, shared)})["net"], images, "1") == ["0"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x: feature_maps(m, x, [(0, 1)], "convv"),
            "layers='convv' matches no layer of Every.*: conv, ",
        ),
        (lambda m, x: feature_maps(m, x, [(0, 1)], []), r"layers=\[\] is empty; these have a feature map: conv"),
        (
            lambda m, x: feature_maps(m, x, [(0, 1)], ["conv", "unused"]),
            "layers='unused': unused does not run; .*: conv",
        ),
        (lambda m, x: feature_maps(m, x, [(0, 1)], "sequence"), "sequence returns a sequence .*without rows"),
        (lambda m, x: feature_maps(m, x, [(0, 1)], "lstm"), "lstm returns a sequence"),
        (lambda m, x: feature_maps(nn.Tanh(), x, [(0, 1)]), "Tanh has no layer with a feature map"),
        (lambda m, x: feature_maps(m, x, [(0, 0)]), "zero shift"),
        (lambda m, x: feature_maps(m, x, [(0, 1), (16, -8)]), "rolls an image of 8×8 onto itself"),
        (lambda m, x: feature_maps(m, x[0], [(0, 1)]), "are not \\(N, C, H, W\\)"),
        (lambda m, x: feature_maps(m, x, [(0, 1)], forward_batch=0), "forward_batch=0"),
        (
            lambda m, x: feature_maps(m, x * torch.nan, [(0, 1)], "conv"),
            "layer conv returns NaN or infinity for image 0",
        ),
        (lambda m, x: feature_distance(x, x[:, :, 1:], (0, 1), (8, 8)), "must have the same shape"),
        (lambda m, x: feature_distance(x[0], x[0], (0, 1), (8, 8)), "must have the same shape"),
        (lambda m, x: feature_distance(x, x, (0, 1), (8, 0)), "width=0"),
        (lambda m, x: feature_distance(x, x, (0, 0.5), (8, 8)), "not a pair of integers"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(Everything(), torch.rand(2, 3, 8, 8))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_program_shows_no_layers():
    images = torch.rand(1, 3, 8, 8)
    program = torch.jit.trace(nn.Sequential(circular_conv(3, 3), nn.ReLU()), images)
    for model in (program, nn.Sequential(program)):
        with pytest.raises(InputError, match="has no layer with a feature map that can be seen; exported programs"):
            feature_maps(model, images, [(0, 1)])


class Moody(nn.Module):
    """Runs its layer more often, or on another size, where the corner is dark."""

    def __init__(self, times, size):
        super().__init__()
        self.layer, self.times, self.size = nn.Tanh(), times, size

    def forward(self, x):
        for _ in range(1 if x[0, 0, 0, 0] > 0 else self.times):
            self.layer(x[..., : (8 if x[0, 0, 0, 0] > 0 else self.size)])
        return x


@pytest.mark.parametrize(("times", "size"), [(2, 8), (0, 8), (1, 4)])
def test_a_layer_that_runs_otherwise_for_shifted_images(times, size):
    images = torch.zeros(1, 1, 8, 8)
    images[..., 0, 0] = 1
    model = Moody(times, size)
    with pytest.raises(InputError, match="layer layer runs differently"):
        feature_maps(model, images, [(0, 1)])
    assert not model.layer._forward_hooks


def test_blurred_pooling_moves_better_with_the_image():
    torch.manual_seed(0)
    images = torch.rand(4, 8, 32, 32)
    plain, blurred = (
        feature_maps(nn.Sequential(pool), images, grid_shifts(2))["0"]
        for pool in (nn.MaxPool2d(2), MaxBlurPool2d(2, padding_mode="circular"))
    )
    odd = torch.tensor([dy % 2 or dx % 2 for dy, dx in grid_shifts(2)]).bool()
    assert plain[~odd].max() < 1e-6
    assert blurred[~odd].max() < 1e-6
    assert (blurred[odd] < 0.5 * plain[odd]).all()


def test_the_metric_is_the_mean_over_images_and_shifts():
    a, b = torch.randn(7, 3, 4, 5), torch.randn(7, 3, 4, 5)
    metric = FeatureDistance()
    for shift in ((0, 1), (2, -3)):
        metric.update(a, b, shift, (8, 9))
    expected = torch.cat([materialised(a, b, shift, (8, 9)) for shift in ((0, 1), (2, -3))]).mean().item()
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)
    metric.reset()
    metric.update(a[:1], a[:1], (8, 9), (8, 9))
    assert metric.compute() == 0
