"""How real outputs look to a network that was trained on photographs: beside each target, and as a set of patches."""

import torch
from torch import Tensor, nn

from genstab.metrics.kernel_distance import KernelDistance
from genstab.metrics.patch_frechet import PatchFrechet
from genstab.metrics.trained_features import TrainedFeatures

PATCH_STAGES = {1: 4, 2: 8, 3: 16}  # the stages of which patches are compared, and their strides


def perceptual_distance(maps: list[Tensor], target_maps: list[Tensor]) -> Tensor:
    """Compute LPIPS without learned weights: the mean over stages and positions of |f / |f| − f' / |f'||².

    f and f' are the channels of output and target at one position (Zhang 2018, arXiv 1801.03924, equation 1, with w of
    one and the mean over the stages instead of the sum). It is at most 4, and 2 for features at right angles.

    Shape: maps (N, C, H, W) of each stage → (N,).

    >>> near = [torch.ones(1, 4, 2, 2)]
    >>> perceptual_distance(near, [3 * each for each in near])  # no difference in direction
    tensor([0.])
    """
    pairs = zip(maps, target_maps, strict=True)
    return torch.stack(
        [
            (nn.functional.normalize(ours, dim=1) - nn.functional.normalize(theirs, dim=1)).square().sum(1).mean((1, 2))
            for ours, theirs in pairs
        ]
    ).mean(0)


class Realism(nn.Module):
    """Compare outputs with targets in the features of a trained network; lower is better in all of it.

    Args:
        features: the network.

    Raises:
        InputError: its package is missing.
    """

    def __init__(self, features: TrainedFeatures | None = None) -> None:
        super().__init__()
        self.features = TrainedFeatures() if features is None else features
        self.patches = nn.ModuleList([PatchFrechet(self.features.channels[stage]) for stage in PATCH_STAGES])
        self.kernel = KernelDistance(self.features.length)

    def update(self, output: Tensor, target: Tensor) -> Tensor:
        """Add outputs and targets, each (N, 1 or 3, H, W) in [−1, 1]; return `perceptual_distance`, (N,)."""
        (maps, vectors), (target_maps, target_vectors) = self.features(output), self.features(target)
        for stage, metric in zip(PATCH_STAGES, self.patches, strict=True):
            metric.update(maps[stage], target_maps[stage])  # type: ignore[operator]  # a Metric
        self.kernel.update(vectors, target_vectors)
        return perceptual_distance(maps, target_maps)

    def compute(self) -> dict[str, Tensor]:
        """Return the numbers of the sets by log key, over all processes; NaN where there are too few images."""
        by_stage = {
            f"val/frechet_patches_{stride}": metric.compute()  # type: ignore[operator]  # a Metric
            for stride, metric in zip(PATCH_STAGES.values(), self.patches, strict=True)
        }
        distance, error = self.kernel.compute()
        mean = torch.stack(list(by_stage.values())).mean()
        return {"val/frechet_patches": mean, **by_stage, "val/kid": distance, "val/kid_error": error}

    def reset(self) -> None:
        """Forget all images."""
        for metric in (*self.patches, self.kernel):
            metric.reset()
