import numpy as np
import pytest
import skimage.metrics
import torch

from genstab import InputError
from genstab.metrics.quality import image_quality, total_variation


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
