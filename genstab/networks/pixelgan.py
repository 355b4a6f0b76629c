"""The 1×1 PatchGAN, or PixelGAN, which judges colours alone (Isola 2017, arXiv 1611.07004, sections 4.4 and 6.1.2)."""

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_counts
from genstab.networks.blocks import init_normal, norm2d


class PixelGAN(nn.Module):
    """Score every pixel of a (source, image) pair as real or generated: 1×1 convolutions C64-C128.

    It never looks at two pixels together, so it teaches colours but no texture, and moves with its input exactly.

    Args:
        source_channels: channels of the source.
        target_channels: channels of the target and of the generator's output.
        channels: width of the first layer; the second has twice as many.
        norm: `batch`, `instance`, `group` or `none`.

    Shape: two (N, C, H, W) → (N, 1, H, W), logits.

    Raises:
        InputError: a count below 1, an unknown norm, images of another number of channels.

    >>> PixelGAN(1, 3, channels=4)(torch.zeros(2, 1, 5, 7), torch.zeros(2, 3, 5, 7)).shape
    torch.Size([2, 1, 5, 7])
    """

    def __init__(
        self, source_channels: int = 3, target_channels: int = 3, channels: int = 64, norm: str = "batch"
    ) -> None:
        super().__init__()
        check_counts(source_channels=source_channels, target_channels=target_channels, channels=channels)
        self.channels = (source_channels, target_channels)
        self.layers = nn.Sequential(
            nn.Conv2d(source_channels + target_channels, channels, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(channels, 2 * channels, 1, bias=norm == "none"),
            norm2d(norm, 2 * channels),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(2 * channels, 1, 1),
        )
        self.apply(init_normal)

    def forward(self, source: Tensor, image: Tensor) -> Tensor:
        """Two (N, C, H, W) → logits (N, 1, H, W)."""
        if (source.shape[1], image.shape[1]) != self.channels:
            shapes = f"{tuple(source.shape)} and {tuple(image.shape)}"
            raise InputError(f"PixelGAN: source_channels, target_channels={self.channels}, not images of {shapes}")
        return self.layers(torch.cat((source, image), dim=1))
