"""Generators of the CycleGAN/pix2pix repository: its one real file at hand, and its key layout built here."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genstab import (
    AntiAlias,
    InputError,
    ResNetGenerator,
    UNet,
    antialias,
    load_generator,
    remove_antialias,
    shift_psnr,
)
from genstab.data.image_io import read_image
from genstab.layers.filters import PLACEMENTS
from genstab.layers.surgery import surgery_table

HERE = Path(__file__).parents[3] / "shared/data/reference"
REFERENCE = Path(os.environ.get("GENSTAB_REFERENCE", HERE))
FILE = REFERENCE / "cyclegan_repo_unet128_ngf8_net_G.pth"
FACADES = REFERENCE.parent / "facades/testB"  # label maps

NORMS = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,  # no parameters, no statistics
    "none": lambda channels: nn.Identity(),
}


class Nested(nn.Module):
    """One level of the published U-Net around the next."""

    def __init__(self, layers, outermost=False):
        super().__init__()
        self.model, self.outermost = nn.Sequential(*layers), outermost

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


def published_unet(levels, norm, dropout, source, target, width=2):
    make, bias = NORMS[norm], norm == "instance"

    def level(i):
        outer, inner = width * min(2 ** (i - 1), 8), width * min(2**i, 8)
        innermost = i == levels - 1
        down = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1, bias=bias)]
        up = [nn.ReLU(), nn.ConvTranspose2d(inner * (2 - innermost), outer, 4, 2, 1, bias=bias), make(outer)]
        middle = [] if innermost else [make(inner), level(i + 1)]
        drop = [nn.Dropout(0.5)] if dropout and 4 <= i < levels - 1 else []
        return Nested(down + middle + up + drop)

    first = nn.Conv2d(source, width, 4, 2, 1, bias=bias)
    last = nn.ConvTranspose2d(2 * width, target, 4, 2, 1)
    return Nested([first, level(1), nn.ReLU(), last, nn.Tanh()], outermost=True)


class Skip(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.conv_block(x)


def published_resnet(blocks, norm, dropout, source, target, width=3):
    make, bias = NORMS[norm], norm == "instance"
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(source, width, 7, bias=bias), make(width), nn.ReLU()]
    for n in (width, 2 * width):
        layers += [nn.Conv2d(n, 2 * n, 3, 2, 1, bias=bias), make(2 * n), nn.ReLU()]
    n = 4 * width
    for _ in range(blocks):
        first = [nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3, bias=bias), make(n), nn.ReLU()]
        second = [nn.ReflectionPad2d(1), nn.Conv2d(n, n, 3, bias=bias), make(n)]
        layers.append(Skip(first + [nn.Dropout(0.5)] * dropout + second))
    for n in (4 * width, 2 * width):
        layers += [nn.ConvTranspose2d(n, n // 2, 3, 2, 1, output_padding=1, bias=bias), make(n // 2), nn.ReLU()]
    layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, target, 7), nn.Tanh()]
    network = nn.Module()
    network.model = nn.Sequential(*layers)
    network.forward = network.model.forward
    return network


class Unet(nn.Module):
    def __init__(self, *args):
        super().__init__()
        self.model = published_unet(*args)

    def forward(self, x):
        return self.model(x)


def randomised(network):
    """Weights that make every parameter and every statistic count; eval mode."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.3)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def saved(network, path):
    torch.save(network.state_dict(), path)
    return path


def assert_same(generator, published, channels, size):
    """Compare in float64, where a difference of the networks is no rounding."""
    x = torch.rand(2, channels, *size, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected = published.double()(x)
        assert expected.std() > 0.05
        torch.testing.assert_close(generator.double()(x), expected, rtol=0, atol=1e-5)


real_file = pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is absent; GENSTAB_REFERENCE can name its folder")


@real_file
def test_the_layout_here_is_the_real_files():
    layout = {key: value.shape for key, value in Unet(7, "batch", False, 3, 3, 8).state_dict().items()}
    assert layout == {key: value.shape for key, value in torch.load(FILE, weights_only=True).items()}


@real_file
def test_the_real_file_gives_its_recorded_output():
    generator = load_generator(FILE)
    assert isinstance(generator, UNet)
    assert not generator.training
    with np.load(REFERENCE / "cyclegan_repo_unet128_ngf8_io.npz") as recorded:
        source, output = torch.from_numpy(recorded["input"]), torch.from_numpy(recorded["output"])
    with torch.no_grad():
        torch.testing.assert_close(generator(source), output, rtol=0, atol=1e-5)


RESAMPLING = [f"{part}.{i}.conv" for part in ("encoder", "decoder") for i in range(7)]


@real_file
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_the_real_generator_after_surgery_and_back(placement):
    generator = load_generator(FILE)
    before, text = dict(generator.named_parameters()), str(generator)
    antialias(generator, "bin5", placement)
    rows = [line.split() for line in surgery_table(generator).splitlines()[1:]]
    assert [row[0] for row in rows] == RESAMPLING
    assert all(row[1].startswith(("Conv2d(", "ConvTranspose2d(")) for row in rows)
    assert [row[-3] for row in rows[:7]] == ["BlurConv2d(bin5,"] * 7
    assert [row[-2] for row in rows[7:]] == ["BlurConvTranspose2d(bin5,"] * 7
    after = dict(generator.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    stored = torch.load(FILE, weights_only=True)
    assert torch.equal(generator.encoder[0].conv.weight, stored["model.model.0.weight"])
    assert torch.equal(generator.decoder[-1].conv.weight, stored["model.model.3.weight"])
    with np.load(REFERENCE / "cyclegan_repo_unet128_ngf8_io.npz") as recorded:
        source, output = torch.from_numpy(recorded["input"]), torch.from_numpy(recorded["output"])
    with torch.no_grad():
        assert (generator(source) - output).abs().max() > 0.1
        remove_antialias(generator)
        torch.testing.assert_close(generator(source), output, rtol=0, atol=1e-5)
    assert str(generator) == text


@real_file
@pytest.mark.skipif(not FACADES.is_dir(), reason=f"{FACADES} is absent")
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("filter", ["rect2", "tri3", "bin5"])
def test_the_real_generator_moves_with_real_label_maps_after_surgery(filter, placement):
    images = torch.stack([read_image(path) for path in sorted(FACADES.iterdir())[:3]])
    images = nn.functional.avg_pool2d(images, 2)  # 128 pixels, which it is for
    shifts = [(0, 1), (1, 0), (2, 3)]
    generator = load_generator(FILE)
    plain = shift_psnr(generator, images, shifts)
    with torch.no_grad():
        contrast = generator(images).std()
        blurred = shift_psnr(antialias(generator, filter, placement), images, shifts)
        lost = 20 * torch.log10(contrast / generator(images).std())
    # Means: 3.2 dB plain; rect2 25, tri3 30, bin5 33 to 35. Its weights are random, so 11 to 12 dB of that is contrast.
    assert (blurred - plain - lost).min() > 5
    assert torch.equal(shift_psnr(remove_antialias(generator), images, shifts), plain)


@pytest.mark.parametrize("levels", [5, 7, 8])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("source", "target"), [(1, 3), (3, 1), (3, 3)])
def test_unets(tmp_path, levels, norm, dropout, source, target):
    published = randomised(Unet(levels, norm, dropout, source, target))
    generator = load_generator(saved(published, tmp_path / "latest_net_G.pth"))
    assert isinstance(generator, UNet)
    assert generator.config["levels"] == levels
    assert generator.config["norm"] == norm
    assert_same(generator, published, source, (2**levels, 2**levels))


@pytest.mark.parametrize("blocks", [2, 6, 9])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(("source", "target"), [(1, 3), (3, 1)])
def test_resnets(tmp_path, blocks, norm, dropout, source, target):
    published = randomised(published_resnet(blocks, norm, dropout, source, target))
    generator = load_generator(saved(published, tmp_path / "latest_net_G_A.pth"))
    assert isinstance(generator, ResNetGenerator)
    assert not generator.training
    assert generator.config["blocks"] == blocks
    assert generator.config["norm"] == norm
    assert generator.config["dropout"] == (0.5 if dropout else 0)
    assert_same(generator, published, source, (16, 24))


def test_the_layout_here_has_the_published_number_of_parameters():
    # numbers of parameters that the repository prints for its default generators, in millions
    for network, millions in (
        (Unet(8, "batch", True, 3, 3, 64), 54.414),
        (Unet(7, "batch", True, 3, 3, 64), 41.829),
        (published_resnet(9, "instance", False, 3, 3, 64), 11.378),
        (published_resnet(6, "instance", False, 3, 3, 64), 7.838),
    ):
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == millions


SMALL = [lambda: Unet(5, "batch", False, 3, 3), lambda: published_resnet(2, "batch", False, 3, 3)]


@pytest.mark.parametrize("build", SMALL)
def test_wrapped_networks(tmp_path, build):
    published = randomised(build())
    path = saved(nn.DataParallel(published), tmp_path / "x.pth")
    assert all(key.startswith("module.model.") for key in torch.load(path, weights_only=True))
    assert_same(load_generator(path), published, 3, (32, 32))
    for wrapper in ("_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        torch.save({wrapper + key: value.float() for key, value in published.state_dict().items()}, path)
        assert_same(load_generator(path), published, 3, (32, 32))


def test_a_metadata_key_is_no_weight(tmp_path):
    published, path = randomised(published_resnet(2, "batch", False, 3, 3)), tmp_path / "x.pth"
    torch.save({**published.state_dict(), "_metadata": {"": {"version": 1}}}, path)
    assert_same(load_generator(path), published, 3, (16, 16))


@pytest.mark.parametrize("build", SMALL)
def test_files_from_before_batches_were_counted(tmp_path, build):
    published, path = randomised(build()), tmp_path / "x.pth"
    torch.save({k: v for k, v in published.state_dict().items() if "num_batches" not in k}, path)
    assert_same(load_generator(path), published, 3, (32, 32))


def test_statistics_of_old_instance_norms_are_ignored(tmp_path):
    published, path = randomised(published_resnet(2, "instance", False, 3, 3)), tmp_path / "x.pth"
    state = published.state_dict()
    for name, module in published.named_modules():
        if isinstance(module, nn.InstanceNorm2d):
            state[f"{name}.running_mean"] = torch.full((module.num_features,), 5.0)
            state[f"{name}.running_var"] = torch.full((module.num_features,), 9.0)
    torch.save(state, path)
    generator = load_generator(path)
    assert generator.config["norm"] == "instance"
    assert_same(generator, published, 3, (16, 16))
    with pytest.raises(InputError, match=r"norm='none' does not fit .*x.pth: its keys allow instance$"):
        load_generator(path, norm="none")


@pytest.mark.parametrize("kind", ["unet", "resnet"])
def test_the_norm_that_keys_do_not_say_can_be_said(tmp_path, kind):
    published = Unet(5, "instance", False, 3, 3) if kind == "unet" else published_resnet(2, "instance", False, 3, 3)
    path = saved(randomised(published), tmp_path / "x.pth")
    assert load_generator(path).config["norm"] == "instance"
    generator = load_generator(path, norm="none")
    assert generator.config["norm"] == "none"
    for module in published.modules():  # biases, but no norm
        if isinstance(module, nn.InstanceNorm2d):
            module.forward = lambda x: x
    assert_same(generator, published, 3, (32, 32))


@pytest.mark.parametrize("norm", ["none", "instance", "group"])
def test_a_norm_that_contradicts_the_keys(tmp_path, norm):
    path = saved(published_resnet(2, "batch", False, 3, 3), tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"norm='{norm}' does not fit .*x.pth: its keys allow batch$"):
        load_generator(path, norm=norm)
    assert load_generator(path, norm="batch").config["norm"] == "batch"


def broken(build, change, path):
    state = build().state_dict()
    change(state)
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        (
            lambda: Unet(5, "batch", False, 3, 3),
            lambda s: s.pop("model.model.1.model.3.model.2.running_var"),
            r"x.pth does not fit a U-Net with norm=batch: missing model.model.1.model.3.model.2.running_var$",
        ),
        (
            lambda: Unet(5, "batch", False, 3, 3),
            lambda s: s.pop("model.model.0.weight"),
            r"model.model.0.weight is missing or not of a convolution$",
        ),
        (
            lambda: Unet(5, "instance", False, 3, 3),
            lambda s: s.pop("model.model.1.model.3.model.3.model.3.model.1.bias"),
            r"norm=instance: missing model.model.1.model.3.model.3.model.3.model.1.bias$",
        ),
        (
            lambda: Unet(5, "batch", False, 3, 3),
            lambda s: s.update({"model.model.1.model.1.bias": torch.zeros(4), "model.model.9.weight": torch.zeros(4)}),
            r"unexpected model.model.1.model.1.bias, model.model.9.weight$",
        ),
        (
            lambda: published_resnet(2, "instance", False, 3, 3),
            lambda s: [s.pop(key) for key in list(s) if key.startswith("model.11.")],
            r"x.pth does not fit a ResNet generator: model.18.bias is missing or not of a convolution$",
        ),
        (
            lambda: published_resnet(2, "none", False, 3, 3),
            lambda s: s.pop("model.19.bias"),
            r"model.19.bias is missing or not of a convolution$",
        ),
        (
            lambda: published_resnet(2, "batch", False, 3, 3),
            lambda s: s.update({"model.4.weight": torch.zeros(6, 3, 4, 4)}),
            r"does not fit a ResNet generator with norm=batch: shape mismatch: model.4.weight .6×3×4×4, not 6×3×3×3.$",
        ),
        (
            lambda: Unet(5, "none", False, 3, 3),
            lambda s: s.update({"model.model.0.weight": torch.zeros(6)}),
            r"x.pth does not fit a U-Net: model.model.0.weight is missing or not of a convolution$",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 4), nn.Conv2d(4, 4, 4)),
            lambda s: None,
            r"x.pth is not a checkpoint of .*, nor a generator of .*; its first keys: 0.weight, 0.bias, 1.weight$",
        ),
        (
            lambda: Unet(5, "none", False, 3, 3),
            lambda s: s.update({"model.model.0.weight": 3}),
            r"model.model.0.weight is missing or not of a convolution$",
        ),
    ],
)
def test_what_does_not_fit_is_named_on_one_line(tmp_path, build, change, message):
    path = broken(build, change, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message) as caught:
        load_generator(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, {1: torch.zeros(2)}])
def test_files_that_hold_something_else(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x.pth is not a checkpoint of a genstab U-Net or ResNet, nor a generator of"):
        load_generator(tmp_path / "x.pth")


def test_the_weights_go_into_an_antialiased_network(tmp_path):
    for published, network in (
        (Unet(5, "batch", False, 3, 3), UNet),
        (published_resnet(2, "batch", False, 3, 3), ResNetGenerator),
    ):
        plain = load_generator(saved(published, tmp_path / "x.pth"))
        blurred = network(**{**plain.config, "antialias": AntiAlias("tri3", "post")})
        blurred.load_state_dict(plain.state_dict())
        assert blurred.eval()(torch.rand(1, 3, 32, 32)).isfinite().all()


def test_biases_before_batch_norms_are_refused(tmp_path):
    published = published_resnet(2, "batch", False, 3, 3)
    for module in published.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is None:
            module.bias = nn.Parameter(torch.ones(module.out_channels))
    with pytest.raises(
        InputError, match=r"norm=batch: unexpected model.1.bias, model.4.bias, model.7.bias and 6 more$"
    ):
        load_generator(saved(published, tmp_path / "x.pth"))


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "x.pth")  # a whole module: reading it would run its code
    with pytest.raises(InputError, match=r"Python objects \(torch.nn.modules.conv.Conv2d\).*nothing in it was run"):
        load_generator(tmp_path / "x.pth")
