"""Noise that is anchored in the picture: it follows shifts, whatever the contrast, and needs an edge nearby."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import nn

from genstab import AnchoredNoise, InputError, UNet
from genstab.layers.anchored_noise import FAINT, REACH, anchored_noise, noise_filters
from genstab.layers.filters import PADDING_MODES
from genstab.metrics.shift_ops import fourier_shift


def labels(*shape, seed=0):
    """Rectangles of a few plain colours."""
    random = np.random.default_rng(seed)
    image = np.zeros(shape, np.float32)
    for _ in range(6):
        top, left = random.integers(0, shape[-2] - 6), random.integers(0, shape[-1] - 6)
        image[:, top : top + random.integers(3, 12), left : left + random.integers(3, 12)] = random.uniform(
            -1, 1, (shape[0], 1, 1)
        )
    return torch.tensor(image)


def test_filters_are_white_and_low_passed_noise_of_norm_1_that_sums_to_0():
    filters = noise_filters(3, 8)
    assert filters.shape == (8, 3, 2 * REACH + 1, 2 * REACH + 1)
    torch.testing.assert_close(filters.sum((2, 3)), torch.zeros(8, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(filters.square().sum((1, 2, 3)), torch.ones(8))
    power = torch.fft.fft2(filters).abs().square().sum(1)
    fine = power[:, 3:7, 3:7].sum((1, 2)) / power.sum((1, 2))  # a quarter of the plane, about the highest frequencies
    assert fine[:4].mean() > 0.15 > 0.03 > fine[4:].mean()
    assert torch.equal(filters, noise_filters(3, 8))
    state = torch.get_rng_state()
    noise_filters(1, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_the_filters_answer_over_the_contrast_about_it():
    source, filters = torch.randn(1, 2, 11, 14), noise_filters(2, 3)
    picture, kernels = source[0].numpy().astype(np.float64), filters.numpy().astype(np.float64)
    seen = np.stack([
        sum(scipy.ndimage.correlate(picture[c], kernel[c], mode="nearest") for c in range(2)) for kernel in kernels
    ])  # fmt: skip
    energy = scipy.ndimage.gaussian_filter((seen**2).mean(0), 2.0, truncate=1.5, mode="nearest")  # three pixels
    expected = seen / np.sqrt(energy + FAINT**2)
    np.testing.assert_allclose(anchored_noise(source, filters)[0].numpy(), expected, atol=1e-5)


def test_it_follows_the_picture():
    scene = labels(3, 48, 56)
    filters = noise_filters(3, 6)
    whole = anchored_noise(scene[None], filters)
    window = anchored_noise(scene[None, :, 5:40, 3:44], filters)
    inside = slice(REACH + 3, -REACH - 3)  # what no border reaches
    torch.testing.assert_close(window[..., inside, inside], whole[..., 5:40, 3:44][..., inside, inside])
    rolled = anchored_noise(scene.roll((7, -5), (-2, -1))[None], filters, "circular")
    torch.testing.assert_close(rolled, anchored_noise(scene[None], filters, "circular").roll((7, -5), (-2, -1)))


def test_it_follows_parts_of_a_pixel_nearly():
    scene = torch.nn.functional.avg_pool2d(labels(3, 48, 56)[None], 3, 1, 1).double()  # nothing near Nyquist
    filters = noise_filters(3, 6).double()
    noise = anchored_noise(scene, filters, "circular")
    moved, _ = fourier_shift(scene, (0.5, 0.25))
    expected, _ = fourier_shift(noise, (0.5, 0.25))
    error = (anchored_noise(moved, filters, "circular") - expected).square().mean() / noise.square().mean()
    still = (noise - expected).square().mean() / noise.square().mean()
    assert error < 0.1 * still


def test_plain_regions_have_none_and_the_strength_of_an_edge_does_not_matter():
    source = torch.zeros(1, 1, 24, 40)
    source[..., 8:16, 15:25] = 1
    filters = noise_filters(1, 4)
    noise = anchored_noise(source, filters)
    near = torch.zeros(24, 40, dtype=torch.bool)
    near[8 - REACH : 16 + REACH, 15 - REACH : 25 + REACH] = True
    assert noise[..., ~near].abs().max() == 0
    assert noise[..., near].square().mean() > 0.1
    fainter = anchored_noise(0.5 * source, filters)
    assert (fainter - noise).abs().max() < 0.15
    jpeg = anchored_noise(0.002 * torch.randn(1, 1, 24, 40), filters)
    assert jpeg.square().mean() < 0.01


def test_plain_regions_stay_plain_in_half_precision():
    noise = AnchoredNoise(3, 8)
    plain = torch.tensor([0.9, -0.6, 0.3])[None, :, None, None].expand(1, 3, 20, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert noise(plain).abs().max() < 1e-4


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 3)])
def test_small_pictures_and_all_borders(mode, size):
    noise = AnchoredNoise(2, 3, mode)(torch.randn(2, 2, *size))
    assert noise.shape == (2, 3, *size)
    assert noise.isfinite().all()


def test_filters_are_in_checkpoints_and_not_trained():
    network = UNet(1, 1, channels=2, levels=2, head=4)
    assert "head.noise.filters" in network.state_dict()
    assert not any("filters" in name for name, _ in network.named_parameters())
    other = UNet(1, 1, channels=2, levels=2, head=4)
    with torch.no_grad():
        network.head.noise.filters.mul_(-1)  # as if a later torch drew others
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.head.noise.filters, -noise_filters(1, 4))


def test_counts_are_checked():
    with pytest.raises(InputError, match="count=0"):
        AnchoredNoise(3, 0)
    with pytest.raises(InputError, match="in_channels=-1"):
        AnchoredNoise(-1, 2)
    assert isinstance(AnchoredNoise(1, 1), nn.Module)
