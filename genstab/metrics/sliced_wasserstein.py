"""Sliced Wasserstein distance over Laplacian-pyramid patches (Karras 2018, arXiv 1710.10196, section 5)."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from genstab.errors import InputError
from genstab.layers.blur import blur_downsample2d, blur_upsample2d
from genstab.layers.filters import taps
from genstab.metrics.precision import KeepsPrecision

PATCH = 7  # height and width of a patch
PATCHES = 128  # per image and level
DIRECTIONS = 128
MOST_PATCHED = 256  # images that a validation compares; their patches stay in memory, 0.75 MB each at 256 pixels
COARSEST = 16  # pixels of the shorter side of the smallest level


def laplacian_pyramid(images: Tensor, coarsest: int = COARSEST) -> list[Tensor]:
    """Build the Laplacian pyramid of images, the finest level first (Burt and Adelson 1983).

    Each level is the difference between an image and its downsampled and upsampled version, with the filter
    [1, 4, 6, 4, 1] / 16. The last level is the smallest image itself.

    Shape: (N, C, H, W) → (N, C, H, W), (N, C, ⌈H / 2⌉, ⌈W / 2⌉), … until a side would be below `coarsest`.
    """
    bands = []
    while min(images.shape[-2:]) >= 2 * coarsest:
        smaller = blur_downsample2d(images, taps("bin5").to(images))
        enlarged = blur_upsample2d(smaller, taps("bin5").to(images))[..., : images.shape[-2], : images.shape[-1]]
        bands.append(images - enlarged)
        images = smaller
    return [*bands, images]


def patches(band: Tensor) -> Tensor:
    """Extract 128 patches of 7×7 (or the size of smaller images) from every image, at the same fixed random positions.

    Shape: (N, C, H, W) → (N, 128, C, 49).
    """
    random = torch.Generator().manual_seed(0)
    side = min(PATCH, *band.shape[-2:])
    tops, lefts = (torch.randint(size - side + 1, (PATCHES,), generator=random) for size in band.shape[-2:])
    inside = torch.arange(side)
    rows, columns = tops[:, None, None] + inside[:, None], lefts[:, None, None] + inside
    return band[:, :, rows, columns].transpose(1, 2).flatten(3)


def sliced_distance(ours: Tensor, theirs: Tensor) -> Tensor:
    """Compute 1000 times the mean 1-D Wasserstein distance between two sets of patches over 128 random directions.

    Both sets are normalized with the mean and the standard deviation of `theirs` in each channel. The paper's code
    normalizes each set by its own, which hides a loss of contrast.

    Shape: two (P, C, D) → scalar.
    """
    mean, std = theirs.mean((0, 2), keepdim=True), theirs.std((0, 2), keepdim=True, correction=0).clamp(min=1e-8)
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(theirs[0].numel(), DIRECTIONS, generator=random).to(theirs)
    directions = directions / directions.norm(dim=0)
    along = [((each - mean) / std).flatten(1) @ directions for each in (ours, theirs)]
    return 1000 * (along[0].sort(0).values - along[1].sort(0).values).abs().mean()


class SlicedWasserstein(KeepsPrecision):
    """Compute the sliced Wasserstein distance between the patches of outputs and targets; lower is better.

    This is the mean of `sliced_distance` over the levels of a Laplacian pyramid, with 128 patches per image and level.
    Images of several sizes are compared apart where their pyramids differ, and each group counts by its images.
    It compares sets of patches: unlike L1 it does not require the details of each target, only details like those of
    the targets. It decreases with the number of images; compare only values for the same number.

    As input to `update` the metric accepts `output` and `target`, each of shape (N, C, H, W).

    As output of `compute` the metric returns a float scalar; NaN before the first update.

    Args:
        kwargs: additional keyword arguments of `torchmetrics.Metric`.

    >>> metric = SlicedWasserstein()
    >>> images = torch.rand(2, 3, 32, 32)
    >>> metric.update(images, images.flip(0))  # the same set
    >>> metric.compute()
    tensor(0.)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    ours: list[Tensor]
    theirs: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("ours", "theirs"):
            self.add_state(name, [], dist_reduce_fx="cat")  # 1-D, so that a process without images can gather too

    def update(self, output: Tensor, target: Tensor) -> None:
        """Update the state with outputs and targets, each (N, C, H, W)."""
        if output.shape != target.shape or output.ndim != 4:
            raise InputError(
                f"output {tuple(output.shape)} and target {tuple(target.shape)} must have the same shape (N, C, H, W)"
            )
        if not len(output):
            return
        for rows, images in ((self.ours, output), (self.theirs, target)):
            cut = torch.stack([patches(band) for band in laplacian_pyramid(images.float())], dim=1)
            # each image after its levels, channels and pixels of a patch
            shape = cut.new_tensor((cut.shape[1], *cut.shape[3:])).expand(len(cut), -1)
            rows.append(torch.cat((shape, cut.flatten(1)), dim=1).flatten())

    def compute(self) -> Tensor:
        """Compute the mean over the levels."""
        if not len(self.ours):  # a tensor on several processes
            return torch.tensor(torch.nan)
        ours, theirs = (_by_shape(dim_zero_cat(rows)) for rows in (self.ours, self.theirs))
        found = [(len(images), _distances(images, theirs[shape]).mean()) for shape, images in ours.items()]
        total = sum(number for number, _ in found)
        return torch.stack([number / total * distance for number, distance in found]).sum()


def _by_shape(rows: Tensor) -> dict[tuple[int, ...], Tensor]:
    """Return the images of a state, (N, levels, patches, channels, pixels), by levels, channels and pixels."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    while len(rows):
        levels, channels, pixels = shape = tuple(int(each) for each in rows[:3].tolist())
        length = 3 + levels * PATCHES * channels * pixels
        found.setdefault(shape, []).append(rows[3:length].view(levels, PATCHES, channels, pixels))
        rows = rows[length:]
    return {shape: torch.stack(images) for shape, images in found.items()}


def _distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the distance at each level between the images of two groups."""
    pairs = zip(ours.unbind(1), theirs.unbind(1), strict=True)
    return torch.stack([sliced_distance(ours.flatten(0, 1), theirs.flatten(0, 1)) for ours, theirs in pairs])
