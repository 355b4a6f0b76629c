import contextlib
import copy
import pickle

import numpy as np
import pytest
import skimage.metrics
import torch
from torch import nn

from genstab import InputError, ShiftPSNR, shift_psnr
from genstab.inference.eval_mode import inference, submodule
from genstab.metrics.quality import image_quality, total_variation
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


@pytest.mark.parametrize("reduction", ["mean", "worst", "pooled"])
def test_the_same_number_at_any_batch_size_cloned_and_pickled(reduction):
    a, b = torch.rand(7, 3, 6, 5), torch.rand(7, 3, 6, 5)
    mask = torch.rand(1, 1, 6, 5) > 0.3
    whole = ShiftPSNR(reduction=reduction)
    whole.update(a, b, mask)
    parts = ShiftPSNR(reduction=reduction)
    for start in range(0, 7, 2):
        parts.update(a[start : start + 2], b[start : start + 2], mask)
    assert abs(whole.compute() - parts.compute()) < 1e-6
    for other in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), whole.clone()):
        assert other.compute() == whole.compute()
    whole.reset()
    whole.update(a[:1], b[:1], mask)
    first = skimage.metrics.peak_signal_noise_ratio(
        a[0][:, mask[0, 0]].numpy(), b[0][:, mask[0, 0]].numpy(), data_range=2
    )
    assert whole.compute().item() == pytest.approx(first, abs=1e-4)


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
        (lambda: shift_psnr(torch.tanh, torch.zeros(1, 1, 4, 4), [(0, 1)]), "not a torch.nn.Module"),
        (lambda: shift_psnr(nn.LSTM(4, 4), torch.zeros(1, 1, 4, 4)[0], [(0, 1)]), "are not \\(N, C, H, W\\)"),
        (
            lambda: submodule(nn.Sequential(nn.Tanh()), "net"),
            "generator='net' is not a submodule of Sequential: 0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_quality_agrees_with_scikit_image():
    torch.manual_seed(0)
    output = torch.rand(2, 3, 24, 32) * 2 - 1
    target = (output + 0.3 * torch.randn_like(output)).clamp(-1, 1)
    quality = image_quality(output, target)
    for i in range(2):
        a, b = output[i].numpy(), target[i].numpy()
        assert quality["psnr"][i].item() == pytest.approx(
            skimage.metrics.peak_signal_noise_ratio(a, b, data_range=2), 1e-5
        )
        # scikit-image leaves out a border of 5 pixels: reflected ones here, as torchmetrics has them
        padded = (np.pad(image, ((0, 0), (5, 5), (5, 5)), "reflect") for image in (a, b))
        ssim = skimage.metrics.structural_similarity(
            *padded,
            data_range=2,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert quality["ssim"][i].item() == pytest.approx(ssim, abs=1e-4)
        assert quality["l1"][i].item() == pytest.approx(abs(a - b).mean(), 1e-5)
    assert torch.equal(quality["tv_target"], total_variation(target))


def test_quality_of_the_smallest_images():
    assert image_quality(torch.ones(1, 1, 6, 7), torch.ones(1, 1, 6, 7))["ssim"].item() == pytest.approx(1)
    with pytest.raises(InputError, match="images of 5×8 are smaller than the 6×6"):
        image_quality(torch.ones(1, 1, 5, 8), torch.ones(1, 1, 5, 8))


def test_total_variation_by_hand():
    # columns differ by 1, rows by 0.5
    image = (torch.arange(3)[:, None] * 0.5 + torch.arange(4))[None, None]
    assert total_variation(image).item() == 0.75


def test_inference_leaves_no_trace():
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), nn.Sequential(nn.Dropout(0.5)).eval())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state, precision = torch.get_rng_state(), torch.backends.cudnn.conv.fp32_precision
    with contextlib.suppress(ZeroDivisionError), inference(module) as generate:
        assert not any(part.training for part in module.modules())
        assert not generate(torch.ones(1, 1, 2, 2, requires_grad=True)).requires_grad
        torch.rand(3)
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        raise ZeroDivisionError  # put back all the same
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.conv.fp32_precision == precision
    assert [part.training for part in module.modules()] == [True, True, True, False, False]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


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


def test_inference_is_float32_also_for_half_precision_weights_and_under_autocast():
    torch.manual_seed(0)
    module, x = nn.Conv2d(1, 4, 3).to(torch.bfloat16), torch.rand(1, 1, 8, 8)
    with inference(module) as generate:
        output = generate(x)
    assert module.weight.dtype == torch.bfloat16
    torch.testing.assert_close(output, copy.deepcopy(module).float()(x))
    plain = nn.Conv2d(1, 4, 3)
    exact = plain(x)
    with torch.autocast("cpu", torch.bfloat16), inference(plain) as generate:
        assert torch.equal(generate(x), exact)
        assert plain(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(x).dtype == torch.bfloat16


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inference_in_any_precision(dtype):
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with inference(module, dtype) as generate:
        output = generate(x)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = copy.deepcopy(module).eval().to(dtype)(x.to(dtype))
    torch.testing.assert_close(output, expected.to(output.dtype), rtol=0, atol=0)
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(value.dtype == before[key].dtype for key, value in module.state_dict().items())


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
    with pytest.raises(InputError, match=r"dtype=torch.int32 is not one of torch.float64, torch.float32, torch.bfloat"):
        shift_psnr(Stripes(), images, SHIFTS, dtype=torch.int32)
