"""The low-pass filters and their names (Zhang 2019, arXiv 1904.11486, section 3.2)."""

from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from genstab.errors import check_choice

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
