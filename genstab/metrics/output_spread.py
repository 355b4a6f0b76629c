"""How much the images of a set differ, which shows whether a generator ignores its input."""

import torch
from torch import Tensor

from genstab.metrics.measurements import SAME
from genstab.metrics.precision import float64
from genstab.runtime.gather import all_gathered


class OutputSpread:
    """How far images differ, relative to the range 2, and which of them are constant.

    >>> spread = OutputSpread()
    >>> spread.add(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))  # black and white
    >>> spread.compute()
    (1.0, 0.0, 1.0)
    """

    def __init__(self) -> None:
        # For each shape: the number of images, the sum of their deviations, the number of constant ones, and the sums
        # of the images and of their squares.
        self.sums: dict[tuple[int, ...], list[Tensor]] = {}

    def add(self, images: Tensor) -> None:
        """Add a batch (N, C, H, W)."""
        if not len(images):
            return
        images = float64(images.detach())
        deviations = images.std((1, 2, 3), correction=0)
        constant = (deviations / 2 < SAME).sum()
        sums = [torch.tensor(len(images)), deviations.sum(), constant, images.sum(0), images.square().sum(0)]
        self.sums[images.shape[1:]] = _added(self.sums.get(images.shape[1:]), sums)

    def compute(self) -> tuple[float | None, float | None, float | None]:
        """Return three numbers over all processes, each of which must call this; None for too few images.

        The root mean square distance between images of the most common shape, the mean standard deviation within an
        image, and the share of constant images, within which it is below 1 %.
        """
        total: dict[tuple[int, ...], list[Tensor]] = {}
        for part in all_gathered({shape: [each.cpu() for each in sums] for shape, sums in self.sums.items()}):
            for shape, sums in part.items():
                total[shape] = _added(total.get(shape), sums)
        if not total:
            return None, None, None
        _, (number, _, _, images, squares) = max(sorted(total.items()), key=lambda item: item[1][0])
        # E (a − b)² = 2 · variance, with the unbiased variance of each pixel
        variance = (squares - images.square() / number).clamp(min=0).mean() / (number - 1)
        count, deviations, constant = (sum(sums[i].item() for sums in total.values()) for i in range(3))
        between = (2 * variance).sqrt().item() / 2 if number > 1 else None
        return between, deviations / count / 2, constant / count


def _added(sums: list[Tensor] | None, more: list[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(sums, more, strict=True)] if sums else more
