"""The ResNet generator (Johnson 2016, arXiv 1603.08155; Zhu 2017, arXiv 1703.10593, section 7.2), with blurs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import InputError, check_choice
from genstab.layers.blur import BlurUnpool2d
from genstab.layers.filters import AntiAlias
from genstab.layers.padding import pad2d
from genstab.layers.tracing import TracedModule
from genstab.networks.blocks import blur_of, crop, generator_config, init_normal, norm2d, pad_to_multiple

BLOCK_PADDING = ("reflect", "replicate", "zeros")
UPSAMPLING = ("transposed", "plain", "interpolated")


def padded(conv: nn.Conv2d, x: Tensor, mode: str = "reflect") -> Tensor:
    """Convolve with padding, also of maps smaller than the kernel; the size is kept."""
    before = conv.kernel_size[0] // 2
    return conv(pad2d(x, (before, before, before, before), mode))


class Shrink(nn.Module):
    """Halve the map: 3×3 convolution, norm, ReLU, and the blur before or after them."""

    def __init__(self, channels: tuple[int, int], norm: str, antialias: AntiAlias) -> None:
        super().__init__()
        post = antialias.placement == "post" and antialias.filter != "none"
        blur = blur_of(antialias, stride=2 if post else 1)
        self.before = nn.Identity() if post else blur
        # Output i is centred at input 2i for both placements.
        self.conv = nn.Conv2d(*channels, 3, stride=1 if post else 2, padding=1, bias=norm == "none")
        self.norm = norm2d(norm, channels[1])
        self.after = blur if post else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H / 2, W / 2), H and W even."""
        return self.after(F.relu(self.norm(self.conv(self.before(x)))))


class Grow(nn.Module):
    """Double the map: 3×3 transposed convolution, blur, norm, ReLU.

    `plain` leaves the blur out; `interpolated` doubles the map with the filter `bin4` and then convolves, as in CUT.
    """

    def __init__(
        self, channels: tuple[int, int], norm: str, antialias: AntiAlias, upsampling: str = "transposed"
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.interpolate = BlurUnpool2d("bin4", padding_mode="replicate") if upsampling == "interpolated" else None
        if self.interpolate is None:
            self.conv: nn.Module = nn.ConvTranspose2d(*channels, 3, stride=2, padding=1, output_padding=1, bias=bias)
        else:
            self.conv = nn.Conv2d(*channels, 3, padding=1, bias=bias)
        self.blur = blur_of(antialias, mirrored=True) if upsampling == "transposed" else nn.Identity()
        self.norm = norm2d(norm, channels[1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', 2H, 2W)."""
        if self.interpolate is not None:
            x = self.interpolate(x)
        return F.relu(self.norm(self.blur(self.conv(x))))


class Residual(nn.Module):
    """Residual block of two 3×3 convolutions with padding, and dropout between the two."""

    def __init__(self, channels: int, norm: str, dropout: float, padding: str = "reflect") -> None:
        super().__init__()
        self.padding = padding
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=norm == "none")
        self.norm1 = norm2d(norm, channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=norm == "none")
        self.norm2 = norm2d(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        y = self.dropout(F.relu(self.norm1(padded(self.conv1, x, self.padding))))
        return x + self.norm2(padded(self.conv2, y, self.padding))


class ResNetGenerator(TracedModule):
    """Translate images with CycleGAN's ResNet generator; any input size, any number of channels.

    7×7 convolution, two strided 3×3 convolutions, `blocks` residual blocks at a quarter of the size, two transposed
    3×3 convolutions, 7×7 convolution, tanh. Inputs are padded to a multiple of 4 by reflection and the output is
    cropped back. The blurs go to the two strided and the two transposed convolutions, as in `genstab.UNet`.

    Args:
        in_channels: channels of the source.
        out_channels: channels of the output.
        channels: width of the first layer; the residual blocks have 4 times as many.
        blocks: number of residual blocks; in the paper 9 from 256 pixels on, 6 below.
        norm: `instance` (the paper's), `batch`, `group` or `none`.
        dropout: dropout probability in the residual blocks, in training mode; 0 in the paper.
        antialias: an `AntiAlias`, the name of a filter, or None for the plain network.
        block_padding: `reflect` (the paper's), `replicate` or `zeros`, in the residual blocks.
        upsampling: `transposed` convolutions with the blur of `antialias`, `plain` ones without it, or `interpolated`:
            a doubling with the filter `bin4` before a convolution, as in CUT (Park 2020, arXiv 2007.15651).

    Shape: (N, in_channels, H, W) → (N, out_channels, H, W), values in [−1, 1].

    Raises:
        InputError: a count below 1, an unknown norm, filter, padding or upsampling, or `antialias` with polyphase.

    >>> ResNetGenerator(1, 3, channels=4, blocks=2, antialias="tri3")(torch.zeros(2, 1, 17, 30)).shape
    torch.Size([2, 3, 17, 30])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 64,
        blocks: int = 9,
        norm: str = "instance",
        dropout: float = 0.0,
        antialias: AntiAlias | str | None = None,
        block_padding: str = "reflect",
        upsampling: str = "transposed",
    ) -> None:
        super().__init__()
        check_choice("block_padding", block_padding, BLOCK_PADDING)
        check_choice("upsampling", upsampling, UPSAMPLING)
        counts = {"in_channels": in_channels, "out_channels": out_channels, "channels": channels, "blocks": blocks}
        config, antialias = generator_config(norm, dropout, antialias, **counts)
        self.config = {**config, "block_padding": block_padding, "upsampling": upsampling}
        if antialias.polyphase:
            raise InputError("polyphase=True is not supported: ResNetGenerator pads by reflection")
        widths = [channels, 2 * channels, 4 * channels]
        self.stem = nn.Conv2d(in_channels, channels, 7, bias=norm == "none")
        self.stem_norm = norm2d(norm, channels)
        self.encoder = nn.ModuleList(Shrink((widths[i], widths[i + 1]), norm, antialias) for i in (0, 1))
        self.blocks = nn.ModuleList(Residual(widths[2], norm, dropout, block_padding) for _ in range(blocks))
        self.decoder = nn.ModuleList(Grow((widths[i + 1], widths[i]), norm, antialias, upsampling) for i in (1, 0))
        self.head = nn.Conv2d(channels, out_channels, 7)
        self.apply(init_normal)

    def forward(self, source: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W) in [−1, 1]."""
        height, width = source.shape[-2:]
        x = F.relu(self.stem_norm(padded(self.stem, pad_to_multiple(source, 4))))
        for layer in (*self.encoder, *self.blocks, *self.decoder):
            x = layer(x)
        return crop(torch.tanh(padded(self.head, x)), height, width)
