import copy

import numpy as np
import pytest
import skimage.metrics
import torch
from torch import nn

from genstab import InputError, ShiftPSNR, shift_psnr
from genstab.metrics.shift_psnr import decibel, shift_errors, squared_error

SHIFTS = [(0, 1), (1, 0), (-2, 3)]


class Positioned(nn.Module):
    """Multiplies by a fixed picture: as unstable as can be, and its error is known."""

    def __init__(self, height, width):
        super().__init__()
        self.register_buffer("picture", torch.rand(height, width, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        return x * self.picture[: x.shape[-2], : x.shape[-1]]


def test_shift_psnr_of_a_position_dependent_generator_by_its_formula():
    images, generator = torch.rand(2, 3, 12, 10), Positioned(12, 10)
    values = shift_psnr(generator, images, SHIFTS)
    assert values.shape == (3, 2)
    for row, (dy, dx) in zip(values, SHIFTS, strict=True):
        for value, x in zip(row, images, strict=True):
            # G(Sx) − SG(x) = Sx · (p − Sp)
            moved = torch.roll(x, (dy, dx), (1, 2))
            error = (moved * (generator.picture - torch.roll(generator.picture, (dy, dx), (0, 1)))).square().mean()
            assert value.item() == pytest.approx(10 * torch.log10(4 / error).item(), abs=1e-4)


def test_crop_protocol_by_its_formula():
    images, generator = torch.rand(1, 1, 12, 10), Positioned(12, 10)
    value = shift_psnr(generator, images, [(2, 0)], "crop", margin=1)
    # Windows of 10×10: the reference starts at row 2, the moved one at row 0. At a row y of the moved window they
    # show the image's row y, weighted by the picture's rows y and y − 2. Rows 3 to 8 and columns 1 to 8 count.
    rows, columns = slice(3, 9), slice(1, 9)
    picture = generator.picture
    difference = images[0, 0, rows, columns] * (picture[rows, columns] - picture[1:7, columns])
    assert value.item() == pytest.approx(10 * torch.log10(4 / difference.square().mean()).item(), abs=1e-4)


def test_reductions_by_hand():
    outputs = torch.zeros(2, 1, 2, 2)
    others = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1).expand(2, 1, 2, 2)  # 20 dB and 40 dB
    expected = {"mean": 30.0, "worst": 20.0, "pooled": 22.967086}  # 10 log10(4 / ((0.04 + 0.0004) / 2))
    for reduction, value in expected.items():
        metric = ShiftPSNR(reduction=reduction)
        metric.update(outputs, others)
        assert metric.compute().item() == pytest.approx(value, abs=1e-4)


def test_the_metric_is_scikit_images_psnr_of_the_valid_pixels():
    a, b = torch.rand(2, 1, 3, 6, 5)
    mask = torch.rand(1, 1, 6, 5) > 0.3
    metric = ShiftPSNR()
    metric.update(a, b, mask)
    valid = (each[0][:, mask[0, 0]].numpy() for each in (a, b))
    assert metric.compute().item() == pytest.approx(
        skimage.metrics.peak_signal_noise_ratio(*valid, data_range=2), abs=1e-4
    )


def test_mask_hides_even_nan():
    a, b = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.2, float("nan")]]]])
    error, count = squared_error(a, b, torch.tensor([[[[True, False]]]]))
    assert (error.item(), count.item()) == (pytest.approx(0.04), 1)


def test_no_update_is_nan_and_no_error_is_the_cap():
    for reduction in ("mean", "worst", "pooled"):
        metric = ShiftPSNR(reduction=reduction, cap=80.0)
        metric.update(torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 2, 2))
        assert metric.compute().isnan()
        metric.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        assert metric.compute() == 80
    assert decibel(torch.tensor(4.0)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ShiftPSNR(reduction="median"), "reduction='median' is not one of mean, worst, pooled"),
        (lambda: ShiftPSNR(data_range=0), "data_range=0"),
        (lambda: squared_error(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3)), "must have the same shape"),
        (lambda: squared_error(*torch.zeros(2, 1, 1, 2, 2), torch.zeros(1, 1, 2, 2)), "no valid pixel"),
        (lambda: shift_psnr(nn.Identity(), torch.zeros(1, 1, 4, 4), [(0, 0)]), "zero shift"),
        (lambda: shift_psnr(nn.Identity(), torch.zeros(1, 1, 4, 4), [(0, 1)], data_range=0), "data_range=0 must be"),
        (lambda: shift_psnr(nn.LSTM(4, 4), torch.zeros(1, 1, 4, 4)[0], [(0, 1)]), "are not \\(N, C, H, W\\)"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_generator_that_works_in_place_changes_no_image():
    class InPlace(nn.Module):
        def forward(self, images):
            return images.add_(1)

    images = torch.rand(2, 1, 8, 8)
    before = images.clone()
    for protocol in ("circular", "crop"):
        assert (shift_psnr(InPlace(), images, SHIFTS, protocol, margin=0) == 100).all()
    assert torch.equal(images, before)


def test_double_precision_weights_are_measured_in_float32():
    generator, images = nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 1, 8, 8)
    expected = shift_psnr(generator, images, SHIFTS)
    torch.testing.assert_close(shift_psnr(copy.deepcopy(generator).double(), images, SHIFTS), expected)
    assert generator.weight.dtype == torch.float32


def test_errors_and_their_counts_give_the_decibels():
    generator, images = Positioned(12, 10), torch.rand(2, 3, 12, 10)
    for protocol in ("circular", "crop", "fractional"):
        error, count = shift_errors(generator, images, SHIFTS, protocol, margin=1)
        assert error.shape == count.shape == (3, 2)
        assert error.dtype == count.dtype == torch.float64
        decibels = shift_psnr(generator, images, SHIFTS, protocol, margin=1, data_range=1)
        torch.testing.assert_close(10 * torch.log10(count / error), decibels)
    # whole pixels in `fractional` are rolled, and counted where nothing came in from outside
    assert count.tolist() == [[3 * 10 * 7] * 2, [3 * 9 * 8] * 2, [3 * 8 * 5] * 2]


class NotFinite(nn.Module):
    """NaN where the first pixel is above 0.9, infinite where the second one is."""

    def forward(self, x):
        x = torch.where(x[:, :, :1, :1] > 0.9, torch.nan, x)
        return torch.where(x[:, :, :1, 1:2] > 0.9, torch.inf, x)


def test_an_output_that_is_not_finite_is_named_by_image_and_shift():
    images = torch.zeros(3, 1, 8, 8)
    images[1, 0, 0, 7] = 1  # comes to the first pixel by the shift (0, 1), to the second by (0, 2)
    shifts = [(1, 0), (0, 2), (0, 1)]
    for forward_batch in (1, 3, 32):
        with pytest.raises(InputError, match=r"output for image 1 at shift=\(0, 2\) is not finite"):
            shift_psnr(NotFinite(), images, shifts, forward_batch=forward_batch)
        with pytest.raises(InputError, match=r"output for image b.png at shift=\(0, 1\) is not finite"):
            shift_errors(NotFinite(), images, [shifts[2]], names=["a.png", "b.png", "c.png"])
    with pytest.raises(InputError, match=r"output for image 2 at shift=\(0, 0\) is not finite"):
        shift_psnr(NotFinite(), torch.cat([images[:2], images[:1] + 1]), shifts)
    values = shift_psnr(NotFinite(), images, shifts, check_finite=False)
    assert torch.equal(values.isfinite(), torch.tensor([[True] * 3, [True, False, True], [True, False, True]]))


def test_a_measurement_in_double_precision_sees_what_single_precision_hides():
    class Stripes(nn.Module):
        def forward(self, x):
            return x + 1e-10 * (torch.arange(x.shape[-1]) % 2).to(x)

    images = 0.5 + torch.rand(1, 1, 8, 8, dtype=torch.float64) / 4
    single, double = (
        shift_psnr(Stripes(), images, [(0, 1)], cap=400, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    assert single.item() == 400
    assert double.item() == pytest.approx(20 * np.log10(2 / 1e-10), abs=1e-3)
