"""Adversarial losses (Goodfellow 2014, arXiv 1406.2661; least squares: Mao 2017, arXiv 1611.04076)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.errors import check_choice

GAN_LOSSES = ("bce", "lsgan")
CHANCE = {"bce": math.log(2), "lsgan": 0.25}
"""The least loss of a discriminator that answers the same to everything."""


def adversarial_loss(logits: Tensor, real: bool, kind: str = "bce") -> Tensor:
    """Return how far a discriminator's logits are from calling all patches `real`: the mean, a scalar.

    `bce` is the binary cross-entropy with logits, `lsgan` the squared distance to 1 (real) or 0.

    Raises:
        InputError: the kind is unknown.

    >>> adversarial_loss(torch.zeros(2, 1, 3, 3), real=True).exp()  # undecided: ln 2
    tensor(2.)
    """
    check_choice("gan_loss", kind, GAN_LOSSES)
    wanted = torch.full_like(logits, float(real))
    return F.mse_loss(logits, wanted) if kind == "lsgan" else F.binary_cross_entropy_with_logits(logits, wanted)
