"""The blur of channels-last maps on a CPU as one linear operator, borders included, that never pads a map.

In channels-last memory a map is a table whose rows are its pixels, and a blur adds up some rows for each output pixel:
that is what `embedding_bag` does. A small map is gathered whole. A large one is convolved with zero padding, and only
its border gathers what the zeros left out. The gradient is the same operator, transposed: it gathers too.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

# A map with more terms than this is convolved; up to it the gather is as fast, and faster where the map is small.
MOST_TERMS = 2**18
# A longer filter blurs the rows first and then the columns.
MOST_TAPS = 7 * 7


def source_index(i: Tensor, size: int, mode: str) -> Tensor:
    """Return for each position, also outside of the map, the pixel of which padding makes it a copy.

    >>> source_index(torch.arange(-3, 5), 3, "reflect").tolist()
    [1, 2, 1, 0, 1, 2, 1, 0]
    """
    # Of a single pixel everything is a copy; inductor fails on the remainder of a division by 1.
    if mode in ("replicate", "zeros") or statically_known_true(size == 1):
        return i.clamp(0, size - 1)
    # A reflected row repeats: 0 1 2 3 2 1 | 0 1 2 3 …. No branch on a size that is not known, and a tensor to divide
    # by: both for the exporters.
    period = size if mode == "circular" else torch.sym_max(2 * (size - 1), 1)
    i = i % torch.full((), period, device=i.device)
    return i if mode == "circular" else size - 1 - (i - (size - 1)).abs()


class Axis(NamedTuple):
    """How one axis of a map is blurred: its size, the stride, the taps and how many of them precede their pixel."""

    size: int
    stride: int
    taps: tuple[float, ...]
    before: int

    @property
    def outputs(self) -> int:
        """How many pixels are kept."""
        return -(-self.size // self.stride)

    def terms(self, mode: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return each output's sources, their weights, and which lie inside of the map: each (outputs, taps)."""
        position = torch.arange(0, self.size, self.stride)[:, None] + torch.arange(len(self.taps)) - self.before
        inside = (position >= 0) & (position < self.size)
        weights = torch.tensor(self.taps, dtype=torch.float64).expand(position.shape)
        return source_index(position, self.size, mode), weights if mode != "zeros" else weights * inside, inside

    def centred(self) -> tuple[float, ...]:
        """Return the taps with zeros before or after, so that the middle one lies on the pixel."""
        after = len(self.taps) - 1 - self.before
        return (0.0,) * (after - self.before) + self.taps + (0.0,) * (self.before - after)


class Blur(NamedTuple):
    """A blur of maps of one size: what the lists below are made from, and the key under which they are kept."""

    rows: Axis
    columns: Axis
    mode: str

    def size(self, adjoint: bool) -> tuple[int, int]:
        """Return height and width of what comes out; of what goes in for the adjoint."""
        return (self.rows.size, self.columns.size) if adjoint else (self.rows.outputs, self.columns.outputs)


class Bags(NamedTuple):
    """Sums of weighted pixels, as `embedding_bag` takes them, and the pixels to which they go (None: all, in order)."""

    pixels: Tensor
    offsets: Tensor
    weights: Tensor
    targets: Tensor | None

    def gather(self, table: Tensor) -> Tensor:
        """(pixels, C) → (sums, C)."""
        return F.embedding_bag(self.pixels, table, self.offsets, mode="sum", per_sample_weights=self.weights)


def _is_whole(blur: Blur, count: int) -> bool:
    terms = blur.rows.outputs * blur.columns.outputs * len(blur.rows.taps) * len(blur.columns.taps)
    return count * terms <= MOST_TERMS


# An eight-level network has up to 32 for each batch size. Whole maps have the longest lists, up to 2 MB each, and those
# of a size that is new take longer to make than the blur itself: 4 ms at 64×64.
@lru_cache(maxsize=512)
def _bags(blur: Blur, count: int, dtype: torch.dtype, adjoint: bool) -> Bags:
    """Return the sums for `count` maps: all of them, or those that a convolution with zero padding leaves out."""
    whole = _is_whole(blur, count)
    source, weight, inside = zip(blur.rows.terms(blur.mode), blur.columns.terms(blur.mode), strict=True)
    # Outputs (rows, columns) in question: all, or those at the top and the bottom and then those left and right.
    every = [torch.arange(axis.outputs) for axis in (blur.rows, blur.columns)]
    border = [~i.all(1) for i in inside]
    blocks = [(every[0], every[1])]
    if not whole:
        blocks = [(every[0][border[0]], every[1]), (every[0][~border[0]], every[1][border[1]])]
    parts = []
    for r, c in blocks:
        pixel_in = source[0][r][:, None, :, None] * blur.columns.size + source[1][c][:, None, :]
        pixel_out = (r[:, None] * blur.columns.outputs + c)[..., None, None].expand_as(pixel_in)
        weights = weight[0][r][:, None, :, None] * weight[1][c][:, None, :]
        kept = weights != 0
        if not whole:
            kept &= ~(inside[0][r][:, None, :, None] & inside[1][c][:, None, :])
        parts.append((pixel_in[kept], pixel_out[kept], weights[kept]))
    pixels, targets, weights = (torch.cat(part) for part in zip(*parts, strict=True))
    number_in, number_out = (size[0] * size[1] for size in (blur.size(adjoint=True), blur.size(adjoint=False)))
    n = torch.arange(count)[:, None]
    pixels, targets, weights = (
        (n * number_in + pixels).flatten(),
        (n * number_out + targets).flatten(),
        weights.repeat(count),
    )
    if adjoint:
        pixels, targets, number_out = targets, pixels, number_in
    order = targets.argsort(stable=True)
    targets = targets[order]
    if whole:
        lengths = targets.bincount(minlength=count * number_out)
    else:
        targets, lengths = targets.unique_consecutive(return_counts=True)
    return Bags(
        pixels[order].int(), (lengths.cumsum(0) - lengths).int(), weights[order].to(dtype), None if whole else targets
    )


def _convolve(blur: Blur, images: Tensor, adjoint: bool) -> Tensor:
    """Blur with zeros around the map."""
    rows, columns = (torch.tensor(axis.centred(), dtype=images.dtype) for axis in (blur.rows, blur.columns))
    kernel = torch.outer(rows, columns).expand(images.shape[1], 1, -1, -1)
    stride, padding = (blur.rows.stride, blur.columns.stride), (len(rows) // 2, len(columns) // 2)
    if stride == (1, 1) and adjoint:  # the transpose of a convolution without a stride is one as well
        kernel = kernel.flip(-2, -1)
    if stride == (1, 1) or not adjoint:
        return F.conv2d(images, kernel, None, stride, padding, groups=images.shape[1])
    left_out = tuple((axis.size - 1) % axis.stride for axis in (blur.rows, blur.columns))  # the pixels after the last
    return F.conv_transpose2d(images, kernel, None, stride, padding, left_out, images.shape[1])


class Depthwise(torch.autograd.Function):
    """Apply a `Blur`, or its adjoint, to (N, C, H, W); saves no tensor, for the gradient is the other of the two."""

    @staticmethod
    def forward(images: Tensor, blur: Blur, adjoint: bool) -> Tensor:
        """(N, C, H, W) → (N, C, H', W'), channels-last."""
        count, channels = images.shape[:2]
        bags = _bags(blur, count, images.dtype, adjoint)
        table = images.permute(0, 2, 3, 1).reshape(-1, channels)
        sums = bags.gather(table)
        if bags.targets is not None:
            table = _convolve(blur, images, adjoint).permute(0, 2, 3, 1).reshape(-1, channels)
            sums = table.index_add_(0, bags.targets, sums)
        return sums.view(count, *blur.size(adjoint), channels).permute(0, 3, 1, 2)

    @classmethod
    def run(cls, images: Tensor, blur: Blur, adjoint: bool) -> Tensor:
        """Do what `apply` does, but match its arguments to a signature under `torch.func` only: the blur of a small map
        takes less time than that.
        """
        if torch._C._are_functorch_transforms_active():
            return cls.apply(images, blur, adjoint)
        return super(torch.autograd.Function, cls).apply(images, blur, adjoint)  # type: ignore[misc]  # in C

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Blur, bool], output: Tensor) -> None:
        """Keep what was applied."""
        _, ctx.blur, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Apply the transpose."""
        return Depthwise.run(gradient, ctx.blur, not ctx.adjoint), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """Apply the same: it is linear."""
        return Depthwise.run(tangent, ctx.blur, ctx.adjoint)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], images: Tensor, blur: Blur, adjoint: bool
    ) -> tuple[Tensor, int]:
        """Let the mapped dimension join the batch."""
        images = images.movedim(in_dims[0], 0)
        output = Depthwise.run(images.flatten(0, 1), blur, adjoint)
        return output.unflatten(0, images.shape[:2]), 0


def fits(images: Tensor, taps: tuple[Tensor, Tensor]) -> bool:
    """Say whether `depthwise` takes these: eager mode, a CPU, channels-last memory, taps that nobody trains."""
    return (
        not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and type(images) in (Tensor, torch.nn.Parameter)  # no fake one
        and images.device.type == "cpu"
        and images.dim() == 4
        and images.shape[1] > 1
        and images.stride(1) == 1
        and images.numel() > 0
        and images.is_floating_point()
        and not any(
            t.requires_grad or t.device.type != "cpu" or torch._C._functorch.is_functorch_wrapped_tensor(t)
            for t in taps
        )
    )


def depthwise(
    images: Tensor, taps: tuple[Tensor, Tensor], stride: tuple[int, int], before: tuple[int, int], mode: str
) -> Tensor:
    """Blur and subsample as `genstab.layers.blur.blur_downsample2d`, which see, images that `fits` accepts.

    `before` is how many taps of rows and of columns precede their pixel.

    Shape: (N, C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉), channels-last.

    >>> x = torch.tensor([[[[1., 2., 4.]]]])
    >>> depthwise(x, (torch.ones(1), torch.tensor([.25, .5, .25])), (1, 1), (0, 1), "reflect")
    tensor([[[[1.5000, 2.2500, 3.0000]]]])
    """
    if torch.is_autocast_enabled("cpu") and images.dtype != torch.float64:
        images = images.to(torch.get_autocast_dtype("cpu"))  # as a convolution does
    row_taps = column_taps = tuple(taps[0].tolist())
    if taps[1] is not taps[0]:
        column_taps = tuple(taps[1].tolist())
    height, width = images.shape[2:]
    rows, columns = Axis(height, stride[0], row_taps, before[0]), Axis(width, stride[1], column_taps, before[1])
    if len(rows.taps) * len(columns.taps) <= MOST_TAPS:
        return Depthwise.run(images, Blur(rows, columns, mode), False)
    images = Depthwise.run(images, Blur(rows, Axis(columns.size, 1, (1.0,), 0), mode), False)
    return Depthwise.run(images, Blur(Axis(rows.outputs, 1, (1.0,), 0), columns, mode), False)
