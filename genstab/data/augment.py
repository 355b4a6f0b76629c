"""Augmentation of pairs on the device: resize, random crop, horizontal flip (Isola 2017, section 6.2)."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from genstab.data.reading import resized
from genstab.errors import InputError
from genstab.layers.padding import pad2d

Size = tuple[int, int]


class PairAugment(nn.Module):
    """Resize, randomly crop and randomly flip a batch of pairs; both images of a pair get the same transform.

    The two images are concatenated along the channels, so that one transform is applied to both.

    Args:
        crop_size: (height, width) of the crop.
        load_size: (height, width) before the crop, 286×286 for 256×256 in the paper; None does not resize.
        flip: flip half of the pairs horizontally.
        extra: pixels added to the height and the width of the crop; images that are too small are padded by reflection.
        source_interpolation: `bilinear` or `nearest`, which keeps the colours of label maps.

    Shape: (N, C, H, W) and (N, C', H, W) → (N, C, h + extra, w + extra) and (N, C', h + extra, w + extra), where
    (h, w) is `crop_size`.

    Raises:
        InputError: load_size or an image is smaller than crop_size.
    """

    def __init__(
        self,
        crop_size: Size,
        load_size: Size | None = None,
        flip: bool = True,
        extra: int = 0,
        source_interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        if load_size is not None and (load_size[0] < crop_size[0] or load_size[1] < crop_size[1]):
            raise InputError(f"load_size={load_size} is smaller than crop_size={crop_size}")
        self.crop_size, self.load_size, self.source_interpolation = crop_size, load_size, source_interpolation
        self.size = crop_size[0] + extra, crop_size[1] + extra
        self.resize = K.Resize(load_size, antialias=True) if load_size is not None else nn.Identity()
        self.crop = K.RandomCrop(self.size)
        self.flip = K.RandomHorizontalFlip(p=0.5 if flip else 0.0)

    @torch.no_grad()
    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch of pairs with values in [−1, 1]."""
        if self.load_size is not None and self.source_interpolation != "bilinear":
            source, target = resized(source, self.load_size, self.source_interpolation), resized(target, self.load_size)
        pair = torch.cat((source, target), dim=1)
        if self.load_size is None or pair.shape[-2:] != self.load_size:
            pair = self.resize(pair)
        height, width = pair.shape[-2:]
        if height < self.crop_size[0] or width < self.crop_size[1]:
            raise InputError(f"an image of {height}×{width} is smaller than crop_size={self.crop_size}")
        below, beside = max(0, self.size[0] - height), max(0, self.size[1] - width)
        if below or beside:
            pair = pad2d(pair, (beside // 2, beside - beside // 2, below // 2, below - below // 2), "reflect")
        if pair.shape[-2:] != self.size:
            pair = self.crop(pair)
        pair = self.flip(pair)
        return pair[:, : source.shape[1]], pair[:, source.shape[1] :]
