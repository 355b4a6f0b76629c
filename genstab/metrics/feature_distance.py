"""Internal feature distance: do feature maps move with the image? (Zhang 2019, arXiv 1904.11486, section 4.2)."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import lcm

import torch
from torch import Tensor, nn
from tqdm import tqdm

from genstab.errors import InputError, check_counts
from genstab.inference.eval_mode import inference
from genstab.metrics.layer_outputs import Forward, choose_layers, record
from genstab.metrics.precision import ImageMean, float64
from genstab.metrics.protocols import PROTOCOLS
from genstab.metrics.shift_ops import Shift, parse_shifts

DIFFERS = "runs differently for a shifted image, in its number of calls or sizes; leave it out of the layers"
# Elements of one temporary tensor: a large map is compared image by image.
_AT_ONCE = 2**22


def feature_distance(
    features: Tensor, features_of_shifted: Tensor, shift: Sequence[int], image_size: Sequence[int]
) -> Tensor:
    """Compute the cosine distance between the shifted feature map and the feature map of the shifted image.

    The distance 1 − cos(u, v) of the channel vectors at each position is averaged over the positions: 0 for a map that
    moves with the image, 1 for unrelated maps, and at most 2. Two zero vectors have the distance 0, one zero vector the
    distance 1. For maps of one channel, only the sign counts.

    The shift is circular, in pixels of the image. A map of lower resolution is compared as if it were upsampled to the
    image size by nearest neighbours and then shifted; this is computed for the distinct pairs of rows and columns only,
    weighted by how often they occur. A map of higher resolution is compared at the least common multiple of the sizes.
    Vectors (N, C) have no position and should not change.

    Args:
        features: features of the image, (N, C, h, w) or (N, C).
        features_of_shifted: features of the shifted image, of the same shape.
        shift: (dy, dx) in pixels of the image, not zero.
        image_size: (H, W) of the image.

    Shape: → (N,), float64.

    Raises:
        InputError: the shapes differ or are not those of feature maps, or shift or image size is invalid.
    """
    if features.shape != features_of_shifted.shape or features.ndim not in (2, 4) or 0 in features.shape[1:]:
        raise InputError(
            f"features {tuple(features.shape)} and features_of_shifted {tuple(features_of_shifted.shape)} must have the"
            " same shape (N, C, h, w) or (N, C)"
        )
    height, width = image_size
    check_counts(height=height, width=width)
    return _distance(_directions(features), _directions(features_of_shifted), parse_shifts([shift])[0], (height, width))


def _directions(features: Tensor) -> Tensor:
    """Return normalized channel vectors with an extra channel that is 0 for zero vectors, else 1: (N, h, w, C + 1).

    Half the squared distance of two of them is the cosine distance: ½‖u − v‖² = 1 − u · v, with smaller rounding errors
    near 0; it is ½ + ½ if one of the vectors is zero, and 0 if both are.
    """
    vectors = features if features.dtype == torch.float64 else features.float()
    vectors = vectors[:, None, None] if vectors.ndim == 2 else vectors.movedim(1, -1)
    directions = vectors.new_empty(*vectors.shape[:-1], vectors.shape[-1] + 1)
    units = directions[..., :-1].copy_(vectors)
    largest = units.abs().amax(-1, keepdim=True)
    directions[..., -1:] = largest > 0
    units /= torch.where(largest > 0, largest, 1)  # or the squares of small numbers would underflow
    units /= torch.where(largest > 0, units.square().sum(-1, keepdim=True).sqrt_(), 1)
    return directions


def _distance(shifted: Tensor, of_shifted: Tensor, shift: Shift, image_size: tuple[int, int]) -> Tensor:
    height, width = shifted.shape[1:3]
    rows, columns = _row_pairs(height, image_size[0], shift[0]), _row_pairs(width, image_size[1], shift[1])
    first, second = ((rows[side][:, None] * width + columns[side]).flatten().to(shifted.device) for side in (0, 1))
    shares = (rows[2][:, None] * columns[2]).flatten()
    at_once = max(1, _AT_ONCE // (shifted.shape[-1] * len(first)))
    distances = []
    for u, v in zip(shifted.flatten(1, 2).split(at_once), of_shifted.flatten(1, 2).split(at_once), strict=True):
        by_place = float64((u.index_select(1, first) - v.index_select(1, second)).square_().sum(-1) / 2)
        distances.append(by_place @ shares.to(by_place.device))
    return torch.cat(distances) if distances else shifted.new_zeros(0, dtype=torch.float64)


@lru_cache(4096)
def _row_pairs(rows: int, height: int, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of rows that are compared, as (shifted map, other map, share of the height)."""
    fine = height if rows <= height else lcm(rows, height)
    y = torch.arange(fine)
    first = (y - shift * (fine // height)) % fine * rows // fine
    pairs, counts = torch.unique(first * rows + y * rows // fine, return_counts=True)
    return pairs // rows, pairs % rows, counts.double() / fine


class FeatureDistance(ImageMean):
    """Compute the mean `feature_distance` of a layer over images and shifts; 0 is perfect equivariance.

    As input to `update` the metric accepts the arguments of `feature_distance`.

    As output of `compute` the metric returns a float scalar; NaN before the first update. The value does not depend on
    the batch size or the number of processes.

    Args:
        kwargs: additional keyword arguments of `torchmetrics.Metric`.

    >>> metric = FeatureDistance()
    >>> features = torch.tensor([[1., 0.], [0., 1.]]).view(1, 2, 1, 2)  # two columns with different directions
    >>> metric.update(features, features, (0, 2), (4, 4))  # moved by two of four columns: one of two
    >>> metric.update(features, features.roll(1, -1), (0, 2), (4, 4))
    >>> metric.compute()
    tensor(0.5000)
    """

    higher_is_better = False  # type: ignore[assignment]  # None in MeanMetric
    sums = torch.float64

    def update(  # type: ignore[override]  # other arguments
        self, features: Tensor, features_of_shifted: Tensor, shift: Sequence[int], image_size: Sequence[int]
    ) -> None:
        """Update the state; the arguments are those of `feature_distance`."""
        super().update(feature_distance(features, features_of_shifted, shift, image_size))


def feature_maps(
    model: nn.Module,
    images: Tensor,
    shifts: Sequence[Sequence[int]],
    layers: Sequence[str] | str | None = None,
    forward_batch: int = 32,
    dtype: torch.dtype = torch.float32,
    outputs: Callable[[Shift, Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """Measure the feature distance of layers inside a model, for each shift and image, with a progress bar.

    The model is called in eval mode and its mode restored. For a layer that returns a tuple, the first item is
    compared; for one that is called several times, the mean over its calls. If a network pads its input, the padding
    contributes to the distance. In networks with adaptive polyphase sampling, feature maps lie on a grid that follows
    the image, so that their distance is not zero although the whole network is equivariant.

    The memory holds the feature maps of `forward_batch` images, and one map of as many shifted images.

    Args:
        model: any network that returns a tensor.
        images: (N, C, H, W), on the device of the model.
        shifts: pairs (dy, dx) in pixels, not zero.
        layers: names or glob patterns (`*` matches dots too), as in `model.named_modules()`; matches without a feature
            map are left out. None: see `genstab.metrics.layer_outputs.default_layers`.
        forward_batch: images in a forward pass; several shifts may share one.
        dtype: precision of the forward pass, see `genstab.inference.eval_mode.inference`.
        outputs: called with each shift and the model's outputs (N, …) for the shifted images, once for each
            `forward_batch` images.

    Returns:
        Distances by the name of the layer, in the order of execution; float64, shape (len(shifts), len(images)).

    Raises:
        InputError: a layer does not exist, does not run or returns no feature map, a shift is invalid, or features are
            not finite.

    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.MaxPool2d(2))
    >>> distances = feature_maps(model, torch.rand(5, 3, 8, 8), [(0, 1), (0, 2)])
    >>> {name: [bool(d < 1e-6) for d in distance.mean(1)] for name, distance in distances.items()}
    {'0': [True, True], '1': [False, True]}
    """
    pairs = parse_shifts(shifts)
    check_counts(forward_batch=forward_batch)
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W) with N of at least 1")
    bar = tqdm(total=len(pairs) * len(images), desc="features", unit="image", leave=False, disable=None)
    with inference(model, dtype) as forward, bar:
        chosen = choose_layers(model, forward, images[:1], layers)
        parts = []
        for chunk in images.split(forward_batch):
            _, reference = record(forward, chosen, chunk, lambda name, call, features: _directions(features))
            at_once = max(1, forward_batch // len(chunk))
            rows = []
            for start in range(0, len(pairs), at_once):
                some = pairs[start : start + at_once]
                output, row = _distances(forward, chosen, chunk, some, reference)
                rows.append(row)
                for shift, output_of_shifted in zip(some, output.split(len(chunk)), strict=True):
                    if outputs is not None:
                        outputs(shift, output_of_shifted)
                bar.update(len(some) * len(chunk))
            parts.append({name: torch.cat([row[name] for row in rows]) for name in chosen})
    distances = {name: torch.cat([part[name] for part in parts], dim=1) for name in chosen}
    for name, values in distances.items():
        if not values.isfinite().all():
            row_of_shift, image = (~values.isfinite()).nonzero()[0].tolist()
            raise InputError(f"layer {name} returns NaN or infinity for image {image}, shift={pairs[row_of_shift]}")
    return distances


def _distances(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    images: Tensor,
    shifts: list[Shift],
    reference: dict[str, list[Tensor]],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs for the shifted images and the distances of each layer, (len(shifts), N), in one pass."""
    size = (images.shape[-2], images.shape[-1])

    def compare(name: str, call: int, features: Tensor) -> Tensor:
        directions = _directions(features)
        before = reference[name][call : call + 1] or [directions[:0]]
        if before[0].shape != directions[: len(images)].shape:
            raise InputError(f"layer {name} {DIFFERS}")
        pairs = zip(shifts, directions.split(len(images)), strict=True)
        return torch.stack([_distance(before[0], of_shifted, shift, size) for shift, of_shifted in pairs])

    _, shifted = PROTOCOLS["circular"].inputs(images, shifts, 1)
    output, calls = record(forward, layers, torch.cat(list(shifted)), compare)
    for name, distances in calls.items():
        if len(distances) != len(reference[name]):
            raise InputError(f"layer {name} {DIFFERS}")
    return output, {name: torch.stack(distances).mean(0) for name, distances in calls.items()}
