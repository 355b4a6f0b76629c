"""The pix2pix U-Net generator (Isola 2017, arXiv 1611.07004, section 6.1.1), with a blur at every resampling step."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import InputError, check_counts
from genstab.layers.anchored_noise import AnchoredNoise
from genstab.layers.filters import AntiAlias
from genstab.layers.padding import pad2d
from genstab.layers.polyphase import PolyphaseDown2d, choose_phases, roll_phases
from genstab.layers.tracing import TracedModule, constant
from genstab.networks.blocks import blur_of, crop, generator_config, init_normal, norm2d, pad_to_multiple

MOST_LEVELS = 16


class Down(nn.Module):
    """Halve the map: 4×4 convolution, norm, LeakyReLU, with blur and polyphase sampling before or after them."""

    def __init__(self, channels: tuple[int, int], norm: str, antialias: AntiAlias) -> None:
        super().__init__()
        post = antialias.placement == "post" and (antialias.filter != "none" or antialias.polyphase)
        # With this padding output i is centred at input 2i + 0.5, as in the plain layer.
        wrap = antialias.padding_mode == "circular"
        self.padding = (1, 2, 1, 2) if post else (1, 1, 1, 1) if wrap else (0, 0, 0, 0)
        self.padding_mode = "circular" if wrap else "zeros"
        self.polyphase = antialias.polyphase
        self.phase_before = antialias.polyphase and not post
        self.before = nn.Identity() if post else blur_of(antialias)
        padding = 0 if any(self.padding) else 1
        self.conv = nn.Conv2d(*channels, 4, stride=1 if post else 2, padding=padding, bias=norm == "none")
        self.norm = norm2d(norm, channels[1])
        self.act = nn.LeakyReLU(0.2)
        self.after: nn.Module = nn.Identity()
        if post:
            self.after = PolyphaseDown2d(2, antialias.filter) if antialias.polyphase else blur_of(antialias, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, C, H, W) → (N, C', H / 2, W / 2), H and W even, and the phases (N, 2) of a polyphase layer."""
        x, phases = self.before(x), None
        if self.phase_before:
            phases = choose_phases(x)
            x = roll_phases(x, phases, back=True)  # convolve with stride 2 on the grid of the phase
        x = pad2d(x, self.padding, self.padding_mode)
        x = self.after(self.act(self.norm(self.conv(x))))
        return x if isinstance(x, tuple) else (x, phases)


class Up(nn.Module):
    """Double the map: ReLU, 4×4 transposed convolution, blur, norm, dropout."""

    def __init__(self, channels: tuple[int, int], norm: str, dropout: float, antialias: AntiAlias) -> None:
        super().__init__()
        # A transposed convolution has no circular padding: its input is padded, and its output cropped by `padding`.
        self.wrap = int(antialias.padding_mode == "circular")
        padding = 1 + 2 * self.wrap
        self.conv = nn.ConvTranspose2d(*channels, 4, stride=2, padding=padding, bias=norm == "none")
        self.blur = blur_of(antialias, mirrored=True)
        self.norm = norm2d(norm, channels[1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, phases: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → (N, C', 2H, 2W), on the grid of the encoder's phases (N, 2)."""
        x = F.relu(x)
        if self.wrap:
            x = pad2d(x, (1, 1, 1, 1), "circular")
        x = self.blur(self.conv(x))
        if phases is not None:
            x = roll_phases(x, phases)
        return self.dropout(self.norm(x))


class Head(nn.Module):
    """Add the detail that the blurs removed, at full resolution and so without aliasing.

    The decoder's map holds the image and a gain for each channel of the source and of `AnchoredNoise` at each pixel; a
    3×3 convolution combines them.
    """

    def __init__(self, in_channels: int, noise: int, out_channels: int, wrap: bool) -> None:
        super().__init__()
        mode: Literal["circular", "zeros"] = "circular" if wrap else "zeros"
        self.noise = AnchoredNoise(in_channels, noise, "circular" if wrap else "replicate")
        self.draw = nn.Conv2d(out_channels + in_channels + noise, out_channels, 3, padding=1, padding_mode=mode)

    def init(self) -> None:
        """Initialize with the identity for the image and N(0, 0.1) for the rest: N(0, 0.02) would almost remove it."""
        out_channels = self.draw.out_channels
        with torch.no_grad():
            self.draw.weight.normal_(0.0, 0.1)
            self.draw.weight[:, :out_channels].zero_()
            self.draw.weight[:, :out_channels, 1, 1].fill_diagonal_(1.0)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(N, out_channels + in_channels + noise, H, W) and the source → (N, out_channels, H, W)."""
        picture = torch.ones_like(x[:, : self.draw.out_channels])  # keeps the memory format of x
        return self.draw(x * torch.cat((picture, source, self.noise(source)), dim=1))


class UNet(TracedModule):
    """Translate images with the pix2pix U-Net; any input size, any number of channels.

    Encoder C64-C128-C256-C512-…, decoder its mirror with skip connections, tanh. As in the paper the outermost and
    the innermost encoder layers have no norm, and the first `levels − 5` decoder layers have dropout. Inputs are
    padded to a multiple of 2^levels by reflection and the output is cropped back.

    With the padding mode `circular` every convolution is periodic too, and in eval mode the network commutes with
    circular shifts by multiples of 2^levels. With `polyphase` (Chaman and Dokmanić 2021, arXiv 2105.04040) it commutes
    with every integer circular shift, up to rounding, if H and W are multiples of 2^levels, so that no reflection
    padding is needed, and the image does not equal its own odd shift, see `choose_phases`. Unlike in the paper, the
    placement `pre` chooses the grid on the input of each convolution, which then has stride 2.

    Exported with dynamic axes it is one program for every batch size and for every H and W from 2 pixels on. For
    `torch.export`, unlike ONNX, the example and all inputs must have more than 2^levels pixels in height and width.

    Args:
        in_channels: channels of the source.
        out_channels: channels of the output.
        channels: width of the first layer; deeper layers have up to 8 times as many.
        levels: number of downsampling layers; 8 in the paper.
        norm: `batch`, `instance`, `group` or `none`.
        dropout: dropout probability, in training mode.
        antialias: an `AntiAlias`, the name of a filter, or None for the plain network.
        head: number of channels of `AnchoredNoise` in a `Head` after the decoder, which adds detail; 0: no head, as in
            the paper.

    Shape: (N, in_channels, H, W) → (N, out_channels, H, W), values in [−1, 1].

    Raises:
        InputError: a count below 1 (head: below 0), more than 16 levels, an unknown norm or filter.

    >>> UNet(1, 3, channels=4, levels=3, antialias="tri3")(torch.zeros(2, 1, 17, 30)).shape
    torch.Size([2, 3, 17, 30])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: int = 64,
        levels: int = 8,
        norm: str = "batch",
        dropout: float = 0.5,
        antialias: AntiAlias | str | None = None,
        head: int = 0,
    ) -> None:
        super().__init__()
        counts = {"in_channels": in_channels, "out_channels": out_channels, "channels": channels, "levels": levels}
        config, antialias = generator_config(norm, dropout, antialias, **counts)
        if levels > MOST_LEVELS:
            raise InputError(f"levels={levels} is more than {MOST_LEVELS}: maps are padded to a multiple of 2^levels")
        check_counts(least=0, head=head)
        self.config = {**config, "head": head}
        self.levels = levels
        widths = [in_channels, *(channels * min(2**i, 8) for i in range(levels))]
        innermost = levels - 1
        self.encoder = nn.ModuleList(
            Down((widths[i], widths[i + 1]), "none" if i in (0, innermost) else norm, antialias) for i in range(levels)
        )
        drawn = out_channels + in_channels + head if head else out_channels
        self.decoder = nn.ModuleList()
        for i in reversed(range(levels)):
            width_in = widths[i + 1] * (1 if i == innermost else 2)  # doubled by the skip connection
            width_out = widths[i] if i else drawn
            drop = dropout if innermost - i < levels - 5 else 0.0
            self.decoder.append(Up((width_in, width_out), norm if i else "none", drop, antialias))
        self.head = Head(in_channels, head, out_channels, antialias.padding_mode == "circular") if head else None
        self.apply(init_normal)
        if self.head is not None:
            self.head.init()

    def forward(self, source: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W) in [−1, 1]."""
        if source.ndim != 4 or constant(source.shape[1]) != self.config["in_channels"]:
            raise InputError(f"UNet: in_channels={self.config['in_channels']}, not a source of {tuple(source.shape)}")
        height, width = source.shape[-2:]
        x = padded = pad_to_multiple(source, 2**self.levels)
        skips, grids = [], []
        for down in self.encoder:
            x, phases = down(x)
            skips.append(x)
            grids.append(phases)
        x = self.decoder[0](skips.pop(), grids.pop())
        for up in self.decoder[1:]:
            # Both have the same grid: the `up` before has put its output where the input of the level below was.
            x = up(torch.cat((skips.pop(), x), dim=1), grids.pop())
        if self.head is not None:
            x = self.head(x, padded)
        return crop(torch.tanh(x), height, width)
