import math

import pytest
import torch
from torch import nn

from genstab import InputError
from genstab.evaluation.robustness import corruption_errors, corruption_picture, relative_corruption_error
from genstab.metrics.corruptions import CORRUPTIONS, corrupt
from genstab.metrics.shift_psnr import decibel

GREY = torch.zeros(8, 3, 32, 32)
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def same(images):
    return images


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_gaussian_noise_through_the_identity_has_its_closed_form(severity):
    # On mid grey, the noise is σ z clamped to ±1/2. With a = 1 / (2 σ), its mean square is
    # σ² (P(|z| < a) − 2 a φ(a)) + P(|z| > a) / 4; in [−1, 1] four times that. The range is 2: dB = −10 log10 of it.
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    a = 0.5 / sigma
    inside = math.erf(a / math.sqrt(2))
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    error = sigma**2 * (inside - 2 * a * density) + (1 - inside) / 4
    errors = corruption_errors(same, GREY, GREY, ["gaussian_noise"], [severity])
    assert errors.shape == (1, 1, 8)
    # relative standard error of the mean square of n normal samples: √(2/n), five of them; in dB times 10 / ln 10
    tolerance = 5 * math.sqrt(2 / GREY.numel()) * 10 / math.log(10)
    assert decibel(errors.mean()).item() == pytest.approx(-10 * math.log10(error), abs=tolerance)


def test_a_constant_generator_is_perfectly_robust():
    errors = corruption_errors(lambda x: torch.full_like(x, 0.3), IMAGES, torch.full_like(IMAGES, 0.3), CORRUPTIONS)
    assert errors.shape == (len(CORRUPTIONS), 5, 5)
    assert (decibel(errors) == 100).all()


def test_errors_by_hand_in_any_batch_and_by_index():
    generator = nn.Conv2d(3, 2, 3, stride=2, padding=1)  # another size and number of channels than the input's
    names, severities = ["fog", "shot_noise"], [2, 5]
    with torch.no_grad():
        clean = generator(IMAGES)
        errors = corruption_errors(generator, IMAGES, clean, names, severities, seed=3, forward_batch=2)
        assert errors.shape == (2, 2, 5)
        for row, name in enumerate(names):
            for column, severity in enumerate(severities):
                moved = generator(corrupt(IMAGES, name, severity, 3)) - clean
                torch.testing.assert_close(errors[row, column], moved.square().mean((1, 2, 3)).double())
        last = corruption_errors(generator, IMAGES[3:], clean[3:], names, severities, seed=3, indices=[3, 4])
    torch.testing.assert_close(last, errors[..., 3:])


def test_the_model_sees_each_corrupted_image_once():
    seen = []
    corruption_errors(lambda x: seen.append(len(x)) or x, IMAGES, IMAGES, ["fog", "contrast"], [1, 2], forward_batch=4)
    assert seen == [4, 1] * 4


def test_error_rates_of_a_classifier():
    def bright(x):
        mean = x.mean((1, 2, 3))
        return torch.stack((-mean, mean), 1)

    # classes by mean value, dark and bright; +0.2, … +1.0 of brightness turn some of the dark ones
    means = torch.tensor([-0.9, -0.5, -0.3, 0.3])
    images = means.view(4, 1, 1, 1).expand(4, 1, 32, 32)
    labels = torch.tensor([0, 0, 0, 1])
    errors = corruption_errors(bright, images, labels, ["brightness", "contrast"], forward_batch=3)
    assert errors.mean(2).tolist() == [[0, 0.25, 0.5, 0.5, 0.75], [0] * 5]


def part(errors, severities=(1,), images=("a",)):
    return {"errors": errors, "severities": list(severities), "images": list(images)}


def test_relative_error_by_hand():
    errors = part({"fog": [0.1, 0.2, 0.3], "contrast": [0.5, 0.5, 0.5]}, (1, 3, 5))
    baseline = part({"contrast": [0.05, 0.2, 0.5], "fog": [0.2, 0.4, 0.6]}, (1, 3, 5))
    ratios, mean = relative_corruption_error(errors, baseline)
    assert ratios == pytest.approx({"fog": 0.5, "contrast": 2.0})
    assert mean == pytest.approx(1.25)
    assert relative_corruption_error(errors, errors) == ({"fog": 1.0, "contrast": 1.0}, 1.0)


def test_picture_has_a_row_for_each_corruption():
    decibels = {name: [45.0, 38.0, 30.0, 22.0, 12.0] for name in CORRUPTIONS}
    picture = corruption_picture(decibels)
    assert picture.dtype == "uint8"
    assert picture.ndim == 3
    assert picture.shape[0] > corruption_picture({"fog": [20.0, 10.0]}, [1, 5]).shape[0]
    assert {tuple(colour) for colour in picture.reshape(-1, 3)[::7]} >= {(255, 255, 255)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corruption_errors(same, IMAGES, IMAGES, ["rain"]), "corruption='rain' is not one of"),
        (lambda: corruption_errors(same, IMAGES, IMAGES, ["fog"], [6]), "severity=6 is not one of 1, 2"),
        (
            lambda: corruption_errors(
                lambda x: torch.where(x.amax((1, 2, 3), keepdim=True) > 0.75, torch.nan, x),
                IMAGES[:2] * torch.tensor([0.2, 0.7]).view(2, 1, 1, 1),
                IMAGES[:2],
                ["brightness"],
                indices=[7, 9],
            ),
            "output for image 9 under brightness at severity 1 is not finite",
        ),
        (
            lambda: relative_corruption_error(part({}), part({}, [2])),
            r"the baseline has severities \[2\], not \[1\]",
        ),
        (lambda: relative_corruption_error(part({}), part({}, images="b")), "the baseline has images"),
        (lambda: relative_corruption_error(part({"fog": [1.0]}), part({"contrast": [1.0]})), "has corruptions"),
        (lambda: relative_corruption_error(part({"fog": [1.0]}), part({"fog": [0.0]})), "the baseline has no error"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
