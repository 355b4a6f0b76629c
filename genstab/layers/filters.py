"""Low-pass filters by name (Zhang 2019, arXiv 1904.11486, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, pi

import torch
from torch import Tensor

from genstab.errors import InputError, check_choice
from genstab.layers.tracing import constant

# The paper tests rect2, tri3 and bin5; a row of Pascal's triangle gives each of them.
BINOMIAL = {"none": 1, "rect2": 2, "tri3": 3, "bin4": 4, "bin5": 5, "bin6": 6, "bin7": 7}
FILTERS = (*BINOMIAL, "kaiser", "ideal")
PLACEMENTS = ("pre", "post")
PADDING_MODES = ("reflect", "replicate", "zeros", "circular")

Filter = str | Sequence[float]


def taps(filter: Filter) -> Tensor:
    """Return the 1-D taps of a filter, shape (size,), float64, normalized to sum 1.

    Binomial filters have taps[i] = C(size − 1, i) / 2^(size − 1). `none` is the identity [1], `kaiser` is
    `kaiser_taps()`. `ideal` has no taps, since its response is as long as the image; it is represented by an empty
    tensor, see `is_ideal`. Taps of your own are divided by their sum.

    Raises:
        InputError: the filter is unknown, or taps are not finite numbers or sum to zero.

    >>> taps("bin5") * 16
    tensor([1., 4., 6., 4., 1.], dtype=torch.float64)
    >>> taps([1, 2, 1])
    tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64)
    """
    if isinstance(filter, str) or not isinstance(filter, Sequence):
        check_choice("filter", filter, FILTERS)
        if filter == "ideal":
            return torch.empty(0, dtype=torch.float64)
        if filter == "kaiser":
            return torch.tensor(kaiser_taps(), dtype=torch.float64)
        n = BINOMIAL[filter] - 1
        return torch.tensor([comb(n, i) for i in range(n + 1)], dtype=torch.float64) / 2**n
    if not filter or not all(isinstance(tap, int | float) and abs(tap) < float("inf") for tap in filter):
        raise InputError(f"filter={filter!r} is not one of {', '.join(FILTERS)}, nor a list of numbers")
    values = torch.tensor(list(filter), dtype=torch.float64)
    if values.sum().abs() <= 1e-6 * values.abs().sum():
        raise InputError(f"filter={filter!r} sums to zero, so that it cannot be normalized")
    return values / values.sum()


def is_ideal(taps: Tensor) -> bool:
    """Return whether taps represent the ideal low-pass filter, which is applied by `genstab.layers.ideal`."""
    return constant(taps.numel()) == 0


def kaiser_taps(size: int = 13, cutoff: float = 0.25, half_width: float = (2**0.5 - 1) / 4) -> tuple[float, ...]:
    """Return the taps of a Kaiser-windowed sinc, sum 1 (Karras 2021, arXiv 2106.12423, section 3.1, appendix C).

    The transition band lies between `cutoff − half_width` and `cutoff + half_width`; its width and `size` determine the
    window. The gain at `cutoff` is about 1/2, and exactly 1/2 for a cutoff of 1/4. Frequencies are in cycles per pixel
    of the larger map. The defaults are for halving the resolution, where the new Nyquist frequency is 1/4.

    Unlike in StyleGAN3, taps at even and at odd distances from the centre are normalized to sum 1/2 each, so that the
    gain at the Nyquist frequency is exactly 0. This changes each tap by about that gain.

    Raises:
        InputError: `size` is not from 2 to 1000, or the transition band does not lie within 0 to 0.5.

    >>> [round(tap, 3) for tap in kaiser_taps(7)]
    [-0.069, 0.0, 0.319, 0.5, 0.319, 0.0, -0.069]
    """
    if not isinstance(size, int) or not 2 <= size <= 1000:
        raise InputError(f"size={size!r} is not an integer from 2 to 1000")
    if not 0 < half_width <= min(cutoff, 0.5 - cutoff) + 1e-9:
        raise InputError(
            f"cutoff={cutoff}, half_width={half_width}: the band cutoff ± half_width does not lie within 0 to 0.5"
        )
    # Kaiser's formulas for the attenuation in dB and the window's beta.
    attenuation = 2.285 * (size - 1) * 4 * pi * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    else:
        over = max(0.0, attenuation - 21)
        beta = 0.5842 * over**0.4 + 0.07886 * over
    window = torch.kaiser_window(size, periodic=False, beta=beta, dtype=torch.float64)
    position = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    values = torch.sinc(2 * cutoff * position) * window
    for first in (0, 1):
        values[first::2] /= 2 * values[first::2].sum()
    return tuple(values.tolist())


@dataclass(frozen=True)
class AntiAlias:
    """The blur in every resampling step of a network, and its place relative to a strided convolution.

    `pre` blurs the input, then convolves with stride 2. It costs little; the activation runs at the lower resolution.
    `post` is the paper's order: convolution with stride 1, norm, activation, then blur and subsample.

    Args:
        filter: one of `genstab.layers.filters.FILTERS`, or taps of your own, such as `kaiser_taps(cutoff=0.2)`.
        placement: `pre` or `post`.
        padding_mode: padding of the blur; `circular` makes the whole of a `genstab.UNet` periodic, its convolutions
            too.
        polyphase: subsample on a grid that follows the image, see `genstab.layers.polyphase`; needs circular padding.

    Raises:
        InputError: an unknown filter, placement or padding mode, or `polyphase` without circular padding.

    >>> AntiAlias("bin5").placement
    'pre'
    """

    filter: Filter = "tri3"
    placement: str = "pre"
    padding_mode: str = "reflect"
    polyphase: bool = False

    def __post_init__(self) -> None:
        values = taps(self.filter)
        if not isinstance(self.filter, str):  # a tuple of numbers: compared, hashed and saved as it is
            object.__setattr__(self, "filter", tuple(values.tolist()))
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("padding_mode", self.padding_mode, PADDING_MODES)
        if not isinstance(self.polyphase, bool):
            raise InputError(f"polyphase={self.polyphase!r} is not one of True, False")
        if self.polyphase and self.padding_mode != "circular":
            raise InputError(f"padding_mode={self.padding_mode!r} with polyphase=True is not circular")
