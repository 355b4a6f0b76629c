"""Measure accuracy and shift consistency of a classifier."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from genstab.data.collate import source_of
from genstab.data.paths import hxw
from genstab.errors import InputError, check_choice, check_counts
from genstab.inference.eval_mode import inference
from genstab.inference.input_size import InputSize, Size, centre
from genstab.metrics.consistency import classes, same_class
from genstab.metrics.protocols import in_chunks

PROTOCOLS = ("crop", "circular")


def draw_positions(index: int, max_shift: int, pairs: int, seed: int = 0) -> np.ndarray:
    """Draw pairs of two different positions for the image `index`, with rows and columns from 0 to `max_shift`.

    Each position of a pair is uniformly distributed. Unlike in the paper, which draws them independently, they always
    differ, since for equal positions the outputs would agree. More pairs begin with the same ones.

    Shape: → (pairs, 2, 2), the last axis being (row, column).
    """
    places = (max_shift + 1) ** 2
    random = np.random.default_rng((seed, index))
    first, second = random.integers((places, places - 1), size=(pairs, 2)).T
    second += second >= first
    return np.stack(np.divmod(np.stack((first, second), 1), max_shift + 1), -1)


def view(image: Tensor, position: Sequence[int], max_shift: int, protocol: str) -> Tensor:
    """Return an image (C, H, W) at a position (row, column) from 0 to `max_shift`; ⌊max_shift / 2⌋ is unmoved.

    `crop` crops it to (C, H − max_shift, W − max_shift), `circular` rolls it. A greater row of a crop moves the scene
    up, but a roll moves it down, unlike the protocols of shift PSNR: with one sign for both, `circular` would compare
    other pairs for the same seed, and published numbers would change.
    """
    (top, left), (height, width) = position, image.shape[1:]
    if protocol == "crop":
        return image[:, top : top + height - max_shift, left : left + width - max_shift]
    return image.roll((top - max_shift // 2, left - max_shift // 2), (1, 2))


def classifier_stability(
    model: nn.Module,
    data: Dataset | Iterable[Any],
    protocols: Sequence[str] | str = PROTOCOLS,
    max_shift: int = 8,
    pairs: int = 5,
    seed: int = 0,
    forward_batch: int = 32,
    dtype: torch.dtype = torch.float32,
    size: InputSize | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure the accuracy and the shift consistency of a classifier.

    Consistency (Zhang 2019, arXiv 1904.11486, section 4.2) is the share of pairs of shifts for which the classifier
    predicts the same class, the mean over pairs and images. With `crop` a pair is two crops, `max_shift` pixels smaller
    than the image; with `circular` it is two rolled images. The pairs of an image depend only on the seed and on its
    position in the data. Accuracy is measured on the unmoved image, or the central crop for `crop`.

    Args:
        model: returns logits (N, K); called in eval mode, and its mode restored.
        data: a dataset of images with labels, as (image, label) or dicts of `source` and `label`, or a loader of their
            batches without shuffling.
        protocols: `crop`, `circular` or both.
        max_shift: largest distance in pixels of two shifts, in each direction.
        pairs: number of pairs of shifts for each image.
        seed: seed of the pairs.
        forward_batch: images in a forward pass.
        dtype: precision of the forward pass, see `genstab.inference.eval_mode.inference`.
        size: which sizes the model takes; images are cut to one of them, and moved within the rest of the image.

    Returns:
        For each protocol `consistency`, `consistency_per_image` (a list), `predicted`, the class of each unmoved image,
        and, if there are labels, `accuracy` and `correct` (a list of booleans).

    Raises:
        InputError: the model does not return logits, there are no images, they are too small for the shift, or labels
            are invalid.

    The class of this example, the brighter channel, is invariant to a roll, but not to crops.

    >>> brighter = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> columns = torch.arange(8).expand(8, 8)
    >>> image = torch.stack((columns < 5, columns >= 4)).float()
    >>> results = classifier_stability(brighter, [(image[None], torch.tensor([0]))], max_shift=4)
    >>> {protocol: (result["consistency"], result["accuracy"]) for protocol, result in results.items()}
    {'crop': (0.8, 1.0), 'circular': (1.0, 1.0)}
    """
    protocols = [protocols] if isinstance(protocols, str) else protocols
    for protocol in protocols:
        check_choice("protocol", protocol, PROTOCOLS)
    check_counts(max_shift=max_shift, pairs=pairs, forward_batch=forward_batch)
    batches = DataLoader(data, forward_batch) if isinstance(data, Dataset) else data
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), None)
    same: dict[str, list[float]] = {protocol: [] for protocol in protocols}
    correct: dict[str, list[bool]] = {protocol: [] for protocol in protocols}
    predicted: dict[str, list[int]] = {protocol: [] for protocol in protocols}
    seen = 0
    with inference(model, dtype) as classify:
        for batch in batches:
            images = source_of(batch).to(device)
            labels = _labels_of(batch, len(images))
            height, width = images.shape[-2:]
            if max_shift >= min(height, width):
                raise InputError(f"max_shift={max_shift} needs larger images than {height}×{width}")
            unmoved = np.full((1, 2), max_shift // 2)
            places = [
                np.concatenate((unmoved, draw_positions(seen + i, max_shift, pairs, seed).reshape(-1, 2)))
                for i in range(len(images))
            ]
            parts = dict.fromkeys(protocols, images)
            if size is not None and not size.is_any:
                window = _window(size, height, width, max_shift)
                parts = {each: centre(images, window) for each in protocols}
                if "crop" in parts:
                    parts["crop"] = centre(images, [side + max_shift for side in window])
            for protocol in protocols:
                views = [
                    view(image, place, max_shift, protocol)
                    for image, some in zip(parts[protocol], places, strict=True)
                    for place in some
                ]
                outputs = in_chunks(classify, torch.stack(views), forward_batch)
                named = classes(outputs).cpu().view(len(images), -1)
                agree = same_class(named[:, 1::2].flatten(), named[:, 2::2].flatten()).view(len(images), pairs)
                predicted[protocol] += named[:, 0].tolist()
                same[protocol] += agree.double().mean(1).tolist()
                if labels is not None:
                    correct[protocol] += (named[:, 0] == labels).tolist()
            seen += len(images)
    if not seen:
        raise InputError("data: there are no images")
    results: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        results[protocol] = {"consistency": float(np.mean(same[protocol])), "consistency_per_image": same[protocol]}
        results[protocol]["predicted"] = predicted[protocol]
        if correct[protocol]:
            results[protocol] |= {"accuracy": float(np.mean(correct[protocol])), "correct": correct[protocol]}
    return results


def _window(size: InputSize, height: int, width: int, max_shift: int) -> Size:
    window = size.of(height - max_shift, width - max_shift)
    if not min(window):
        least = [side + max_shift for side in size.fixed or (size.multiple, size.multiple)]
        raise InputError(
            f"the classifier takes {size}, and consistency.max_shift={max_shift} needs images of {hxw(least)}, not "
            f"{height}×{width}: data.size=[{least[0]},{least[1]}] resizes them"
        )
    return window


def _labels_of(batch: Any, images: int) -> Tensor | None:
    """Return the labels (N,) of a batch on the CPU, or None."""
    if isinstance(batch, Mapping):
        labels = batch.get("label")
    else:
        labels = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if labels is None:
        return None
    labels = torch.as_tensor(labels)
    if labels.shape != (images,) or labels.is_floating_point():
        raise InputError(f"labels of shape {tuple(labels.shape)}, {labels.dtype}, are not {images} integers")
    return labels.cpu()
