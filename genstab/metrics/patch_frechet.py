"""The Fréchet distance between the patches of outputs and targets, in the features of a network."""

from typing import Any

import torch
from torch import Tensor

from genstab.metrics.precision import KeepsPrecision


def frechet_distance(mean: Tensor, covariance: Tensor, target_mean: Tensor, target_covariance: Tensor) -> Tensor:
    """Compute the squared Fréchet distance of two normal distributions (Dowson 1982; FID, Heusel 2017, equation 6).

    |m − m'|² + tr(C + C' − 2 (C^½ C' C^½)^½), by eigenvalues of symmetric matrices, which covariances of fewer samples
    than dimensions have, too.

    Shape: (D,), (D, D), (D,), (D, D) → scalar; NaN where a value is not finite.

    >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2))
    tensor(4.)
    """
    if not (covariance.isfinite().all() and target_covariance.isfinite().all()):
        return mean.new_tensor(torch.nan)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ target_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - target_mean).square().sum() + covariance.trace() + target_covariance.trace() - 2 * overlap
    return distance.clamp(min=0)  # but for rounding


class PatchFrechet(KeepsPrecision):
    """Compute how far the patches of outputs are from those of the targets, as a share of the targets' variance.

    A patch is what one position of a feature map has seen. All positions of all images are one set, whatever their
    place, and the squared Fréchet distance of the two sets is divided by the trace of the targets' covariance: 0 for
    the same set, 1 for outputs that all are the mean of the targets. It counts noise and blur alike, and falls with the
    number of patches as long as these are not many more than channels. (torchmetrics' `FrechetInceptionDistance` cannot
    compute on a process without images.)

    As input to `update` the metric accepts two maps (N, C, H, W), as output of `compute` it returns a float scalar; NaN
    for fewer than two patches.

    Args:
        channels: C.
        kwargs: additional keyword arguments of `torchmetrics.Metric`.

    >>> metric = PatchFrechet(2)
    >>> maps = torch.rand(1, 2, 8, 8)
    >>> metric.update(maps, maps.flip(-1))  # the same set
    >>> metric.compute().abs() < 1e-6
    tensor(True)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    count: Tensor
    sums: Tensor
    products: Tensor

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # first of outputs, then of targets
        for name, shape in (("sums", (2, channels)), ("products", (2, channels, channels)), ("count", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, output_map: Tensor, target_map: Tensor) -> None:
        """Update the state with the features of outputs and of their targets, each (N, C, H, W)."""
        patches = torch.stack([each.double().movedim(1, -1).flatten(0, 2) for each in (output_map, target_map)])
        self.count += patches.shape[1]
        self.sums += patches.sum(1)
        self.products += patches.mT @ patches

    def compute(self) -> Tensor:
        """Compute the distance."""
        if self.count < 2:
            return self.count.new_tensor(torch.nan)
        means = self.sums / self.count
        outer = means[:, :, None] * means[:, None]
        covariances = (self.products - self.count * outer) / (self.count - 1)
        distance = frechet_distance(means[0], covariances[0], means[1], covariances[1])
        return distance / covariances[1].trace()
