"""Losses: adversarial ones, and one on the contrast of fine detail."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.errors import check_choice

GAN_LOSSES = ("bce", "lsgan")
CHANCE = {"bce": math.log(2), "lsgan": 0.25}
"""The least loss of a discriminator that answers the same to everything."""
FAINT = 1e-8  # a root has no slope at zero


def adversarial_loss(logits: Tensor, real: bool, kind: str = "bce") -> Tensor:
    """Return how far a discriminator's logits are from calling all patches `real`: the mean, a scalar.

    `bce` is the binary cross-entropy with logits (Goodfellow 2014, arXiv 1406.2661), `lsgan` the squared distance to 1
    (real) or 0 (Mao 2017, arXiv 1611.04076).

    Raises:
        InputError: the kind is unknown.

    >>> adversarial_loss(torch.zeros(2, 1, 3, 3), real=True).exp()  # undecided: ln 2
    tensor(2.)
    """
    check_choice("gan_loss", kind, GAN_LOSSES)
    wanted = torch.full_like(logits, float(real))
    return F.mse_loss(logits, wanted) if kind == "lsgan" else F.binary_cross_entropy_with_logits(logits, wanted)


def detail_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return how far the contrast of the fine detail is from the targets': the mean |difference| over images, a scalar.

    Fine detail is what an image has beyond the mean of each pixel's 3×3 neighbours, its contrast the root of the mean
    square. Wherever an output has its detail, it has enough of it, and no more than its target: behind a blur a
    generator that is asked for each pixel leaves out what it cannot guess.

    Shape: two (N, C, H, W), H and W at least 3.

    >>> chequered = (torch.arange(64.0) + torch.arange(64.0)[:, None])[None, None] % 2  # black and white
    >>> detail_loss(chequered, 0.5 * chequered).item(), detail_loss(chequered, 0 * chequered).item()
    (0.222..., 0.444...)
    """
    contrasts = [_detail(images).square().mean((1, 2, 3)).add(FAINT).sqrt() for images in (output, target)]
    return (contrasts[0] - contrasts[1]).abs().mean()


def _detail(images: Tensor) -> Tensor:
    images = images.contiguous()  # sums of its rows and columns take a third of the time of a pooling
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    return images[..., 1:-1, 1:-1] - (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
