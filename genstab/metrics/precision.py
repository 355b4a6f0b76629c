"""Sums that keep their precision, whatever the type of the images and of the module that holds a metric."""

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
    """torchmetrics' `MeanMetric` that sums in `sums` in a module of any type; a NaN makes the mean NaN."""

    sums = torch.float32

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("disable", **kwargs)
        self.set_dtype(self.sums)  # whatever the default type is

    def compute(self) -> Tensor:
        """Compute the mean, in float32."""
        return super().compute().float()


def float64(images: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if it comes from an Apple GPU, which has no float64."""
    return (images.cpu() if images.device.type == "mps" else images).double()
