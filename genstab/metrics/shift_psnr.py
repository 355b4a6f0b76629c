"""Shift PSNR: pure functions, and the metric that accumulates them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_choice
from genstab.inference.eval_mode import inference
from genstab.metrics.precision import KeepsPrecision, float64
from genstab.metrics.protocols import PROTOCOLS, Generate, Motion, moved_outputs, shift_pairs

REDUCTIONS = ("mean", "worst", "pooled")
PERIOD_GAP = 3.0  # dB, half the squared error


def squared_error(
    shifted_output: Tensor, output_of_shifted: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum of squared differences over the valid pixels of each image, and their number, in float64.

    Shape: two (N, C, H, W) and a mask that broadcasts to them → (N,), (N,).

    Raises:
        InputError: the shapes differ, or an image has no valid pixel.
    """
    if shifted_output.shape != output_of_shifted.shape or shifted_output.ndim != 4:
        raise InputError(
            f"shifted_output {tuple(shifted_output.shape)} and output_of_shifted {tuple(output_of_shifted.shape)}"
            " must have the same shape (N, C, H, W)"
        )
    squares = (float64(shifted_output) - float64(output_of_shifted)).square()
    valid = torch.ones((), dtype=torch.bool) if mask is None else mask > 0
    valid = valid.to(squares.device)
    count = valid.double().expand_as(squares).sum((1, 2, 3))
    if len(count) and count.min() == 0:
        raise InputError("mask: an image has no valid pixel")
    # filled, not multiplied: a NaN outside the mask must not count
    return squares.masked_fill_(~valid, 0).sum((1, 2, 3)), count


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
    """Return `squared_error` for each shift and image; the arguments are those of `shift_psnr`.

    Shape: → (len(shifts), len(images)) each.
    """
    with inference(generator, dtype) as generate:
        pairs = shift_pairs(generate, images, shifts, protocol, **options)
        rows = [squared_error(*pair_and_mask) for _, *pair_and_mask in pairs]
    errors, counts = zip(*rows, strict=True)
    return torch.stack(errors), torch.stack(counts)


def errors_by_protocol(
    generate: Generate,
    images: Tensor,
    shifts: Sequence[Motion],
    protocols: Sequence[str],
    margin: int = 8,
    **options: Any,
) -> Iterator[tuple[Motion, dict[str, tuple[Tensor, Tensor]], Tensor]]:
    """Yield (shift, `squared_error` of each protocol, G(S x)) for each shift, in the passes of the first protocol.

    The others are those of `genstab.metrics.protocols.by_passes`; the options are those of `shift_pairs`.
    """
    for motion, output, output_of_moved, scale in moved_outputs(generate, images, shifts, protocols[0], **options):
        compared = (PROTOCOLS[each].compared(output, output_of_moved, motion, scale, margin) for each in protocols)
        yield (
            motion,
            {each: squared_error(*pair) for each, pair in zip(protocols, compared, strict=True)},
            output_of_moved,
        )


def shift_psnr(
    generator: nn.Module,
    images: Tensor,
    shifts: Sequence[Sequence[float]],
    protocol: str = "circular",
    *,
    data_range: float = 2.0,
    cap: float = 100.0,
    margin: int = 8,
    forward_batch: int = 32,
    multiple: int = 1,
    dtype: torch.dtype = torch.float32,
    check_finite: bool = True,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Compute the PSNR between G(S x) and S G(x), in dB, for each shift S and each image x.

    PSNR = 10 log10(R² / mean over the valid pixels of (G(S x) − S G(x))²); higher is more stable. The generator is
    called in eval mode without autocast, and its mode and the random state are restored.

    Args:
        generator: maps (N, C, H, W) to images of k times the height and width, k = 1, 2, …
        images: (N, C, H, W), on the device of the generator.
        shifts: pairs (dy, dx) in pixels of the input, not zero; floats for `fractional` only.
        protocol: one of `genstab.metrics.protocols.PROTOCOLS`.
        data_range: R; 2 for images in [−1, 1].
        cap: largest value in dB, for outputs without any error.
        dtype: precision of the forward pass, see `genstab.inference.eval_mode.inference`.
        margin, forward_batch, multiple, check_finite, names: see `genstab.metrics.protocols.shift_pairs`.

    Returns:
        dB, float64, shape (len(shifts), len(images)).

    Raises:
        InputError: a shift, protocol or dtype is invalid, the images are too small for the shifts, an output is not
            finite or not a multiple of the input in size, or `data_range` is not positive.

    >>> shift_psnr(nn.Identity(), torch.rand(2, 3, 8, 8), [(0, 1), (2, 0), (3, 3)]).shape
    torch.Size([3, 2])
    """
    if data_range <= 0:
        raise InputError(f"data_range={data_range} must be positive")
    error, count = shift_errors(
        generator,
        images,
        shifts,
        protocol,
        margin=margin,
        forward_batch=forward_batch,
        multiple=multiple,
        dtype=dtype,
        check_finite=check_finite,
        names=names,
    )
    return decibel(error / count, data_range, cap)


def psnr_table(
    errors: Iterable[tuple[Tensor, Tensor, Tensor]], images: int, data_range: float = 2.0, cap: float = 100.0
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return a table of dB, (shifts, images), one PSNR of the mean squared error for each shift, and the reductions.

    A batch has the positions of its images in the dataset, (N,), and their errors and numbers of pixels, (shifts, N);
    neither the order nor the batches change the result. Images without errors are NaN in the table; those at positions
    from `images` on count for all but the table. `worst_shift` leaves out images at the cap for every shift: an output
    that is constant would hide the others.
    """
    positions, error, pixels = (torch.cat(each, -1) for each in zip(*errors, strict=True))
    order = positions.argsort()
    positions, error, pixels = positions[order], error[:, order], pixels[:, order]
    decibels = decibel(error / pixels, data_range, cap)
    table = decibels.new_full((len(error), images), torch.nan)
    shown = positions < images
    table[:, positions[shown]] = decibels[:, shown]
    changed = ~(decibels >= cap).all(0)  # NaN is no cap
    by_shift = decibel(error[:, changed].sum(1) / pixels[:, changed].sum(1), data_range, cap)
    reductions = {
        "mean": decibels.mean(),
        "worst": decibels.min() if decibels.numel() else decibels.mean(),
        "pooled": decibel(error.sum() / pixels.sum(), data_range, cap),
        "worst_shift": by_shift.min() if changed.any() else decibels.mean(),
    }
    return table, decibel(error.sum(1) / pixels.sum(1), data_range, cap), reductions


def shift_period(shifts: Sequence[Sequence[float]], decibels: Sequence[float]) -> int | None:
    """Return the period of aliasing: the smallest p of which all multiples are 3 dB better than all other shifts.

    A network with strides of 2 and 2 may follow shifts by 4 pixels exactly and flicker at those between. 1: there is no
    such p. None: the shifts cannot tell, as they are not by whole pixels, none is by more than one, or p has a single
    multiple among them, which may be better by chance.

    >>> shift_period([(0, 1), (0, 2), (0, 3), (0, 4)], [20.0, 73.6, 20.0, 70.9])
    2
    >>> shift_period([(0, 1), (0, 2), (0, 3)], [20.0, 73.6, 20.0])
    """
    moved = [tuple(map(abs, shift)) for shift in shifts]
    farthest = max((distance for shift in moved for distance in shift), default=0)
    if farthest < 2 or any(distance % 1 for shift in moved for distance in shift):
        return None
    for period in range(2, int(farthest) + 1):
        easy = [all(distance % period == 0 for distance in shift) for shift in moved]
        multiples = [value for value, is_easy in zip(decibels, easy, strict=True) if is_easy]
        others = [value for value, is_easy in zip(decibels, easy, strict=True) if not is_easy]
        if multiples and others and min(multiples) >= max(others) + PERIOD_GAP:
            return period if len(multiples) > 1 else None
    return 1


class ShiftPSNR(KeepsPrecision):
    """Compute the PSNR between shifted outputs and outputs of shifted inputs, in dB.

    As input to `update` the metric accepts S G(x) and G(S x), each (N, C, H, W), and a mask of the valid pixels.

    As output of `compute` the metric returns a float scalar in dB; NaN before the first update. The value does not
    depend on the batch size or the number of processes.

    Args:
        data_range: R in 10 log10(R² / MSE); 2 for images in [−1, 1].
        reduction: `mean` of the dB over the images, `worst` (their minimum), or `pooled` (one PSNR of the mean squared
            error over all pixels).
        cap: largest value in dB, for outputs without any error.
        kwargs: additional keyword arguments of `torchmetrics.Metric`.

    Raises:
        InputError: the reduction is unknown, or the range or cap is not positive.

    >>> metric = ShiftPSNR()
    >>> metric.update(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2))
    >>> metric.compute()
    tensor(20.)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    decibels: Tensor
    images: Tensor
    worst: Tensor
    error: Tensor
    pixels: Tensor

    def __init__(self, data_range: float = 2.0, reduction: str = "mean", cap: float = 100.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if data_range <= 0 or cap <= 0:
            raise InputError(f"data_range={data_range} and cap={cap} must be positive")
        check_choice("reduction", reduction, REDUCTIONS)
        self.data_range, self.reduction, self.cap = data_range, reduction, cap
        for name in ("decibels", "images", "error", "pixels"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("worst", torch.tensor(cap, dtype=torch.float64), dist_reduce_fx="min")

    def update(self, shifted_output: Tensor, output_of_shifted: Tensor, mask: Tensor | None = None) -> None:
        """Update the state with S G(x) and G(S x), each (N, C, H, W), and the mask of the valid pixels."""
        error, pixels = squared_error(shifted_output, output_of_shifted, mask)
        if not len(error):
            return
        decibels = decibel(error / pixels, self.data_range, self.cap)
        self.decibels += decibels.sum()
        self.images += len(decibels)
        self.worst = torch.minimum(self.worst, decibels.min())
        self.error += error.sum()
        self.pixels += pixels.sum()

    def compute(self) -> Tensor:
        """Compute the reduction in dB."""
        if self.reduction == "mean":
            value = self.decibels / self.images
        elif self.reduction == "worst":
            value = torch.where(self.images > 0, self.worst, torch.nan)
        else:
            value = decibel(self.error / self.pixels, self.data_range, self.cap)
        return value.float()
