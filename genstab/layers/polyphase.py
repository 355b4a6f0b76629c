"""Adaptive polyphase sampling: subsample on a grid that is chosen by the content of the image.

APS-D: A. Chaman and I. Dokmanić, Truly Shift-Invariant Convolutional Neural Networks, CVPR 2021, arXiv 2011.14214,
section 3. APS-U: the same, Truly Shift-Equivariant Convolutional Neural Networks with Adaptive Polyphase Upsampling,
2021, arXiv 2105.04040, section 3.

The `stride²` polyphase components of a map are its pixels at rows p₀, p₀ + stride, … and columns p₁, p₁ + stride, …;
the pair (p₀, p₁) is the phase. A circular shift of the map permutes and rolls its components. Choosing a component by
its content, and later putting its pixels back at its phase, therefore commutes with every integer circular shift.
"""

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_counts
from genstab.layers.blur import BlurPool2d
from genstab.layers.filters import Filter
from genstab.layers.tracing import TracedModule, constant, recording, scalar

# Energies tie if they differ by at most 2^-16 of the largest, far above the rounding errors of a convolution.
TIE = 16
LAGS = (1, 2, 4, 8, 16, 32, 64, 128)


def sum_components(values: Tensor, stride: int) -> Tensor:
    """Sum (N, H, W) over each polyphase component → (N, stride²), the phases row by row."""
    return values.unflatten(2, (-1, stride)).unflatten(1, (-1, stride)).sum((1, 3)).flatten(1)


def context_hash(images: Tensor) -> Tensor:
    """Return for every pixel a hash of the image to its right and below it, in integers, so exactly equivariant.

    The channels are mixed into one and scaled to 0 … 1. For d = 1, 2, 4, … along the rows, and then along the columns,
    each pixel a is combined with the pixel b at distance d to (own a + 2 b + (14 − own) a b) / 16. The steps are
    asymmetric and nonlinear, so that pixels with different surroundings get different values. `own` decreases with d,
    so that distant pixels count less. After each step the values are rescaled to a maximum of 1, or small objects in a
    large image would fade.

    Shape: (N, C, H, W), values in [−1, 1] → (N, H, W), int32, up to 2^13.
    """
    channels = constant(images.shape[1])
    weights = (torch.arange(channels, device=images.device) * 7 % 16 + 1) * 2**16
    mixed = (images * weights.to(images)[:, None, None]).to(torch.int64).sum(1)
    mixed = mixed - mixed.amin((1, 2), keepdim=True)
    seen = ((mixed << 13) // mixed.amax((1, 2), keepdim=True).clamp_min(1)).to(torch.int32)
    exporting = recording()
    for dim in (-1, -2):
        for k, lag in enumerate(LAGS):
            if not exporting and lag >= seen.shape[dim]:
                break  # it would wrap around
            far, own = torch.roll(seen, -lag, dim), 12 + dim - k
            mixed = torch.add(seen * (far * (14 - own) + (own << 13)), far, alpha=2 << 13) >> 17
            mixed = (mixed << 13) // mixed.amax((1, 2), keepdim=True).clamp_min(1)
            # An exported program has no branch on the size.
            size = scalar(seen.shape[dim], seen.device)
            seen = torch.where(size > lag, mixed, seen) if exporting else mixed
    return seen


@torch.no_grad()
def choose_phases(images: Tensor, stride: int = 2) -> Tensor:
    """Return for each image the phase of the polyphase component with the largest l2 norm.

    A circular shift of an image by d moves its phase to exactly (phase + d) mod stride: squares are rounded to fixed
    point before they are summed, so that the order of the sum does not matter.

    The paper (arXiv 2011.14214, equation 5) does not define ties, which are common: a rectangle of even width has the
    same share in each component, and all components of an image of −1 and 1 have the same norm. Here ties are broken by
    the norm of `context_hash`. The remaining ties are images that equal their own odd shift (for stride 2), such as
    constants, checkerboards and stripes of odd period. For these no rule is equivariant, and the first phase is
    returned.

    Shape: (N, C, H, W), H and W multiples of `stride` → (N, 2), int64: row and column, each in 0 … stride − 1.
    """
    if images.dim() != 4:
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W)")
    height, width = images.shape[-2:]
    if constant(height) % stride or constant(width) % stride:
        raise InputError(
            f"stride={stride} does not divide the image size {height}×{width}: the components would differ in size"
        )
    if images.dtype not in (torch.float32, torch.float64):
        images = images.float()
    images = images / images.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(images.dtype).tiny)
    # 28 bits, so that the sum over the largest map that fits into memory stays below 2^63
    energies = sum_components((images.square() * 2**28).to(torch.int64).sum(1), stride)
    largest = energies.amax(1, keepdim=True)
    tied = energies >= largest - (largest >> TIE)
    seen = sum_components(context_hash(images).square(), stride)
    best = torch.where(tied, seen, -1).argmax(1)
    return torch.stack((best // stride, best % stride), 1)


def pick(choices: list[Tensor], indices: Tensor) -> Tensor:
    """Return image n of choices[indices[n]], like a gather but with a cheap and deterministic gradient."""
    picked = choices[0]
    for index, choice in enumerate(choices[1:], 1):
        picked = torch.where((indices == index)[:, None, None, None], choice, picked)
    return picked


def roll_phases(images: Tensor, phases: Tensor, stride: int = 2, back: bool = False) -> Tensor:
    """Roll each image down and to the right by its phase; with `back`, up and to the left."""
    sign = -1 if back else 1
    for axis, dim in enumerate((-2, -1)):
        images = pick([images, *(torch.roll(images, sign * p, dim) for p in range(1, stride))], phases[:, axis])
    return images


def polyphase_downsample2d(images: Tensor, phases: Tensor, stride: int = 2) -> Tensor:
    """Keep the polyphase component of each image at its phase (arXiv 2011.14214, section 3.2)."""
    images = pick([images[..., p::stride, :] for p in range(stride)], phases[:, 0])
    return pick([images[..., p::stride] for p in range(stride)], phases[:, 1])


def polyphase_upsample2d(images: Tensor, phases: Tensor, stride: int = 2) -> Tensor:
    """Insert zeros between pixels, and put the pixels of each image at its phase (arXiv 2105.04040, section 3.2)."""
    if phases.ndim != 2 or phases.shape[1] != 2 or constant(phases.shape[0]) != constant(images.shape[0]):
        raise InputError(f"phases of shape {tuple(phases.shape)} are not (N, 2) for {images.shape[0]} images")
    for axis, dim in enumerate((-2, -1)):
        where = phases[:, axis, None, None, None]
        images = torch.stack([torch.where(where == p, images, 0) for p in range(stride)], dim).flatten(dim - 1, dim)
    return images


class _Polyphase(TracedModule):
    """Stride and circular blur of both layers."""

    mirrored = False

    def __init__(self, stride: int = 2, filter: Filter = "none") -> None:
        super().__init__()
        check_counts(stride=stride)
        self.stride = stride
        self.blur = BlurPool2d(filter, 1, "circular", self.mirrored) if filter != "none" else nn.Identity()

    def extra_repr(self) -> str:
        """Return the stride, for `print(model)`."""
        return f"stride={self.stride}"


class PolyphaseDown2d(_Polyphase):
    """Blur circularly, then keep the polyphase component of each image with the largest norm, see `choose_phases`.

    Together with `PolyphaseUp2d` it commutes with circular shifts. Gradients flow through the kept pixels only. The
    layer has no parameters and no state.

    Args:
        stride: downsampling factor, a divisor of height and width.
        filter: one of `genstab.layers.filters.FILTERS`; `none` does not blur.

    Shape: (N, C, H, W) → (N, C, H / stride, W / stride) and the phases (N, 2).

    Raises:
        InputError: an unknown filter, a stride below 1, or one that does not divide H and W.

    >>> kept, phases = PolyphaseDown2d()(torch.tensor([[[[0., 1., 0., 2.], [0., 0., 0., 3.]]]]))
    >>> kept.tolist(), phases.tolist()
    ([[[[0.0, 3.0]]]], [[1, 1]])
    """

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) → (N, C, H / stride, W / stride), (N, 2)."""
        images = self.blur(images)
        phases = choose_phases(images, self.stride)
        return polyphase_downsample2d(images, phases, self.stride), phases


class PolyphaseUp2d(_Polyphase):
    """Put the pixels that `PolyphaseDown2d` kept back at their phases, then blur circularly.

    Unlike in the paper, a blur is followed by a gain of stride² to compensate for the inserted zeros: with stride 2,
    constants are preserved and `tri3` is linear interpolation. Even filters are mirrored, so that they undo the motion
    by half a pixel in `PolyphaseDown2d`.

    Args:
        stride: upsampling factor.
        filter: one of `genstab.layers.filters.FILTERS`; `none` does not blur and leaves the zeros.

    Shape: (N, C, H, W) and the phases (N, 2) → (N, C, H stride, W stride).

    Raises:
        InputError: an unknown filter, a stride below 1.

    >>> PolyphaseUp2d(filter="tri3")(torch.tensor([[[[1., 3.]]]]), torch.tensor([[0, 1]])).tolist()
    [[[[2.0, 1.0, 2.0, 3.0], [2.0, 1.0, 2.0, 3.0]]]]
    """

    mirrored = True

    def forward(self, images: Tensor, phases: Tensor) -> Tensor:
        """(N, C, H, W), (N, 2) → (N, C, H stride, W stride)."""
        images = polyphase_upsample2d(images, phases, self.stride)
        return images if isinstance(self.blur, nn.Identity) else self.blur(images) * self.stride**2
