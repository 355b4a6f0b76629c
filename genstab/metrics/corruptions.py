"""Noise and common corruptions at five severities (Hendrycks and Dietterich 2019, arXiv 1903.12261).

The constants are those of the authors' code for ImageNet-C (hendrycks/robustness, Apache-2.0), made for 224 pixels.
The operators are implemented with kornia and Pillow. Lengths in pixels (the radius of a blur, the length of a motion)
are scaled by the shorter side / 224, so that a severity looks the same at every size, roughly as with the authors'
constants for 32 pixels. Results are not rounded to 8 bits or compressed as JPEG, unlike ImageNet-C.

Not implemented: frost, snow and spatter, which add objects that a generator may redraw; elastic_transform, which moves
parts of the image; and glass_blur, which swaps pixels one after the other.

The strength grows with the severity, with two exceptions in the authors' constants: saturate reduces saturation at 1
and 2 and increases it from 3 on, and fog at 4 is not denser than at 3, only rougher. Below 64 pixels the mildest blurs
have almost no effect.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from kornia.color import hsv_to_rgb, rgb_to_hsv
from kornia.contrib import diamond_square
from kornia.filters import fft_conv, gaussian_blur2d
from kornia.geometry.transform import scale
from PIL import Image
from torch import Generator, Tensor

from genstab.data.paths import hxw
from genstab.errors import InputError, check_choice

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32
"""Pixels of the shorter side; the lengths would become too small below."""

# Operators: (1, C, H, W) in [0, 1], constant of a severity, random generator → the same shape, clamped by `corrupt`.


def _gaussian_noise(image: Tensor, deviation: float, draw: Generator) -> Tensor:
    return image + deviation * torch.randn(image.shape, generator=draw)


def _shot_noise(image: Tensor, photons: float, draw: Generator) -> Tensor:
    return torch.poisson(image * photons, generator=draw) / photons


def _impulse_noise(image: Tensor, share: float, draw: Generator) -> Tensor:
    hit, salt = torch.rand((2, *image.shape), generator=draw)
    return torch.where(hit < share, (salt < 0.5).float(), image)


def _speckle_noise(image: Tensor, deviation: float, draw: Generator) -> Tensor:
    return image + image * deviation * torch.randn(image.shape, generator=draw)


def _splat(rows: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Return the kernel (1, K, K) of weighted points around its centre, distributed bilinearly over four pixels."""
    reach = math.ceil(max(rows.abs().max().item(), columns.abs().max().item()))
    grid = torch.arange(-reach, reach + 1.0)[:, None]
    near_rows, near_columns = ((1 - (grid - points).abs()).clamp(min=0) for points in (rows, columns))
    kernel = near_rows @ (weights * near_columns).T
    return (kernel / kernel.sum())[None]


def _defocus_blur(image: Tensor, radius: float, draw: Generator) -> Tensor:
    # The authors' kernel is an aliased disc, smoothed by a narrow Gaussian.
    radius *= _pixel(image)
    count = math.ceil(4 * radius)
    span = torch.arange(-count, count + 1) * (radius / count)
    rows, columns = torch.cartesian_prod(span, span).T
    inside = rows.square() + columns.square() <= radius**2
    return fft_conv(image, _splat(rows[inside], columns[inside], torch.ones(int(inside.sum()))), "reflect")


def _motion_blur(image: Tensor, constant: tuple[float, float], draw: Generator) -> Tensor:
    # As in ImageMagick, half a Gaussian along a line of 2 · radius pixels, at −45° to 45° to the row; but sampled more
    # finely than one tap a pixel.
    radius, sigma = (value * _pixel(image) for value in constant)
    angle = math.radians(90 * torch.rand((), generator=draw).item() - 45)
    count = math.ceil(8 * radius)
    way = (torch.arange(count) + 0.5) * (2 * radius / count)
    weights = torch.exp(-way.square() / (2 * sigma**2))
    return fft_conv(image, _splat(way * math.sin(angle), way * math.cos(angle), weights), "replicate")


def _zoom_blur(image: Tensor, constant: tuple[int, float], draw: Generator) -> Tensor:
    count, step = constant
    factors = 1 + step * torch.arange(count)
    zoomed = scale(image.expand(count, -1, -1, -1), factors, padding_mode="border")
    return torch.cat((image, zoomed)).mean(0, keepdim=True)


def _gaussian_blur(image: Tensor, sigma: float, draw: Generator) -> Tensor:
    sigma *= _pixel(image)
    return gaussian_blur2d(image, 2 * math.ceil(4 * sigma) + 1, (sigma, sigma), "replicate")


def _fog(image: Tensor, constant: tuple[float, float], draw: Generator) -> Tensor:
    # kornia's plasma mixes the levels, the authors' adds them; the ratio of their weights is the same
    height, width = image.shape[-2:]
    side, (strength, decay) = max(height, width), constant
    random = partial(torch.rand, generator=draw)
    plasma = diamond_square((1, 1, side, side), decay**-2, random_fn=random, normalize_range=(0.0, 1.0))
    brightest = image.max()
    return (image + strength * plasma[..., :height, :width]) * brightest / (brightest + strength)


def _brightness(image: Tensor, gain: float, draw: Generator) -> Tensor:
    # Adding to the value of HSV, the largest channel, scales all channels; so this works for any number of them.
    value = image.amax(1, keepdim=True)
    brighter = (value + gain).clamp(max=1)
    return torch.where(value > 0, image * brighter / value.clamp(min=1e-6), brighter)


def _contrast(image: Tensor, factor: float, draw: Generator) -> Tensor:
    mean = image.mean((2, 3), keepdim=True)
    return (image - mean) * factor + mean


def _saturate(image: Tensor, constant: tuple[float, float], draw: Generator) -> Tensor:
    hue, saturation, value = rgb_to_hsv(image).unbind(1)
    saturation = (saturation * constant[0] + constant[1]).clamp(0, 1)
    return hsv_to_rgb(torch.stack((hue, saturation, value), dim=1))


def _pixelate(image: Tensor, factor: float, draw: Generator) -> Tensor:
    height, width = image.shape[-2:]
    small = int(width * factor), int(height * factor)
    channels = [Image.fromarray(channel) for channel in image[0].numpy()]
    boxed = [channel.resize(small, Image.Resampling.BOX) for channel in channels]
    back = [np.asarray(channel.resize((width, height), Image.Resampling.BOX)) for channel in boxed]
    return torch.from_numpy(np.stack(back))[None]


def _jpeg_compression(image: Tensor, quality: int, draw: Generator) -> Tensor:
    levels = (image[0] * 255).round().to(torch.uint8).numpy()
    # three channels are stored as RGB, other numbers as grey images
    planes = [levels.transpose(1, 2, 0)] if len(levels) == 3 else list(levels)
    decoded = []
    for plane in planes:
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    pixels = decoded[0].transpose(2, 0, 1) if len(levels) == 3 else np.stack(decoded)
    return torch.from_numpy(pixels.copy())[None] / 255


def _pixel(image: Tensor) -> float:
    """Return the factor from pixels at 224 to pixels of this image."""
    return min(image.shape[-2:]) / 224


_TABLE: dict[str, tuple[Callable[[Tensor, Any, Generator], Tensor], Sequence[Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "defocus_blur": (_defocus_blur, (3, 4, 6, 8, 10)),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    # zooms 1, 1.01 … 1.11; 1.15; then in steps of 0.02 to 1.2 and 1.24, of 0.03 to 1.3
    "zoom_blur": (_zoom_blur, ((12, 0.01), (16, 0.01), (11, 0.02), (13, 0.02), (11, 0.03))),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7)),
}
CORRUPTIONS = tuple(_TABLE)


def corruptions_for(channels: int) -> list[str]:
    """Return the corruptions for a number of channels: `saturate` needs 3."""
    return [name for name in CORRUPTIONS if name != "saturate" or channels == 3]


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0, indices: Sequence[int] | None = None) -> Tensor:
    """Corrupt images in [−1, 1]; the result is in [−1, 1] too.

    The random numbers of an image depend only on the seed, the name and the index of the image, not on the batch, the
    device or the severity. The images are corrupted one by one on the CPU, with the same result at any batch size.

    Args:
        images: (N, C, H, W), with H and W of at least 32.
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: seed of the random numbers.
        indices: index of each image in its dataset; 0 to N − 1 by default.

    Raises:
        InputError: the name or severity is unknown, or does not fit the images.

    >>> grey = torch.zeros(1, 1, 32, 32)
    >>> corrupt(grey, "brightness", 2).unique()
    tensor([0.4000])
    """
    check_choice("corruption", name, CORRUPTIONS)
    if isinstance(severity, bool | float) or severity not in SEVERITIES:  # True is 1, and 2.0 is no index
        raise InputError(f"severity={severity!r} is not one of 1, 2, 3, 4, 5")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"images of {images.dtype} {tuple(images.shape)} are not floating point (N, C, H, W)")
    if min(images.shape[-2:]) < SMALLEST:
        raise InputError(f"{hxw(images.shape[-2:])} images are smaller than {SMALLEST}×{SMALLEST}")
    if name not in corruptions_for(images.shape[1]):
        raise InputError(f"corruption={name!r} is for 3 channels; the images have {images.shape[1]}")
    operator, constants = _TABLE[name]
    corrupted = []
    for image, index in zip(images.split(1), range(len(images)) if indices is None else indices, strict=True):
        key = hashlib.sha256(f"{int(seed)} {name} {int(index)}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(key[:8], "little"))
        clean = (image.detach().float().cpu() + 1).div(2).clamp(0, 1)
        corrupted.append(operator(clean, constants[severity - 1], draw).clamp(0, 1) * 2 - 1)
    return torch.cat(corrupted).to(images)
