import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genstab import (
    AntiAlias,
    BlurConv2d,
    BlurConvTranspose2d,
    BlurPool2d,
    InputError,
    MaxBlurPool2d,
    UNet,
    antialias,
    remove_antialias,
    shift_psnr,
    surgery,
)
from genstab.layers.blur import blur2d
from genstab.layers.conv import Blurred, BlurUpsample2d
from genstab.layers.filters import taps
from genstab.layers.pooling import BlurAvgPool2d
from genstab.layers.surgery import surgery_table


class Residual(nn.Module):
    """A ResNet's basic block with a strided 1×1 shortcut."""

    def __init__(self, width_in, width_out):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, groups=2, bias=False)
        self.downsample = nn.Sequential(nn.Conv2d(width_in, width_out, 1, 2, bias=False), nn.BatchNorm2d(width_out))

    def forward(self, x):
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))) + self.downsample(x))


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 4, 7, 2, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        Residual(4, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def vgg():
    layers = []
    for width_in, width_out in ((3, 4), (4, 8)):
        layers += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*layers)


class DiffusersDownsample(nn.Module):
    """A 3×3 convolution with stride 2 and no padding, after one row and one column of zeros at the end."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=0)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def autoencoder():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1, padding_mode="reflect"),
        nn.ReLU(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
    )


NETWORKS = {
    "unet": (lambda: UNet(3, 3, channels=4, levels=3), {BlurConv2d: 3, BlurConvTranspose2d: 3}),
    "resnet": (resnet, {BlurConv2d: 3, MaxBlurPool2d: 1}),
    "vgg": (vgg, {MaxBlurPool2d: 2}),
    "diffusers": (DiffusersDownsample, {BlurConv2d: 1}),
    "autoencoder": (autoencoder, {BlurConv2d: 1, BlurAvgPool2d: 1, BlurUpsample2d: 1, BlurConvTranspose2d: 1}),
}


def kinds(network):
    return {
        type(m): sum(type(n) is type(m) for n in network.modules()) for m in network.modules() if isinstance(m, Blurred)
    }


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_their_weights_keys_and_shapes_and_come_back(name, training, placement):
    make, expected = NETWORKS[name]
    network = make().train(training)
    for number, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    x = torch.randn(2, 3, 25, 30)
    plain = copy.deepcopy(network).eval()
    before, modules = dict(network.named_parameters()), [n for n, _ in network.named_modules()]
    grads = {n: p.requires_grad for n, p in before.items()}

    assert antialias(network, "bin5", placement) is network
    assert kinds(network) == expected
    assert all(m.training == training for m in network.modules())
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[n] is before[n] for n in before)
    assert {n: p.requires_grad for n, p in after.items()} == grads
    assert [n for n, _ in network.named_modules()] == modules
    assert network.state_dict().keys() == plain.state_dict().keys()
    network.eval()
    y = network(x)
    assert y.shape == plain(x).shape
    assert not torch.allclose(y, plain(x))
    assert torch.equal(copy.deepcopy(network)(x), y)

    assert remove_antialias(network) is network
    assert torch.equal(network(x), plain(x))
    assert str(network) == str(plain)
    assert all(p is before[n] for n, p in network.named_parameters())
    assert not [n for n, _ in network.named_buffers() if "taps" in n]


@pytest.mark.parametrize("name", NETWORKS)
def test_second_call_changes_nothing(name):
    network = antialias(NETWORKS[name][0](), "tri3")
    modules, text = list(network.modules()), str(network)
    assert antialias(network, "bin7", "post") is network
    assert all(a is b for a, b in zip(network.modules(), modules, strict=True))
    assert str(network) == text


def test_filter_none_is_the_same_function():
    network, x = resnet().eval(), torch.randn(1, 3, 32, 32)
    expected = network(x)
    assert torch.equal(antialias(network, "none")(x), expected)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(4, 8, (3, 2), (1, 2), (1, 0), (1, 2), 4, False, "circular"), BlurConv2d),
        (nn.Conv2d(4, 8, 3, 2, padding="valid"), BlurConv2d),
        (nn.ConvTranspose2d(4, 2, 3, 2, 1, 1, 2, False, 2), BlurConvTranspose2d),
        (nn.MaxPool2d(3, (2, 1), 1, 2, ceil_mode=True), MaxBlurPool2d),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), BlurAvgPool2d),
        (nn.Upsample((13, 20), mode="bilinear", align_corners=True), BlurUpsample2d),
        (nn.UpsamplingNearest2d(scale_factor=2), BlurUpsample2d),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_single_layer_is_returned_replaced_with_all_its_settings(layer, kind):
    x = torch.randn(2, 4, 9, 12)
    settings = {k: v for k, v in vars(layer).items() if k not in ("_buffers", "_non_persistent_buffers_set")}
    new = antialias(layer, "bin4")
    assert type(new) is kind
    assert {k: v for k, v in vars(new).items() if k in settings} == settings
    assert new(x).shape == layer(x).shape
    assert not torch.allclose(new(x), layer(x))
    assert "taps" not in layer._buffers  # the old layer is as it was
    assert torch.equal(pickle.loads(pickle.dumps(new))(x), new(x))
    back = remove_antialias(new)
    assert not isinstance(back, Blurred)
    assert torch.equal(back(x), layer(x))


def test_layers_built_and_replaced_are_the_same():
    x = torch.randn(1, 2, 9, 8)
    built = BlurConv2d(2, 3, 4, 2, 1, padding_mode="circular", filter="bin5", placement="post")
    blurred = nn.Conv2d(2, 3, 4, 2, 1, padding_mode="circular")
    blurred.load_state_dict(built.state_dict())
    blurred = antialias(blurred, "bin5", "post")
    assert repr(blurred) == repr(built)
    assert torch.equal(blurred(x), built(x))


def test_blur_pads_like_the_convolution_unless_told():
    make = [nn.Conv2d(1, 1, 3, 2, 1, padding_mode=mode) for mode in ("zeros", "circular", "replicate")]
    assert [antialias(layer).antialias.padding_mode for layer in make] == ["reflect", "circular", "replicate"]
    assert [antialias(layer, padding_mode="zeros").antialias.padding_mode for layer in make] == ["zeros"] * 3
    assert antialias(nn.MaxPool2d(2), padding_mode="circular").antialias.padding_mode == "circular"


def test_device_and_dtype_stay():
    network = antialias(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, 2, device="meta", dtype=torch.float64)))
    assert {b.device.type for b in network.buffers()} == {"meta"}
    assert network[1].weight.dtype == torch.float64
    assert network(torch.empty(1, 1, 9, 9, device="meta", dtype=torch.float64)).shape == (1, 1, 1, 1)
    half = antialias(vgg().to(torch.bfloat16))
    assert half(torch.rand(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_shared_layers_are_replaced_once_by_one_object():
    pool, conv = nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, 2, 1)
    network = nn.ModuleDict({"a": nn.Sequential(pool, pool), "b": pool, "c": conv, "d": conv})
    antialias(network)
    assert isinstance(network["b"], MaxBlurPool2d)
    assert network["a"][0] is network["a"][1] is network["b"]
    assert network["c"] is network["d"]
    assert isinstance(network["c"], BlurConv2d)
    assert surgery_table(network).splitlines()[1].startswith("a.0, a.1, b  MaxPool2d(")
    remove_antialias(network)
    assert type(network["a"][0]) is nn.MaxPool2d
    assert network["a"][0] is network["a"][1] is network["b"]


NORMS = {
    "spectral": nn.utils.parametrizations.spectral_norm,
    "weight": nn.utils.parametrizations.weight_norm,
    "old spectral": nn.utils.spectral_norm,
    "old weight": nn.utils.weight_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_normalized_weights_hooks_and_attributes_come_along(norm):
    layer = NORMS[norm](nn.Conv2d(2, 3, 4, 2, 1)).train()
    network, x = nn.Sequential(layer, nn.ReLU()), torch.randn(1, 2, 8, 9)
    network[0].note, calls = "kept", []
    network[0].register_forward_hook(lambda module, args, output: calls.append(isinstance(module, BlurConv2d)))
    before, kind = copy.deepcopy(network.state_dict()), type(layer)
    antialias(network)
    assert network[0].note == "kept"
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())  # no power iteration
    network.eval()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    expected = F.conv2d(blur2d(x, taps("tri3").float()), network[0].weight, network[0].bias, 2, 1)
    torch.testing.assert_close(network(x), expected.relu())
    assert len(surgery_table(network).splitlines()) == 2
    plain = layer.eval()(x).relu()  # shares the tensors
    assert torch.equal(remove_antialias(network)(x), plain)
    assert calls == [True, True, False, False]
    assert kind.__name__ == type(network[0]).__name__
    if "old" not in norm:  # torch's own removal works on the layer with a blur, and leaves it one
        nn.utils.parametrize.remove_parametrizations(antialias(network)[0], "weight")
        assert type(network[0]) is BlurConv2d
        torch.testing.assert_close(network(x), expected.relu())


class Conv2dStaticSamePadding(nn.Conv2d):
    """As in EfficientNet."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Conv2dSame(nn.Conv2d):
    """As in timm, after TensorFlow."""

    def forward(self, x):
        sides = []
        for i in (1, 0):
            reach, size = self.dilation[i] * (self.kernel_size[i] - 1) + 1, x.shape[i + 2]
            missing = max((math.ceil(size / self.stride[i]) - 1) * self.stride[i] + reach - size, 0)
            sides += [missing // 2, missing - missing // 2]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


# (left, right, top, bottom) for 3 pixels at stride 2: an even size lacks one pixel, an odd one two
SAME = {(9, 12): (0, 1, 1, 1), (8, 7): (1, 1, 0, 1)}


@pytest.mark.parametrize("kind", [Conv2dStaticSamePadding, Conv2dSame])
@pytest.mark.parametrize("size", SAME)
def test_a_convolution_that_pads_itself_is_blurred_before_its_padding_or_after_it(kind, size):
    layer, x = nn.utils.parametrizations.spectral_norm(kind(2, 3, 3, stride=2)).eval(), torch.randn(1, 2, *size)
    plain, filter = layer(x), taps("tri3").float()
    pre = antialias(layer)
    torch.testing.assert_close(pre(x), layer(blur2d(x, filter)))
    post = antialias(layer, placement="post")
    around = {"Conv2dStaticSamePadding": (0, 1, 0, 1), "Conv2dSame": SAME[size]}[kind.__name__]
    dense = F.conv2d(F.pad(x, around), layer.weight, layer.bias)
    torch.testing.assert_close(post(x), blur2d(dense, filter)[..., ::2, ::2])
    for blurred in (pre, post):
        back = remove_antialias(blurred)
        assert torch.equal(back(x), plain)
        assert isinstance(back, kind)
    new = antialias(kind(2, 3, 3, stride=2))
    assert torch.equal(pickle.loads(pickle.dumps(new))(x), new(x))


def test_a_registered_class_must_do_what_is_said_of_it():
    class Louder(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    surgery.register(Louder)
    with pytest.raises(InputError, match=r"\(Louder\): it computes something else than genstab.surgery.register says"):
        antialias(Louder(1, 1, 3, 2))
    surgery.register(Louder, lambda layer, x: 2 * x)  # the same without a bias
    assert isinstance(antialias(nn.Sequential(Louder(1, 1, 3, 2, bias=False)))[0], BlurConv2d)


class Odd(nn.Module):
    """Resamples by functions and by slicing, remembers what it saw, and branches on `scale`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, 2, 1)

    def forward(self, x, scale=None):
        self.seen = x
        x = F.max_pool2d(F.conv2d(self.conv(x), self.conv.weight, padding=1), 2)
        x = F.adaptive_avg_pool2d(x, 1) * F.adaptive_avg_pool2d(x, output_size=(4, 4)).unfold(2, 2, 2).mean(-1)
        return F.interpolate(x, scale_factor=2 if scale is None else scale)[..., ::2, :]


class Opaque(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2) if x.mean() > 0 else x


def test_what_resamples_and_stays_is_listed():
    parts = [Odd(), nn.PixelShuffle(2), nn.LPPool2d(2, 2), nn.Upsample(scale_factor=2, mode="bicubic"), Opaque()]
    parts += [nn.AdaptiveAvgPool2d(1), nn.PixelShuffle(2), nn.LPPool2d(2, 2, stride=1), nn.Upsample(scale_factor=1)]
    network = nn.Sequential(*parts)
    with pytest.warns(UserWarning, match="antialias") as caught:
        antialias(network)
    (warning,) = caught
    assert str(warning.message) == (
        "antialias: not replaced, so its aliasing remains: F.max_pool2d in 0; F.adaptive_avg_pool2d in 0; "
        "Tensor.unfold in 0; F.interpolate in 0; a slice with a step in 0; PixelShuffle in 1, 6; LPPool2d in 2; "
        "bicubic Upsample in 3; "
        "functions in a forward that cannot be traced in 4"
    )
    assert warning.filename == __file__
    assert not hasattr(network[0], "seen")
    with pytest.raises(InputError, match=r"looked for .* but found PixelShuffle in 0"):
        antialias(nn.Sequential(nn.PixelShuffle(2)))
    antialias(remove_antialias(network), exclude=["[12346]", "0"])  # and says nothing of what is left out


@pytest.mark.parametrize(
    ("include", "exclude", "replaced"),
    [
        (None, None, ["0", "3", "4.conv1", "4.downsample.0"]),
        (["4.*"], None, ["4.conv1", "4.downsample.0"]),
        ("*conv?", None, ["4.conv1"]),
        (None, ["0", "*.downsample.*"], ["3", "4.conv1"]),
        (["4*", "3"], ["*conv1"], ["3", "4.downsample.0"]),
    ],
)
def test_include_and_exclude_are_globs_of_names(include, exclude, replaced):
    network = antialias(resnet(), include=include, exclude=exclude)
    assert [n for n, m in network.named_modules() if isinstance(m, Blurred)] == replaced
    # the layers left out the first time can be done later
    assert sum(kinds(antialias(network)).values()) == 4


class OwnConv(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("network", "kwargs", "message"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2, 1)),
            {},
            "nothing to replace in Sequential.*looked for strided Conv2d",
        ),
        (resnet(), {"include": ["layer1*"]}, r"include=\['layer1\*'\], exclude=None"),
        (resnet(), {"exclude": ["*"]}, r"exclude=\['\*'\]"),
        (
            nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.MaxPool2d(2, return_indices=True)),
            {},
            r"handle 1 \(MaxPool2d\).*indices",
        ),
        (nn.Sequential(nn.Conv2d(1, 1, 2, 2), OwnConv(1, 1, 3, 2)), {}, r"handle 1 \(OwnConv\).*subclass of Conv2d"),
        (nn.MaxPool2d(2, return_indices=True), {}, r"handle the module \(MaxPool2d\)"),
        (nn.Sequential(nn.Upsample(scale_factor=0.5)), {}, "scale_factor=0.5"),
        (nn.Sequential(BlurPool2d(), nn.MaxPool2d(2)), {}, r"0 \(BlurPool2d\): it is a blur"),
        (UNet(3, 3, 4, 2, antialias="tri3"), {}, r"encoder.0.before \(BlurPool2d\): it is a blur"),
        (resnet(), {"filter": "tri5"}, "filter='tri5'"),
        (resnet(), {"placement": "after"}, "placement='after'"),
    ],
)
def test_errors_name_the_layer_and_leave_the_network_alone(network, kwargs, message):
    modules = list(network.modules())
    with pytest.raises(InputError, match=message):
        antialias(network, **kwargs)
    assert all(a is b for a, b in zip(network.modules(), modules, strict=True))
    assert not isinstance(network, Blurred)


def test_what_cannot_be_handled_can_be_excluded():
    network = nn.Sequential(nn.Conv2d(1, 1, 2, 2), OwnConv(1, 1, 3, 2), nn.MaxUnpool2d(2))
    assert sum(kinds(antialias(network, exclude=["1", "2"])).values()) == 1


def test_removal_wants_something_to_remove():
    with pytest.raises(InputError, match="remove_antialias: Sequential has no layer"):
        remove_antialias(resnet())

    class Own(BlurConv2d):
        pass

    with pytest.raises(InputError, match="0 is a subclass, Own"):
        remove_antialias(nn.Sequential(Own(1, 1, 3, 2)))


def test_table_and_silence(capsys):
    network = antialias(vgg(), "rect2")
    lines = surgery_table(network).splitlines()
    assert [line.split()[0] for line in lines] == ["name", "2", "5"]
    assert lines[1].endswith("  MaxBlurPool2d(rect2, reflect)")
    assert "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=True)" in lines[1]
    assert capsys.readouterr() == ("", "")


def test_a_diffusers_block_is_blurred_where_it_was():
    block = DiffusersDownsample().double()
    ramp = (torch.arange(16)[:, None] + 3.0 * torch.arange(18)).double().expand(1, 3, -1, -1)
    plain = block(ramp)
    inside = (..., slice(2, -2), slice(2, -2))
    for placement in ("pre", "post"):
        torch.testing.assert_close(antialias(block, "bin5", placement)(ramp)[inside], plain[inside])
        remove_antialias(block)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_an_antialiased_network_moves_with_its_input(placement):
    torch.manual_seed(3)
    network = autoencoder()
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    shifts = [(0, 1), (1, 0), (1, 1), (2, 3)]
    plain, contrast = shift_psnr(network, images, shifts), network(images).std((2, 3)).mean()
    antialias(network, "bin5", placement)
    blurred = shift_psnr(network, images, shifts)
    # means: 30.6 dB plain; 58.3 pre, 58.2 post
    assert (blurred > plain + 15).all()
    # 21 dB of that is contrast: random weights make noise of noise, and a blur removes it. The rest is stability, 6 dB.
    lost = 20 * torch.log10(contrast / network(images).std((2, 3)).mean())
    assert (blurred - plain).mean() - lost > 3
    assert torch.equal(shift_psnr(remove_antialias(network), images, shifts), plain)


def test_a_polyphase_network_is_left_alone():
    network = UNet(channels=2, levels=2, antialias=AntiAlias("none", "pre", "circular", True))
    with pytest.raises(InputError, match=r"encoder\.0 \(Down\): it samples on an adaptive grid"):
        antialias(network)
