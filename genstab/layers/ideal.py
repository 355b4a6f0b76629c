"""The ideal low-pass filter: it removes all frequencies above a cutoff and keeps all below."""

import torch
from torch import Tensor

from genstab.layers.tracing import largest, scalar


def dirichlet(distance: Tensor, period: int, highest: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (1 + 2 Σ_k cos(2π k distance / period)) / period, k from 1 to `highest`; distances are integers.

    This is the impulse response, on a circle of `period` pixels, that keeps the frequencies up to `highest`.
    """
    # Tensors, not numbers, since ONNX can divide integers by these.
    turn, width = (scalar(number, distance.device) for number in (period, 2 * highest + 1))
    # Reduce the integers to one period: the sine of a large angle is not precise in float32.
    near, far = distance % turn, (distance * width) % (2 * turn)
    flips = 1 - 2 * (((distance - near) // turn) % 2)  # sin(π x / period) has the period 2 · period
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
    """Return the matrix, shape (⌈up · size / stride⌉, size), that low-passes and resamples a row of `size` pixels.

    The row is extended to a periodic one: as it is (`circular`), by its mirror image (`reflect`), or by padding of half
    its size on each side (`zeros`, `replicate`). Frequencies below 1 / (2 factor) cycles per pixel are kept, counted
    in pixels of the upsampled row.
    """
    period = {"circular": size, "reflect": largest(1, 2 * size - 2)}.get(padding_mode, 2 * size)
    highest = (up * period - 1) // (2 * factor)
    wanted = torch.arange(0, up * size, stride, device=device)[:, None]
    pixel = torch.arange(size, device=device)

    def response(source: Tensor) -> Tensor:
        return up * dirichlet(wanted - up * source, up * period, highest, dtype)

    # Masks, not slices, which would fix the size of an exported program.
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
    """Low-pass one dimension at 1 / (2 factor) cycles per pixel, and resample it by `up` / `stride`.

    The result is that of a Fourier transform, a mask and the inverse transform. It is computed as a product with a
    matrix, which works for every size, precision and device and costs `size` multiplications a pixel.

    Shape: (…, size, …) → (…, ⌈up · size / stride⌉, …).
    """
    dtype = torch.float32 if images.device.type == "mps" else torch.float64  # MPS has no float64
    matrix = lowpass_matrix(images.shape[dim], factor, stride, up, padding_mode, dtype, images.device)
    # Not `movedim`, whose negative dimension the older ONNX exporter writes as it is.
    return (images.transpose(dim, -1) @ matrix.to(images.dtype).T).transpose(dim, -1)
