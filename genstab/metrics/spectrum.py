"""Radial power spectra of images, and the distance between those of outputs and targets."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.errors import InputError, check_counts
from genstab.metrics.precision import KeepsPrecision, float64

RINGS = 16
MIN_RATIO = 1e-10  # of the powers, −100 dB, for outputs without any power


def radial_power(images: Tensor, rings: int = RINGS) -> Tensor:
    """Compute the radially averaged power spectrum of each image.

    Ring k of K covers the frequencies from k / 2K to (k + 1) / 2K cycles per pixel; the corners of the spectrum, beyond
    the Nyquist frequency, are left out. The mean is subtracted and a Hann window applied, so that the border does not
    count as detail. The power is normalized: white noise of variance v has the power v in every ring but the first.

    Shape: (N, C, H, W) → (N, rings), float64, the mean over the channels. Rings without a frequency, in images smaller
    than 2K pixels, are 0.
    """
    check_counts(rings=rings)
    if images.ndim != 4:
        raise InputError(f"images {tuple(images.shape)} are not (N, C, H, W)")
    height, width = images.shape[-2:]
    images = float64(images)
    window = torch.outer(*(torch.hann_window(n, dtype=torch.float64, device=images.device) for n in (height, width)))
    faded = (images - images.mean((-2, -1), keepdim=True)) * window
    power = torch.fft.fft2(faded).abs().square().mean(1) / window.square().sum()
    down, right = (torch.fft.fftfreq(n, dtype=torch.float64, device=images.device) for n in (height, width))
    ring = (torch.hypot(down[:, None], right) * 2 * rings).floor().long().clamp(max=rings)
    # a matrix product, since `bincount` and `index_add_` are not deterministic on CUDA
    members = F.one_hot(ring.flatten(), rings + 1)[:, :rings].to(power)
    return power.flatten(1) @ members / members.sum(0).clamp(min=1)


class SpectrumError(KeepsPrecision):
    """Compute the mean absolute difference in dB between the power spectra of outputs and targets.

    The spectra of `radial_power` are averaged over the images, and the difference over the rings. It is large for
    blurry and for noisy outputs. Phases are ignored: detail in the wrong place counts as detail. (Durall 2020, arXiv
    2003.01826, compares generators by such spectra.)

    As input to `update` the metric accepts `output` and `target`, each of shape (N, C, H, W).

    As output of `compute` the metric returns a float scalar in dB; NaN before the first update.

    Args:
        rings: number of frequency bands.
        kwargs: additional keyword arguments of `torchmetrics.Metric`.

    >>> noise = torch.rand(4, 3, 32, 32)
    >>> metric = SpectrumError()
    >>> metric.update(0.5 * noise, noise)  # half the contrast: a quarter of the power
    >>> metric.compute()
    tensor(6.0206)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    output_power: Tensor
    target_power: Tensor

    def __init__(self, rings: int = RINGS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_counts(rings=rings)
        self.rings = rings
        for name in ("output_power", "target_power"):
            self.add_state(name, torch.zeros(rings, dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Update the state with outputs and targets, each (N, C, H, W)."""
        if not len(output):
            return
        self.output_power += radial_power(output, self.rings).sum(0).to(self.output_power)
        self.target_power += radial_power(target, self.rings).sum(0).to(self.target_power)

    def decibels(self) -> Tensor:
        """Return the ratio of the powers of outputs and targets in each ring, in dB, shape (rings,).

        It is negative where outputs are too blurry, and NaN in rings without a frequency.
        """
        return 10 * torch.log10((self.output_power / self.target_power).clamp(MIN_RATIO, 1 / MIN_RATIO))

    def compute(self) -> Tensor:
        """Compute the mean absolute difference in dB."""
        return self.decibels().abs().nanmean()
