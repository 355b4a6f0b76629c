import numpy as np
import pytest
import torch

from genstab import BlurPool2d, InputError
from genstab.blur import blur2d, pad2d
from genstab.filters import FILTERS, PADDING_MODES, taps

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


def test_gradient_is_right():
    x = torch.rand(1, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    layer = BlurPool2d("tri3").double()
    assert torch.autograd.gradcheck(layer, (x,))


def test_bad_stride():
    with pytest.raises(InputError, match="stride=0"):
        BlurPool2d(stride=0)
    with pytest.raises(InputError, match=r"stride=\(2, 0\)"):
        BlurPool2d(stride=(2, 0))
