"""Adaptive polyphase sampling: subsample on the grid that the picture chooses, not on the one that the frame has.

APS-D: A. Chaman and I. Dokmanić, Truly Shift-Invariant Convolutional Neural Networks, CVPR 2021, arXiv 2011.14214,
section 3. APS-U: the same, Truly Shift-Equivariant Convolutional Neural Networks with Adaptive Polyphase Upsampling,
2021, arXiv 2105.04040, section 3.

The `stride²` polyphase components of a map are its pixels at rows p₀, p₀ + stride, … and columns p₁, p₁ + stride, …;
a pair (p₀, p₁) is called a phase. Shift the map circularly and the same components come back, rolled, under other
phases. So whoever keeps a component by what is in it, and later puts its pixels back where they came from, commutes
with every integer circular shift.
"""

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_counts
from genstab.layers.blur import BlurPool2d
from genstab.layers.filters import Filter

# Components count as tied if their energies are as close as 2^-16: far above the rounding of a convolution.
TIE = 16
LAGS = (1, 2, 4, 8, 16, 32, 64, 128)


def check_stride(images: Tensor, stride: int) -> None:
    """Raise an `InputError` unless these are (N, C, H, W), and their polyphase components all have one size."""
    if images.dim() != 4:
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W)")
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise InputError(f"stride={stride} does not divide a map of {height}×{width}: its components differ in size")


def check_phases(images: Tensor, phases: Tensor) -> None:
    """Raise an `InputError` unless there is a phase for each image."""
    if phases.dim() != 2 or phases.shape[0] != images.shape[0] or phases.shape[1] != 2:
        raise InputError(f"phases of shape {tuple(phases.shape)} are not (N, 2) for {images.shape[0]} images")


def of_components(values: Tensor, stride: int) -> Tensor:
    """Sum (N, H, W) over each polyphase component → (N, stride²), the phases row by row."""
    return values.unflatten(2, (-1, stride)).unflatten(1, (-1, stride)).sum((1, 3)).flatten(1)


def picture_as_seen(images: Tensor) -> Tensor:
    """Return for every pixel a number that depends on the whole picture as it lies to the right of and below the pixel.

    The channels are mixed into one, from 0 at its minimum to 1 at its maximum, so that −1 and 1 differ. Then for
    d = 1, 2, 4, … along the rows, and the same down the columns, each pixel a and the one that is d away, b, become
    (own a + 2 b + (14 − own) a b) / 16: after k steps a pixel has seen 2^k, and as no step treats a and b alike, and
    none is linear, two pixels that see different pictures get different numbers. `own` falls with d, so what is far
    away counts less. After each step the largest number is 1 again, or a small thing in a large picture would fade
    away. All of it is integer arithmetic in units of 2^-13, the same at every pixel.

    Shape: (N, C, H, W), values in [−1, 1] → (N, H, W), int32, up to 2^13.

    >>> picture_as_seen(torch.tensor([[[[0., 0., 1., 1.]]]])).flatten().tolist()
    [1638, 2432, 8192, 6118]
    """
    channels = images.shape[1]
    weights = (torch.arange(channels, device=images.device) * 7 % 16 + 1) * 2**16
    mixed = (images * weights.to(images)[:, None, None]).to(torch.int64).sum(1)
    mixed = mixed - mixed.amin((1, 2), keepdim=True)
    seen = ((mixed << 13) // mixed.amax((1, 2), keepdim=True).clamp_min(1)).to(torch.int32)
    exporting = torch.compiler.is_exporting()
    for dim in (-1, -2):
        for k, lag in enumerate(LAGS):
            if not exporting and lag >= seen.shape[dim]:
                break  # it would go around
            far, own = torch.roll(seen, -lag, dim), 12 + dim - k
            mixed = torch.add(seen * (far * (14 - own) + (own << 13)), far, alpha=2 << 13) >> 17
            mixed = (mixed << 13) // mixed.amax((1, 2), keepdim=True).clamp_min(1)
            # An exported program has no branch on the size.
            size = torch.full((), seen.shape[dim], device=seen.device)
            seen = torch.where(size > lag, mixed, seen) if exporting else mixed
    return seen


@torch.no_grad()
def choose_phases(images: Tensor, stride: int = 2) -> Tensor:
    """Return for each image the phase of its polyphase component with the largest l2 norm over channels and pixels.

    A circular shift of an image by d moves its phase to (phase + d) mod stride, exactly: the norms are sums of squares
    that are rounded to fixed point first, so their order does not count. The paper (arXiv 2011.14214, equation 5) does
    not say what becomes of ties, and pictures are full of them: of a rectangle of even width each component has the
    same share, and where all pixels are −1 or 1 every component has the same norm. Here the tied ones are compared by
    the norm of `picture_as_seen` at their pixels, which tells 1100 from 0110.

    What is then still tied is a picture that shows the same after an odd shift (for stride 2): a constant one,
    stripes of an odd period, a checkerboard. The first phase is taken. No rule can be equivariant there: the shifted
    picture is the picture, but its grid is another.

    Pixels that differ by rounding, as convolutions of a shifted map may compute them, can change the choice if two
    energies differ by just about 2^-16 of the largest: not where they are tied, but where they are about to be.

    Shape: (N, C, H, W), H and W multiples of `stride` → (N, 2), int64: row and column, each in 0 … stride − 1.

    Raises:
        InputError: a stride below 1, or one that does not divide H and W.

    >>> image = torch.tensor([[0., 3., 1., 3.], [2., 0., 2., 0.]])
    >>> choose_phases(image[None, None]), choose_phases(image.roll(1, -1)[None, None])
    (tensor([[0, 1]]), tensor([[0, 0]]))
    """
    check_counts(stride=stride)
    check_stride(images, stride)
    if images.dtype not in (torch.float32, torch.float64):
        images = images.float()
    images = images / images.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
    # 28 bits, so that the largest map that fits into memory does not reach 2^63
    energies = of_components((images.square() * 2**28).to(torch.int64).sum(1), stride)
    largest = energies.amax(1, keepdim=True)
    tied = energies >= largest - (largest >> TIE)
    seen = of_components(picture_as_seen(images).square(), stride)
    best = torch.where(tied, seen, -1).argmax(1)
    return torch.stack((best // stride, best % stride), 1)


def pick(choices: list[Tensor], indices: Tensor) -> Tensor:
    """Return image n of choices[indices[n]]: what a gather would, but with a cheap and repeatable gradient."""
    picked = choices[0]
    for index, choice in enumerate(choices[1:], 1):
        picked = torch.where((indices == index)[:, None, None, None], choice, picked)
    return picked


def roll_phases(images: Tensor, phases: Tensor, stride: int = 2, back: bool = False) -> Tensor:
    """Roll each image by its phase, down and to the right; `back`: up and to the left, so the phase comes to (0, 0).

    Shape: (N, C, H, W) and (N, 2) → (N, C, H, W).

    >>> roll_phases(torch.tensor([[[[1., 2., 3., 4.]]]]), torch.tensor([[0, 1]])).tolist()
    [[[[4.0, 1.0, 2.0, 3.0]]]]
    """
    sign = -1 if back else 1
    for axis, dim in enumerate((-2, -1)):
        images = pick([images, *(torch.roll(images, sign * p, dim) for p in range(1, stride))], phases[:, axis])
    return images


def polyphase_downsample2d(images: Tensor, phases: Tensor, stride: int = 2) -> Tensor:
    """Keep of each image the polyphase component at its phase (arXiv 2011.14214, section 3.2).

    Shape: (N, C, H, W) and (N, 2) → (N, C, H / stride, W / stride).

    Raises:
        InputError: a stride below 1, or one that does not divide H and W.

    >>> polyphase_downsample2d(torch.tensor([[[[1., 2., 3., 4.], [5., 6., 7., 8.]]]]), torch.tensor([[1, 0]])).tolist()
    [[[[5.0, 7.0]]]]
    """
    check_counts(stride=stride)
    check_stride(images, stride)
    check_phases(images, phases)
    images = pick([images[..., p::stride, :] for p in range(stride)], phases[:, 0])
    return pick([images[..., p::stride] for p in range(stride)], phases[:, 1])


def polyphase_upsample2d(images: Tensor, phases: Tensor, stride: int = 2) -> Tensor:
    """Put the pixels back at their phases in a larger map, with zeros between them (arXiv 2105.04040, section 3.2).

    Shape: (N, C, H, W) and (N, 2) → (N, C, H stride, W stride).

    Raises:
        InputError: a stride below 1.

    >>> polyphase_upsample2d(torch.tensor([[[[5., 7.]]]]), torch.tensor([[1, 0]])).tolist()
    [[[[0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 7.0, 0.0]]]]
    """
    check_counts(stride=stride)
    check_phases(images, phases)
    for axis, dim in enumerate((-2, -1)):
        where = phases[:, axis, None, None, None]
        images = torch.stack([torch.where(where == p, images, 0) for p in range(stride)], dim).flatten(dim - 1, dim)
    return images


class PolyphaseDown2d(nn.Module):
    """Blur circularly, then keep of each image the polyphase component with the largest norm, see `choose_phases`.

    With `PolyphaseUp2d` it commutes with circular shifts. The choice is a hard one: the gradient flows through the
    pixels that were kept. Nothing is learned and nothing goes into the state dict.

    Args:
        stride: how much smaller the map becomes; it must divide height and width.
        filter: one of `genstab.layers.filters.FILTERS`; `none` keeps the pixels as they are.

    Shape: (N, C, H, W) → (N, C, H / stride, W / stride) and the phases (N, 2).

    Raises:
        InputError: an unknown filter, a stride below 1, or one that does not divide H and W.

    >>> kept, phases = PolyphaseDown2d()(torch.tensor([[[[0., 1., 0., 2.], [0., 0., 0., 3.]]]]))
    >>> kept.tolist(), phases.tolist()
    ([[[[0.0, 3.0]]]], [[1, 1]])
    """

    def __init__(self, stride: int = 2, filter: Filter = "none") -> None:
        super().__init__()
        check_counts(stride=stride)
        self.stride = stride
        self.blur = BlurPool2d(filter, 1, "circular") if filter != "none" else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) → (N, C, H / stride, W / stride), (N, 2)."""
        images = self.blur(images)
        phases = choose_phases(images, self.stride)
        return polyphase_downsample2d(images, phases, self.stride), phases

    def extra_repr(self) -> str:
        """Name the stride, for `print(model)`."""
        return f"stride={self.stride}"


class PolyphaseUp2d(nn.Module):
    """Put the pixels that `PolyphaseDown2d` kept back at their phases, then blur circularly.

    Departure from the paper: a blur is followed by a gain of stride², which makes up for the zeros between the pixels.
    So with stride 2 a constant stays, and `tri3` interpolates linearly. Even filters are mirrored, so that they take
    back the half pixel by which those of `PolyphaseDown2d` moved the picture.

    Args:
        stride: how much larger the map becomes.
        filter: one of `genstab.layers.filters.FILTERS`; `none` leaves the zeros.

    Shape: (N, C, H, W) and the phases (N, 2) → (N, C, H stride, W stride).

    Raises:
        InputError: an unknown filter, a stride below 1.

    >>> PolyphaseUp2d(filter="tri3")(torch.tensor([[[[1., 3.]]]]), torch.tensor([[0, 1]])).tolist()
    [[[[2.0, 1.0, 2.0, 3.0], [2.0, 1.0, 2.0, 3.0]]]]
    """

    def __init__(self, stride: int = 2, filter: Filter = "none") -> None:
        super().__init__()
        check_counts(stride=stride)
        self.stride = stride
        self.blur = BlurPool2d(filter, 1, "circular", mirrored=True) if filter != "none" else nn.Identity()
        self.gain = stride**2 if filter != "none" else 1

    def forward(self, images: Tensor, phases: Tensor) -> Tensor:
        """(N, C, H, W), (N, 2) → (N, C, H stride, W stride)."""
        return self.blur(polyphase_upsample2d(images, phases, self.stride)) * self.gain

    def extra_repr(self) -> str:
        """Name the stride, for `print(model)`."""
        return f"stride={self.stride}"
