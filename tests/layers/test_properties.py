"""What must hold for every size, stride, filter and padding mode: hypothesis looks for one where it does not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genstab import (
    AntiAlias,
    BlurConv2d,
    BlurConvTranspose2d,
    BlurPool2d,
    InputError,
    MaxBlurPool2d,
    ResNetGenerator,
    UNet,
)
from genstab.layers.blur import blur2d, blur_downsample2d, blur_padding
from genstab.layers.conv import BlurUpsample2d
from genstab.layers.filters import FILTERS, PADDING_MODES, taps
from genstab.layers.padding import pad2d
from genstab.layers.pooling import BlurAvgPool2d
from tests.training.test_compile import LAYERS, made

# Runs repeat: the same examples every time, and no clock.
some = settings(max_examples=40, deadline=None, derandomize=True, database=None)

SIDES = st.integers(1, 12)
LOCAL = [filter for filter in FILTERS if filter != "ideal"]  # those with taps
FILTER = st.sampled_from(FILTERS)
LOCAL_FILTER = st.sampled_from(LOCAL)
MODE = st.sampled_from(PADDING_MODES)
STEPS = st.integers(1, 4)
STRIDE = STEPS | st.tuples(STEPS, STEPS)
SEED = st.integers(0, 2**16)
BATCH = st.integers(1, 3)


def steps_of(stride):
    return stride if isinstance(stride, tuple) else (stride, stride)


def random_maps(seed, *size, dtype=torch.float64):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@some
@given(SIDES, SIDES, STRIDE, FILTER, MODE, st.booleans(), SEED)
def test_module_is_function(height, width, stride, filter, mode, mirrored, seed):
    x = random_maps(seed, 1, 2, height, width, dtype=torch.float32)
    weights = taps(filter).float()
    y = BlurPool2d(filter, stride, mode, mirrored)(x)
    assert torch.equal(y, blur_downsample2d(x, weights, stride, mode, mirrored))
    assert torch.equal(y[0], blur_downsample2d(x[0], weights, stride, mode, mirrored))  # without a batch
    if filter != "ideal":  # which depends on the stride
        torch.testing.assert_close(blur2d(x, weights, mode, mirrored)[..., :1, :1], y[..., :1, :1])


@some
@given(SIDES, SIDES, STRIDE, FILTER, st.sampled_from([m for m in PADDING_MODES if m != "zeros"]))
def test_a_constant_stays(height, width, stride, filter, mode):
    y = BlurPool2d(filter, stride, mode)(torch.full((1, 1, height, width), 0.7))
    torch.testing.assert_close(y, torch.full_like(y, 0.7))


@some
@given(SIDES, SIDES, STRIDE, FILTER, MODE, st.floats(-4, 4), SEED)
def test_it_is_linear(height, width, stride, filter, mode, factor, seed):
    layer = BlurPool2d(filter, stride, mode)
    x, z = random_maps(seed, 2, 1, 2, height, width)
    torch.testing.assert_close(layer(x + factor * z), layer(x) + factor * layer(z))


@some
@given(st.integers(1, 5), st.integers(1, 5), STRIDE, FILTER, st.integers(-5, 5), st.integers(-5, 5), SEED)
def test_a_circular_shift_by_strides_shifts_by_pixels(rows, columns, stride, filter, down, right, seed):
    layer = BlurPool2d(filter, stride, "circular").double()
    steps = steps_of(stride)
    x = random_maps(seed, 1, 2, rows * steps[0], columns * steps[1])
    moved = layer(x.roll((down * steps[0], right * steps[1]), (2, 3)))
    torch.testing.assert_close(moved, layer(x).roll((down, right), (2, 3)))


@some
@given(SIDES, SIDES, LOCAL_FILTER, MODE, st.booleans())
def test_the_pads_keep_the_size(height, width, filter, mode, mirrored):
    pair = (taps(filter), taps("tri3"))
    padding = blur_padding(pair, mirrored)
    padded = pad2d(torch.rand(1, 1, height, width), padding, mode)
    assert padded.shape[-2:] == (height + pair[0].numel() - 1, width + 2)


@some
@given(st.integers(4, 12), st.integers(4, 12), FILTER, st.sampled_from([2, 3, (1, 2), (3, 2)]), SEED)
def test_every_layer_has_the_plain_ones_shape_and_leaves_no_value_out_of_range(height, width, filter, stride, seed):
    x = random_maps(seed, 1, 2, height, width, dtype=torch.float32)
    pooling = {"kernel_size": 3, "stride": stride, "padding": 1}
    convolution = {"in_channels": 2, "out_channels": 3, **pooling}
    for blurred, plain, arguments in (
        (BlurConv2d, nn.Conv2d, convolution),
        (BlurConvTranspose2d, nn.ConvTranspose2d, convolution),
        (MaxBlurPool2d, nn.MaxPool2d, pooling | {"ceil_mode": True}),
        (BlurAvgPool2d, nn.AvgPool2d, pooling | {"ceil_mode": True, "count_include_pad": False}),
        (BlurUpsample2d, nn.Upsample, {"scale_factor": stride}),
    ):
        y = blurred(**arguments, filter=filter)(x)
        assert y.shape == plain(**arguments)(x).shape
        assert y.isfinite().all()
        if "in_channels" not in arguments and filter not in ("kaiser", "ideal"):  # means and maxima of pixels
            assert x.min() - 1e-6 <= y.min()
            assert y.max() <= x.max() + 1e-6


@settings(some, max_examples=12)
@given(st.integers(1, 20), st.integers(1, 20), FILTER, st.sampled_from(["pre", "post"]), MODE)
def test_networks_keep_the_size(height, width, filter, placement, mode):
    antialias = AntiAlias(filter, placement, mode)
    x = torch.rand(1, 1, height, width)
    assert UNet(1, 2, channels=2, levels=3, antialias=antialias).eval()(x).shape == (1, 2, height, width)
    generator = ResNetGenerator(1, 2, channels=2, blocks=1, norm="batch", antialias=antialias).eval()
    assert generator(x).shape == (1, 2, height, width)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_right(name):
    layer = made(name, dtype=torch.float64)
    x = random_maps(0, 1, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: layer(x), (x, *layer.parameters()))


FILTER_ERROR = "filter='tri9' is not one of " + ", ".join(FILTERS)
PADDING_ERROR = "padding_mode='mirror' is not one of " + ", ".join(PADDING_MODES)
MAKERS = {
    BlurPool2d: BlurPool2d,
    BlurConv2d: lambda **kwargs: BlurConv2d(1, 1, 3, 2, **kwargs),
    BlurConvTranspose2d: lambda **kwargs: BlurConvTranspose2d(1, 1, 3, 2, **kwargs),
    MaxBlurPool2d: lambda **kwargs: MaxBlurPool2d(2, **kwargs),
    BlurAvgPool2d: lambda **kwargs: BlurAvgPool2d(2, **kwargs),
    BlurUpsample2d: lambda **kwargs: BlurUpsample2d(scale_factor=2, **kwargs),
}


@pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)
def test_errors_name_argument_value_and_choices(kind):
    mode = "blur_padding_mode" if "Conv" in kind.__name__ else "padding_mode"
    cases = [({"filter": "tri9"}, FILTER_ERROR), ({mode: "mirror"}, PADDING_ERROR)]
    if kind is BlurConv2d:
        cases.append(({"placement": "between"}, "placement='between' is not one of pre, post"))
    for arguments, message in cases:
        with pytest.raises(InputError) as caught:
            MAKERS[kind](**arguments)
        assert str(caught.value) == message


@pytest.mark.parametrize("stride", [0, -1, 1.5, "2", None, (2, 0), (2, 1.0)])
def test_a_stride_that_is_none_is_named(stride):
    with pytest.raises(InputError) as caught:
        BlurPool2d(stride=stride)
    assert str(caught.value) == f"stride={stride!r} is not an integer of at least 1 or a pair of them"
