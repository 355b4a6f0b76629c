"""Losses of pix2pix: the adversarial losses, and a loss on the contrast of fine detail."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genstab.errors import check_choice

GAN_LOSSES = ("bce", "lsgan")
CHANCE = {"bce": math.log(2), "lsgan": 0.25}
"""Loss of a discriminator that guesses: the least for a constant output."""
EPSILON = 1e-8  # the square root has no gradient at zero


def adversarial_loss(logits: Tensor, real: bool, kind: str = "bce") -> Tensor:
    """Compute the mean loss of a discriminator's logits for real or generated patches, a scalar.

    `bce` is the binary cross-entropy with logits (Goodfellow 2014, arXiv 1406.2661), `lsgan` the squared distance to 1
    for real and 0 for generated patches (Mao 2017, arXiv 1611.04076).
    """
    check_choice("gan_loss", kind, GAN_LOSSES)
    label = torch.full_like(logits, float(real))
    return F.mse_loss(logits, label) if kind == "lsgan" else F.binary_cross_entropy_with_logits(logits, label)


def detail_loss(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute difference between the detail contrasts of outputs and targets, a scalar.

    Detail is the difference between an image and its 3×3 box blur; its contrast is the root mean square over the image.
    The loss asks for the right amount of detail, not for its position: a generator trained with L1 alone leaves out
    detail that it cannot predict.

    Shape: two (N, C, H, W), H and W at least 3.

    >>> chequered = (torch.arange(64.0) + torch.arange(64.0)[:, None])[None, None] % 2  # black and white
    >>> detail_loss(chequered, 0.5 * chequered).item(), detail_loss(chequered, 0 * chequered).item()
    (0.222..., 0.444...)
    """
    contrasts = [_detail(images).square().mean((1, 2, 3)).add(EPSILON).sqrt() for images in (output, target)]
    return (contrasts[0] - contrasts[1]).abs().mean()


def _detail(images: Tensor) -> Tensor:
    images = images.contiguous()  # sums of rows and columns take a third of the time of avg_pool2d
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    return images[..., 1:-1, 1:-1] - (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9
