import math

import numpy as np
import pytest
import torch

from genstab import InputError
from genstab.metrics.spectrum import SpectrumError, radial_power


def by_loops(image, rings):
    """The same from the definition: the power at every frequency, put into rings one by one."""
    height, width = image.shape[1:]
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in (height, width)))
    sums, counts = np.zeros(rings), np.zeros(rings)
    y, x = np.mgrid[:height, :width]
    for i in range(height):
        for j in range(width):
            down, right = (f - n if 2 * f >= n else f for f, n in ((i, height), (j, width)))
            radius = math.hypot(down / height, right / width)
            if radius < 0.5:
                wave = np.exp(-2j * np.pi * (i * y / height + j * x / width))
                centred = image - image.mean((1, 2), keepdims=True)
                power = (abs((centred * window * wave).sum((1, 2))) ** 2).mean() / (window**2).sum()
                sums[int(radius * 2 * rings)] += power
                counts[int(radius * 2 * rings)] += 1
    return sums / np.maximum(counts, 1)


@pytest.mark.parametrize(("shape", "rings"), [((2, 16, 12), 6), ((1, 9, 15), 8), ((3, 8, 8), 16)])
def test_power_is_that_of_the_definition(shape, rings):
    images = torch.randn(2, *shape, dtype=torch.float64)
    power = radial_power(images, rings)
    for row, image in zip(power, images, strict=True):
        np.testing.assert_allclose(row.numpy(), by_loops(image.numpy(), rings), rtol=1e-9, atol=1e-12)


def test_white_noise_has_its_variance_in_every_ring_but_the_one_that_lost_the_mean():
    torch.manual_seed(0)
    noise = 0.5 * torch.randn(256, 1, 32, 32)
    power = radial_power(noise, 8).mean(0)
    torch.testing.assert_close(power[1:], torch.full((7,), 0.25).double(), rtol=0.05, atol=0)
    assert power[0] < 0.24


def test_a_blur_is_off_by_its_response_and_an_echo_by_that_of_two_filters():
    noise = torch.randn(64, 3, 64, 64)
    metric = SpectrumError(rings=4)
    blurred = (noise + noise.roll(1, -1)) / 2
    metric.update(blurred, noise)
    # |(1 + e^{-iω}) / 2|² = cos² (ω / 2), averaged over the frequencies of each ring
    down, right = np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64), indexing="ij")
    ring = (np.hypot(down, right) * 8).astype(int)
    expected = [10 * math.log10((np.cos(np.pi * right[ring == k]) ** 2).mean()) for k in range(4)]
    np.testing.assert_allclose(metric.decibels().numpy(), expected, atol=0.15)  # the noise of 64 images
    assert metric.compute().item() == pytest.approx(np.abs(expected).mean(), abs=0.1)


def test_nothing_and_nan_are_nan():
    metric, image = SpectrumError(), torch.rand(1, 3, 20, 24)
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute().isnan()
    metric.update(image * torch.nan, image)
    assert metric.compute().isnan()


def test_a_constant_output_is_off_by_the_cap_and_equal_pictures_by_nothing():
    metric = SpectrumError()
    metric.update(torch.zeros(2, 1, 32, 32), torch.rand(2, 1, 32, 32))
    assert metric.compute().item() == pytest.approx(100)
    metric.reset()
    flat = torch.zeros(1, 1, 4, 4)  # of few pixels, where most rings have no frequency
    metric.update(torch.eye(4).reshape(flat.shape), torch.eye(4).reshape(flat.shape))
    assert metric.compute().item() == 0


def test_what_is_no_batch_of_images_is_refused():
    with pytest.raises(InputError, match=r"images \(3, 8, 8\) are not \(N, C, H, W\)"):
        radial_power(torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match="rings=0"):
        SpectrumError(rings=0)
