"""The shift PSNR of each shift and each image, over any batches and processes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from genstab.errors import InputError, check_counts
from genstab.metrics import decibel


class ShiftTable(Metric):
    """Hold one PSNR for each shift and each image, and one for each shift over all images, in dB.

    The states are sums in float64, and an image has its column by its position in the dataset: the numbers depend
    neither on the batches nor on which process saw which image. Where nothing was measured they are NaN.

    Args:
        shifts: the number of shifts, rows of the table.
        images: the most columns that the table may have; images at later positions count for the shift alone.
        data_range: R in 10 log10(R² / MSE); 2 for images in [−1, 1].
        cap: what no error at all counts as, in dB.

    Raises:
        InputError: a number below 1, a range or cap that is not positive.

    >>> table = ShiftTable(shifts=2)
    >>> table.update(0, torch.tensor([0, 2]), torch.tensor([4.0, 0.0]), torch.tensor([100.0, 100.0]))
    >>> decibels, pooled = table.compute()
    >>> decibels.tolist()
    [[20.0, nan, 100.0], [nan, nan, nan]]
    >>> pooled
    tensor([23.0103,     nan], dtype=torch.float64)
    """

    is_differentiable = False
    full_state_update = False

    error: Tensor
    pixels: Tensor
    pooled_error: Tensor
    pooled_pixels: Tensor

    def __init__(
        self, shifts: int, images: int = 1000, data_range: float = 2.0, cap: float = 100.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_counts(shifts=shifts, images=images)
        if data_range <= 0 or cap <= 0:
            raise InputError(f"data_range={data_range} and cap={cap} must be positive")
        self.shifts, self.images, self.data_range, self.cap = shifts, images, data_range, cap
        for name in ("error", "pixels"):
            self.add_state(name, torch.zeros(shifts, images, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"pooled_{name}", torch.zeros(shifts, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, shift: int, positions: Tensor, error: Tensor, pixels: Tensor) -> None:
        """Add images for the shift of that index: their positions in the dataset, and what `squared_error` returns.

        Shape: (N,) each.
        """
        positions, error, pixels = (values.to(self.error.device) for values in (positions, error, pixels))
        self.pooled_error[shift] += error.sum()
        self.pooled_pixels[shift] += pixels.sum()
        kept = positions < self.images
        self.error[shift].index_add_(0, positions[kept], error[kept].double())
        self.pixels[shift].index_add_(0, positions[kept], pixels[kept].double())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return dB of shape (shifts, images), up to the last image that was measured, and (shifts,) over all."""
        measured = self.pixels.any(0).nonzero()
        width = int(measured.max()) + 1 if len(measured) else 0
        table = decibel(self.error[:, :width] / self.pixels[:, :width], self.data_range, self.cap)
        return table, decibel(self.pooled_error / self.pooled_pixels, self.data_range, self.cap)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return what `compute` does, on the CPU and always of these shapes: a Metric drops axes of one element."""
        table, pooled = self.compute()
        return table.reshape(self.shifts, table.numel() // self.shifts).cpu(), pooled.reshape(self.shifts).cpu()
