"""Blur, and downsampling and upsampling with a blur (Zhang 2019, arXiv 1904.11486, section 3.2).

The functions take the taps of `genstab.layers.filters.taps`: one tensor, or a pair for rows and columns. The ideal
low-pass filter cuts at the Nyquist frequency of the smaller grid, or with stride 1 at half the Nyquist frequency.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.errors import InputError, check_choice
from genstab.layers.filters import PADDING_MODES, Filter, is_ideal, taps
from genstab.layers.ideal import ideal_lowpass
from genstab.layers.padding import pad2d
from genstab.layers.tracing import TracedModule, constant

Stride = int | tuple[int, int]
TapsPair = tuple[Tensor, Tensor]
Taps = Tensor | TapsPair


def blur_padding(taps: TapsPair, mirrored: bool = False) -> tuple[int, int, int, int]:
    """Return the padding (left, right, top, bottom) with which a blur keeps the size, from taps of (rows, columns)."""
    (top, bottom), (left, right) = ((max(0, n - 1) // 2, n // 2) for n in (constant(t.numel()) for t in taps))
    return (right, left, bottom, top) if mirrored else (left, right, top, bottom)


def blur_valid2d(images: Tensor, taps: TapsPair, stride: tuple[int, int]) -> Tensor:
    """Blur and subsample without padding; for the ideal low-pass filter, the images are periodic."""
    if any(map(is_ideal, taps)):
        return _with_ideal(images, taps, stride, "circular", mirrored=False)
    channels = constant(images.shape[-3])
    kernel = torch.outer(*taps).to(images).expand(channels, 1, -1, -1)
    return F.conv2d(images, kernel, stride=stride, groups=channels)


def _with_ideal(images: Tensor, taps: TapsPair, stride: tuple[int, int], padding_mode: str, mirrored: bool) -> Tensor:
    """Blur one axis after the other, at least one of them with the ideal low-pass filter."""
    for dim, axis_taps, step in zip((-2, -1), taps, stride, strict=True):
        if is_ideal(axis_taps):
            images = ideal_lowpass(images, dim, max(2, step), step, padding_mode=padding_mode)
        else:
            strides = (step, 1) if dim == -2 else (1, step)
            images = blur_downsample2d(images, _along(dim, axis_taps), strides, padding_mode, mirrored)
    return images


def _along(dim: int, taps: Tensor) -> TapsPair:
    """Return the taps of (rows, columns) that blur one dimension, −2 (rows) or −1 (columns)."""
    identity = taps.new_ones(1)
    return (taps, identity) if dim == -2 else (identity, taps)


def _pairs(images: Tensor, taps: Taps, stride: Stride, padding_mode: str) -> tuple[TapsPair, tuple[int, int]]:
    """Check the arguments; return taps and strides of (rows, columns)."""
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    if not (images.is_floating_point() or images.is_complex()):
        raise InputError(f"images of {images.dtype} cannot be blurred: convert them to floating point")
    pair = taps if isinstance(taps, tuple) else (taps, taps)
    if len(pair) != 2 or not all(isinstance(t, Tensor) and t.dim() == 1 for t in pair):
        got = f"a tensor of shape {tuple(taps.shape)}" if isinstance(taps, Tensor) else repr(taps)
        raise InputError(f"taps={got} is not a 1-D tensor, as `genstab.layers.filters.taps` returns it, nor a pair")
    return pair, _strides(stride)


def _strides(stride: Stride) -> tuple[int, int]:
    steps = tuple(stride) if isinstance(stride, tuple | list) else (stride, stride)
    if len(steps) != 2 or not all(isinstance(step, int) and step > 0 and step is not True for step in steps):
        raise InputError(f"stride={stride!r} is not an integer of at least 1 or a pair of them")
    return steps


def blur2d(images: Tensor, taps: Taps, padding_mode: str = "reflect", mirrored: bool = False) -> Tensor:
    """Blur each channel with the outer product of the taps; a pair of taps is for (rows, columns).

    A filter with an even number of taps moves the image by half a pixel to the left and up, or with `mirrored` to the
    right and down, so that the blur of a decoder undoes the motion of its encoder's.

    Shape: (N, C, H, W) or (C, H, W) → the same.

    >>> blur2d(torch.tensor([[[[0., 0., 1., 0., 0.]]]]), taps("tri3").float()).flatten()
    tensor([0.0000, 0.2500, 0.5000, 0.2500, 0.0000])
    """
    return blur_downsample2d(images, taps, 1, padding_mode, mirrored)


def blur_downsample2d(
    images: Tensor, taps: Taps, stride: Stride = 2, padding_mode: str = "reflect", mirrored: bool = False
) -> Tensor:
    """Blur as `blur2d`, then keep every `stride`-th pixel; a pair of strides is for (rows, columns).

    Shape: (N, C, H, W) or (C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉).

    >>> blur_downsample2d(torch.tensor([[[[0., 0., 1., 0., 0.]]]]), taps("bin5").float()).flatten()
    tensor([0.1250, 0.3750, 0.1250])
    """
    pair, strides = _pairs(images, taps, stride, padding_mode)
    if any(map(is_ideal, pair)):
        return _with_ideal(images, pair, strides, padding_mode, mirrored)
    return blur_valid2d(pad2d(images, blur_padding(pair, mirrored), padding_mode), pair, strides)


def blur_upsample2d(
    images: Tensor, taps: Taps, stride: Stride = 2, padding_mode: str = "reflect", mirrored: bool = True
) -> Tensor:
    """Insert `stride` − 1 zeros after every pixel, then blur with a gain that preserves constants.

    The counterpart of `blur_downsample2d`: pixel i goes to i · stride, and with `mirrored` an even filter moves the
    image back by half a pixel. The images are padded before the zeros are inserted. A new pixel is a weighted mean of
    pixels under every `stride`-th tap, normalized by the sum of these taps; with stride 2, `tri3` interpolates
    linearly. Fewer taps than `stride` are an `InputError`, as some new pixels would have no weight.

    Shape: (N, C, H, W) or (C, H, W) → (N, C, stride · H, stride · W).

    >>> blur_upsample2d(torch.tensor([[[[0., 4.]]]]), taps("tri3").float())[0, 0, 0].tolist()
    [0.0, 2.0, 4.0, 2.0]
    """
    pair, steps = _pairs(images, taps, stride, padding_mode)
    for dim, axis_taps, step in zip((-2, -1), pair, steps, strict=True):
        if is_ideal(axis_taps):
            images = ideal_lowpass(images, dim, step, up=step, padding_mode=padding_mode)
        elif step > 1:
            images = _upsample(images, dim, axis_taps, step, padding_mode, mirrored)
        else:
            images = blur2d(images, _along(dim, axis_taps), padding_mode, mirrored)
    return images


def phase_sums(taps: Tensor, stride: int) -> Tensor:
    """Return for each tap the sum of the taps at a distance of a multiple of `stride`, itself included."""
    apart = torch.arange(constant(taps.numel()), device=taps.device)
    return ((apart[:, None] - apart) % stride == 0).to(taps) @ taps


def _upsample(images: Tensor, dim: int, taps: Tensor, stride: int, padding_mode: str, mirrored: bool) -> Tensor:
    """Upsample along one dimension, −2 (rows) or −1 (columns)."""
    size, channels = constant(taps.numel()), constant(images.shape[-3])
    if size < stride:
        raise InputError(f"stride={stride} is not an integer from 1 to {size}, the number of taps")
    before = size // 2 if mirrored else (size - 1) // 2
    after = size - 1 - before
    # The padding: pixels beyond the border that contribute to a new pixel inside.
    left, right = before // stride, (stride - 1 + after) // stride
    padding = (left, right, 0, 0) if dim == -1 else (0, 0, left, right)
    kernel = (taps / phase_sums(taps, stride)).flip(0).to(images).expand(channels, 1, -1)
    kernel, steps = (kernel[..., None, :], (1, stride)) if dim == -1 else (kernel[..., None], (stride, 1))
    wide = F.conv_transpose2d(pad2d(images, padding, padding_mode), kernel, stride=steps, groups=channels)
    return wide.narrow(dim, stride * left + after, stride * images.shape[dim])


class BlurPool2d(TracedModule):
    """Blur and subsample feature maps; with `stride=1` only blur. Has no parameters and no state.

    Args:
        filter: one of `genstab.layers.filters.FILTERS`, or taps of your own.
        stride: keep every `stride`-th pixel; an integer, or a pair for (rows, columns).
        padding_mode: `reflect`, `replicate`, `zeros` or `circular`.
        mirrored: direction in which an even filter moves the image, see `blur2d`.

    Shape: (N, C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉).

    Raises:
        InputError: an unknown filter or padding mode, a stride below 1.

    >>> BlurPool2d("tri3")(torch.ones(1, 5, 7, 8)).shape
    torch.Size([1, 5, 4, 4])
    """

    taps: Tensor

    def __init__(
        self, filter: Filter = "tri3", stride: Stride = 2, padding_mode: str = "reflect", mirrored: bool = False
    ) -> None:
        super().__init__()
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        _strides(stride)
        self.filter, self.stride, self.padding_mode, self.mirrored = filter, stride, padding_mode, mirrored
        # Not persistent, so that plain and anti-aliased networks have the same keys in checkpoints.
        self.register_buffer("taps", taps(filter).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return blur_downsample2d(images, self.taps, self.stride, self.padding_mode, self.mirrored)

    def extra_repr(self) -> str:
        """Return the arguments, for `print(model)`."""
        return f"{self.filter}, stride={self.stride}, padding_mode={self.padding_mode}"


class BlurUnpool2d(BlurPool2d):
    """Upsample feature maps with a blur, the counterpart of `BlurPool2d`; see `blur_upsample2d`.

    Args:
        filter: one of `genstab.layers.filters.FILTERS` with at least `stride` taps, or taps of your own.
        stride: upsampling factor; an integer, or a pair for (rows, columns).
        padding_mode: `reflect`, `replicate`, `zeros` or `circular`.
        mirrored: direction in which an even filter moves the image; the default undoes the motion of `BlurPool2d`.

    Shape: (N, C, H, W) → (N, C, stride · H, stride · W).

    Raises:
        InputError: an unknown filter or padding mode, a stride below 1, or a filter that gives new pixels no weight.

    >>> BlurUnpool2d("bin5")(torch.ones(1, 3, 4, 5)).shape
    torch.Size([1, 3, 8, 10])
    """

    def __init__(
        self, filter: Filter = "tri3", stride: Stride = 2, padding_mode: str = "reflect", mirrored: bool = True
    ) -> None:
        super().__init__(filter, stride, padding_mode, mirrored)
        if is_ideal(self.taps) or self.taps.is_meta:
            return
        for step in _strides(stride):
            if self.taps.numel() < step or phase_sums(self.taps, step).abs().min() < 1e-6:
                raise InputError(f"stride={stride}: filter={filter!r} gives some of the new pixels no weight")

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, stride · H, stride · W)."""
        return blur_upsample2d(images, self.taps, self.stride, self.padding_mode, self.mirrored)
