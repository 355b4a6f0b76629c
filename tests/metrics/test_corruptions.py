import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image

from genstab import InputError
from genstab.data.synthetic import SyntheticFacades
from genstab.metrics.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corruptions_for

GREY = torch.zeros(4, 3, 64, 64)


def facades(count=1, size=64):
    pairs = SyntheticFacades(count, size)
    return torch.stack([pairs[i]["target"] for i in range(count)])


def unit(images):
    return ((images + 1) / 2).double()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_grow_and_values_stay_in_range(name):
    images = facades(2, 128)
    errors = []
    for severity in SEVERITIES:
        corrupted = corrupt(images, name, severity)
        assert corrupted.shape == images.shape
        assert corrupted.abs().max() <= 1
        errors.append((corrupted - images).square().mean().item())
    # where the published constants turn: less colour, then more; and a rougher fog at 4, no denser
    parts = {"saturate": [errors[:2], errors[2:]], "fog": [errors[:3], errors[3:]]}.get(name, [errors])
    assert all(part == sorted(set(part)) for part in parts)
    assert errors[0] > 1e-4


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_bits_in_any_batch_whatever_the_global_random_state(name):
    images = facades(5, 33)[..., :32]  # 33×32
    whole = corrupt(images, name, 3, seed=1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    parts = [corrupt(images[i : i + 2], name, 3, 1, range(i, min(i + 2, 5))) for i in (0, 2, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "motion_blur", "fog"]
)
def test_images_and_seeds_have_random_numbers_of_their_own(name):
    images = facades(1, 32).expand(2, -1, -1, -1)
    first, second = corrupt(images, name, 3)
    assert not torch.equal(first, second)
    assert torch.equal(corrupt(images, name, 3, indices=[1, 0])[0], second)
    assert not torch.equal(corrupt(images, name, 3, seed=1)[0], first)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels_and_odd_sizes(channels):
    images = facades(1, 48)[:, [0, 1, 2, 0]][:, :channels, :37, :45]
    for name in corruptions_for(channels):
        corrupted = corrupt(images, name, 5)
        assert corrupted.shape == images.shape
        assert not torch.equal(corrupted, images)
    assert corrupt(images.to(torch.bfloat16), "contrast", 1).dtype == torch.bfloat16


# The variance of the variance of n normal samples is 2 σ⁴ / n: five standard errors are 5 √(2/n) / 2 of σ.
@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.08), (2, 0.12), (3, 0.18)])
def test_gaussian_and_speckle_noise_have_the_published_deviation(severity, deviation):
    noise = unit(corrupt(GREY[:1, :, :32, :32].repeat(8, 1, 1, 1), "gaussian_noise", severity)) - 0.5
    tolerance = 5 * (2 / noise.numel()) ** 0.5 / 2
    # mid grey ± 0.5 is clamped at no less than 2.7 σ, which takes less than half a percent of σ
    assert noise.std().item() == pytest.approx(deviation, rel=tolerance + 0.005)
    assert abs(noise.mean().item()) < 5 * deviation / noise.numel() ** 0.5
    speckle = unit(corrupt(GREY, "speckle_noise", severity)) - 0.5
    assert speckle.std().item() == pytest.approx(0.5 * (0.15, 0.2, 0.35)[severity - 1], rel=tolerance + 0.005)


def test_shot_noise_counts_photons():
    counts = unit(corrupt(GREY - 0.5, "shot_noise", 2)) * 25  # a quarter of white: 6.25 photons expected
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    n = counts.numel()
    assert counts.mean().item() == pytest.approx(6.25, abs=5 * (6.25 / n) ** 0.5)
    # a Poisson variable's variance is its mean; its fourth central moment is λ (1 + 3 λ)
    assert counts.var().item() == pytest.approx(6.25, abs=5 * ((6.25 + 2 * 6.25**2) / n) ** 0.5)


def test_impulse_noise_is_half_salt_half_pepper():
    corrupted = corrupt(GREY, "impulse_noise", 5)
    n = corrupted.numel()
    for value in (-1, 1):
        share = (corrupted == value).double().mean().item()
        assert share == pytest.approx(0.135, abs=5 * (0.135 * 0.865 / n) ** 0.5)
    assert (corrupted[corrupted.abs() < 1] == 0).all()


def impulse(size=225):
    point = -torch.ones(1, 1, size, size)
    point[..., size // 2, size // 2] = 1
    return point


def moments(kernel):
    """Sum, centroid and variances of a picture in [0, 1], rows then columns, around its middle."""
    ys = torch.arange(kernel.shape[-2]).double() - kernel.shape[-2] // 2
    xs = torch.arange(kernel.shape[-1]).double() - kernel.shape[-1] // 2
    rows, columns = kernel.sum(-1), kernel.sum(-2)
    total = kernel.sum()
    y, x = (rows @ ys / total).item(), (columns @ xs / total).item()
    return total.item(), y, x, (rows @ ys**2 / total).item() - y * y, (columns @ xs**2 / total).item() - x * x


@pytest.mark.parametrize(("severity", "radius"), [(1, 3), (5, 10)])
def test_defocus_is_a_disc_and_gaussian_blur_a_gaussian(severity, radius):
    # at 448 pixels every length is twice the published one
    for size, pixel in ((225, 225 / 224), (449, 449 / 224)):
        total, y, x, var_y, var_x = moments(unit(corrupt(impulse(size), "defocus_blur", severity))[0, 0])
        assert total == pytest.approx(1, abs=1e-3)
        assert (y, x) == pytest.approx((0, 0), abs=0.01)
        # a disc's variance along an axis is r²/4; bilinear sharing adds 1/6
        assert (var_y, var_x) == pytest.approx([(radius * pixel) ** 2 / 4 + 1 / 6] * 2, rel=0.02)
    sigma = {1: 1, 5: 6}[severity] * 225 / 224
    total, y, x, var_y, var_x = moments(unit(corrupt(impulse(), "gaussian_blur", severity))[0, 0])
    assert (total, y, x) == pytest.approx((1, 0, 0), abs=1e-3)
    assert (var_y, var_x) == pytest.approx((sigma**2, sigma**2), rel=0.01)


def test_motion_blur_is_a_one_sided_line_within_45_degrees_of_the_row():
    sigma, pixel = 3, 225 / 224
    angles = []
    for number in range(8):
        streak = unit(corrupt(impulse(), "motion_blur", 1, indices=[number]))[0, 0]
        total, y, x, _, _ = moments(streak)
        assert total == pytest.approx(1, abs=1e-3)
        # the mean of half a Gaussian is σ √(2/π)
        assert np.hypot(y, x) == pytest.approx(sigma * pixel * np.sqrt(2 / np.pi), rel=0.01)
        angles.append(np.degrees(np.arctan2(y, -x)))
    assert max(map(abs, angles)) <= 45
    assert max(angles) - min(angles) > 20


def test_zoom_blur_averages_magnified_images():
    ramp = (torch.arange(65) - 32).float().div(64).expand(1, 1, 65, 65)  # a ramp zoomed by z has its slope over z
    blurred = corrupt(ramp, "zoom_blur", 5)
    zooms = [1, *(1 + 0.03 * i for i in range(11))]
    torch.testing.assert_close(blurred, ramp * np.mean([1 / zoom for zoom in zooms]), atol=1e-5, rtol=0)


def test_brightness_adds_to_the_value_of_hsv():
    image = facades(1, 32)
    image[0, :, 0, 0] = -1  # black
    brighter = unit(corrupt(image, "brightness", 3))
    for y, x in ((0, 0), (3, 5), (20, 17), (31, 31), (10, 0)):
        hue, saturation, value = colorsys.rgb_to_hsv(*unit(image)[0, :, y, x].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3))
        assert brighter[0, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_saturate_scales_the_saturation_of_hsv():
    image = facades(1, 32)
    for severity, (factor, offset) in ((1, (0.3, 0)), (4, (5, 0.1))):
        result = unit(corrupt(image, "saturate", severity))
        for y, x in ((3, 5), (20, 17), (31, 31), (10, 0)):
            hue, saturation, value = colorsys.rgb_to_hsv(*unit(image)[0, :, y, x].tolist())
            expected = colorsys.hsv_to_rgb(hue, min(1, saturation * factor + offset), value)
            assert result[0, :, y, x].tolist() == pytest.approx(expected, abs=1e-4)


def test_contrast_by_hand():
    image = torch.zeros(1, 2, 32, 32)
    image[:, 0, :16] = 1
    image[:, 0, 16:] = -0.5  # mean 0.25: 0.25 ± 0.75 · 0.2
    result = corrupt(image, "contrast", 3)
    torch.testing.assert_close(result[0, 0, :16], torch.full((16, 32), 0.4))
    torch.testing.assert_close(result[0, 0, 16:], torch.full((16, 32), 0.1))
    torch.testing.assert_close(result[0, 1], torch.zeros(32, 32))


def test_pixelate_by_hand():
    image = facades(1, 32)
    for severity, side in ((2, 2), (5, 4)):
        means = image.unfold(2, side, side).unfold(3, side, side).mean((-1, -2))
        expected = means.repeat_interleave(side, 2).repeat_interleave(side, 3)
        torch.testing.assert_close(corrupt(image, "pixelate", severity), expected, atol=1e-6, rtol=0)


def test_fog_by_its_formula():
    # black all but one white pixel: c p / (1 + c), where the fog p goes from 0 to 1
    image = -torch.ones(1, 3, 40, 40)
    image[..., 7, 9] = 1
    foggy = unit(corrupt(image, "fog", 1))[0]
    assert torch.equal(foggy[0], foggy[2])
    assert foggy.amin().item() == pytest.approx(0, abs=1e-6)
    assert foggy[0, :7].amax().item() <= 0.6
    fog = foggy[0, 7, [8, 10]].mean().item() / 0.6
    assert foggy[0, 7, 9].item() == pytest.approx((1 + 1.5 * fog) / 2.5, abs=0.05)


@pytest.mark.parametrize(("severity", "quality"), [(1, 25), (5, 7)])
def test_jpeg_is_pillows(severity, quality):
    image = facades(1, 40)[..., :33]
    levels = ((image[0] + 1) * 127.5).round().to(torch.uint8).numpy()
    for picture, channels in ((levels.transpose(1, 2, 0), slice(None)), (levels[1], slice(1, 2))):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        expected = torch.from_numpy(np.array(Image.open(file))).float() / 127.5 - 1
        expected = expected.permute(2, 0, 1) if expected.ndim == 3 else expected[None]
        torch.testing.assert_close(corrupt(image[:, channels], "jpeg_compression", severity)[0], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corrupt(GREY, "snow", 1), "corruption='snow' is not one of gaussian_noise, shot_noise"),
        (lambda: corrupt(GREY, "fog", 0), "severity=0 is not one of 1, 2, 3, 4, 5"),
        (lambda: corrupt(GREY, "fog", True), "severity=True"),
        (lambda: corrupt(GREY, "fog", 2.0), "severity=2.0"),
        (lambda: corrupt(GREY[:, :1], "saturate", 1), "'saturate' is for 3 channels; the images have 1"),
        (lambda: corrupt(GREY[..., :31], "fog", 1), "64×31 images are smaller than 32×32"),
        (lambda: corrupt(GREY[0], "fog", 1), "are not floating point \\(N, C, H, W\\)"),
        (lambda: corrupt(GREY.int(), "fog", 1), "torch.int32"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
