"""Shift consistency of classifiers (Zhang 2019, arXiv 1904.11486, section 4.2)."""

import torch
from torch import Tensor

from genstab.errors import InputError
from genstab.metrics.precision import ImageMean


def classes(outputs: Tensor) -> Tensor:
    """Return the predicted classes: the argmax of logits, or −1 if one is NaN; classes are returned as they are.

    Shape: (N, K) logits with K of at least 2, or (N,) integer classes → (N,).
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
    """Return whether two outputs predict the same class, for each image; the class −1 never equals another.

    Shape: two of (N, K) logits or (N,) classes → (N,), bool.
    """
    first, second = classes(outputs), classes(others)
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} outputs cannot be compared")
    return (first == second) & (first >= 0)


class ShiftConsistency(ImageMean):
    """Compute the share of images for which a classifier predicts the same class at two shifts.

    As input to `update` the metric accepts:

    - `outputs`: logits (N, K) or classes (N,) for one shift of the images
    - `others`: the same for another shift

    As output of `compute` the metric returns a float scalar from 0 to 1; NaN before the first update. The value does
    not depend on the batch size or the number of processes.

    Args:
        kwargs: additional keyword arguments of `torchmetrics.Metric`.

    >>> metric = ShiftConsistency()
    >>> metric.update(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 3.0], [2.0, 3.0]]))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = True  # type: ignore[assignment]  # None in MeanMetric
    sums = torch.float64

    def update(self, outputs: Tensor, others: Tensor) -> None:  # type: ignore[override]  # other arguments
        """Update the state with logits (N, K) or classes (N,) of two shifts of the same images."""
        super().update(same_class(outputs, others).double())
