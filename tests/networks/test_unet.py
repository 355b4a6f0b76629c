from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genstab import AntiAlias, InputError, PatchGAN, PixelGAN, ResNetGenerator, UNet, shift_psnr
from genstab.layers.anchored_noise import anchored_noise, noise_filters
from genstab.layers.filters import FILTERS, PLACEMENTS
from genstab.networks.unet import Head
from genstab.training.losses import adversarial_loss, detail_loss

GENERATORS = [partial(UNet, levels=4), partial(ResNetGenerator, blocks=2)]


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.func.__name__)
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (1, 5), (48, 8)])
def test_any_norm_placement_and_size(generator, norm, placement, size):
    network = generator(2, 5, channels=4, norm=norm, antialias=AntiAlias("bin5", placement))
    output = network(torch.randn(2, 2, *size))
    assert output.shape == (2, 5, *size)
    assert output.abs().max() <= 1
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_paper_sized_network_has_the_published_number_of_parameters():
    # pix2pix with 64 channels, 8 levels: 54.41 million, as the widely used implementation prints
    assert round(sum(p.numel() for p in UNet().parameters()) / 1e6, 2) == 54.41
    # its 70×70 PatchGAN prints 2.769 million
    assert round(sum(p.numel() for p in PatchGAN().parameters()) / 1e6, 3) == 2.769


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda generator: generator.func.__name__)
def test_plain_and_antialiased_networks_share_their_keys(generator):
    plain = generator(channels=4)
    for filter, placement in product(FILTERS, PLACEMENTS):
        generator(channels=4, antialias=AntiAlias(filter, placement)).load_state_dict(plain.state_dict())


def test_a_head_draws_the_decoders_map_times_source_and_anchored_noise():
    torch.manual_seed(0)
    network = UNet(2, 3, channels=4, levels=3, antialias="tri3", head=5).eval()
    source, seen = torch.randn(1, 2, 16, 24), []
    network.decoder[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        output = network(source)
        assert seen[0].shape == (1, 10, 16, 24)
        assert not list(network.head.noise.parameters())
        noise, draw = anchored_noise(source, noise_filters(2, 5)), network.head.draw
        picture, drawn, strength = seen[0].split((3, 2, 5), 1)
        weights = draw.weight.split((3, 2, 5), 1)
        parts = [
            F.conv2d(part, weight, padding=1)
            for part, weight in zip((picture, source * drawn, noise * strength), weights, strict=True)
        ]
    torch.testing.assert_close(output, torch.tanh(sum(parts) + draw.bias[:, None, None]))
    same = UNet(**{**network.config, "antialias": AntiAlias(**network.config["antialias"])})
    same.load_state_dict(network.state_dict())
    torch.testing.assert_close(same.eval()(source), output)


def test_a_new_head_gives_the_picture_of_the_decoder_and_more_where_that_wants_it():
    torch.manual_seed(0)
    head = Head(2, 4, 3, wrap=False)
    head.init()
    x, source = torch.randn(1, 9, 8, 9), torch.rand(1, 2, 8, 9)
    with torch.no_grad():
        head.draw.bias.zero_()
        torch.testing.assert_close(head(torch.cat((x[:, :3], 0 * x[:, 3:]), 1), source), x[:, :3])
        assert (head(x, source) - x[:, :3]).abs().mean() > 0.01


def test_with_a_head_polyphase_follows_every_shift():
    torch.manual_seed(0)
    antialias = AntiAlias("tri3", padding_mode="circular", polyphase=True)
    network = UNet(channels=4, levels=3, antialias=antialias, head=4).double().eval()
    decibels = shift_psnr(network, torch.rand(2, 3, 16, 24).double(), [(0, 1), (3, -5)], dtype=torch.float64)
    assert decibels.min() == 100


def test_dropout_is_in_the_first_decoder_layers_only():
    assert [up.dropout.p for up in UNet(channels=2).decoder] == [0.5, 0.5, 0.5, 0, 0, 0, 0, 0]


def test_initialisation_is_normal_with_a_deviation_of_0_02():
    torch.manual_seed(0)
    weights = [m.weight for m in UNet(channels=16, levels=6).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(weights) == 12
    values = torch.cat([w.flatten() for w in weights])
    assert abs(values.mean()) < 1e-4
    assert abs(values.std() - 0.02) < 1e-4


def centroid(image):
    rows, columns = torch.arange(image.shape[-2]), torch.arange(image.shape[-1])
    weight = image[0, 0] / image.sum()
    return torch.stack([(weight.sum(1) * rows).sum(), (weight.sum(0) * columns).sum()])


def linear_unet(levels, antialias, monkeypatch):
    """Without its activations and with constant weights: any drift is that of the resampling."""
    network = UNet(1, 1, channels=1, levels=levels, norm="none", dropout=0, antialias=antialias).double()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, 1 / 16)
            nn.init.zeros_(module.bias)
    for down in network.encoder:
        down.act = nn.Identity()
    monkeypatch.setattr(nn.functional, "relu", lambda x: x)
    return network


# Every filter at depths whose maps are turned over and not; the paper's eight levels with one filter of each parity.
IMPULSES = [*product([f for f in FILTERS if f != "ideal"], PLACEMENTS, (1, 2, 4), (0, 1))]
IMPULSES += [*product(("tri3", "bin4"), PLACEMENTS, (8,), (0, 1))]


@pytest.mark.parametrize(("filter", "placement", "levels", "odd"), IMPULSES)
def test_an_impulse_comes_back_where_it_was(filter, placement, levels, odd, monkeypatch):
    # A block of 2^levels pixels has one impulse on each polyphase component. The map is as narrow as can be, and turned
    # over at every other level, so that rows and columns are both looked at.
    block, size, turned = 2**levels, (40 if filter == "kaiser" else 20) * 2**levels - odd, levels % 2
    image = torch.zeros(1, 1, block, size, dtype=torch.float64)
    first = size // 2 - 5 * odd
    image[..., first : first + block] = 1e-9
    network = linear_unet(levels, AntiAlias(filter, placement), monkeypatch)
    output = network(image.mT if turned else image).detach()
    place = centroid(output)[0 if turned else 1]
    assert abs(place - (first + (block - 1) / 2)) < 0.01


@pytest.mark.parametrize("filter", ["tri3", "bin5", "ideal"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("levels", [1, 2, 5, 8])
def test_on_a_circle_an_impulse_comes_back_where_it_was(filter, placement, levels, monkeypatch):
    # The answer of the ideal filter rings all around: its place is the phase of the first wave.
    block, size = 2**levels, 8 * 2**levels
    image = torch.zeros(1, 1, block, size, dtype=torch.float64)
    image[..., 3 * block : 4 * block] = 1e-9
    network = linear_unet(levels, AntiAlias(filter, placement, "circular"), monkeypatch)
    row = network(image)[0, 0].sum(0).detach()
    wave = torch.exp(-2j * torch.pi * torch.arange(size, dtype=torch.float64) / size)
    place = -(row.to(wave.dtype) @ wave).angle() / (2 * torch.pi) * size % size
    assert abs(place - (3 * block + (block - 1) / 2)) < 0.01


def test_pre_equals_the_blur_right_after_the_convolution_away_from_the_borders():
    from genstab.layers.blur import BlurPool2d
    from genstab.networks.unet import Down

    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    down = Down((3, 4), "none", AntiAlias("bin5", "pre")).double()
    features = nn.functional.conv2d(nn.functional.pad(x, (1, 2, 1, 2)), down.conv.weight, down.conv.bias)
    blurred = nn.functional.leaky_relu(BlurPool2d("bin5", 2).double()(features), 0.2)
    torch.testing.assert_close(down(x)[0][..., 3:-3, 3:-3], blurred[..., 3:-3, 3:-3])


def test_post_is_convolution_norm_activation_blur():
    from genstab.layers.blur import BlurPool2d
    from genstab.networks.unet import Down

    down = Down((3, 4), "batch", AntiAlias("tri3", "post"))
    x = torch.randn(2, 3, 8, 8)
    features = nn.functional.conv2d(nn.functional.pad(x, (1, 2, 1, 2)), down.conv.weight)
    normed = nn.functional.batch_norm(features, None, None, down.norm.weight, down.norm.bias, training=True)
    torch.testing.assert_close(down(x)[0], BlurPool2d("tri3", 2)(nn.functional.leaky_relu(normed, 0.2)))


def test_one_patch_sees_70_pixels():
    network = PatchGAN(1, 1, channels=1, norm="none").double()
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    image = torch.zeros(1, 1, 256, 256, dtype=torch.float64, requires_grad=True)
    logits = network(torch.zeros(1, 1, 256, 256, dtype=torch.float64), image)
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    seen = image.grad[0, 0] != 0
    assert (seen.any(0).sum(), seen.any(1).sum()) == (70, 70)


def test_a_pixel_discriminator_judges_each_pixel_by_itself():
    # 7 · 64, 64 · 128, two of each of 128 channels, 128 + 1
    assert sum(p.numel() for p in PixelGAN().parameters()) == 9025
    network = PixelGAN(1, 2, channels=3).eval()
    source, image, order = torch.randn(2, 1, 3, 5), torch.randn(2, 2, 3, 5), torch.randperm(15)

    def mixed(x):
        return x.flatten(2)[..., order].unflatten(2, (3, 5))

    torch.testing.assert_close(network(mixed(source), mixed(image)), mixed(network(source, image)))


def test_adversarial_losses_by_hand():
    logits = torch.tensor([0.0, 2.0])
    # ln(1 + e^-x) for real, ln(1 + e^x) for generated
    assert adversarial_loss(logits, True).item() == pytest.approx((0.6931472 + 0.1269280) / 2)
    assert adversarial_loss(logits, False).item() == pytest.approx((0.6931472 + 2.1269280) / 2)
    assert adversarial_loss(logits, True, "lsgan").item() == pytest.approx(1.0)
    assert adversarial_loss(logits, False, "lsgan").item() == pytest.approx(2.0)
    with pytest.raises(InputError, match="gan_loss='wgan' is not one of bce, lsgan"):
        adversarial_loss(logits, True, "wgan")


def test_the_detail_loss_asks_for_contrast_wherever_it_is():
    torch.manual_seed(0)
    target = torch.rand(2, 3, 16, 16)
    assert detail_loss(target, target).item() == 0
    assert detail_loss(target.flip(-1) + 0.5, target).item() == pytest.approx(0, abs=1e-6)  # elsewhere, and brighter
    flat = torch.zeros(2, 3, 16, 16, requires_grad=True)
    detail_loss(flat, target).backward()
    assert flat.grad.isfinite().all()
    faint = (0.3 * target).requires_grad_()
    before = detail_loss(faint, target)
    before.backward()
    assert detail_loss(faint.detach() - faint.grad, target) < before


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNet(levels=0), "levels=0"),
        (lambda: UNet(channels=0), "channels=0"),
        (lambda: UNet(channels="x"), "channels=x is not an integer"),
        (lambda: UNet(head=-1), "head=-1 is not an integer of at least 0"),
        (lambda: UNet(head=True), "head=True is not an integer of at least 0"),
        (lambda: UNet(head=None), "head=None is not an integer of at least 0"),
        (lambda: UNet(2, channels=2)(torch.zeros(1, 3, 8, 8)), r"in_channels=2, not a source of \(1, 3, 8, 8\)"),
        (lambda: PatchGAN(1, 3, channels=1)(*torch.zeros(2, 1, 3, 32, 32)), r"target_channels=\(1, 3\), not images"),
        (lambda: UNet(dropout=1.0), "dropout=1.0"),
        (lambda: UNet(norm="layer", channels=2), "norm='layer' is not one of batch, instance, group, none"),
        (lambda: UNet(antialias="tri9"), "filter='tri9' is not one of"),
        (lambda: PatchGAN(layers=0), "layers=0"),
        (lambda: PixelGAN(channels=0), "channels=0"),
        (lambda: PixelGAN(1, 3, channels=1)(*torch.zeros(2, 1, 3, 4, 4)), r"target_channels=\(1, 3\), not images"),
        (
            lambda: PatchGAN(channels=1)(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)),
            "16×16 is smaller than 24",
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()
