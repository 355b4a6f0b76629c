from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from genstab import BlurPool2d, BlurUnpool2d, InputError
from genstab.layers.blur import blur2d, blur_downsample2d, blur_upsample2d
from genstab.layers.filters import BINOMIAL, FILTERS, PADDING_MODES, taps
from genstab.layers.padding import pad2d

NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "zeros": "constant", "circular": "wrap"}


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (5, 7)])
def test_padding_equals_numpys_however_small_the_map(mode, shape):
    x = torch.rand(2, 3, *shape)
    padding = (3, 2, 1, 4)  # left, right, top, bottom
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 4), (3, 2)), NUMPY_MODES[mode])
    assert np.array_equal(pad2d(x, padding, mode).numpy(), expected)


def test_blur_by_hand():
    x = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    # one row: reflection repeats it, so only the columns blur; x[-1] = 2 and x[3] = 2
    assert blur2d(x, taps("tri3")).flatten().tolist() == [1.5, 2.25, 3.0]
    assert blur2d(x, taps("rect2"), padding_mode="zeros")[0, 0, 0].tolist() == [0.75, 1.5, 1.0]
    assert blur2d(x, taps("rect2"), padding_mode="zeros", mirrored=True)[0, 0, 0].tolist() == [
        0.25,
        0.75,
        1.5,
    ]


@pytest.mark.parametrize("filter", [f for f in FILTERS if f != "none"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_blurpool_keeps_a_constant_and_removes_the_checkerboard(filter, stride):
    rows, columns = torch.meshgrid(torch.arange(13), torch.arange(16), indexing="ij")
    checkerboard = (1 - 2.0 * ((rows + columns) % 2))[None, None].expand(2, 5, -1, -1)
    layer = BlurPool2d(filter, stride)
    shape = (2, 5, -(-13 // stride), -(-16 // stride))
    assert layer(checkerboard).shape == shape
    inside = layer(checkerboard)[..., 2:-2, 2:-2] if stride == 1 else layer(checkerboard)[..., 1:-1, 1:-1]
    assert inside.abs().max() < 1e-6
    torch.testing.assert_close(layer(torch.full((2, 5, 13, 16), 0.7)), torch.full(shape, 0.7))


def test_subsampling_keeps_every_second_pixel_of_the_blurred_map():
    x = torch.rand(1, 2, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(BlurPool2d("bin5", 2)(x), BlurPool2d("bin5", 1)(x)[..., ::2, ::2], rtol=0, atol=1e-7)


def test_pairs_of_strides_and_of_taps_are_for_rows_and_columns():
    x = torch.rand(2, 3, 9, 8)
    whole = BlurPool2d("bin4", 1)(x)
    torch.testing.assert_close(BlurPool2d("bin4", (3, 1))(x), whole[..., ::3, :])
    torch.testing.assert_close(BlurPool2d("bin4", (1, 2))(x), whole[..., ::2])
    assert torch.equal(blur2d(x, (taps("none"), taps("none"))), x)
    one_axis = blur2d(blur2d(x, (taps("bin4"), taps("none"))), (taps("none"), taps("bin4")))
    torch.testing.assert_close(one_axis, whole)


def test_blur_adds_nothing_to_the_state_dict_and_keeps_dtype():
    layer = BlurPool2d("bin7")
    assert not layer.state_dict()
    assert not list(layer.parameters())
    assert layer(torch.rand(1, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_bad_stride():
    x = torch.zeros(1, 1, 4, 4)
    for function in (blur_downsample2d, blur_upsample2d):
        for stride in (0, -2, 2.0, True, (2, 0), (2, 2, 2)):
            with pytest.raises(InputError, match=r"stride=.* is not an integer of at least 1 or a pair of them"):
                function(x, taps("tri3"), stride)
        for bad in ("tri3", [1, 2, 1], (taps("tri3"),), torch.ones(2, 2)):
            with pytest.raises(InputError, match=r"taps=.* is not a 1-D tensor"):
                function(x, bad)
        with pytest.raises(InputError, match=r"images of torch\.uint8 cannot be blurred"):
            function(x.byte(), taps("tri3"))
        with pytest.raises(InputError, match="padding_mode='foo' is not one of reflect"):
            function(x, taps("none"), 1, "foo")
    with pytest.raises(InputError, match="stride=3: filter='rect2' gives some of the new pixels no weight"):
        BlurUnpool2d("rect2", 3)
    with pytest.raises(InputError, match="gives some of the new pixels no weight"):
        BlurUnpool2d([1, 0, 1])
    with pytest.raises(InputError, match="stride=4 is not an integer from 1 to 3, the number of taps"):
        blur_upsample2d(torch.zeros(1, 1, 2, 2), taps("tri3"), 4)


REFERENCE = Path(__file__).parents[3] / "shared" / "data" / "reference" / "blurpool_zhang2019.npz"


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the recorded outputs of the paper's author are not at hand")
def test_every_recorded_output_of_the_papers_author():
    filters = {str(size): name for name, size in BINOMIAL.items()}
    modes = {"reflect": "reflect", "replicate": "replicate", "zero": "zeros"}
    checked = set()
    with np.load(REFERENCE) as recorded:
        for key in recorded:
            if key.startswith("input"):
                continue
            _, shape, mode, size, stride = key.split("_")
            layer = BlurPool2d(filters[size.removeprefix("size")], int(stride.removeprefix("stride")), modes[mode])
            y = layer(torch.from_numpy(recorded[f"input_{shape}"]))
            np.testing.assert_allclose(y.numpy(), recorded[key], rtol=0, atol=1e-6, err_msg=key)
            checked.add((shape, mode, size, stride))
    assert len(checked) == 4 * 3 * 7 * 3  # maps, paddings, filters, strides


def test_upsampling_by_hand():
    x = torch.tensor([[[[0.0, 4.0, 8.0]]]])
    # bin4 mirrored: taps 1 3 3 1 reach two pixels back and one ahead of a new pixel; 3/4 and 1/4 after the division
    assert blur_upsample2d(x, taps("bin4").float())[0, 0, 0].tolist() == [1.0, 1.0, 3.0, 5.0, 7.0, 7.0]
    # bin5: the pixel itself 6/8 and its neighbours 1/8 each, half and half between two
    assert blur_upsample2d(x, taps("bin5").float())[0, 0, 0].tolist() == [1.0, 2.0, 4.0, 6.0, 7.0, 6.0]
    assert blur_upsample2d(x, taps("rect2").float())[0, 0, 0].tolist() == [0.0, 0.0, 4.0, 4.0, 8.0, 8.0]
    assert blur_upsample2d(x, taps("tri3").float(), 3)[0, 0, 0].tolist() == [0.0] * 2 + [4.0] * 3 + [8.0] * 3 + [4.0]
    assert blur_upsample2d(x, taps("tri3").float(), (1, 2), "zeros")[0, 0].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 2.0]]


@pytest.mark.parametrize("filter", ["rect2", "tri3", "bin4", "bin7", "kaiser"])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_upsampling_is_zero_insertion_and_a_blur_of_each_sort_of_pixel(filter, stride, mode):
    steps = stride if isinstance(stride, tuple) else (stride, stride)
    if taps(filter).numel() < max(steps):
        return
    x = torch.randn(1, 2, 9, 12, dtype=torch.float64)
    spread, light = (torch.zeros(1, 2, 9 * steps[0], 12 * steps[1], dtype=torch.float64) for _ in range(2))
    spread[..., :: steps[0], :: steps[1]], light[..., :: steps[0], :: steps[1]] = x, 1
    pair = (taps(filter), taps(filter))
    blurred, gain = (blur2d(y, pair, "zeros", mirrored=True) for y in (spread, light))
    y = blur_upsample2d(x, taps(filter), stride, mode)
    assert y.shape == spread.shape
    inside = (..., slice(9, -9), slice(9, -9)) if max(steps) > 1 else (..., slice(6, -6), slice(6, -6))
    if y[inside].numel():
        torch.testing.assert_close(y[inside], (blurred / gain)[inside])
    if mode != "zeros":
        constant = blur_upsample2d(torch.full_like(x, 0.7), taps(filter), stride, mode)
        torch.testing.assert_close(constant, torch.full_like(y, 0.7))
    torch.testing.assert_close(BlurUnpool2d(filter, stride, mode).double()(x), y, rtol=1e-6, atol=1e-7)
    if mode == "circular":
        shifted = blur_upsample2d(x.roll((1, -2), (2, 3)), taps(filter), stride, mode)
        torch.testing.assert_close(shifted, y.roll((steps[0], -2 * steps[1]), (2, 3)))


def down_and_up(row, filter, levels, padding_mode="reflect"):
    """Halve a row so many times and double it again; a row is enough, since columns are blurred apart from rows."""
    pair, sizes = (taps("none"), taps(filter)), []
    x = row[None, None, None]
    for _ in range(levels):
        sizes.append(x.shape[-1])
        x = blur_downsample2d(x, pair, (1, 2), padding_mode)
    for size in reversed(sizes):
        x = blur_upsample2d(x, pair, (1, 2), padding_mode)[..., :size]
    return x.flatten()


@pytest.mark.parametrize("levels", range(1, 9))
@pytest.mark.parametrize("filter", [f for f in FILTERS if f not in ("none", "ideal")])
@pytest.mark.parametrize("odd", [0, 1])
def test_an_impulse_comes_back_where_it_was(filter, levels, odd):
    # One impulse on every sort of pixel that the levels below tell apart: the middle of them all is what must stay.
    size, block = 64 * 2**levels + odd, 2**levels
    first = size // 2 + 3 * odd
    row = torch.zeros(size, dtype=torch.float64)
    row[first : first + block] = 1
    answer = down_and_up(row, filter, levels)
    position = torch.arange(size, dtype=torch.float64) - (first + (block - 1) / 2)
    assert abs((answer @ position / answer.sum()).item()) < 1e-6


@pytest.mark.parametrize("levels", range(1, 9))
def test_an_impulse_comes_back_where_it_was_through_the_ideal_filter(levels):
    # Its answer rings over the whole row, so a centroid depends on the border. On a circle the first wave's phase is
    # the place; on a mirrored row of odd size, an impulse in the middle must stay symmetric about it.
    size, block = 8 * 2**levels, 2**levels
    row = torch.zeros(size, dtype=torch.float64)
    row[3 * block : 4 * block] = 1
    phase = torch.exp(-2j * torch.pi * torch.arange(size, dtype=torch.float64) / size)
    answer = down_and_up(row, "ideal", levels, "circular").to(phase.dtype) @ phase
    place = -answer.angle().item() / (2 * torch.pi) * size % size
    assert place == pytest.approx(3 * block + (block - 1) / 2, abs=1e-6)
    middle = torch.zeros(size + 1, dtype=torch.float64)
    middle[size // 2] = 1
    answer = down_and_up(middle, "ideal", levels)
    torch.testing.assert_close(answer, answer.flip(0), rtol=0, atol=1e-12)
    assert answer.argmax() == size // 2


def slow_blur(images, rows, columns, strides, mode, mirrored):
    """The definition: numpy pads, a loop weighs."""
    (above, below), (left, right) = (
        ((len(t) - 1) // 2, len(t) // 2)[:: -1 if mirrored else 1] for t in (rows, columns)
    )
    height, width = images.shape[-2:]
    padded = np.pad(images, ((0, 0), (0, 0), (above, below), (left, right)), NUMPY_MODES[mode])
    sums = sum(
        rows[i] * columns[j] * padded[..., i : i + height, j : j + width]
        for i, j in product(range(len(rows)), range(len(columns)))
    )
    return sums[..., :: strides[0], :: strides[1]]


# Lopsided, so that no transpose and no reversal goes unseen.
UNEVEN = {n: (torch.arange(1.0, n + 1) ** 2 / sum(i * i for i in range(1, n + 1))).double() for n in (1, 2, 3, 5, 13)}
# torch itself, where it first meets forward-mode differentiation
FORWARD_MODE = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
CHANNELS_LAST = {"memory_format": torch.channels_last}


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 3), (5, 8), (15, 17)])
def test_blur_equals_its_definition_in_both_layouts_and_precisions(mode, strides, shape):
    images = np.random.default_rng(0).standard_normal((2, 3, *shape))
    for rows, columns, mirrored in product((1, 2, 3, 13), (1, 2, 5, 13), (False, True)):
        filters = UNEVEN[rows], UNEVEN[columns]
        expected = slow_blur(images, *(t.numpy() for t in filters), strides, mode, mirrored)
        for format in (torch.contiguous_format, torch.channels_last):
            x = torch.tensor(images).contiguous(memory_format=format)
            y = blur_downsample2d(x, filters, strides, mode, mirrored)
            np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
            assert y.is_contiguous(memory_format=format)
            y = blur_downsample2d(x.float(), filters, strides, mode, mirrored)
            np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


@FORWARD_MODE
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("shape", [(1, 2), (5, 4)])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_first_and_second_gradients_are_right_in_both_layouts(mode, stride, shape, format):
    x = torch.rand(1, 2, *shape, dtype=torch.float64).contiguous(memory_format=format).requires_grad_()

    def blur(images):
        return blur_downsample2d(images, (UNEVEN[2], UNEVEN[3]), stride, mode)

    assert torch.autograd.gradcheck(blur, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda images: blur(images).square(), (x,))


@FORWARD_MODE
def test_functional_transforms_give_the_same_in_both_layouts():
    x = torch.rand(3, 2, 2, 5, 4, dtype=torch.float64)
    for images in (x, x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)):
        layer = BlurPool2d("bin4")
        torch.testing.assert_close(torch.func.vmap(layer)(images), torch.stack([layer(i) for i in images]))
        one = images[0]
        torch.testing.assert_close(torch.func.jacrev(layer)(one), torch.func.jacfwd(layer)(one))
        value, change = torch.func.jvp(layer, (one,), (images[1],))
        torch.testing.assert_close(value, layer(one))
        torch.testing.assert_close(change, layer(images[1]))


def test_blur_in_either_layout_is_differentiable_after_inference_mode_and_deterministic():
    layer, x = BlurPool2d("tri3", 2), torch.rand(1, 3, 6, 7)
    expected = layer(x)
    with torch.inference_mode():  # fills the lists that training meets next
        torch.testing.assert_close(layer(x.to(**CHANNELS_LAST)), expected)
    torch.use_deterministic_algorithms(True)
    try:
        y = x.to(**CHANNELS_LAST).requires_grad_()
        gradient = torch.autograd.grad(layer(y).square().sum(), y)[0]
    finally:
        torch.use_deterministic_algorithms(False)
    plain = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(layer(plain).square().sum(), plain)[0])
    assert gradient.is_contiguous(**CHANNELS_LAST)


def test_trained_taps_get_their_gradient():
    x = torch.rand(1, 2, 4, 5).to(**CHANNELS_LAST)
    kernel = taps("tri3").float().requires_grad_()
    blur2d(x, kernel).sum().backward()
    assert kernel.grad.abs().sum() > 0
