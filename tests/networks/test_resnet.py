import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from genstab import AntiAlias, BlurPool2d, InputError, PatchGAN, Pix2Pix, ResNetGenerator, load_generator
from genstab.layers.filters import FILTERS, PLACEMENTS
from genstab.networks.resnet import Grow, Residual, Shrink
from tests.conftest import pairs_loader
from tests.networks.test_unet import centroid
from tests.training.test_pix2pix import QUIET


def test_other_sizes_are_padded_by_reflection():
    torch.manual_seed(0)
    network = ResNetGenerator(1, 1, channels=4, blocks=1, norm="batch").eval()
    x = torch.randn(1, 1, 18, 31)
    padded = nn.functional.pad(x, (0, 1, 0, 2), mode="reflect")
    assert torch.equal(network(x), network(padded)[..., :18, :31])


def test_initialisation_is_normal_with_a_deviation_of_0_02():
    torch.manual_seed(0)
    network = ResNetGenerator(channels=16, blocks=3)
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(weights) == 12
    values = torch.cat([w.flatten() for w in weights])
    assert abs(values.mean()) < 2e-4
    assert abs(values.std() - 0.02) < 1e-4


def test_cyclegan_sized_network_has_the_published_number_of_parameters():
    # 9 blocks, 64 channels: the widely used implementation prints 11.378 million, with the biases before its instance
    # norms, which have no effect and are left out here
    count = sum(p.numel() for p in ResNetGenerator().parameters())
    idle_biases = 64 + 128 + 256 + 9 * 2 * 256 + 128 + 64
    assert round((count + idle_biases) / 1e6, 3) == 11.378


def test_the_blurs_are_at_the_four_resampling_layers():
    network = ResNetGenerator(channels=2, blocks=2, antialias="tri3")
    places = [name for name, module in network.named_modules() if isinstance(module, BlurPool2d)]
    assert places == ["encoder.0.before", "encoder.1.before", "decoder.0.blur", "decoder.1.blur"]


@pytest.mark.parametrize("filter", [f for f in FILTERS if f != "ideal"])  # the ideal filter sees the borders
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_an_impulse_comes_back_where_it_was(filter, placement, monkeypatch):
    # Linear, and symmetric weights with the same gain on each polyphase component: any drift is that of the resampling.
    monkeypatch.setattr(nn.functional, "relu", lambda x: x)
    network = ResNetGenerator(1, 1, channels=1, blocks=1, norm="none", antialias=AntiAlias(filter, placement)).double()
    tent = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.ones_(module.weight)
            if module.kernel_size == (3, 3):
                module.weight.data[:] = torch.outer(tent, tent)
            nn.init.zeros_(module.bias)
    image = torch.zeros(1, 1, 128, 128, dtype=torch.float64)
    image[..., 64:68, 60:64] = 1e-12
    expected = torch.tensor([65.5, 61.5], dtype=torch.float64)
    assert (centroid(network(image)) - expected).abs().max() < 0.01


def test_pre_equals_the_blur_right_after_the_convolution_away_from_the_borders():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    layer = Shrink((3, 4), "none", AntiAlias("bin5", "pre")).double()
    features = nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
    blurred = nn.functional.relu(BlurPool2d("bin5", 2).double()(features))
    torch.testing.assert_close(layer(x)[..., 3:-3, 3:-3], blurred[..., 3:-3, 3:-3])


def test_post_is_convolution_norm_activation_blur():
    layer = Shrink((3, 4), "batch", AntiAlias("tri3", "post"))
    x = torch.randn(2, 3, 8, 8)
    features = nn.functional.conv2d(x, layer.conv.weight, padding=1)
    normed = nn.functional.batch_norm(features, None, None, layer.norm.weight, layer.norm.bias, training=True)
    torch.testing.assert_close(layer(x), BlurPool2d("tri3", 2)(nn.functional.relu(normed)))


def test_growing_is_transposed_convolution_blur_norm_activation():
    layer = Grow((3, 4), "instance", AntiAlias("bin4"))
    x = torch.randn(2, 3, 8, 8)
    features = nn.functional.conv_transpose2d(x, layer.conv.weight, stride=2, padding=1, output_padding=1)
    blurred = BlurPool2d("bin4", 1, mirrored=True)(features)
    torch.testing.assert_close(layer(x), nn.functional.relu(nn.functional.instance_norm(blurred)))


def test_dropout_is_inside_the_residual_blocks():
    block = Residual(4, "none", 0.5)
    for conv in (block.conv1, block.conv2):
        nn.init.ones_(conv.weight)
    x = torch.rand(1, 4, 8, 8)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))
    assert sum(isinstance(m, nn.Dropout) and m.p == 0.5 for m in ResNetGenerator(dropout=0.5).modules()) == 9


def test_it_trains_and_comes_back_from_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Pix2Pix(ResNetGenerator(1, 3, channels=4, blocks=1, antialias="tri3"), PatchGAN(1, 3, channels=4))
    trainer = Trainer(max_steps=1, **QUIET)
    trainer.fit(model, pairs_loader(4, 2))
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    generator = load_generator(tmp_path / "some.ckpt", norm="instance")
    assert isinstance(generator, ResNetGenerator)
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(generator(x), model.eval()(x), rtol=0, atol=1e-5)
    for key, value in model.generator.state_dict().items():
        assert torch.equal(generator.state_dict()[key], value), key
    with pytest.raises(InputError, match=r"norm='none' does not fit .*some.ckpt: its generator has instance$"):
        load_generator(tmp_path / "some.ckpt", norm="none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, "blocks=0 is not an integer of at least 1"),
        ({"channels": 0}, "channels=0"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"norm": "layer"}, "norm='layer' is not one of batch, instance, group, none"),
        ({"antialias": "tri9"}, "filter='tri9' is not one of"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        ResNetGenerator(**options)
