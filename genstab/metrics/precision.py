"""Sums that keep their precision when the module that holds a metric is cast to half precision."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric


class KeepsPrecision(Metric):
    """A metric whose states are moved with the module that holds it, but never cast; put it first among the bases.

    `Module.to(torch.bfloat16)` casts the states of torchmetrics too, as `trainer.precision=bf16-true` does. A sum in
    bfloat16 stops growing after 256 ones. `set_dtype` still sets another type.

    >>> holder = nn.ModuleDict({"mean": ImageMean()}).to(torch.bfloat16)
    >>> for _ in range(1000):
    ...     holder["mean"].update(torch.tensor(0.25))
    >>> holder["mean"].compute(), holder["mean"].weight
    (tensor(0.2500), tensor(1000.))
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        if self._dtype_convert:  # in `set_dtype`; torchmetrics has no public sign of it
            return super()._apply(fn, exclude_state)

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)


class ImageMean(KeepsPrecision, MeanMetric):
    """torchmetrics' `MeanMetric` that sums in float32 in a module of any type; a NaN makes the mean NaN."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("disable", **kwargs)
        self.set_dtype(torch.float32)  # whatever the default type is
