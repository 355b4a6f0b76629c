"""Do feature maps move with the image? The internal feature distance of Zhang 2019 (arXiv 1904.11486), section 4.2."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from genstab.errors import InputError, check_counts
from genstab.inference.eval_mode import inference
from genstab.metrics.layer_outputs import Forward, choose_layers, heard
from genstab.metrics.shift_ops import Shift, parse_shifts, roll

OTHERWISE = "runs otherwise for a shifted image: its number of calls or a size differs; leave it out of the layers"
# Elements of one temporary tensor: a large map is compared image by image.
_AT_ONCE = 2**22


def feature_distance(
    features: Tensor, features_of_shifted: Tensor, shift: Sequence[int], image_size: Sequence[int]
) -> Tensor:
    """Return the cosine distance between the shifted feature map and the feature map of the shifted image.

    1 − cos of the angle between the two vectors of channels at a place, averaged over the places: 0 where the map moved
    with the image, 1 where it has nothing in common with it any more, at most 2. Two zero vectors have the distance 0,
    a zero vector and another one 1. In a map of one channel only the sign counts.

    The shift is circular, in pixels of the image. A map of lower resolution is compared as if enlarged to the image's
    size by nearest neighbours (pixel y shows the row ⌊y h / H⌋) and then shifted; exactly so at any ratio of the sizes,
    but without the enlarged map: of its pairs of rows only the different ones are looked at, weighted by how often they
    occur. A map of higher resolution is compared at the least common multiple of both sizes. A vector (N, C) has no
    place: it should stay the same.

    Args:
        features: of the image, (N, C, h, w) or (N, C).
        features_of_shifted: of the shifted image, the same shape.
        shift: (dy, dx) in pixels of the image, not zero.
        image_size: (H, W) of the image.

    Shape: → (N,), float64.

    Raises:
        InputError: the shapes differ, they are no feature maps, or the shift or the size is none.

    Every second column of eight: a line that moves from the first to the second is not seen any more. The map enlarged
    and moved has it in two of the eight columns.

    >>> image = torch.zeros(1, 1, 8, 8)
    >>> image[..., 0] = 1
    >>> subsampled, of_moved = image[..., ::2, ::2], image.roll(1, -1)[..., ::2, ::2]
    >>> feature_distance(subsampled, of_moved, (0, 1), (8, 8))
    tensor([0.2500], dtype=torch.float64)
    """
    if features.shape != features_of_shifted.shape or features.ndim not in (2, 4) or 0 in features.shape[1:]:
        raise InputError(
            f"features {tuple(features.shape)} and features_of_shifted {tuple(features_of_shifted.shape)} must have one"
            " shape (N, C, h, w) or (N, C)"
        )
    height, width = image_size
    check_counts(height=height, width=width)
    return _distance(_directions(features), _directions(features_of_shifted), parse_shifts([shift])[0], (height, width))


def _directions(features: Tensor) -> Tensor:
    """Return unit vectors of channels and one channel more, which says whether there was a vector: (N, h, w, C + 1).

    Half the squared distance of two of these is then the cosine distance: ½‖u − v‖² = 1 − u · v, with less rounding
    near 0; ½ + ½ if only one of the vectors is zero; 0 if both are.
    """
    vectors = features if features.dtype == torch.float64 else features.float()
    vectors = vectors[:, None, None] if vectors.ndim == 2 else vectors.movedim(1, -1).contiguous()
    largest = vectors.abs().amax(-1, keepdim=True)
    vectors = vectors / torch.where(largest > 0, largest, 1)  # or the squares of small numbers would be zero
    length = vectors.square().sum(-1, keepdim=True).sqrt_()
    return torch.cat((vectors / torch.where(largest > 0, length, 1), (largest > 0).to(vectors)), dim=-1)


def _distance(shifted: Tensor, of_shifted: Tensor, shift: Shift, image_size: tuple[int, int]) -> Tensor:
    height, width = shifted.shape[1:3]
    rows, columns = _row_pairs(height, image_size[0], shift[0]), _row_pairs(width, image_size[1], shift[1])
    first, second = ((rows[side][:, None] * width + columns[side]).flatten().to(shifted.device) for side in (0, 1))
    shares = (rows[2][:, None] * columns[2]).flatten()
    at_once = max(1, _AT_ONCE // (shifted.shape[-1] * len(first)))
    distances = []
    for u, v in zip(shifted.flatten(1, 2).split(at_once), of_shifted.flatten(1, 2).split(at_once), strict=True):
        by_place = (u.index_select(1, first) - v.index_select(1, second)).square_().sum(-1) / 2
        # Apple's GPUs have no float64
        by_place = (by_place.cpu() if by_place.device.type == "mps" else by_place).double()
        distances.append(by_place @ shares.to(by_place.device))
    return torch.cat(distances) if distances else shifted.new_zeros(0, dtype=torch.float64)


@lru_cache(4096)
def _row_pairs(rows: int, height: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which row of the shifted map meets which one of the other, as (first, second, share of the height)."""
    fine = height if rows <= height else lcm(rows, height)
    y = torch.arange(fine)
    first = (y - shift * (fine // height)) % fine * rows // fine
    pairs, counts = torch.unique(first * rows + y * rows // fine, return_counts=True)
    return pairs // rows, pairs % rows, counts.double() / fine


class FeatureDistance(Metric):
    """Average the feature distance of one layer over images and shifts; 0 is perfect equivariance.

    The same at any batch size and on any number of processes: the states are a sum and a count in float64.

    >>> metric = FeatureDistance()
    >>> features = torch.tensor([[1., 0.], [0., 1.]]).view(1, 2, 1, 2)  # two columns with different directions
    >>> metric.update(features, features, (0, 2), (4, 4))  # moved by two of four columns: one of two
    >>> metric.update(features, features.roll(1, -1), (0, 2), (4, 4))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    distance: Tensor
    images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("distance", "images"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, features: Tensor, features_of_shifted: Tensor, shift: Sequence[int], image_size: Sequence[int]
    ) -> None:
        """Add a batch; the arguments are those of `feature_distance`."""
        distances = feature_distance(features, features_of_shifted, shift, image_size)
        self.distance += distances.sum()
        self.images += len(distances)

    def compute(self) -> Tensor:
        """Return the mean, float32; NaN before the first update."""
        return (self.distance / self.images).float()


def feature_maps(
    model: nn.Module,
    images: Tensor,
    shifts: Sequence[Sequence[int]],
    layers: Sequence[str] | str | None = None,
    forward_batch: int = 32,
    progress: Callable[[int], object] | None = None,
    dtype: torch.dtype = torch.float32,
    outputs: Callable[[Shift, Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """Measure the feature distance of layers inside a model, for each shift and each image.

    The model is called in eval mode and is left as it was. A layer that gives a tuple counts by its first
    item; one that is called several times by the mean over its calls, the n-th compared with the n-th; one whose output
    is changed in place afterwards by what it gave itself. Features of padded images are taken for features of
    the image: the padding shows up as a distance. A layer of adaptive polyphase sampling has its map on a grid that
    follows the picture, so the distance inside is not zero though the whole network moves exactly.

    Memory: the feature maps of `forward_batch` images and one map of as many moved ones.

    Args:
        model: any network; what it returns must be a tensor.
        images: (N, C, H, W), on the model's device.
        shifts: pairs (dy, dx) in pixels, none of them zero.
        layers: names or glob patterns (`*` goes across dots), as in `model.named_modules()`; of what a pattern matches,
            what gives no feature map is left out. None: see `genstab.metrics.layer_outputs.default_layers`.
        forward_batch: images a forward pass; several shifts share one.
        progress: is called with how many moved images have been done since its last call, as `tqdm.update` wants.
        dtype: the precision that the model is called in, see `genstab.inference.eval_mode.inference`.
        outputs: is called with each shift and what the model returns for the images moved by it, (N, …); once for each
            `forward_batch` images.

    Returns:
        Distances by the layer's name, in the order in which the layers end; float64, shape (len(shifts), len(images)).

    Raises:
        InputError: a layer is not there, never runs or gives no feature map; a bad shift; features that are not finite.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.MaxPool2d(2))
    >>> distances = feature_maps(model, torch.rand(5, 3, 8, 8), [(0, 1), (0, 2)])
    >>> {name: [bool(d < 1e-6) for d in distance.mean(1)] for name, distance in distances.items()}
    {'0': [True, True], '1': [False, True]}
    """
    pairs = parse_shifts(shifts)
    check_counts(forward_batch=forward_batch)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W) with N of at least 1")
    height, width = images.shape[-2:]
    for dy, dx in pairs:
        if dy % height == 0 and dx % width == 0:
            raise InputError(f"shift={(dy, dx)} rolls an image of {height}×{width} onto itself: a zero shift")
    with inference(model, dtype) as forward:
        chosen = choose_layers(model, forward, images[:1], layers)
        parts = [
            _distances(forward, chosen, chunk, pairs, forward_batch, progress or (lambda done: None), outputs)
            for chunk in images.split(forward_batch)
        ]
    distances = {name: torch.cat([part[name] for part in parts], dim=1) for name in chosen}
    for name, values in distances.items():
        if not values.isfinite().all():
            row, image = (~values.isfinite()).nonzero()[0].tolist()
            raise InputError(f"layer {name} gives NaN or infinity for image {image}, shift={pairs[row]}")
    return distances


def _distances(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    images: Tensor,
    shifts: list[Shift],
    forward_batch: int,
    progress: Callable[[int], object],
    outputs: Callable[[Shift, Tensor], object] | None,
) -> dict[str, Tensor]:
    """Return the distances of as many images as go into one forward pass, (len(shifts), N) a layer."""
    reference = heard(forward, layers, images, lambda name, call, features: _directions(features))
    rows = []
    at_once = max(1, forward_batch // len(images))
    for start in range(0, len(shifts), at_once):
        some = shifts[start : start + at_once]
        rows.append(_distances_at_once(forward, layers, images, some, reference, outputs))
        progress(len(some) * len(images))
    return {name: torch.cat([row[name] for row in rows]) for name in layers}


def _distances_at_once(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    images: Tensor,
    shifts: list[Shift],
    reference: dict[str, list[Tensor]],
    outputs: Callable[[Shift, Tensor], object] | None,
) -> dict[str, Tensor]:
    size = (images.shape[-2], images.shape[-1])

    def compare(name: str, call: int, features: Tensor) -> Tensor:
        directions = _directions(features)
        before = reference[name][call : call + 1] or [directions[:0]]
        if before[0].shape != directions[: len(images)].shape:
            raise InputError(f"layer {name} {OTHERWISE}")
        pairs = zip(shifts, directions.split(len(images)), strict=True)
        return torch.stack([_distance(before[0], of_moved, shift, size) for shift, of_moved in pairs])

    def observed(moved: Tensor) -> Tensor:
        output = forward(moved)
        if outputs is not None:
            for shift, output_of_moved in zip(shifts, output.split(len(images)), strict=True):
                outputs(shift, output_of_moved)
        return output

    calls = heard(observed, layers, torch.cat([roll(images, shift)[0] for shift in shifts]), compare)
    for name, distances in calls.items():
        if len(distances) != len(reference[name]):
            raise InputError(f"layer {name} {OTHERWISE}")
    return {name: torch.stack(distances).mean(0) for name, distances in calls.items()}
