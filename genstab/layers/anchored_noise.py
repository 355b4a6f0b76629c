"""Noise that is anchored in the source: the responses of fixed random filters, which move with the image.

A plain U-Net draws fine texture on the grid of its resampling steps, where it stays while the image moves, like the
noise inputs of StyleGAN ("texture sticking", Karras 2021, arXiv 2106.12423). This noise is computed from the source at
full resolution. It follows integer shifts exactly and fractional ones nearly so.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.errors import check_counts
from genstab.layers.filters import taps
from genstab.layers.padding import pad2d
from genstab.layers.tracing import TracedModule

REACH = 4  # pixels from an edge of the source; noise further away does not resemble detail and lowers SSIM
WINDOW = REACH / 2.2  # standard deviation in pixels of the filters' Gaussian window
NEAR, NEAR_WINDOW = 3, 2.0  # reach and standard deviation in pixels of the window that measures contrast
FAINT = 0.05  # contrast below which the noise fades, above that of JPEG artifacts in plain regions


def noise_filters(in_channels: int, count: int) -> Tensor:
    """Return filters (count, in_channels, 9, 9) of windowed white noise, the same in each call.

    Each sums to zero, has norm 1, and weighs the channels at random; the second half are low-passed.
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
    """Filter a source, and normalize the local contrast of the responses.

    Each response is divided by √(e + 0.05²), where e is the mean square of all responses in a Gaussian window. The
    noise is zero in plain regions, from four pixels off their border, and near an edge it does not depend on the
    strength of the edge.

    Shape: (N, C, H, W) and (K, C, 9, 9) → (N, K, H, W).
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


class AnchoredNoise(TracedModule):
    """Module of `anchored_noise`; it has no trainable parameters.

    Args:
        in_channels: number of channels of the source.
        count: number of filters.
        padding_mode: `replicate`, `reflect`, `zeros` or `circular`.

    Shape: (N, in_channels, H, W) → (N, count, H, W).

    Raises:
        InputError: `in_channels` or `count` is below 1.

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
        # Saved in checkpoints: another version of torch might draw other filters.
        self.register_buffer("filters", noise_filters(in_channels, count))

    def forward(self, source: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, count, H, W); in float32 under autocast, to keep plain regions at zero."""
        if torch.is_autocast_enabled(source.device.type):
            with torch.autocast(source.device.type, enabled=False):
                return anchored_noise(source.float(), self.filters, self.padding_mode)
        return anchored_noise(source, self.filters, self.padding_mode)
