"""The kernel distance of two sets of features with its standard error (KID, Bińkowski 2018, arXiv 1801.01401)."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from genstab.metrics.precision import KeepsPrecision

FEWEST = 3  # pairs, as the standard error leaves one of them out
AT_ONCE = 1024  # rows of the matrix of kernel values


def kernel_distance(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the squared maximum mean discrepancy of two sets of paired features, and its standard error.

    The kernel is that of Bińkowski 2018, section 4, k(x, y) = (x · y / D + 1)³. The estimator is the unbiased one for
    pairs (Gretton 2012, JMLR 13, lemma 6), the mean over i ≠ j of k(xᵢ, xⱼ) + k(yᵢ, yⱼ) − k(xᵢ, yⱼ) − k(xⱼ, yᵢ): an
    output is not compared with its own target, which it resembles more than the others. All features count at once,
    since subsets of 1000, as the paper has them, or blocks would waste a set of a few dozen. The standard error is that
    of the jackknife, which leaves out one pair after the other: √((n − 1) / n Σ (d₋ᵢ − mean d₋ᵢ)²).

    Shape: two (N, D), N at least 3 → scalars, float64; the distance may be below zero for sets that are alike.

    >>> distance, error = kernel_distance(torch.eye(4), torch.eye(4))
    >>> distance.item(), error.item()
    (0.0, 0.0)
    """
    ours, theirs = ours.double(), theirs.double()
    pairs = ((ours, ours, 1), (theirs, theirs, 1), (ours, theirs, -1), (theirs, ours, -1))
    rows = torch.stack([sign * _row_sums(*both) for *both, sign in pairs]).sum(0)  # the sum over j ≠ i, for each i
    number, total = len(ours), rows.sum()
    without_one = (total - 2 * rows) / ((number - 1) * (number - 2))
    return total / (number * (number - 1)), ((number - 1) * without_one.var(correction=0)).sqrt()


def _row_sums(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return Σ over j ≠ i of k(xᵢ, yⱼ), (N,)."""
    own = _kernel((ours * theirs).sum(1), ours.shape[1])
    return torch.cat([_kernel(some @ theirs.T, ours.shape[1]).sum(1) for some in ours.split(AT_ONCE)]) - own


def _kernel(products: Tensor, length: int) -> Tensor:
    return (products / length + 1) ** 3


class KernelDistance(KeepsPrecision):
    """Compute `kernel_distance` between features of outputs and of targets, exactly over several processes.

    As input to `update` the metric accepts two tensors (N, D), as output of `compute` it returns the distance and its
    standard error; NaN for fewer than three pairs.

    Args:
        length: D.
        kwargs: additional keyword arguments of `torchmetrics.Metric`.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    ours: list[Tensor]
    theirs: list[Tensor]

    def __init__(self, length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.length = length
        for name in ("ours", "theirs"):
            self.add_state(name, [], dist_reduce_fx="cat")  # 1-D, so that a process without images can gather too

    def update(self, ours: Tensor, theirs: Tensor) -> None:
        """Update the state with features of outputs and of targets, each (N, D)."""
        self.ours.append(ours.flatten())
        self.theirs.append(theirs.flatten())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Compute the distance and its standard error."""
        sets = [dim_zero_cat(each).view(-1, self.length) if len(each) else None for each in (self.ours, self.theirs)]
        if sets[0] is None or sets[1] is None or len(sets[0]) < FEWEST:
            unknown = torch.tensor(torch.nan, device=self.device)
            return unknown, unknown
        return kernel_distance(sets[0], sets[1])
