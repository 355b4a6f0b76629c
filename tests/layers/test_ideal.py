import numpy as np
import pytest
import torch

from genstab.layers.blur import blur_downsample2d, blur_upsample2d
from genstab.layers.filters import PADDING_MODES, taps
from genstab.layers.ideal import ideal_lowpass

NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "zeros": "constant", "circular": "wrap"}


def by_fft(row, factor, mode):
    """Continue a row to a period, transform, mask, transform back."""
    size = len(row)
    before, after = {"circular": (0, 0), "reflect": (0, max(0, size - 2))}.get(mode, (size // 2, size - size // 2))
    period = np.pad(row, (before, after), NUMPY_MODES[mode])
    spectrum = np.fft.rfft(period)
    spectrum[np.arange(len(spectrum)) * 2 * factor >= len(period)] = 0
    return np.fft.irfft(spectrum, len(period))[before : before + size]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8, 9, 12, 13, 33])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_it_is_transform_mask_and_transform_back(size, mode):
    x = torch.randn(3, size, dtype=torch.float64)
    for factor in (1, 2, 3):
        expected = np.stack([by_fft(row, factor, mode) for row in x.numpy()])
        y = ideal_lowpass(x, 1, factor, padding_mode=mode)
        assert np.abs(y.numpy() - expected).max() < 1e-13
        assert np.abs(ideal_lowpass(x.float(), 1, factor, padding_mode=mode).numpy() - expected).max() < 1e-6
        torch.testing.assert_close(ideal_lowpass(x, 1, factor, stride=3, padding_mode=mode), y[:, ::3])
        torch.testing.assert_close(ideal_lowpass(x.T, 0, factor, padding_mode=mode), y.T)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_one_pixel(mode):
    assert ideal_lowpass(torch.tensor([3.0]), 0, padding_mode=mode).item() == (3.0 if mode != "zeros" else 1.5)


def test_waves_below_the_limit_pass_and_the_others_vanish():
    position = torch.arange(24, dtype=torch.float64)
    for k in range(13):
        wave = torch.cos(2 * torch.pi * k * position / 24)
        expected = wave if k < 6 else torch.zeros(24)  # 6 / 24 is the limit itself: it would alias
        y = ideal_lowpass(wave, 0, padding_mode="circular")
        torch.testing.assert_close(y, expected.double(), rtol=0, atol=1e-13)


def test_upsampling_continues_each_wave():
    for k in (0, 1, 3):
        low, high = (torch.cos(2 * torch.pi * k * torch.arange(8.0 * up).double() / (8 * up) + 0.3) for up in (1, 3))
        y = ideal_lowpass(low, 0, 3, up=3, padding_mode="circular")
        torch.testing.assert_close(y, high, rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(16, 8), (17, 9)])
def test_down_and_up_give_back_what_the_small_map_can_hold(size):
    # Mirrored, a row of 2n + 1 pixels has period 4n, and so has its every second pixel twice as far apart.
    mode = "reflect" if size[0] % 2 else "circular"
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    low = blur_downsample2d(x, taps("ideal"), 1, mode)
    back = blur_upsample2d(blur_downsample2d(x, taps("ideal"), 2, mode), taps("ideal"), 2, mode)
    torch.testing.assert_close(back[..., : size[0], : size[1]], low, rtol=0, atol=1e-13)


def test_rows_may_have_taps_and_columns_the_ideal_filter():
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    one, tri3, ideal = taps("none"), taps("tri3"), taps("ideal")
    both = blur_downsample2d(x, (tri3, ideal), (2, 3))
    apart = blur_downsample2d(blur_downsample2d(x, (one, ideal), (1, 3)), (tri3, one), (2, 1))
    torch.testing.assert_close(both, apart)
    torch.testing.assert_close(both, blur_downsample2d(x.mT, (ideal, tri3), (3, 2)).mT)


def test_the_gradient_is_right():
    x = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: blur_downsample2d(x, taps("ideal")), (x,))
