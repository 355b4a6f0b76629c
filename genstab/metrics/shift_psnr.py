"""Shift PSNR and image quality: pure functions that return one value an image, and thin metrics that add them up."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from genstab.errors import InputError, check_choice, check_counts
from genstab.inference.eval_mode import inference
from genstab.metrics.protocols import shift_pairs

REDUCTIONS = ("mean", "worst", "pooled")


def squared_error(
    shifted_output: Tensor, output_of_shifted: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return per image the sum of squared differences over the valid pixels and their number, in float64.

    Shape: two (N, C, H, W) and a mask that broadcasts to them → (N,), (N,).

    Raises:
        InputError: the shapes differ, or an image has no valid pixel.

    >>> squared_error(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5))
    (tensor([1.], dtype=torch.float64), tensor([4.], dtype=torch.float64))
    """
    if shifted_output.shape != output_of_shifted.shape or shifted_output.ndim != 4:
        raise InputError(
            f"shifted_output {tuple(shifted_output.shape)} and output_of_shifted {tuple(output_of_shifted.shape)}"
            " must have one shape (N, C, H, W)"
        )
    squares = (_float64(shifted_output) - _float64(output_of_shifted)).square()
    valid = torch.ones((), dtype=torch.bool) if mask is None else mask > 0
    valid = valid.to(squares.device)
    count = valid.double().expand_as(squares).sum((1, 2, 3))
    if len(count) and count.min() == 0:
        raise InputError("mask: an image has no valid pixel")
    # filled, not multiplied: a NaN outside the mask must not count
    return squares.masked_fill_(~valid, 0).sum((1, 2, 3)), count


def _float64(images: Tensor) -> Tensor:
    # Apple's GPUs have no float64
    return (images.cpu() if images.device.type == "mps" else images).double()


def decibel(mean_squared_error: Tensor, data_range: float = 2.0, cap: float = 100.0) -> Tensor:
    """Return 10 log10(data_range² / error), at most `cap` (no error at all would be infinite).

    >>> decibel(torch.tensor([0.04, 0.0]))
    tensor([ 20., 100.])
    """
    return (10 * torch.log10(data_range**2 / mean_squared_error)).clamp(max=cap)


def shift_errors(
    generator: nn.Module,
    images: Tensor,
    shifts: Sequence[Sequence[float]],
    protocol: str = "circular",
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Return the sum of (G(S x) − S G(x))² over the valid pixels and their number, for each shift and each image.

    Sums of any batches and shifts may be added up before they become one `decibel`. The generator is called in eval
    mode, without autocast; its mode and the random state are put back.

    Args:
        generator: maps (N, C, H, W) to images of k times the height and width, k = 1, 2, …
        images: (N, C, H, W), on the generator's device.
        shifts: pairs (dy, dx) in pixels of the input, none of them zero; floats only for `fractional`.
        protocol: one of `genstab.metrics.protocols.PROTOCOLS`.
        dtype: the precision that the generator is called in, see `genstab.inference.eval_mode.inference`.
        options: `margin`, `forward_batch`, `multiple`, `check_finite` and `names`, see
            `genstab.metrics.protocols.shift_pairs`.

    Returns:
        Two of float64 and shape (len(shifts), len(images)).

    Raises:
        InputError: a bad shift, protocol or dtype, images too small for them, an output that is not finite or of a
            size that is no multiple of the input's.

    >>> error, count = shift_errors(nn.Identity(), torch.rand(2, 3, 8, 8), [(0, 1), (2, 0), (3, 3)])
    >>> error.sum().item(), count[0].tolist()
    (0.0, [192.0, 192.0])
    """
    with inference(generator, dtype) as generate:
        pairs = shift_pairs(generate, images, shifts, protocol, **options)
        rows = [squared_error(*pair_and_mask) for _, *pair_and_mask in pairs]
    errors, counts = zip(*rows, strict=True)
    return torch.stack(errors), torch.stack(counts)


def shift_psnr(
    generator: nn.Module,
    images: Tensor,
    shifts: Sequence[Sequence[float]],
    protocol: str = "circular",
    *,
    data_range: float = 2.0,
    cap: float = 100.0,
    **options: Any,
) -> Tensor:
    """Measure how far G(S x) is from S G(x), in dB, for each shift and each image.

    PSNR = 10 log10(R² / mean over the valid pixels of (G(S x) − S G(x))²), higher is more stable.

    Args:
        generator, images, shifts, protocol, options: as for `shift_errors`.
        data_range: R, 2 for images in [−1, 1].
        cap: what no error at all counts as.

    Returns:
        dB, float64, shape (len(shifts), len(images)).

    Raises:
        InputError: a `data_range` that is not positive; what `shift_errors` raises.

    >>> shift_psnr(nn.Identity(), torch.rand(2, 3, 8, 8), [(0, 1), (2, 0), (3, 3)]).shape
    torch.Size([3, 2])
    """
    if data_range <= 0:
        raise InputError(f"data_range={data_range} must be positive")
    error, count = shift_errors(generator, images, shifts, protocol, **options)
    return decibel(error / count, data_range, cap)


class _ShiftSums(Metric):
    """Sums over images, one of each for every shift, from which all reductions follow.

    They are of float64, so that the numbers depend neither on the batches nor on the number of processes.
    """

    is_differentiable = False
    full_state_update = False

    decibels: Tensor
    images: Tensor
    worst: Tensor
    error: Tensor
    pixels: Tensor

    def __init__(self, shifts: int, data_range: float, cap: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if data_range <= 0 or cap <= 0:
            raise InputError(f"data_range={data_range} and cap={cap} must be positive")
        self.data_range, self.cap = data_range, cap
        for name in ("decibels", "images", "error", "pixels"):
            self.add_state(name, torch.zeros(shifts, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("worst", torch.full((shifts,), cap, dtype=torch.float64), dist_reduce_fx="min")

    def _decibel(self, error: Tensor, pixels: Tensor) -> Tensor:
        return decibel(error / pixels, self.data_range, self.cap)

    def _add(self, shift: int, error: Tensor, pixels: Tensor) -> None:
        if len(error):
            decibels = self._decibel(error, pixels)
            self.decibels[shift] += decibels.sum()
            self.images[shift] += len(decibels)
            self.worst[shift] = torch.minimum(self.worst[shift], decibels.min())
            self.error[shift] += error.sum()
            self.pixels[shift] += pixels.sum()

    def _reduced(self, reduction: str) -> Tensor:
        """Return one number for all shifts, float32; NaN before the first update."""
        if reduction == "mean":
            value = self.decibels.sum() / self.images.sum()
        elif reduction == "worst":
            value = torch.where(self.images.any(), self.worst.min(), torch.nan)
        else:
            value = self._decibel(self.error.sum(), self.pixels.sum())
        return value.float()


class ShiftPSNR(_ShiftSums):
    """Reduce the PSNR between shifted outputs and outputs of shifted inputs to one number, in dB.

    The same at any batch size and on any number of processes.

    Args:
        data_range: R in 10 log10(R² / MSE); 2 for images in [−1, 1].
        reduction: `mean` of the dB over images and shifts, `worst` (their minimum), or `pooled` (one PSNR of the mean
            squared error over all pixels).
        cap: what no error at all counts as, in dB.

    Raises:
        InputError: an unknown reduction, a range or cap that is not positive.

    >>> metric = ShiftPSNR()
    >>> metric.update(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2))
    >>> metric.compute()
    tensor(20.)
    """

    higher_is_better = True

    def __init__(self, data_range: float = 2.0, reduction: str = "mean", cap: float = 100.0, **kwargs: Any) -> None:
        super().__init__(1, data_range, cap, **kwargs)
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def update(self, shifted_output: Tensor, output_of_shifted: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch: S G(x) and G(S x), each (N, C, H, W), and the mask of the valid pixels."""
        self._add(0, *squared_error(shifted_output, output_of_shifted, mask))

    def compute(self) -> Tensor:
        """Return the number in dB, float32; NaN before the first update."""
        return self._reduced(self.reduction)


class ShiftTable(_ShiftSums):
    """Hold one PSNR for each shift and each image, one for each shift over all images, and their reductions, in dB.

    An image has its column by its position in the dataset: the numbers depend neither on the batches nor on which
    process saw which image. Where nothing was measured they are NaN.

    Args:
        shifts: the number of shifts, rows of the table.
        images: the most columns that the table may have; images at later positions count for all but the table.
        data_range: R in 10 log10(R² / MSE); 2 for images in [−1, 1].
        cap: what no error at all counts as, in dB.

    Raises:
        InputError: a number below 1, a range or cap that is not positive.

    >>> table = ShiftTable(shifts=2)
    >>> table.update(0, torch.tensor([0, 2]), torch.tensor([4.0, 0.0]), torch.tensor([100.0, 100.0]))
    >>> decibels, pooled, reductions = table.compute()
    >>> decibels.tolist()
    [[20.0, nan, 100.0], [nan, nan, nan]]
    >>> pooled
    tensor([23.0103,     nan], dtype=torch.float64)
    >>> reductions
    {'mean': tensor(60.), 'worst': tensor(20.), 'pooled': tensor(23.0103)}
    """

    error_of_image: Tensor
    pixels_of_image: Tensor

    def __init__(
        self, shifts: int, images: int = 1000, data_range: float = 2.0, cap: float = 100.0, **kwargs: Any
    ) -> None:
        check_counts(shifts=shifts, images=images)
        super().__init__(shifts, data_range, cap, **kwargs)
        self.shifts, self.columns = shifts, images
        for name in ("error_of_image", "pixels_of_image"):
            self.add_state(name, torch.zeros(shifts, images, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, shift: int, positions: Tensor, error: Tensor, pixels: Tensor) -> None:
        """Add images for the shift of that index: their positions in the dataset, and what `squared_error` returns.

        Shape: (N,) each.
        """
        positions, error, pixels = (values.to(self.error.device) for values in (positions, error, pixels))
        error, pixels = error.double(), pixels.double()
        self._add(shift, error, pixels)
        kept = positions < self.columns
        self.error_of_image[shift].index_add_(0, positions[kept], error[kept])
        self.pixels_of_image[shift].index_add_(0, positions[kept], pixels[kept])

    def compute(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return dB of shape (shifts, images), up to the last image that was measured, (shifts,), and by reduction."""
        measured = self.pixels_of_image.any(0).nonzero()
        width = int(measured.max()) + 1 if len(measured) else 0
        table = self._decibel(self.error_of_image[:, :width], self.pixels_of_image[:, :width])
        reductions = {reduction: self._reduced(reduction) for reduction in REDUCTIONS}
        return table, self._decibel(self.error, self.pixels), reductions

    def tables(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return what `compute` does, on the CPU and always of these shapes: a Metric drops axes of one element."""
        table, pooled, reductions = self.compute()
        rows = table.reshape(self.shifts, table.numel() // self.shifts)
        return rows.cpu(), pooled.reshape(self.shifts).cpu(), reductions
