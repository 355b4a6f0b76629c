"""Noise that is anchored in the picture: what fixed random filters see of it, so that it moves when the picture moves.

A plain U-Net takes its fine texture from the grid of its resampling steps, where it stays when the picture moves on, as
the noise inputs of StyleGAN do ("texture sticking", Karras 2021, arXiv 2106.12423). This texture comes from the source,
at full resolution, and follows it exactly by whole pixels and nearly so by parts of one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import check_counts
from genstab.layers.filters import taps
from genstab.layers.padding import pad2d

REACH = 4  # pixels from an edge of the source: further off, noise is none of a photo's detail, and costs SSIM
WINDOW = REACH / 2.2  # standard deviation in pixels of the filters' Gaussian window
NEAR, NEAR_WINDOW = 3, 2.0  # reach and standard deviation of the window over which contrast is measured
FAINT = 0.05  # contrast below which the noise fades with the picture: what JPEG leaves in a plain region


def noise_filters(in_channels: int, count: int) -> Tensor:
    """Draw filters of 9×9 pixels, the same at each call: white noise, for the second half low-passed, under a window.

    Each sums to zero, has norm 1, and sees the channels with random weights.

    Shape: (count, in_channels, 9, 9).

    >>> noise_filters(3, 8).flatten(1).norm(dim=1).allclose(torch.ones(8))
    True
    """
    random = torch.Generator().manual_seed(7)
    noise = torch.randn(count, 1, 2 * REACH + 1, 2 * REACH + 1, generator=random)
    blur = torch.outer(taps("tri3"), taps("tri3")).float()[None, None]
    noise[count // 2 :] = F.conv2d(F.conv2d(noise[count // 2 :], blur, padding=1), blur, padding=1)
    window = _gaussian(REACH, WINDOW)
    noise = noise * window
    noise = noise - window * noise.sum((2, 3), keepdim=True) / window.sum()
    filters = noise * torch.randn(count, in_channels, 1, 1, generator=random)
    return filters / filters.flatten(1).norm(dim=1)[:, None, None, None]


def anchored_noise(source: Tensor, filters: Tensor, padding_mode: str = "replicate") -> Tensor:
    """Filter a source and bring the result to about the same contrast everywhere but where the source has none.

    Each value is divided by √(e + 0.05²), e being the mean square of all filters' values in a Gaussian window about it.
    A plain region stays zero from four pixels off its border, and the noise near an edge does not depend on how strong
    the edge is.

    Shape: (N, C, H, W) and (K, C, 9, 9) → (N, K, H, W).

    >>> source = torch.zeros(1, 1, 1, 16)
    >>> source[..., 8:] = 1
    >>> noise = anchored_noise(source, noise_filters(1, 2))[0, 0, 0]
    >>> noise[:4].abs().max().item(), noise[4:12].abs().min().item() > 0.01
    (0.0, True)
    """
    seen = F.conv2d(pad2d(source, (REACH,) * 4, padding_mode), filters.to(source))
    energy = pad2d(seen.square().mean(1, keepdim=True), (NEAR,) * 4, padding_mode)
    window = _gaussian(NEAR, NEAR_WINDOW)
    energy = F.conv2d(energy, (window / window.sum()).to(energy)[None, None])
    return seen * (energy + FAINT**2).rsqrt()


def _gaussian(reach: int, deviation: float) -> Tensor:
    apart = torch.arange(2 * reach + 1, dtype=torch.float32) - reach
    line = torch.exp(-apart.square() / (2 * deviation**2))
    return torch.outer(line, line)


class AnchoredNoise(nn.Module):
    """The channels of `anchored_noise` as a module; nothing in it is trained.

    Args:
        in_channels: of the source.
        count: of filters.
        padding_mode: what lies around the source: `replicate`, `reflect`, `zeros` or `circular`.

    Shape: (N, in_channels, H, W) → (N, count, H, W).

    Raises:
        InputError: a count below 1.

    >>> source = torch.rand(1, 3, 12, 16)
    >>> noise = AnchoredNoise(3, 8, "circular")
    >>> noise(source.roll(5, -1)).allclose(noise(source).roll(5, -1), atol=1e-5)
    True
    """

    filters: Tensor

    def __init__(self, in_channels: int, count: int, padding_mode: str = "replicate") -> None:
        super().__init__()
        check_counts(in_channels=in_channels, count=count)
        self.padding_mode = padding_mode
        # In checkpoints: what was trained with these filters needs them, whatever a later torch draws.
        self.register_buffer("filters", noise_filters(in_channels, count))

    def forward(self, source: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, count, H, W); in float32 under autocast, or plain regions would be noisy."""
        if torch.is_autocast_enabled(source.device.type):
            with torch.autocast(source.device.type, enabled=False):
                return anchored_noise(source.float(), self.filters, self.padding_mode)
        return anchored_noise(source, self.filters, self.padding_mode)
