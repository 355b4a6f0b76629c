"""The low-pass filters and their names (Zhang 2019, arXiv 1904.11486, section 3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, pi

import torch
from torch import Tensor

from genstab.errors import InputError, check_choice

# The paper tests rect2, tri3 and bin5; a row of Pascal's triangle gives each of them.
BINOMIAL = {"none": 1, "rect2": 2, "tri3": 3, "bin4": 4, "bin5": 5, "bin6": 6, "bin7": 7}
FILTERS = (*BINOMIAL, "kaiser", "ideal")
PLACEMENTS = ("pre", "post")
PADDING_MODES = ("reflect", "replicate", "zeros", "circular")

Filter = str | Sequence[float]


def taps(filter: Filter) -> Tensor:
    """Return the 1-D taps of a filter, shape (size,), float64, sum 1.

    Binomial: taps[i] = C(size − 1, i) / 2^(size − 1). `none` is the identity [1]. `kaiser` is `kaiser_taps()`. `ideal`
    reaches over the whole map and has no taps of its own: an empty tensor stands for it, see `ideal`. Numbers
    instead of a name are taps already; they are divided by their sum.

    Raises:
        InputError: the filter is unknown; numbers that do not make a low-pass.

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
        raise InputError(f"filter={filter!r} sums to zero: it has no gain for a constant that could be made 1")
    return values / values.sum()


def kaiser_taps(size: int = 13, cutoff: float = 0.25, half_width: float = (2**0.5 - 1) / 4) -> tuple[float, ...]:
    """Return the taps of a sinc under a Kaiser window, sum 1 (Karras 2021, arXiv 2106.12423, section 3.1, appendix C).

    The gain is about 1/2 at `cutoff` (exactly at 1/4) and falls from pass band to stop band between
    `cutoff − half_width` and `cutoff + half_width`, all in cycles per pixel of the larger map; the size and that width
    determine the window.
    The defaults halve the resolution: the new Nyquist frequency is 1/4. An odd size has a centre pixel.

    A departure from StyleGAN3: taps at even and at odd distances from the centre sum to 1/2 each. That changes each tap
    by about what the gain at the Nyquist frequency would be, and makes that exactly 0.

    Raises:
        InputError: fewer than 2 taps or more than 1000; a transition band that does not lie within 0 to 0.5.

    >>> [round(tap, 3) for tap in kaiser_taps(7)]
    [-0.069, 0.0, 0.319, 0.5, 0.319, 0.0, -0.069]
    """
    if not isinstance(size, int) or not 2 <= size <= 1000:
        raise InputError(f"size={size!r} is not an integer from 2 to 1000")
    if not all(isinstance(number, int | float) for number in (cutoff, half_width)):
        raise InputError(f"cutoff={cutoff!r}, half_width={half_width!r} are not two numbers")
    if not 0 < half_width <= min(cutoff, 0.5 - cutoff) + 1e-9:
        raise InputError(
            f"cutoff={cutoff}, half_width={half_width}: the band cutoff ± half_width does not lie within 0 to 0.5"
        )
    # Kaiser's formulas: the attenuation in dB that this size and width allow, and the window that reaches it.
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
    """Which filter goes to every resampling step of a network, and on which side of its strided convolution.

    `pre` blurs, then convolves with stride 2: cheap, since blur and convolution commute; the activation runs at the
    lower resolution. `post` is the paper's order: convolution with stride 1, norm, activation, blur and subsample.

    Args:
        filter: one of `genstab.layers.filters.FILTERS`, or taps of your own, such as `kaiser_taps(cutoff=0.2)`.
        placement: `pre` or `post`.
        padding_mode: how the blur continues the map beyond its border; `circular` makes the whole of a `genstab.UNet`
            periodic, its convolutions too.
        polyphase: subsample on a grid that follows the picture, see `polyphase`; only circular padding keeps
            what it promises.

    Raises:
        InputError: an unknown filter, placement or padding mode; `polyphase` with one that is not circular.

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
