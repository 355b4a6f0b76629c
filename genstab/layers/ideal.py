"""The ideal low-pass: everything above a frequency is gone, everything below it stays as it is."""

import torch
from torch import Tensor

from genstab.errors import check_choice, check_counts
from genstab.layers.filters import PADDING_MODES


def dirichlet(distance: Tensor, period: int, highest: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (1 + 2 Σ_k cos(2π k distance / period)) / period, k from 1 to `highest`; distances are integers.

    It is the impulse response, on a circle of `period` pixels, that keeps the frequencies up to `highest`.

    >>> dirichlet(torch.arange(4), period=4, highest=1)
    tensor([ 0.7500,  0.2500, -0.2500,  0.2500], dtype=torch.float64)
    """
    # Tensors, not numbers: what ONNX can divide integers by.
    turn, width = (torch.full((), number, device=distance.device) for number in (period, 2 * highest + 1))
    # Reduced to one turn while they are integers: the sine of a large angle has no precision left in float32.
    near, far = distance % turn, (distance * width) % (2 * turn)
    flips = 1 - 2 * (((distance - near) // turn) % 2)  # sin(π x / period) has twice the period of its argument's rest
    angle = torch.pi / turn.to(dtype)
    value = flips * torch.sin(far.to(dtype) * angle) / (turn * torch.sin(near.clamp(min=1).to(dtype) * angle))
    return torch.where(near == 0, width.to(dtype) / turn, value)


def lowpass_matrix(
    size: int,
    factor: int = 2,
    stride: int = 1,
    up: int = 1,
    padding_mode: str = "reflect",
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    """Return the matrix that low-passes a row of `size` pixels, shape (⌈up · size / stride⌉, size).

    The row is continued to a periodic one: by itself (`circular`), by its mirror image (`reflect`), or by half its
    size on each side (`zeros`, `replicate`). Frequencies of the row `up` times finer stay if they are below
    1 / (2 factor) cycles per pixel.

    >>> lowpass_matrix(2, padding_mode="circular")
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    period = {"circular": size, "reflect": torch.sym_max(1, 2 * size - 2)}.get(padding_mode, 2 * size)
    highest = (up * period - 1) // (2 * factor)
    wanted = torch.arange(0, up * size, stride, device=device)[:, None]
    pixel = torch.arange(size, device=device)

    def response(source: Tensor) -> Tensor:
        return up * dirichlet(wanted - up * source, up * period, highest, dtype)

    # Masks, not slices, which would tie an exported program to some sizes.
    matrix = response(pixel)
    if padding_mode == "reflect":
        inner = (pixel > 0) & (pixel < size - 1)  # pixel j has its mirror image at −j
        matrix = matrix + inner * response(-pixel)
    elif padding_mode == "replicate":
        before = torch.arange(-(size // 2), 0, device=device)
        after = torch.arange(size, period - size // 2, device=device)
        for edge, beyond in ((pixel == 0, before), (pixel == size - 1, after)):
            matrix = matrix + edge * response(beyond).sum(1, keepdim=True)
    return matrix


def ideal_lowpass(
    images: Tensor, dim: int, factor: int = 2, stride: int = 1, up: int = 1, padding_mode: str = "reflect"
) -> Tensor:
    """Keep along one dimension the frequencies below 1 / (2 factor) cycles per pixel; resample it by `up` / `stride`.

    What a Fourier transform, a mask and its inverse do, as a product with a matrix: the same at every size, in every
    precision and on every device, and as many multiplications a pixel as the row is long.

    Shape: (…, size, …) → (…, ⌈up · size / stride⌉, …).

    Raises:
        InputError: a number below 1, an unknown padding mode.

    >>> x = torch.tensor([1., 0., -1., 0.]).repeat(2)  # 1/4 cycles per pixel
    >>> [ideal_lowpass(x, 0, factor, padding_mode="circular").abs().max().item() > 0.5 for factor in (1, 2)]
    [True, False]
    """
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    check_counts(factor=factor, stride=stride, up=up)
    dtype = torch.float32 if images.device.type == "mps" else torch.float64  # MPS has no float64
    matrix = lowpass_matrix(images.shape[dim], factor, stride, up, padding_mode, dtype, images.device)
    return (images.movedim(dim, -1) @ matrix.to(images.dtype).T).movedim(-1, dim)
