"""Convolutions and upsampling with a blur (Zhang 2019, arXiv 1904.11486): drop-in subclasses of torch's layers.

Each layer takes the arguments of the plain one and has the same output shape and state-dict keys. Only axes with a
stride above 1 are blurred. With the filter `none` a layer computes what the plain one does. An odd filter does not move
the image relative to the plain layer; an even one moves it by half a pixel of the larger map, to the left and up in
downsampling layers, to the right and down in upsampling layers.

A layer exported with dynamic axes is one program for every batch size and for H and W from 2 pixels on. Programs of
`torch.export`, and those with the filter `ideal`, need inputs whose output has more than one pixel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genstab.errors import InputError
from genstab.layers.blur import blur2d, blur_downsample2d, blur_padding, blur_valid2d
from genstab.layers.filters import AntiAlias, Filter, is_ideal, taps
from genstab.layers.padding import pad2d
from genstab.layers.tracing import TracedModule, constant, largest, recording, smallest

Pair = tuple[int, int]


def pair(value: Any) -> Pair:
    """Return (rows, columns) from an integer or a sequence of one or two integers, as torch's layers take them."""
    rows, *rest = value if isinstance(value, tuple | list) else (value,)
    return rows, rest[0] if rest else rows


def periodic(
    input: Tensor,
    window_layer: Callable[[Tensor], Tensor],
    reach: Sequence[int],
    padding: Pair,
    over: Sequence[int],
    filters: tuple[Tensor, Tensor],
    stride: Pair,
) -> Tensor:
    """Apply a sliding-window layer with stride 1 to periodic images, then blur and subsample to the plain shape.

    A window extends `reach` pixels beyond its first. The plain layer pads by `padding`, and by `over` more at the end.
    """
    sides, sizes = [], []
    before = blur_padding(filters)
    for i in (1, 0):  # columns first, as pad2d has it
        left, right = before[2 - 2 * i : 4 - 2 * i]
        first, last = padding[i] + left, padding[i] + over[i] + right
        if is_ideal(filters[i]):  # needs exactly one period of the map
            last = reach[i] - first
        sides += [first, last]
        sizes.append((input.shape[i - 2] + 2 * padding[i] + over[i] - reach[i] + stride[i] - 1) // stride[i])
    output = blur_valid2d(window_layer(wrapped(input, sides)), filters, stride)
    if not any(map(is_ideal, filters)):
        return output
    height, width = output.shape[-2:]  # one period, repeated or cropped to the plain layer's size
    return wrapped(output, (0, sizes[0] - width, 0, sizes[1] - height))


def wrapped(images: Tensor, sides: Sequence[int]) -> Tensor:
    """Pad periodic images by (left, right, top, bottom); crop where these are negative."""
    left, right, top, bottom = (largest(0, side) for side in sides)
    images = pad2d(images, (left, right, top, bottom), "circular")
    cut = [smallest(0, side) for side in sides]
    return F.pad(images, cut) if recording() or any(cut) else images


class Blurred(TracedModule):
    """Mixin of the layers with a blur: an `AntiAlias`, and its taps as a buffer that is not in the state dict."""

    antialias: AntiAlias
    taps: Tensor
    stride: Any

    def set_blur(self, antialias: AntiAlias, device: torch.device | str | None = None) -> None:
        """Set the filter; `genstab.antialias` calls this on existing layers."""
        self.antialias = antialias
        self.register_buffer("taps", taps(antialias.filter).to(device, torch.float32), persistent=False)

    def taps_where(self, rows: bool, columns: bool) -> tuple[Tensor, Tensor] | None:
        """Return the taps of (rows, columns), the identity for an axis that is not blurred; None if neither is."""
        if self.antialias.filter == "none" or not (rows or columns):
            return None
        identity = self.taps.new_ones(1)
        return self.taps if rows else identity, self.taps if columns else identity

    def strided_taps(self) -> tuple[Tensor, Tensor] | None:
        """Return the taps for the axes with a stride above 1."""
        rows, columns = pair(self.stride)
        return self.taps_where(rows > 1, columns > 1)

    def extra_repr(self) -> str:
        """Add the filter to the plain layer's arguments, for `print(model)`."""
        blur = f"filter={self.antialias.filter}, blur_padding_mode={self.antialias.padding_mode}"
        return f"{super().extra_repr()}, {blur}"


class BlurConv2d(Blurred, nn.Conv2d):
    """A strided convolution with a blur; arguments, weights and output shape of `nn.Conv2d`.

    `pre` blurs the input, then convolves with the stride. `post` convolves with stride 1, then blurs and subsamples,
    which costs stride² times as many operations. The two agree away from the borders. The paper puts norm and
    activation between convolution and blur, which a single layer cannot do.

    With circular padding, and a size that is a multiple of the stride, a circular shift of the input by the stride
    shifts the output by one pixel.

    Args:
        *args: positional arguments of `nn.Conv2d`.
        filter: one of `genstab.layers.filters.FILTERS`, or taps of your own.
        placement: `pre` or `post`.
        blur_padding_mode: padding of the blur; None takes the convolution's `padding_mode`, or `reflect` for `zeros`.
        **kwargs: keyword arguments of `nn.Conv2d`.

    Shape: (N, C, H, W) or (C, H, W) → that of the plain layer.

    Raises:
        InputError: an unknown filter, placement or padding mode.

    >>> layer = BlurConv2d(3, 8, 4, stride=2, padding=1, filter="bin5")
    >>> layer(torch.zeros(1, 3, 9, 16)).shape, list(layer.state_dict())
    (torch.Size([1, 8, 4, 8]), ['weight', 'bias'])
    """

    def __init__(
        self,
        *args: Any,
        filter: Filter = "tri3",
        placement: str = "pre",
        blur_padding_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        mode = blur_padding_mode or ("reflect" if self.padding_mode == "zeros" else self.padding_mode)
        self.set_blur(AntiAlias(filter, placement, mode), self.weight.device)

    def extra_repr(self) -> str:
        """Add the placement, for `print(model)`."""
        return f"{super().extra_repr()}, placement={self.antialias.placement}"

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → the plain layer's shape."""
        filters, mode = self.strided_taps(), self.antialias.padding_mode
        if filters is None:
            return super().forward(input)
        if self.antialias.placement == "pre":
            return super().forward(blur2d(input, filters, mode))
        # The only text that a strided convolution allows is "valid".
        rows, columns = (0, 0) if isinstance(self.padding, str) else self.padding
        # The output of the convolution may have another period than the input, so pad the input.
        if mode == "circular" and (self.padding_mode == "circular" or rows == columns == 0):
            reach = [self.dilation[i] * (self.kernel_size[i] - 1) for i in (0, 1)]
            return periodic(input, self._convolve, reach, (rows, columns), [0, 0], filters, self.stride)
        x = self._convolve(pad2d(input, (columns, columns, rows, rows), self.padding_mode))
        return blur_downsample2d(x, filters, self.stride, mode)

    def _convolve(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, 1, 0, self.dilation, self.groups)


class BlurSelfPaddedConv2d(BlurConv2d):
    """A convolution with a blur made of a subclass that pads its input itself; see `genstab.layers.surgery.register`.

    `pre` blurs before that padding.
    """

    pad: Callable[[Any, Tensor], Tensor]
    plain_kind: type[nn.Conv2d]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → the plain layer's shape."""
        filters = self.strided_taps()
        if filters is None or self.antialias.placement == "post":
            return super().forward(self.pad(self, input))
        return nn.Conv2d.forward(self, self.pad(self, blur2d(input, filters, self.antialias.padding_mode)))


class BlurConvTranspose2d(Blurred, nn.ConvTranspose2d):
    """A strided transposed convolution followed by a blur; arguments and output shape of `nn.ConvTranspose2d`.

    Even filters are mirrored, so that they undo the motion by half a pixel of an encoder's.

    >>> layer = BlurConvTranspose2d(8, 3, 4, stride=2, padding=1)
    >>> layer(torch.zeros(1, 8, 5, 6)).shape, list(layer.state_dict())
    (torch.Size([1, 3, 10, 12]), ['weight', 'bias'])
    """

    def __init__(self, *args: Any, filter: Filter = "tri3", blur_padding_mode: str = "reflect", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_blur(AntiAlias(filter, padding_mode=blur_padding_mode), self.weight.device)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, H, W) → the plain layer's shape."""
        output = super().forward(input, output_size)
        filters = self.strided_taps()
        return output if filters is None else blur2d(output, filters, self.antialias.padding_mode, mirrored=True)


class BlurUpsample2d(Blurred, nn.Upsample):
    """Upsampling followed by a blur; arguments and output shape of `nn.Upsample`, for (N, C, H, W) only.

    Only axes that become larger are blurred.

    >>> BlurUpsample2d(scale_factor=2)(torch.tensor([[[[0., 4.]]]]))[0, 0, 0].tolist()
    [0.0, 1.0, 3.0, 4.0]
    """

    def __init__(self, *args: Any, filter: Filter = "tri3", padding_mode: str = "reflect", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_blur(AntiAlias(filter, padding_mode=padding_mode))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → the plain layer's shape."""
        output = super().forward(input)
        if output.dim() != 4:
            raise InputError(f"BlurUpsample2d takes (N, C, H, W), not {tuple(input.shape)}")
        filters = self.taps_where(*(constant(output.shape[i]) > constant(input.shape[i]) for i in (2, 3)))
        return output if filters is None else blur2d(output, filters, self.antialias.padding_mode, mirrored=True)
