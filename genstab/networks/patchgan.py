"""The discriminators of pix2pix (Isola 2017, arXiv 1611.07004, sections 3.2.2, 4.4 and 6.1.2)."""

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_counts
from genstab.networks.blocks import init_normal, norm2d


def _joined(source: Tensor, image: Tensor, channels: tuple[int, int]) -> Tensor:
    if (source.shape[1], image.shape[1]) != channels:
        shapes = f"{tuple(source.shape)} and {tuple(image.shape)}"
        raise InputError(f"discriminator: source_channels, target_channels={channels}, not images of {shapes}")
    return torch.cat((source, image), dim=1)


class PatchGAN(nn.Module):
    """Score overlapping patches of a (source, image) pair as real or generated; 70×70 pixels each with `layers=3`.

    Args:
        source_channels: channels of the source.
        target_channels: channels of the target and of the generator's output.
        channels: width of the first layer, doubled up to 8 times.
        layers: strided convolutions; 3 see 70×70 pixels, 1 sees 16×16, 5 see 286×286.
        norm: `batch`, `instance`, `group` or `none`.

    Shape: two (N, C, H, W) → (N, 1, H / 2^layers − 2, W / 2^layers − 2), logits.

    Raises:
        InputError: a count below 1, an unknown norm, images too small for one patch.

    >>> PatchGAN(1, 3, channels=4)(torch.zeros(2, 1, 32, 48), torch.zeros(2, 3, 32, 48)).shape
    torch.Size([2, 1, 2, 4])
    """

    def __init__(
        self,
        source_channels: int = 3,
        target_channels: int = 3,
        channels: int = 64,
        layers: int = 3,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_counts(source_channels=source_channels, target_channels=target_channels, channels=channels, layers=layers)
        self.smallest = 3 * 2**layers
        self.channels = (source_channels, target_channels)
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [
            nn.Conv2d(source_channels + target_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            blocks += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=norm == "none"),
                norm2d(norm, widths[i]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        blocks.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*blocks)
        self.apply(init_normal)

    def forward(self, source: Tensor, image: Tensor) -> Tensor:
        """Two (N, C, H, W) → logits (N, 1, h, w)."""
        height, width = image.shape[-2:]
        if min(height, width) < self.smallest:
            raise InputError(f"PatchGAN: an image of {height}×{width} is smaller than {self.smallest} pixels")
        return self.layers(_joined(source, image, self.channels))


class PixelGAN(nn.Module):
    """Score every pixel of a (source, image) pair as real or generated, with 1×1 convolutions C64-C128.

    The 1×1 PatchGAN of section 4.4 never looks at two pixels together, so it teaches colours but no texture, and moves
    with its input exactly.

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
        return self.layers(_joined(source, image, self.channels))
