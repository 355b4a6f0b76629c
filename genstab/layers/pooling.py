"""Max and average pooling with a blur (Zhang 2019, arXiv 1904.11486, section 3.2); see `genstab.layers.conv`."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import InputError
from genstab.layers.blur import blur_downsample2d
from genstab.layers.conv import Blurred, pair, periodic
from genstab.layers.filters import AntiAlias, Filter
from genstab.layers.padding import pad2d
from genstab.layers.tracing import largest, smallest


def ceil_padding(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Return by how many pixels `ceil_mode` extends the input at the end, as in torch."""
    last = size + 2 * padding - dilation * (kernel - 1) - 1  # start of the last window that fits
    # The next multiple of the stride, unless that window would see only padding. For the exporters, without a branch on
    # the size and without division of a negative number, which ONNX rounds towards zero.
    start = smallest((last + stride - 1) // stride, (size + padding - 1) // stride) * stride
    return largest(0, start - last)


class MaxBlurPool2d(Blurred, nn.MaxPool2d):
    """Max pooling with stride 1, then blur and subsample; arguments and output shape of `nn.MaxPool2d`.

    With `ceil_mode`, windows beyond the edge see only existing pixels, as in the plain layer. With
    `padding_mode="circular"` the windows wrap around too.

    Raises:
        InputError: `return_indices` is set, or the filter or padding mode is unknown.

    The example of the paper: a shift of the input by one pixel changes max pooling by up to 1, this by up to 1/4.

    >>> import torch
    >>> x = torch.tensor([0., 0, 1, 1, 0, 0, 1, 1]).expand(1, 1, 2, -1)
    >>> [F.max_pool2d(y, 2).flatten().tolist() for y in (x, x.roll(-1, -1))]
    [[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    >>> layer = MaxBlurPool2d(2, padding_mode="circular")
    >>> [layer(y).flatten().tolist() for y in (x, x.roll(-1, -1))]
    [[0.5, 1.0, 0.5, 1.0], [0.75, 0.75, 0.75, 0.75]]
    """

    def __init__(self, *args: Any, filter: Filter = "tri3", padding_mode: str = "reflect", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.return_indices:
            raise InputError("return_indices=True is not supported: a blurred maximum has no index")
        self.set_blur(AntiAlias(filter, padding_mode=padding_mode))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → the plain layer's shape."""
        kernel, stride, padding, dilation = map(pair, (self.kernel_size, self.stride, self.padding, self.dilation))
        filters, mode = self.strided_taps(), self.antialias.padding_mode
        if filters is None:
            return super().forward(input)
        over = [0, 0]
        if self.ceil_mode:
            over = [ceil_padding(input.shape[i - 2], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]
        if mode == "circular":
            reach = [dilation[i] * (kernel[i] - 1) for i in (0, 1)]
            maximum = partial(F.max_pool2d, kernel_size=kernel, stride=1, dilation=dilation)
            return periodic(input, maximum, reach, padding, over, filters, stride)
        x = F.pad(input, (0, over[1], 0, over[0]), value=float("-inf")) if self.ceil_mode else input
        return blur_downsample2d(F.max_pool2d(x, kernel, 1, padding, dilation), filters, stride, mode)


class BlurAvgPool2d(Blurred, nn.AvgPool2d):
    """Average pooling with stride 1, then blur and subsample; arguments and output shape of `nn.AvgPool2d`.

    The average is not replaced by the blur, since it keeps the image in place (a window of 2 pixels is centred between
    them, an odd filter on a pixel) and suppresses aliasing at large strides.

    >>> import torch
    >>> BlurAvgPool2d(2)(torch.tensor([0., 0., 8., 0., 0., 0.]).expand(1, 1, 2, -1)).flatten().tolist()
    [2.0, 3.0, 0.0]
    """

    def __init__(self, *args: Any, filter: Filter = "tri3", padding_mode: str = "reflect", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_blur(AntiAlias(filter, padding_mode=padding_mode))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → the plain layer's shape."""
        kernel, stride, padding = map(pair, (self.kernel_size, self.stride, self.padding))
        filters, mode = self.strided_taps(), self.antialias.padding_mode
        if filters is None:
            return super().forward(input)
        over = [0, 0]
        if self.ceil_mode:
            over = [ceil_padding(input.shape[i - 2], kernel[i], stride[i], padding[i]) for i in (0, 1)]
        if mode == "circular":
            reach = [kernel[i] - 1 for i in (0, 1)]
            return periodic(input, self._average, reach, padding, over, filters, stride)
        around, beyond = (padding[1], padding[1], padding[0], padding[0]), (0, over[1], 0, over[0])
        x = self._average(pad2d(pad2d(input, around, "zeros"), beyond, "zeros"))
        if self.divisor_override is None and (self.ceil_mode or not self.count_include_pad):
            # Divide by the number of pixels in a window: padding counts if `count_include_pad`, pixels beyond it never.
            ones = F.pad(input.new_ones(1, 1, *input.shape[-2:]), around, value=float(self.count_include_pad))
            x = x / self._average(F.pad(ones, beyond))
        return blur_downsample2d(x, filters, stride, mode)

    def _average(self, input: Tensor) -> Tensor:
        kernel = pair(self.kernel_size)
        output = F.avg_pool2d(input, kernel, 1)
        if self.divisor_override is None:
            return output
        # Not by the argument of `avg_pool2d`, which torch 2.13's ONNX exporter silently drops.
        return output * (kernel[0] * kernel[1] / self.divisor_override)
