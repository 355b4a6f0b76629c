"""Quality of outputs compared with their targets: L1, PSNR, SSIM and total variation, one value per image."""

from typing import cast

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from genstab.errors import InputError


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, averaged over both axes: how sharp an image is.

    Shape: (N, C, H, W) → (N,), in units of the value range.

    >>> import torch
    >>> total_variation(torch.tensor([[[[0., 1.], [0., 1.]]]]))
    tensor([0.5000])
    """
    rows = images.diff(dim=-2).abs().mean((1, 2, 3))
    columns = images.diff(dim=-1).abs().mean((1, 2, 3))
    return (rows + columns) / 2


def image_quality(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Compute `l1`, `psnr` (dB), `ssim`, `tv` and `tv_target` for each output and its target, both in [−1, 1].

    Stability must be read beside these: a constant or blurry generator is perfectly stable. SSIM has a window of 11
    pixels and reflects 5 pixels at the border, as torchmetrics does; scikit-image leaves them out instead.

    Shape: two (N, C, H, W), H and W at least 6 → (N,) each.

    Raises:
        InputError: the images are smaller.

    >>> import torch
    >>> black, grey = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.2)
    >>> {key: round(value.item(), 3) for key, value in image_quality(black, grey).items()}
    {'l1': 0.2, 'psnr': 20.0, 'ssim': 0.01, 'tv': 0.0, 'tv_target': 0.0}
    """
    output, target = output.float(), target.float()
    if min(output.shape[-2:]) < 6:
        raise InputError(f"images of {output.shape[-2]}×{output.shape[-1]} are smaller than the 6×6 that SSIM needs")
    # a pair with the full image comes only on request
    ssim = cast(Tensor, structural_similarity_index_measure(output, target, data_range=2.0, reduction="none"))
    return {
        "l1": (output - target).abs().mean((1, 2, 3)),
        "psnr": peak_signal_noise_ratio(output, target, data_range=2.0, reduction="none", dim=(1, 2, 3)),
        "ssim": ssim.reshape(len(output)),
        "tv": total_variation(output),
        "tv_target": total_variation(target),
    }
