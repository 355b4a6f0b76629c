"""Adaptive polyphase sampling commutes with every circular shift, ties and all."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn

from genstab import (
    AntiAlias,
    InputError,
    PatchGAN,
    Pix2Pix,
    PolyphaseDown2d,
    PolyphaseUp2d,
    ResNetGenerator,
    UNet,
    load_generator,
)
from genstab.data.synthetic import SyntheticFacades
from genstab.layers.blur import blur2d
from genstab.layers.filters import taps
from genstab.layers.polyphase import (
    choose_phases,
    context_hash,
    polyphase_downsample2d,
    polyphase_upsample2d,
    roll_phases,
)
from genstab.networks.unet import Down, Up
from tests.conftest import pairs_loader
from tests.training.test_pix2pix import QUIET

FILTERS = ["none", "tri3", "bin4"]
SMALL = {"in_channels": 1, "out_channels": 1, "channels": 2}


def all_shifts(height, width):
    return list(product(range(height), range(width)))


def rolled(images, shift):
    return torch.roll(images, shift, (-2, -1))


def moved(phases, shift, stride=2):
    """Where a shift takes the phases."""
    return (phases + torch.as_tensor(shift)) % stride


def has_odd_symmetry(images, stride=2):
    """Whether an image equals itself shifted by something that the stride does not divide."""
    found = torch.zeros(len(images), dtype=torch.bool)
    for shift in all_shifts(*images.shape[-2:]):
        if shift[0] % stride or shift[1] % stride:
            found |= (rolled(images, shift) == images).flatten(1).all(1)
    return found


def moves_with_the_picture(images, stride=2):
    """For each image, whether the choice follows it under every shift."""
    phases, follows = choose_phases(images, stride), torch.ones(len(images), dtype=torch.bool)
    for shift in all_shifts(*images.shape[-2:]):
        follows &= (choose_phases(rolled(images, shift), stride) == moved(phases, shift, stride)).all(1)
    return follows


def drawn(rows):
    """An image from its picture: # is 1, everything else −1."""
    return torch.tensor([[1.0 if pixel == "#" else -1.0 for pixel in row] for row in rows.split()])[None, None]


# Functions


def test_down_and_up_by_hand():
    image = torch.arange(24.0).view(1, 1, 4, 6)
    kept = polyphase_downsample2d(image, torch.tensor([[1, 0]]))
    assert kept.tolist() == [[[[6, 8, 10], [18, 20, 22]]]]
    up = polyphase_upsample2d(kept, torch.tensor([[1, 0]]))
    assert up[0, 0].tolist() == [[0] * 6, [6, 0, 8, 0, 10, 0], [0] * 6, [18, 0, 20, 0, 22, 0]]
    thirds = polyphase_downsample2d(image[..., :3, :], torch.tensor([[2, 1]]), stride=3)
    assert thirds.tolist() == [[[[13, 16]]]]
    assert polyphase_upsample2d(thirds, torch.tensor([[2, 1]]), 3)[0, 0].tolist() == [
        [0] * 6,
        [0] * 6,
        [0, 13, 0, 0, 16, 0],
    ]


def test_the_largest_norm_is_chosen_by_hand():
    image = torch.tensor([[3.0, 0, 0, 0], [0, 2, 0, 2.5]])
    # norms²: (0, 0) 9, (1, 1) 4 + 6.25
    assert choose_phases(image[None, None]).tolist() == [[1, 1]]
    # of both channels together: (0, 0) has 9 + 81
    assert choose_phases(torch.stack((image, image * torch.tensor([3.0, 0, 0, 0])))[None]).tolist() == [[0, 0]]


def test_each_image_has_its_own_phase_and_no_image_sees_another():
    images = torch.randn(5, 3, 6, 8)
    phases = choose_phases(images)
    assert len(phases.unique(dim=0)) > 1
    for function in (polyphase_downsample2d, polyphase_upsample2d, roll_phases):
        together = function(images, phases)
        for i in range(len(images)):
            assert torch.equal(together[i : i + 1], function(images[i : i + 1], phases[i : i + 1]))
    assert torch.equal(choose_phases(images[2:3] * 1e6), phases[2:3])


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_functions_equal_slicing(stride):
    images = torch.randn(9, 2, 6, 12)
    phases = torch.tensor(all_shifts(3, 3)) % stride
    kept = polyphase_downsample2d(images, phases, stride)
    up = polyphase_upsample2d(kept, phases, stride)
    turned = roll_phases(images, phases, stride)
    assert torch.equal(roll_phases(turned, phases, stride, back=True), images)
    for i, (y, x) in enumerate(phases.tolist()):
        assert torch.equal(kept[i], images[i, :, y::stride, x::stride])
        expected = torch.zeros_like(images[i])
        expected[:, y::stride, x::stride] = kept[i]
        assert torch.equal(up[i], expected)
        assert torch.equal(turned[i], rolled(images[i], (y, x)))


@pytest.mark.parametrize("size", [(2, 2), (2, 6), (12, 6)])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_choice_follows_the_picture(size, stride):
    torch.manual_seed(0)
    assert moves_with_the_picture(torch.randn(20, 3, *size), stride).all()
    assert moves_with_the_picture(torch.randn(20, 3, *size, dtype=torch.float64), stride).all()


def test_the_choice_follows_the_picture_with_stride_3():
    torch.manual_seed(0)
    assert moves_with_the_picture(torch.randn(20, 2, 3, 9), 3).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    images = (100 * torch.randn(4, 3, 8, 8)).to(dtype)  # squares that float16 cannot hold
    assert moves_with_the_picture(images).all()
    kept, phases = PolyphaseDown2d(filter="tri3")(images)
    assert kept.dtype == PolyphaseUp2d(filter="tri3")(kept, phases).dtype == dtype
    assert torch.equal(phases, choose_phases(blur2d(images, taps("tri3"), "circular").float()))


# Ties


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("size", [(2, 6), (1, 10), (3, 3)])
def test_ties_of_every_two_valued_picture_are_broken_the_same_way(low, size):
    stride = 3 if size == (3, 3) else 2
    count = size[0] * size[1]
    pictures = torch.tensor(list(product((low, 1.0), repeat=count))).view(-1, 1, *size)
    if size[0] == 1:  # a row of its own below each, or else every picture would be symmetric from top to bottom
        pictures = torch.cat((pictures, torch.full_like(pictures, low)), 2)
    follows, symmetric = moves_with_the_picture(pictures, stride), has_odd_symmetry(pictures, stride)
    assert (follows | symmetric).all()
    assert not (follows & symmetric).any()  # which no rule could follow
    norms = [pictures[..., y::stride, x::stride].square().sum((1, 2, 3)) for y, x in all_shifts(stride, stride)]
    assert (torch.stack(norms).sort(0).values[-2:].diff(dim=0) == 0).float().mean() > 0.2


PICTURES = {
    "rectangle": "........ .####... .####... ........",
    "two rectangles a long and odd way apart": "..##...........##............... ................................",
    "stripes of period 4, one of them shorter": "##..##.. ##..##.. ##..##.. ##......",
    "point-symmetric": "..#..... #....... .......# .....#..",
    "its own negative after three": "###...###... ............",
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_ties_of_label_maps(name, scale):
    picture = scale * drawn(PICTURES[name])
    norms = [picture[..., y::2, x::2].square().sum() for y, x in all_shifts(2, 2)]
    assert torch.stack(norms).sort().values[-2:].diff() == 0
    assert not has_odd_symmetry(picture).any()
    assert moves_with_the_picture(torch.cat((picture, -picture))).all()


@pytest.mark.parametrize(
    "picture", ["#### ####", "#.#. .#.#", "##.##. ##.##.", "#... ....", "##.. ##..", "#.#. #.#."], ids=repr
)
def test_symmetric_pictures_take_the_first_tied_phase(picture):
    picture = drawn(picture)
    phases = choose_phases(picture)
    assert torch.equal(choose_phases(picture.repeat(3, 2, 1, 1)), phases.repeat(3, 1))
    for shift in all_shifts(*picture.shape[-2:]):
        same = choose_phases(rolled(picture, shift))
        if torch.equal(rolled(picture, shift), picture):
            assert torch.equal(same, phases)
        else:  # what it can follow, it follows: stripes and checkerboards along the axis where they differ
            kept = polyphase_downsample2d(rolled(picture, shift), same)
            assert any(torch.equal(kept, rolled(polyphase_downsample2d(picture, phases), s)) for s in all_shifts(2, 4))


def test_constant_and_empty_pictures_have_a_phase():
    for value in (0.0, 1.0, -1e-30, float("inf"), float("nan")):
        assert (choose_phases(torch.full((1, 3, 4, 4), value)) // 2 == 0).all()
    assert choose_phases(torch.ones(0, 3, 4, 4)).shape == (0, 2)


def test_rounding_does_not_break_ties():
    torch.manual_seed(0)
    picture = drawn(PICTURES["rectangle"]).repeat(50, 3, 4, 2)
    noisy = picture + 1e-6 * torch.randn_like(picture)
    assert torch.equal(choose_phases(noisy), choose_phases(picture))


def test_the_largest_sums_do_not_overflow():
    # energies of 2^28 · 512 · 2^22 are within 63 bits; seen² · 2^22 too. Here: all that is computed on the way
    ones = torch.ones(1, 512, 64, 64)
    ones[..., 1, 2] = -1
    seen = context_hash(ones)
    assert 0 <= seen.min() < seen.max() <= 2**13
    assert moves_with_the_picture(ones[..., :4, :4]).all()


# Modules


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("filter", FILTERS)
def test_modules_equal_functions(filter, stride):
    images = torch.randn(4, 3, 6, 12, dtype=torch.float64)
    down, up = PolyphaseDown2d(stride, filter), PolyphaseUp2d(stride, filter)
    kept, phases = down(images)
    blurred = images if filter == "none" else blur2d(images, taps(filter), "circular")
    assert torch.equal(phases, choose_phases(blurred, stride))
    assert torch.equal(kept, polyphase_downsample2d(blurred, phases, stride))
    placed = polyphase_upsample2d(kept, phases, stride)
    expected = placed if filter == "none" else blur2d(placed, taps(filter), "circular", mirrored=True) * stride**2
    torch.testing.assert_close(up(kept, phases), expected)
    for module in (down, up):
        assert not module.state_dict()
        assert not list(module.parameters())
        assert f"stride={stride}" in repr(module)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(4, 8), (6, 6)])
def test_down_and_up_together_commute_with_every_shift(filter, size):
    torch.manual_seed(0)
    images = torch.randn(3, 2, *size)
    down, up = PolyphaseDown2d(filter=filter), PolyphaseUp2d(filter=filter)
    kept, phases = down(images)
    output = up(kept, phases)
    for shift in all_shifts(*size):
        kept_of_shifted, phases_of_shifted = down(rolled(images, shift))
        assert torch.equal(phases_of_shifted, moved(phases, shift))
        torch.testing.assert_close(up(kept_of_shifted, phases_of_shifted), rolled(output, shift), rtol=0, atol=1e-6)
        steps = (phases + torch.tensor(shift)) // 2
        for i in range(len(images)):
            torch.testing.assert_close(kept_of_shifted[i], rolled(kept[i], steps[i].tolist()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("filter", FILTERS)
def test_gradient_is_right_and_goes_to_the_kept_pixels_only(filter):
    torch.manual_seed(0)
    images = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    down, up = PolyphaseDown2d(filter=filter).double(), PolyphaseUp2d(filter=filter).double()
    assert torch.autograd.gradcheck(lambda x: up(*down(x)), (images,))
    if filter == "none":
        kept, phases = down(images)
        kept.sum().backward()
        assert torch.equal(images.grad, polyphase_upsample2d(torch.ones_like(kept), phases))


def test_modules_compile():
    down = torch.compile(PolyphaseDown2d(filter="tri3"), backend="eager", fullgraph=True)
    images = torch.randn(3, 2, 8, 8)
    kept, phases = down(images)
    assert torch.equal(kept, PolyphaseDown2d(filter="tri3")(images)[0])
    up = torch.compile(PolyphaseUp2d(), backend="eager", fullgraph=True)
    assert torch.equal(up(kept, phases), PolyphaseUp2d()(kept, phases))


# The U-Net


def unet(levels, filter="none", placement="pre", **kwargs):
    return UNet(**{**SMALL, "levels": levels, "antialias": AntiAlias(filter, placement, "circular", True), **kwargs})


def train(network, size, steps=8):
    """Some steps on drawn façades: weights and statistics that are nobody's default."""
    pairs = SyntheticFacades(4, max(size))
    source = torch.stack([pairs[i]["source"] for i in range(4)])[:, :1, : size[0], : size[1]]
    target = torch.stack([pairs[i]["target"] for i in range(4)])[:, :1, : size[0], : size[1]]
    optimizer = torch.optim.Adam(network.train().parameters(), 2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (network(source) - target).abs().mean().backward()
        optimizer.step()
    return source[:1]


@torch.no_grad()
def worst_decibel(network, image, shifts, batch=64):
    """The least PSNR over the shifts, uncapped; a minimum, for one bad shift among thousands must show."""
    network.eval()
    output, worst = network(image), torch.inf
    for i in range(0, len(shifts), batch):
        some = shifts[i : i + batch]
        outputs = network(torch.cat([rolled(image, shift) for shift in some]))
        expected = torch.cat([rolled(output, shift) for shift in some])
        errors = (outputs - expected).double().square().mean((1, 2, 3))
        worst = min(worst, (10 * torch.log10(4 / errors)).min().item())
    return worst


# A blur makes a map of 2×2 constant: it has no grid any more, and needs none. So the last map is larger there.
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize(
    ("filter", "levels", "size"),
    [("none", 4, (16, 16)), ("none", 2, (12, 4)), ("tri3", 3, (16, 32)), ("tri3", 2, (8, 12)), ("bin4", 2, (16, 8))],
)
def test_every_level_commutes_with_every_shift(filter, placement, levels, size):
    torch.manual_seed(0)
    network = unet(levels, filter, placement)
    image = torch.randn(1, 1, *size)
    network.train()(torch.randn(4, 1, *size))  # statistics
    network.eval()
    maps = {}
    for name, layer in [*network.encoder.named_children(), *network.decoder.named_children()]:
        key = ("down" if layer in list(network.encoder) else "up", int(name))
        layer.register_forward_hook(lambda _, inputs, output, key=key: maps.__setitem__(key, output))

    def all_rolled(images, at):
        return torch.cat([rolled(images, shift) for shift in at.tolist()])

    with torch.no_grad():
        network(image)
        first = dict(maps)
        at = torch.tensor(all_shifts(*size))
        network(all_rolled(image, at))
    ats = []  # where the pictures have moved, at each resolution
    for i in range(levels):
        (kept, phases), (kept_of_shifted, phases_of_shifted) = first["down", i], maps["down", i]
        assert torch.equal(phases_of_shifted, moved(phases, at))
        ats.append(at)
        at = (phases + at - phases_of_shifted) // 2
        torch.testing.assert_close(kept_of_shifted, all_rolled(kept, at), rtol=1e-4, atol=1e-5)
    for i, at in enumerate(reversed(ats)):
        torch.testing.assert_close(maps["up", i], all_rolled(first["up", i], at), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_network_is_at_the_cap_for_every_shift(filter, placement, norm):
    torch.manual_seed(0)
    network = unet(3, filter, placement, norm=norm)
    shifts = all_shifts(16, 8)
    assert worst_decibel(network, torch.randn(1, 1, 16, 8), shifts) > 100
    train(network, (16, 16))
    assert worst_decibel(network, torch.randn(1, 1, 16, 8), shifts) > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("placement", "filter", "levels"),
    [("pre", "none", 6), ("pre", "tri3", 4), ("post", "none", 4), ("post", "tri3", 6)],
)
def test_network_is_at_the_cap_for_shifts_of_64_by_64(filter, placement, levels):
    """For every seventh shift: seven is odd, so every row and every column of the grid is among them."""
    torch.manual_seed(levels)
    network = unet(levels, filter, placement, channels=1)
    image = SyntheticFacades(8, 64)[levels]["source"][None, :1]
    train(network, (64, 64))
    assert worst_decibel(network, image, all_shifts(64, 64)[::7]) > 100


def test_network_without_polyphase_or_on_other_sizes_is_not():
    torch.manual_seed(0)
    image, shifts = torch.randn(1, 1, 16, 16), all_shifts(4, 4)
    network = UNet(**SMALL, levels=3, antialias=AntiAlias("tri3", "pre", "circular"))
    train(network, (16, 16))
    assert worst_decibel(network, image, shifts) < 80
    assert worst_decibel(network, image, [(8, 0), (0, 8), (8, 8)]) > 100  # multiples of 2^levels
    network = unet(3)
    train(network, (16, 16))
    assert worst_decibel(network, torch.randn(1, 1, 15, 16), shifts) < 80


@pytest.mark.parametrize("filter", ["none", "tri3", "bin4"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_circular_layers_are_the_plain_ones_on_a_periodic_picture(filter, placement):
    # Everything that is wrapped around the borders equals the middle of the same picture tiled, with zeros far away.
    torch.manual_seed(0)
    x = torch.randn(2, 2, 8, 6, dtype=torch.float64)
    for build, factor in ((lambda a: Down((2, 3), "none", a), 0.5), (lambda a: Up((2, 3), "none", 0.0, a), 2)):
        circular, plain = (build(AntiAlias(filter, placement, mode)).double() for mode in ("circular", "zeros"))
        plain.load_state_dict(circular.state_dict())
        outputs = [layer(v) for layer, v in ((circular, x), (plain, x.repeat(1, 1, 3, 3)))]
        whole, tiled = (output[0] if isinstance(output, tuple) else output for output in outputs)
        height, width = int(8 * factor), int(6 * factor)
        torch.testing.assert_close(whole, tiled[..., height : 2 * height, width : 2 * width])


def test_transposed_convolution_on_the_grid_equals_up_then_convolution():
    x, phases = torch.randn(4, 2, 4, 6, dtype=torch.float64), torch.tensor(all_shifts(2, 2))
    layer = Up((2, 3), "none", 0.0, AntiAlias("none", "pre", "circular", True)).double()
    placed = F.pad(PolyphaseUp2d()(x.relu(), phases), (2, 1, 2, 1), mode="circular")
    kernel = layer.conv.weight.flip(2, 3).transpose(0, 1)
    torch.testing.assert_close(layer(x, phases), F.conv2d(placed, kernel, layer.conv.bias))


@pytest.mark.parametrize("filter", ["none", "tri3"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_keys_are_those_of_the_plain_network(filter, placement):
    plain = UNet(**SMALL, levels=3)
    unet(3, filter, placement).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (1, 5)])
def test_any_size_trains(placement, size):
    network = unet(4, "bin5", placement)
    output = network(torch.randn(2, 1, *size))
    assert output.shape == (2, 1, *size)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("levels", [1, 2])
def test_impulses_come_back_where_they_were(filter, placement, levels):
    network = unet(levels, filter, placement, channels=1, norm="none").double()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    block = 2**levels  # an impulse on each polyphase component
    image = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    image[..., 31 : 31 + block, 30 : 30 + block] = 1e-9
    output = network(image)[0, 0].detach()
    for sums, first in ((output.sum(1), 31), (output.sum(0), 30)):
        centre = (sums * torch.arange(64)).sum() / output.sum()
        assert abs(centre - (first + (block - 1) / 2)) < 0.01


def test_load_generator_brings_it_back(tmp_path):
    network = unet(3, "tri3", out_channels=3)
    trainer = Trainer(max_steps=2, **QUIET)
    trainer.fit(Pix2Pix(network, PatchGAN(1, 3, channels=2)), pairs_loader(4, 2))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(load_generator(tmp_path / "some.ckpt")(image), network.eval()(image))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PolyphaseDown2d(0), "stride=0 is not an integer of at least 1"),
        (lambda: PolyphaseUp2d(1.5), "stride=1.5 is not an integer"),
        (lambda: PolyphaseDown2d(filter="tri9"), "filter='tri9' is not one of"),
        (lambda: PolyphaseUp2d(filter="tri9"), "filter='tri9' is not one of"),
        (lambda: PolyphaseDown2d()(torch.zeros(1, 1, 4, 5)), "stride=2 does not divide the image size 4×5"),
        (lambda: choose_phases(torch.zeros(1, 1, 4, 4), 3), "stride=3 does not divide the image size 4×4"),
        (lambda: AntiAlias(polyphase=True), "padding_mode='reflect' with polyphase=True is not circular"),
        (lambda: AntiAlias("none", "pre", "circular", "yes"), "polyphase='yes' is not one of True, False"),
        (
            lambda: ResNetGenerator(antialias=AntiAlias("none", "pre", "circular", True)),
            "polyphase=True is not supported",
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("size", [(64, 96), (128, 128), (256, 80), (512, 160)])
@pytest.mark.parametrize("background", [-1.0, 0.0])
def test_a_small_thing_in_a_large_picture_takes_its_grid_with_it(size, background):
    images = torch.full((3, 3, *size), background)
    images[0, :, 10:12, 10:12] = 1  # every component has the same share of each of these
    images[1, :, 20:26, 30:36] = 1
    images[2, :, 4:6, 4:6] = images[2, :, 40:44, 50:58] = 1
    phases = choose_phases(images)
    for shift in ((0, 1), (1, 0), (1, 1), (3, 5), (size[0] // 2 + 1, size[1] - 1)):
        assert torch.equal(choose_phases(rolled(images, shift)), moved(phases, shift))


def test_what_is_no_batch_of_images_or_phases_is_named():
    with pytest.raises(InputError, match=r"images of shape \(3, 4, 4\) are not \(N, C, H, W\)"):
        PolyphaseDown2d()(torch.zeros(3, 4, 4))
    phases = torch.zeros(1, 2, dtype=torch.long)
    with pytest.raises(InputError, match=r"phases of shape \(1, 2\) are not \(N, 2\) for 3 images"):
        PolyphaseUp2d()(torch.zeros(3, 1, 4, 4), phases)
