"""Generators of the CycleGAN/pix2pix repository: its one real file at hand, and its key layout built here."""

import argparse
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from genstab import (
    AntiAlias,
    InputError,
    ResNetGenerator,
    UNet,
    antialias,
    load_generator,
    load_model,
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


class Filtered(nn.Module):
    """A blur of CUT: [1 2 1] after a convolution, or a doubling with [1 3 3 1], with its buffer `filt`."""

    def __init__(self, channels, row, doubles):
        super().__init__()
        self.doubles = doubles
        row = torch.tensor(row) / sum(row)
        self.register_buffer("filt", (row[:, None] * row * (4 if doubles else 1)).expand(channels, 1, -1, -1).clone())

    def forward(self, x):
        if not self.doubles:
            return nn.functional.conv2d(
                nn.functional.pad(x, (1, 1, 1, 1), "reflect"), self.filt, None, 2, 0, 1, len(x[0])
            )
        # zeros between the pixels, and a border of replicated ones: new pixel 2i is 3/4 of pixel i and 1/4 of i − 1
        x = nn.functional.pad(x, (1, 1, 1, 1), "replicate")
        wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        wide[..., ::2, ::2] = x
        blurred = nn.functional.conv2d(wide, self.filt, groups=x.shape[1])
        return blurred[..., : wide.shape[2] - 4, : wide.shape[3] - 4]


PADS = {"reflect": [nn.ReflectionPad2d(1)], "replicate": [nn.ReplicationPad2d(1)], "zeros": []}


def published_resnet(blocks, norm, dropout, source, target, width=3, pad="reflect", blurs=(False, False)):
    make, bias = NORMS[norm], norm == "instance"
    layers = [nn.ReflectionPad2d(3), nn.Conv2d(source, width, 7, bias=bias), make(width), nn.ReLU()]
    for n in (width, 2 * width):
        layers += [nn.Conv2d(n, 2 * n, 3, 1 if blurs[0] else 2, 1, bias=bias), make(2 * n), nn.ReLU()]
        layers += [Filtered(2 * n, [1.0, 2, 1], False)] * blurs[0]
    n = 4 * width
    for _ in range(blocks):
        conv = {"kernel_size": 3, "padding": int(pad == "zeros"), "bias": bias}
        first = [*PADS[pad], nn.Conv2d(n, n, **conv), make(n), nn.ReLU()]
        second = [*PADS[pad], nn.Conv2d(n, n, **conv), make(n)]
        layers.append(Skip(first + [nn.Dropout(0.5)] * dropout + second))
    for n in (4 * width, 2 * width):
        if blurs[1]:
            layers += [Filtered(n, [1.0, 3, 3, 1], True), nn.Conv2d(n, n // 2, 3, 1, 1, bias=bias)]
        else:
            layers += [nn.ConvTranspose2d(n, n // 2, 3, 2, 1, output_padding=1, bias=bias)]
        layers += [make(n // 2), nn.ReLU()]
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


@pytest.mark.parametrize(
    ("norm", "blurs", "pad", "dropout"),
    [
        ("instance", (True, True), "reflect", False),  # the default of CUT
        ("batch", (True, False), "reflect", True),
        ("none", (False, True), "replicate", False),
        ("batch", (False, False), "zeros", False),
        ("instance", (True, True), "zeros", True),
    ],
)
def test_blurs_of_cut_and_paddings(tmp_path, norm, blurs, pad, dropout):
    published = randomised(published_resnet(2, norm, dropout, 3, 3, pad=pad, blurs=blurs))
    notes: list[str] = []
    path, padding = saved(published, tmp_path / "x.pth"), pad if pad == "replicate" else None
    generator = load_generator(path, padding=padding, notes=notes)
    assert generator.config["block_padding"] == pad
    assert_same(generator, published, 3, (16, 24))
    unsaid = ["x.pth: its keys do not tell reflection from replication; model.padding=replicate if so"]
    assert notes == (unsaid if pad == "reflect" else [])
    with pytest.raises(InputError, match=r"its keys allow (zeros|reflect or replicate)$"):
        load_generator(path, padding="reflect" if pad == "zeros" else "zeros")


def test_a_blur_that_cut_has_not(tmp_path):
    network = published_resnet(2, "batch", False, 3, 3, blurs=(True, True))
    network.model[7].filt *= 2
    with pytest.raises(InputError, match=r"the blur model.7.filt of \(6, 1, 3, 3\) is none that CUT has by default"):
        load_generator(saved(network, tmp_path / "x.pth"))


def test_the_layout_here_has_the_published_number_of_parameters():
    # numbers of parameters that the repository prints for its default generators, in millions
    with torch.device("meta"):
        networks = (
            (Unet(8, "batch", True, 3, 3, 64), 54.414),
            (Unet(7, "batch", True, 3, 3, 64), 41.829),
            (published_resnet(9, "instance", False, 3, 3, 64), 11.378),
            (published_resnet(6, "instance", False, 3, 3, 64), 7.838),
        )
    for network, millions in networks:
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == millions


SMALL = [lambda: Unet(5, "batch", False, 3, 3), lambda: published_resnet(2, "batch", False, 3, 3)]


@pytest.mark.parametrize("build", SMALL)
def test_wrapped_networks(tmp_path, build):
    published = randomised(build())
    path = saved(nn.DataParallel(published), tmp_path / "x.pth")
    assert all(key.startswith("module.model.") for key in torch.load(path, weights_only=True))
    assert_same(load_generator(path), published, 3, (32, 32))
    state = published.state_dict()
    for wrap in (
        lambda: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda: {"netG": state, "epoch": 3, "netD": {"model.0.weight": torch.zeros(3)}},
        lambda: {"state_dict": {f"netG.{key}": value for key, value in state.items()} | {"netD.x": torch.zeros(3)}},
        lambda: {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}},
        lambda: {"model": {f"model.{key}": value for key, value in state.items()}},
    ):
        torch.save(wrap(), path)
        assert_same(load_generator(path), published, 3, (32, 32))
        published.float()
    save_file(state, tmp_path / "x.safetensors")
    assert_same(load_model(tmp_path / "x.safetensors"), published, 3, (32, 32))


def test_one_of_several_generators_by_its_prefix_or_as_an_average(tmp_path):
    first, second = (randomised(published_resnet(2, "batch", False, 3, 3)) for _ in "ab")
    nn.init.zeros_(second.model[1].weight)
    path = tmp_path / "x.pth"
    torch.save({"netG_A": first.state_dict(), "netG_B": second.state_dict()}, path)
    with pytest.raises(
        InputError, match=r"2 different sets .* of a generator: netG_A, netG_B; model.prefix=netG_A chooses"
    ):
        load_generator(path)
    for prefix in ("netG_B", "netG_B."):
        assert load_generator(path, prefix=prefix).stem.weight.eq(0).all()
    with pytest.raises(InputError, match=r"model.prefix=netG_C names no weights in .*: there are netG_A, netG_B$"):
        load_generator(path, prefix="netG_C")
    torch.save({"model": first.state_dict(), "model_ema": {"module": second.state_dict()}}, path)
    with pytest.raises(InputError, match=r"model.weights=ema or raw chooses one"):
        load_generator(path)
    for weights, is_second in (("ema", True), ("raw", False)):
        assert load_generator(path, weights=weights).stem.weight.eq(0).all() == is_second
        own = load_model(path, published_resnet(2, "batch", False, 3, 3), weights=weights)
        assert own.model[1].weight.eq(0).all() == is_second
    with pytest.raises(InputError, match=r"model.weights='best' is not one of raw, ema"):
        load_generator(path, weights="best")


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


class Options:
    """Of somebody's training script."""

    def __setstate__(self, state):
        Path("executed").touch()


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_objects_of_an_old_training_script(tmp_path, zipped):
    published, notes = randomised(published_resnet(2, "batch", False, 3, 3)), []
    beside = {"opt": argparse.Namespace(lr=0.1, best=np.float64(3)), "loss": np.float32(2), "mine": Options()}
    beside["mine"].x = 3  # or nothing would be set
    path = tmp_path / "x.pth"
    torch.save({"netG": published.state_dict(), **beside}, path, _use_new_zipfile_serialization=zipped)
    assert_same(load_generator(path, notes=notes), published, 3, (16, 16))
    assert notes[0].startswith("x.pth: argparse.Namespace, numpy")
    assert notes[0].endswith(f"{__name__}.Options left out; only tensors and plain values are read, no code is run")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "claim",
    [
        lambda content: content["generator"].update(channels=10**7),
        lambda content: content["generator"].update(levels=16),
        lambda content: content["generator"].update(in_channels=10**30),
        lambda content: content["generator"].update(channels=-3),
        lambda content: content["generator"].pop("levels") and content["generator"].update(blocks=10**9),
        # a tensor that repeats one number, and so has the right shape
        lambda content: content.update(
            generator={**content["generator"], "channels": 2000},
            state_dict={
                f"generator.{key}": torch.zeros(()).expand(value.shape)
                for key, value in _state_without_memory(2000).items()
            },
        ),
    ],
)
def test_a_small_file_that_claims_a_huge_network(tmp_path, claim):
    network = UNet(channels=2, levels=2)
    content = {
        "generator": dict(network.config),
        "state_dict": {f"generator.{key}": value for key, value in network.state_dict().items()},
    }
    torch.save(content, tmp_path / "x.ckpt")
    load_generator(tmp_path / "x.ckpt")
    claim(content)
    torch.save(content, tmp_path / "x.ckpt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"x.ckpt (claims|does not fit the)") as caught:
        load_generator(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB; it would take 1 GB


def _state_without_memory(channels):
    with torch.device("meta"):
        return UNet(channels=channels, levels=2).state_dict()


def test_the_folder_of_a_run(tmp_path):
    network = UNet(channels=2, levels=2)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    state = {f"generator.{key}": value for key, value in network.state_dict().items()}
    torch.save({"generator": network.config, "state_dict": state}, tmp_path / "run/checkpoints/last.ckpt")
    assert load_generator(tmp_path / "run").config == network.config
    with pytest.raises(InputError, match=r"checkpoints is a folder without checkpoints.last.ckpt"):
        load_generator(tmp_path / "run/checkpoints")


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "x.pth")  # a whole module: reading it would run its code
    with pytest.raises(InputError, match=r"Python objects \(torch.nn.modules.conv.Conv2d\).*nothing in it was run"):
        load_generator(tmp_path / "x.pth")
