from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genstab import BlurConv2d, BlurConvTranspose2d, InputError, MaxBlurPool2d
from genstab.layers.blur import blur2d
from genstab.layers.conv import BlurUpsample2d
from genstab.layers.filters import FILTERS, PADDING_MODES, PLACEMENTS, taps
from genstab.layers.pooling import BlurAvgPool2d

FILTERS_THAT_BLUR = [f for f in FILTERS if f != "none"]
LOCAL_FILTERS = [f for f in FILTERS_THAT_BLUR if f != "ideal"]  # the ideal low-pass sees the border from everywhere
ODD_FILTERS = ["tri3", "bin5", "bin7", "kaiser"]
DELTA = torch.tensor([0.0, 1.0, 0.0])  # a filter that does nothing, at work: where and how much the layer takes
SIZES = [(7, 8), (10, 5), (9, 12)]

# Of each blurred layer: itself, the plain one, and arguments for two channels.
LAYERS = [
    pytest.param(BlurConv2d, nn.Conv2d, {"in_channels": 2, "out_channels": 4, "kernel_size": 4}, id="conv"),
    pytest.param(
        BlurConvTranspose2d, nn.ConvTranspose2d, {"in_channels": 2, "out_channels": 4, "kernel_size": 4}, id="up"
    ),
    pytest.param(MaxBlurPool2d, nn.MaxPool2d, {"kernel_size": 2}, id="max"),
    pytest.param(BlurAvgPool2d, nn.AvgPool2d, {"kernel_size": 2}, id="avg"),
    pytest.param(BlurUpsample2d, nn.Upsample, {"scale_factor": 2}, id="nearest"),
]


def with_stride(arguments, stride=2):
    return arguments if "scale_factor" in arguments else arguments | {"stride": stride}


def blurred_and_plain(blurred, plain, arguments, **blur):
    """A blurred and a plain layer with the same weights, in float64."""
    layer, same = blurred(**arguments, **blur).double(), plain(**arguments).double()
    layer.load_state_dict(same.state_dict())  # the keys are the same
    return layer, same


@pytest.mark.parametrize(("blurred", "plain", "arguments"), LAYERS)
def test_without_a_filter_it_is_the_plain_layer(blurred, plain, arguments):
    layer, same = blurred_and_plain(blurred, plain, with_stride(arguments), filter="none")
    x = torch.randn(2, 2, 9, 6, dtype=torch.float64)
    assert torch.equal(layer(x), same(x))


@pytest.mark.parametrize(("blurred", "plain", "arguments"), LAYERS)
@pytest.mark.parametrize("filter", FILTERS_THAT_BLUR)
def test_adds_no_parameter_and_keeps_the_keys(blurred, plain, arguments, filter):
    layer, same = blurred_and_plain(blurred, plain, with_stride(arguments), filter=filter)
    assert list(layer.state_dict()) == list(same.state_dict())
    assert [n for n, _ in layer.named_parameters()] == [n for n, _ in same.named_parameters()]
    assert f"filter={filter}" in repr(layer)
    assert repr(layer).startswith(f"{blurred.__name__}({same.extra_repr()}, ")


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("stride", [2, 3, (1, 2), (3, 2)])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_convolution_has_the_plain_layers_shape_and_place(placement, stride, mode):
    for kernel, padding, dilation, size in product([1, 2, 3, 4, (5, 2)], [0, 1, (2, 1), "valid"], [1, 2], SIZES):
        arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": 2}
        arguments |= {"in_channels": 2, "out_channels": 4, "padding_mode": mode}
        x = torch.randn(1, 2, *size, dtype=torch.float64)
        layer, same = blurred_and_plain(BlurConv2d, nn.Conv2d, arguments, placement=placement)
        if (
            min(
                size[i] - dilation * (k - 1)
                for i, k in enumerate((kernel, kernel) if isinstance(kernel, int) else kernel)
            )
            < 1
        ):
            continue
        expected = same(x)
        assert layer(x).shape == expected.shape, arguments
        layer.taps = DELTA
        torch.testing.assert_close(layer(x), expected, msg=str(arguments))


@pytest.mark.parametrize("stride", [2, 3, (1, 2), (3, 2)])
def test_transposed_convolution_has_the_plain_layers_shape_and_place(stride):
    for kernel, padding, extra, dilation in product([3, 4, (5, 3)], [0, 1], [0, (0, 1)], [1, 2]):
        arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "output_padding": extra, "groups": 2}
        arguments |= {"in_channels": 4, "out_channels": 2, "dilation": dilation}
        x = torch.randn(1, 4, 5, 4, dtype=torch.float64)
        layer, same = blurred_and_plain(BlurConvTranspose2d, nn.ConvTranspose2d, arguments)
        expected = same(x)
        assert layer(x).shape == expected.shape, arguments
        layer.taps = DELTA
        assert torch.equal(layer(x), expected), arguments
    assert BlurConvTranspose2d(1, 1, 3, 2, 1)(torch.zeros(1, 1, 4, 4), output_size=[8, 7]).shape == (1, 1, 8, 7)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("stride", [None, 2, 3, (2, 1)])
@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_pooling_has_the_plain_layers_shape_and_place(ceil_mode, stride, mode):
    sizes = [(7, 8), (10, 5), (9, 6)]
    for kernel, padding, size in product([2, 3, (4, 2)], [0, 1], sizes):
        x = torch.randn(1, 2, *size, dtype=torch.float64)
        arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
        pools = [(MaxBlurPool2d, nn.MaxPool2d, arguments | {"dilation": d}) for d in (1, 2)]
        pools += [
            (BlurAvgPool2d, nn.AvgPool2d, arguments | {"count_include_pad": c, "divisor_override": d})
            for c, d in ((True, None), (False, None), (True, 5))
        ]
        for blurred, plain, some in pools:
            layer, same = blurred(**some, padding_mode=mode), plain(**some)
            try:
                expected = same(x)
            except RuntimeError:
                continue  # a window larger than the picture
            assert layer(x).shape == expected.shape, some
            assert layer(x).isfinite().all(), some
            layer.taps = DELTA
            if mode == "reflect":
                torch.testing.assert_close(layer(x), expected, msg=str((some, size)))
            else:  # wraps where the plain layer sees its own padding
                inside = (..., slice(1, -1), slice(1, -1))
                torch.testing.assert_close(layer(x)[inside], expected[inside], msg=str((some, size)))


def test_a_last_window_larger_than_the_map_gives_the_plain_value():
    x = torch.arange(4.0).view(1, 1, 2, 2)
    for layer, plain in ((MaxBlurPool2d, nn.MaxPool2d), (BlurAvgPool2d, nn.AvgPool2d)):
        assert torch.equal(layer(3, 2, ceil_mode=True)(x), plain(3, 2, ceil_mode=True)(x))


def test_layers_by_hand():
    x = torch.tensor([0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0]).expand(1, 1, 3, -1)
    # blurred columns: 0 2 4 2 0 0 0; the identity convolution keeps every second one, the rows are all alike
    layer = BlurConv2d(1, 1, 1, stride=2, bias=False)
    nn.init.ones_(layer.weight)
    assert layer(x)[0, 0].tolist() == [[0.0, 4.0, 0.0, 0.0]] * 2
    # maxima of three: 0 8 8 8 0 0 0; blurred: 4 6 8 6 2 0 0
    assert MaxBlurPool2d(3, 2, 1)(x)[0, 0].tolist() == [[4.0, 8.0, 2.0, 0.0]] * 2
    # means of two: 0 4 4 0 0 0; blurred: 2 3 3 1 0 0
    assert BlurAvgPool2d(2)(x)[0, 0].tolist() == [[2.0, 3.0, 0.0]]
    # rows keep their size: only columns are blurred
    assert BlurConv2d(1, 1, 1, stride=(1, 2)).taps_where(False, True)[0].tolist() == [1.0]
    impulse = torch.zeros(1, 1, 3, 5)
    impulse[0, 0, 1, 2] = 4.0
    assert MaxBlurPool2d(1, (1, 2))(impulse)[0, 0].tolist() == [[0.0] * 3, [0.0, 2.0, 0.0], [0.0] * 3]
    # zero insertion 0 4 0 0, blurred: 1 2 1 0, rows 2 1 (the row below is reflected)
    up = BlurConvTranspose2d(1, 1, 1, stride=2, output_padding=1, bias=False)
    nn.init.ones_(up.weight)
    y = up(torch.tensor([[[[4.0, 0.0]]]]))
    assert y[0, 0].tolist() == [[1.0, 0.5, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0]]


@pytest.mark.parametrize("filter", ["bin4", "kaiser", "ideal"])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_every_filter_has_the_plain_layers_shape(filter, mode):
    blur = {"filter": filter, "padding_mode": mode}
    for kernel, padding, stride, size in product([1, 2, 3], [0, 1, 2], [2, 3, (1, 2)], [(7, 8), (3, 4)]):
        x = torch.randn(1, 2, *size)
        plain = nn.Conv2d(2, 2, kernel, stride, padding, padding_mode="circular")
        for placement in PLACEMENTS:
            layer = BlurConv2d(
                2, 2, kernel, stride, padding, 1, 1, True, "circular",
                filter=filter, placement=placement, blur_padding_mode=mode,
            )  # fmt: skip
            assert layer(x).shape == plain(x).shape, (kernel, padding, stride, size)
        for pool, plain_pool in ((MaxBlurPool2d, nn.MaxPool2d), (BlurAvgPool2d, nn.AvgPool2d)):
            for ceil_mode in (False, True):
                arguments = (kernel, stride, min(padding, kernel // 2))
                expected = plain_pool(*arguments, ceil_mode=ceil_mode)(x).shape
                assert pool(*arguments, ceil_mode=ceil_mode, **blur)(x).shape == expected, (arguments, size)


@pytest.mark.parametrize("filter", LOCAL_FILTERS)
@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
def test_blur_commutes_with_the_convolution_inside(filter, stride):
    arguments = {"in_channels": 2, "out_channels": 3, "kernel_size": 4, "stride": stride, "padding": 1}
    pre, same = blurred_and_plain(BlurConv2d, nn.Conv2d, arguments, filter=filter, placement="pre")
    post, _ = blurred_and_plain(BlurConv2d, nn.Conv2d, arguments, filter=filter, placement="post")
    post.load_state_dict(pre.state_dict())
    same.load_state_dict(pre.state_dict())
    x = torch.randn(1, 2, 50, 47, dtype=torch.float64)
    inside = (..., slice(6, -6), slice(8, -8))
    torch.testing.assert_close(pre(x)[inside], post(x)[inside])
    # the same from its parts: convolution of stride 1, blur of the strided axes, subsampling
    whole = F.conv2d(x, pre.weight, pre.bias, 1, 1)
    one, kernel = taps("none"), taps(filter)
    steps = pre.stride
    blurred = blur2d(whole, tuple(kernel if s > 1 else one for s in steps))[..., :: steps[0], :: steps[1]]
    torch.testing.assert_close(post(x), blurred, rtol=1e-6, atol=1e-7)  # the layer's taps are float32
    assert not torch.allclose(pre(x), same(x))


@pytest.mark.parametrize("filter", FILTERS_THAT_BLUR)
def test_on_a_periodic_picture_blur_and_convolution_commute_up_to_the_border(filter):
    arguments = (2, 3, 3, 2, 1, 1, 1, True, "circular")
    pre = BlurConv2d(*arguments, filter=filter, placement="pre").double()
    post = BlurConv2d(*arguments, filter=filter, placement="post").double()
    post.load_state_dict(pre.state_dict())
    x = torch.randn(1, 2, 12, 9, dtype=torch.float64)
    torch.testing.assert_close(pre(x), post(x))


@pytest.mark.parametrize("filter", ODD_FILTERS)
@pytest.mark.parametrize("size", [(44, 49), (45, 52)])
def test_a_ramp_comes_out_where_the_plain_layer_puts_it(filter, size):
    ramp = (torch.arange(size[0])[:, None] + 100.0 * torch.arange(size[1])).double()[None, None]
    inside = (..., slice(9, -9), slice(9, -9))
    for kernel, padding, placement in product([1, 2, 3, 4], [0, 1], ["pre", "post"]):
        arguments = {"in_channels": 1, "out_channels": 1, "kernel_size": kernel, "stride": 2, "padding": padding}
        layer, same = blurred_and_plain(BlurConv2d, nn.Conv2d, arguments, filter=filter, placement=placement)
        layer.load_state_dict(same.state_dict())
        torch.testing.assert_close(layer(ramp)[inside], same(ramp)[inside])
    for blurred, plain in ((MaxBlurPool2d, nn.MaxPool2d), (BlurAvgPool2d, nn.AvgPool2d)):
        for kernel in (2, 3):
            torch.testing.assert_close(
                blurred(kernel, 2, 1, filter=filter)(ramp)[inside], plain(kernel, 2, 1)(ramp)[inside]
            )
    blurred = BlurUpsample2d(scale_factor=2, mode="bilinear", filter=filter)
    torch.testing.assert_close(blurred(ramp)[inside], nn.Upsample(scale_factor=2, mode="bilinear")(ramp)[inside])


@pytest.mark.parametrize("filter", LOCAL_FILTERS)
def test_an_impulse_comes_back_where_it_was_after_down_and_up(filter):
    down = BlurConv2d(1, 1, 4, stride=2, padding=1, bias=False, filter=filter).double()
    up = BlurConvTranspose2d(1, 1, 4, stride=2, padding=1, bias=False, filter=filter).double()
    pool, nearest = BlurAvgPool2d(2, filter=filter), BlurUpsample2d(scale_factor=2, filter=filter)
    for layer in (down, up):
        nn.init.ones_(layer.weight)
    for network in (nn.Sequential(down, up), nn.Sequential(pool, nearest)):
        image = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
        image[..., 32:34, 30:32] = 1  # its centre lies on the coarse grid
        y = network(image)[0, 0]
        row, column = (y.sum(1 - i) @ torch.arange(64.0, dtype=torch.float64) / y.sum() for i in (0, 1))
        assert (row.item(), column.item()) == pytest.approx((32.5, 30.5), abs=1e-9)


@pytest.mark.parametrize(("blurred", "plain", "arguments"), LAYERS)
@pytest.mark.parametrize("filter", FILTERS_THAT_BLUR)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_constant_stays_constant(blurred, plain, arguments, filter, mode):
    conv = "in_channels" in arguments
    arguments = with_stride(arguments) | ({"kernel_size": 2} if conv else {})  # no zero padding, no overlap
    layer, same = blurred_and_plain(
        blurred, plain, arguments, filter=filter, **{"blur_padding_mode" if conv else "padding_mode": mode}
    )
    if blurred is BlurConvTranspose2d:
        nn.init.ones_(layer.weight)
        nn.init.ones_(same.weight)
    x = torch.full((1, 2, 9, 6), 0.7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), same(x))
    assert same(x).amax((2, 3)).equal(same(x).amin((2, 3)))


@pytest.mark.parametrize("filter", FILTERS_THAT_BLUR)
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_checkerboard_vanishes(filter, placement):
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(15), indexing="ij")
    x = (1 - 2.0 * ((rows + columns) % 2))[None, None]
    layer = BlurConv2d(1, 4, 3, stride=2, bias=False, filter=filter, placement=placement)
    assert layer(x)[..., 1:-1, 1:-1].abs().max() < 1e-6


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("filter", ["tri3", "bin4", "bin7", "kaiser", "ideal"])
def test_circular_layers_turn_a_shift_by_the_stride_into_one_pixel(stride, filter):
    x = torch.randn(1, 2, 4 * stride, 6 * stride, dtype=torch.float64)
    blur = {"filter": filter, "blur_padding_mode": "circular"}
    layers = [
        BlurConv2d(2, 3, k, stride, p, padding_mode="circular" if p else "zeros", placement=placement, **blur).double()
        for k, p, placement in ((1, 0, "post"), (2, 0, "post"), (3, 1, "post"), (4, 1, "post"), (4, 1, "pre"))
    ]
    layers += [
        pool(k, stride, filter=filter, padding_mode="circular")
        for pool in (MaxBlurPool2d, BlurAvgPool2d)
        for k in (2, 3)
    ]
    for layer in layers:
        y = layer(x)
        shifted = layer(x.roll((stride, -stride), (2, 3)))
        if y.shape[-2:] == (4, 6):
            torch.testing.assert_close(shifted, y.roll((1, -1), (2, 3)), msg=repr(layer))
        else:
            assert stride == 2, layer  # the plain layer loses the last row already


@pytest.mark.parametrize(("blurred", "plain", "arguments"), LAYERS)
def test_picture_without_a_batch_and_a_batch_give_the_same(blurred, plain, arguments):
    if blurred is BlurUpsample2d:
        with pytest.raises(InputError, match=r"takes \(N, C, H, W\), not \(2, 6, 5\)"):
            blurred(**arguments)(torch.rand(2, 6, 5))
        return
    layer = blurred(**with_stride(arguments))
    x = torch.rand(2, 6, 5)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize(
    "kwargs", [{"size": (7, 4)}, {"scale_factor": (2, 1)}, {"scale_factor": 3, "mode": "nearest-exact"}]
)
def test_upsampling_blurs_the_axes_that_grow(kwargs):
    x = torch.rand(1, 2, 3, 4)
    plain = nn.Upsample(**kwargs)(x)
    grown = tuple(taps("bin5") if plain.shape[i] > x.shape[i] else taps("none") for i in (2, 3))
    assert torch.equal(BlurUpsample2d(**kwargs, filter="bin5")(x), blur2d(plain, grown))


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize(("blurred", "plain", "arguments"), LAYERS)
def test_channels_last(blurred, plain, arguments, placement):
    blur = {"placement": placement} if blurred is BlurConv2d else {}
    layer = blurred(**with_stride(arguments), **blur)
    x = torch.rand(2, 2, 9, 8)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))


def test_indices_of_a_blurred_maximum_are_refused():
    with pytest.raises(InputError, match="return_indices=True"):
        MaxBlurPool2d(2, return_indices=True)
