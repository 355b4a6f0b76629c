"""Low-pass filters and blurred subsampling (Zhang 2019, arXiv 1904.11486, section 3.2)."""

from dataclasses import dataclass
from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import InputError, check_choice

# The paper tests rect2, tri3 and bin5; a row of Pascal's triangle gives each of them.
FILTERS = {"none": 1, "rect2": 2, "tri3": 3, "bin4": 4, "bin5": 5, "bin6": 6, "bin7": 7}
PLACEMENTS = ("pre", "post")
PADDING_MODES = ("reflect", "replicate", "zeros", "circular")


def taps(filter: str) -> Tensor:
    """Return the 1-D taps of a filter, shape (size,), float64, sum 1.

    Binomial: taps[i] = C(size − 1, i) / 2^(size − 1). `none` is the identity [1].

    Raises:
        InputError: the filter is unknown.

    >>> taps("bin5") * 16
    tensor([1., 4., 6., 4., 1.], dtype=torch.float64)
    """
    check_choice("filter", filter, FILTERS)
    n = FILTERS[filter] - 1
    return torch.tensor([comb(n, i) for i in range(n + 1)], dtype=torch.float64) / 2**n


def _padded_index(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """Return for each padded position the one it is a copy of; any pad, however small the map."""
    i = torch.arange(-before, size + after, device=device)
    if mode == "circular":
        return i % size
    if mode == "replicate" or size == 1:
        return i.clamp(0, size - 1)
    period = 2 * (size - 1)  # a reflected row repeats: 0 1 2 3 2 1 | 0 1 2 3 …
    i = i % period
    return torch.where(i < size, i, period - i)


def pad2d(images: Tensor, padding: tuple[int, int, int, int], mode: str = "reflect") -> Tensor:
    """Pad (…, H, W) by (left, right, top, bottom); unlike `torch.nn.functional.pad`, also where the map is smaller.

    Reflection goes back and forth as in `numpy.pad`; a row of one pixel repeats it.

    >>> pad2d(torch.tensor([[[[1., 2.]]]]), (3, 0, 0, 0)).tolist()
    [[[[2.0, 1.0, 2.0, 1.0, 2.0]]]]
    """
    check_choice("padding_mode", mode, PADDING_MODES)
    left, right, top, bottom = padding
    if mode == "zeros":
        return F.pad(images, padding)
    height, width = images.shape[-2:]
    limit = {"reflect": 0, "circular": 1, "replicate": height + width + max(padding)}[mode]
    if max(left, right) < width + limit and max(top, bottom) < height + limit:
        return F.pad(images, padding, mode=mode)
    images = images[..., _padded_index(height, top, bottom, mode, images.device), :]
    return images[..., _padded_index(width, left, right, mode, images.device)]


def blur_padding(taps: tuple[Tensor, Tensor], mirrored: bool = False) -> tuple[int, int, int, int]:
    """Return what (left, right, top, bottom) must be padded so that a blur keeps the size; taps of rows, of columns.

    >>> blur_padding((taps("tri3"), taps("bin4"))), blur_padding((taps("tri3"), taps("bin4")), mirrored=True)
    ((1, 2, 1, 1), (2, 1, 1, 1))
    """
    (top, bottom), (left, right) = (((t.numel() - 1) // 2, t.numel() // 2) for t in taps)
    return (right, left, bottom, top) if mirrored else (left, right, top, bottom)


def blur_valid2d(images: Tensor, taps: tuple[Tensor, Tensor], stride: int | tuple[int, int] = 1) -> Tensor:
    """Blur and subsample without padding: only where the filter, taps of rows and of columns, lies inside.

    Shape: (N, C, H, W) → (N, C, ⌈(H − rows + 1) / stride⌉, ⌈(W − columns + 1) / stride⌉).

    >>> blur_valid2d(torch.tensor([[[[1., 2., 4.]]]]), (taps("none"), taps("tri3"))).item()
    2.25
    """
    channels = images.shape[-3]
    kernel = torch.outer(*taps).to(images).expand(channels, 1, -1, -1)
    return F.conv2d(images, kernel, stride=stride, groups=channels)


def blur2d(
    images: Tensor,
    taps: Tensor | tuple[Tensor, Tensor],
    stride: int | tuple[int, int] = 1,
    padding_mode: str = "reflect",
    mirrored: bool = False,
) -> Tensor:
    """Blur each channel with the outer product of `taps`, then keep every `stride`-th pixel.

    A pair of taps blurs rows with the first and columns with the second; a pair of strides likewise.

    An even filter has no centre pixel and moves the picture by half a pixel to the left and up; `mirrored` moves it
    to the right and down instead, so that a decoder undoes what its encoder did.

    Shape: (N, C, H, W) or (C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉).

    >>> blur2d(torch.tensor([[[[0., 0., 1., 0., 0.]]]]), taps("tri3").float()).flatten()
    tensor([0.0000, 0.2500, 0.5000, 0.2500, 0.0000])
    """
    pair = taps if isinstance(taps, tuple) else (taps, taps)
    padding = blur_padding(pair, mirrored)
    if any(padding):
        images = pad2d(images, padding, padding_mode)
    return blur_valid2d(images, pair, stride)


class BlurPool2d(nn.Module):
    """Blur and subsample any number of channels; with `stride=1` only blur. Adds nothing to the state dict.

    Args:
        filter: one of `genstab.filters.FILTERS`.
        stride: keep every `stride`-th pixel of each axis; an integer or a pair, for rows and for columns.
        padding_mode: `reflect`, `replicate`, `zeros` or `circular`.
        mirrored: which way an even filter moves the picture, see `blur2d`.

    Shape: (N, C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉).

    Raises:
        InputError: an unknown filter or padding mode, a stride below 1.

    >>> BlurPool2d("tri3")(torch.ones(1, 5, 7, 8)).shape
    torch.Size([1, 5, 4, 4])
    """

    taps: Tensor

    def __init__(
        self,
        filter: str = "tri3",
        stride: int | tuple[int, int] = 2,
        padding_mode: str = "reflect",
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        strides = stride if isinstance(stride, tuple) else (stride, stride)
        if not all(isinstance(step, int) and step > 0 for step in strides):
            raise InputError(f"stride={stride} is not an integer of at least 1")
        self.filter, self.stride, self.padding_mode, self.mirrored = filter, stride, padding_mode, mirrored
        # Not persistent: plain and anti-aliased checkpoints share their keys.
        self.register_buffer("taps", taps(filter).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return blur2d(images, self.taps, self.stride, self.padding_mode, self.mirrored)

    def extra_repr(self) -> str:
        """Name the filter, for `print(model)`."""
        return f"{self.filter}, stride={self.stride}, padding_mode={self.padding_mode}"


@dataclass(frozen=True)
class AntiAlias:
    """Which filter goes to every resampling step of a network, and on which side of its strided convolution.

    `pre` blurs, then convolves with stride 2: cheap, since blur and convolution commute; the activation runs at the
    lower resolution. `post` is the paper's order: convolution with stride 1, norm, activation, blur and subsample.

    Raises:
        InputError: an unknown filter, placement or padding mode.

    >>> AntiAlias("bin5").placement
    'pre'
    """

    filter: str = "tri3"
    placement: str = "pre"
    padding_mode: str = "reflect"

    def __post_init__(self) -> None:
        check_choice("filter", self.filter, FILTERS)
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("padding_mode", self.padding_mode, PADDING_MODES)
