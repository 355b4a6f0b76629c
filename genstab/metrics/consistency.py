"""Does a classifier name the same class when the image moves? (Zhang 2019, arXiv 1904.11486, section 4.2)."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from genstab.errors import InputError


def classes(outputs: Tensor) -> Tensor:
    """Return the class of each image: of logits (N, K) the largest, −1 if one is NaN; of classes (N,) themselves.

    Raises:
        InputError: the outputs are neither. One logit alone has no largest: K is at least 2.

    >>> classes(torch.tensor([[0.1, 2.0], [3.0, -1.0], [0.0, torch.nan]])).tolist()
    [1, 0, -1]
    """
    floating = outputs.is_floating_point()
    if outputs.ndim == 1 and not floating and not outputs.is_complex():
        return outputs
    if outputs.ndim != 2 or not floating or outputs.shape[1] < 2:
        raise InputError(
            f"outputs of shape {tuple(outputs.shape)}, {outputs.dtype}, are neither logits (N, K) with K of at least 2"
            " nor classes (N,)"
        )
    return torch.where(outputs.isnan().any(1), -1, outputs.argmax(1))


def same_class(outputs: Tensor, others: Tensor) -> Tensor:
    """Return for each image whether the two outputs name the same class; no class (−1, or NaN) is never the same.

    Shape: two (N, K) logits or (N,) classes → (N,), bool.

    Raises:
        InputError: they are neither, or not equally many.

    >>> same_class(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1])).tolist()
    [True, False]
    """
    first, second = classes(outputs), classes(others)
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} outputs cannot be compared")
    return (first == second) & (first >= 0)


class ShiftConsistency(Metric):
    """Count how often a classifier names the same class for two shifts of one image; 1 is always.

    The same at any batch size and on any number of processes: the states are counts in float64.

    >>> metric = ShiftConsistency()
    >>> metric.update(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 3.0], [2.0, 3.0]]))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    same: Tensor
    pairs: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("same", "pairs"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, others: Tensor) -> None:
        """Add a batch: logits (N, K), or classes (N,), of two shifts of the same images."""
        same = same_class(outputs, others)
        self.same += same.sum()
        self.pairs += len(same)

    def compute(self) -> Tensor:
        """Return the share of equal pairs, float32; NaN before the first update."""
        return (self.same / self.pairs).float()
