"""The pix2pix U-Net generator (Isola 2017, arXiv 1611.07004, section 6.1.1), with a blur at every resampling step."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import InputError, check_counts
from genstab.layers.anchored_noise import AnchoredNoise
from genstab.layers.blur import BlurPool2d
from genstab.layers.filters import AntiAlias
from genstab.layers.padding import pad2d
from genstab.layers.polyphase import PolyphaseDown2d, choose_phases, roll_phases
from genstab.networks.blocks import crop, init_normal, norm2d, pad_to_multiple

MOST_LEVELS = 16


class Down(nn.Module):
    """Halve the map: 4×4 convolution, norm, LeakyReLU, and before or after them the blur and the choice of a grid."""

    def __init__(self, channels: tuple[int, int], norm: str, antialias: AntiAlias) -> None:
        super().__init__()
        mode, blurs = antialias.padding_mode, antialias.filter != "none"
        post = antialias.placement == "post" and (blurs or antialias.polyphase)
        # The padding keeps output i centred at input 2i + 0.5, as the plain layer has it.
        wrap = mode == "circular"
        self.padding = (1, 2, 1, 2) if post else (1, 1, 1, 1) if wrap else (0, 0, 0, 0)
        self.padding_mode = "circular" if wrap else "zeros"
        self.polyphase = antialias.polyphase
        self.phase_before = antialias.polyphase and not post
        self.before = BlurPool2d(antialias.filter, 1, mode) if blurs and not post else nn.Identity()
        padding = 0 if any(self.padding) else 1
        self.conv = nn.Conv2d(*channels, 4, stride=1 if post else 2, padding=padding, bias=norm == "none")
        self.norm = norm2d(norm, channels[1])
        self.act = nn.LeakyReLU(0.2)
        self.after: nn.Module = nn.Identity()
        if post:
            polyphase = antialias.polyphase
            self.after = PolyphaseDown2d(2, antialias.filter) if polyphase else BlurPool2d(antialias.filter, 2, mode)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, C, H, W) → (N, C', H / 2, W / 2), H and W even, and the phases (N, 2) of a polyphase layer."""
        x, phases = self.before(x), None
        if self.phase_before:
            phases = choose_phases(x)
            x = roll_phases(x, phases, back=True)  # convolve with stride 2 on the grid of the phase
        if any(self.padding):
            x = pad2d(x, self.padding, self.padding_mode)
        x = self.after(self.act(self.norm(self.conv(x))))
        return x if isinstance(x, tuple) else (x, phases)


class Up(nn.Module):
    """Double the map: ReLU, 4×4 transposed convolution, blur, norm, dropout."""

    def __init__(self, channels: tuple[int, int], norm: str, dropout: float, antialias: AntiAlias) -> None:
        super().__init__()
        # Around a transposed convolution there are zeros; to wrap, it gets a border that its padding crops.
        self.wrap = int(antialias.padding_mode == "circular")
        padding = 1 + 2 * self.wrap
        self.conv = nn.ConvTranspose2d(*channels, 4, stride=2, padding=padding, bias=norm == "none")
        self.blur: nn.Module = nn.Identity()
        if antialias.filter != "none":
            self.blur = BlurPool2d(antialias.filter, 1, antialias.padding_mode, mirrored=True)
        self.norm = norm2d(norm, channels[1])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, phases: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → (N, C', 2H, 2W), on the grid that the phases (N, 2) of the encoder say."""
        x = F.relu(x)
        if self.wrap:
            x = pad2d(x, (1, 1, 1, 1), "circular")
        x = self.blur(self.conv(x))
        if phases is not None:
            x = roll_phases(x, phases)
        return self.dropout(self.norm(x))


class Head(nn.Module):
    """Draw the detail that the blurs took, at full resolution, where nothing subsamples and so nothing aliases.

    The decoder's map holds the picture, and how strong each channel of the source and of `AnchoredNoise` is at each
    pixel; a 3×3 convolution puts them together.
    """

    def __init__(self, in_channels: int, noise: int, out_channels: int, wrap: bool) -> None:
        super().__init__()
        mode: Literal["circular", "zeros"] = "circular" if wrap else "zeros"
        self.noise = AnchoredNoise(in_channels, noise, "circular" if wrap else "replicate")
        self.draw = nn.Conv2d(out_channels + in_channels + noise, out_channels, 3, padding=1, padding_mode=mode)

    def init(self) -> None:
        """Begin with the picture as it is and some of the rest: N(0, 0.02) would nearly close the head."""
        out_channels = len(self.draw.weight)
        with torch.no_grad():
            self.draw.weight.normal_(0.0, 0.1)
            self.draw.weight[:, :out_channels].zero_()
            self.draw.weight[:, :out_channels, 1, 1].fill_diagonal_(1.0)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(N, out_channels + in_channels + noise, H, W) and the source → (N, out_channels, H, W)."""
        picture = torch.ones_like(x[:, : len(self.draw.weight)])  # in the order in memory of x, or all would lose it
        return self.draw(x * torch.cat((picture, source, self.noise(source)), dim=1))


class UNet(nn.Module):
    """Translate images with the pix2pix U-Net; any input size, any number of channels.

    Encoder C64-C128-C256-C512-…, decoder its mirror with skip connections, tanh. As in the paper the outermost and
    the innermost encoder layers have no norm, and the first `levels − 5` decoder layers have dropout. Inputs are
    padded to a multiple of 2^levels by reflection and the output is cropped back.

    With the padding mode `circular` every convolution is periodic too, and in eval mode the network commutes with
    circular shifts by multiples of 2^levels. With `polyphase` (Chaman and Dokmanić 2021, arXiv 2105.04040) it commutes
    with every integer circular shift, up to rounding, if H and W are multiples of 2^levels: padded by reflection they
    are no longer periodic. Pictures that equal their own shift by an odd number of pixels are excepted, see
    `choose_phases`. Departure from the paper: with the placement `pre` the grid is chosen on the
    input of each convolution, which then runs with stride 2.

    Exported with dynamic axes it becomes one program for every batch size and for every H and W from 2 pixels on. In a
    program of `torch.export`, unlike in ONNX, a map of one pixel stays one of one pixel and the others get no smaller
    than two: give it an example of more than 2^levels pixels each way, and then the same for its inputs.

    Args:
        in_channels: channels of the source.
        out_channels: channels of the output.
        channels: width of the first layer; deeper layers have up to 8 times as many.
        levels: how often the map is halved; 8 in the paper.
        norm: `batch`, `instance`, `group` or `none`.
        dropout: probability, on as long as the module is in training mode.
        antialias: an `AntiAlias`, the name of a filter, or None for the plain network.
        head: channels of `anchored_noise` with which a `Head` draws detail after the last layer of the decoder;
            0: no head, as in the paper.

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
        counts = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": channels,
            "levels": levels,
        }
        check_counts(**counts)
        if levels > MOST_LEVELS:
            raise InputError(f"levels={levels} is more than {MOST_LEVELS}: maps are padded to a multiple of 2^levels")
        if isinstance(head, bool) or not isinstance(head, int) or head < 0:
            raise InputError(f"head={head} is not an integer of at least 0")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout} is not in [0, 1)")
        if not isinstance(antialias, AntiAlias):
            antialias = AntiAlias(filter=antialias or "none")
        # What builds this network again from a checkpoint: plain numbers and strings only.
        self.config: dict[str, Any] = {
            **counts,
            "norm": norm,
            "dropout": dropout,
            "antialias": dict(vars(antialias)),
            "head": head,
        }
        self.levels = levels
        widths = [in_channels, *(channels * min(2**i, 8) for i in range(levels))]
        innermost = levels - 1
        self.encoder = nn.ModuleList(
            Down((widths[i], widths[i + 1]), "none" if i in (0, innermost) else norm, antialias) for i in range(levels)
        )
        drawn = out_channels + in_channels + head if head else out_channels
        self.decoder = nn.ModuleList()
        for i in reversed(range(levels)):
            width_in = widths[i + 1] * (1 if i == innermost else 2)  # the skip connection doubles it
            width_out = widths[i] if i else drawn
            drop = dropout if innermost - i < levels - 5 else 0.0
            self.decoder.append(Up((width_in, width_out), norm if i else "none", drop, antialias))
        self.head = Head(in_channels, head, out_channels, antialias.padding_mode == "circular") if head else None
        self.apply(init_normal)
        if self.head is not None:
            self.head.init()

    def forward(self, source: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W) in [−1, 1]."""
        if source.ndim != 4 or source.shape[1] != self.config["in_channels"]:
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
            # The same grid for both: `up` before put its output where the input of the level below it was.
            x = up(torch.cat((skips.pop(), x), dim=1), grids.pop())
        if self.head is not None:
            x = self.head(x, padded)
        return crop(torch.tanh(x), height, width)
