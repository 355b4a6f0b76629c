"""Radial power spectra: how much detail of each size images hold, beside their targets."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from genstab.errors import InputError, check_counts

RINGS = 16
LEAST = 1e-10  # of the target's power; a constant output has none, and is then off by 100 dB


def radial_power(images: Tensor, rings: int = RINGS) -> Tensor:
    """Return the mean power of an image at each spatial frequency, whatever its direction.

    Ring k of K holds the frequencies from k / 2K to (k + 1) / 2K cycles a pixel; the corners of the spectrum, beyond
    the Nyquist frequency of an axis, belong to none. The image loses its mean and is faded out towards its border (Hann
    window), or the jump there would look like detail. White noise of variance v has the power v in every ring, less
    in the first, which lost the mean.

    Shape: (N, C, H, W) → (N, rings), float64; averaged over the channels. A ring without a frequency, which images
    below 2K pixels may have, has no power.

    Raises:
        InputError: images of another shape.

    >>> y = torch.arange(32.0)
    >>> stripes = torch.cos(2 * torch.pi * y / 4).expand(1, 1, 32, 32)  # 1/4 cycle a pixel: at the edge of ring 8 of 16
    >>> radial_power(stripes).argmax().item() in (7, 8)
    True
    """
    check_counts(rings=rings)
    if images.ndim != 4:
        raise InputError(f"images {tuple(images.shape)} are not (N, C, H, W)")
    height, width = images.shape[-2:]
    images = (images.cpu() if images.device.type == "mps" else images).double()  # Apple's GPUs have no float64
    window = torch.outer(*(torch.hann_window(n, dtype=torch.float64, device=images.device) for n in (height, width)))
    faded = (images - images.mean((-2, -1), keepdim=True)) * window
    power = torch.fft.fft2(faded).abs().square().mean(1) / window.square().sum()
    down, right = (torch.fft.fftfreq(n, dtype=torch.float64, device=images.device) for n in (height, width))
    ring = (torch.hypot(down[:, None], right) * 2 * rings).floor().long().clamp(max=rings)
    # a product, not `bincount` and `index_add_`, which CUDA does not repeat to the last bit
    members = F.one_hot(ring.flatten(), rings + 1)[:, :rings].to(power)
    return power.flatten(1) @ members / members.sum(0).clamp(min=1)


class SpectrumError(Metric):
    """How far the mean power spectrum of outputs is from their targets', in dB: large for blurry and for noisy ones.

    The absolute difference of both spectra in dB, averaged over the rings of `radial_power`. The phases play no part:
    detail in a wrong place counts as detail. (Durall 2020, arXiv 2003.01826, compares generators by such spectra.)

    Args:
        rings: how many frequencies are told apart.

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
            self.add_state(name, torch.zeros(rings), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch of outputs and targets, each (N, C, H, W)."""
        if not len(output):
            return
        self.output_power += radial_power(output, self.rings).sum(0).to(self.output_power)
        self.target_power += radial_power(target, self.rings).sum(0).to(self.target_power)

    def decibels(self) -> Tensor:
        """Return the outputs' power over the targets' in each ring, in dB, (rings,): below 0 is too blurry.

        NaN where neither has any: in rings without a frequency.
        """
        return 10 * torch.log10((self.output_power / self.target_power).clamp(LEAST, 1 / LEAST))

    def compute(self) -> Tensor:
        """Return the number in dB, float32; NaN before the first update."""
        return self.decibels().abs().nanmean()
