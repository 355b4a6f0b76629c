"""Errors of outputs under corruptions, relative to those of a baseline (Hendrycks and Dietterich 2019, equation 1)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from genstab.errors import InputError
from genstab.inference.eval_mode import inference
from genstab.metrics.corruptions import SEVERITIES, corrupt, corruptions_for
from genstab.metrics.protocols import in_chunks
from genstab.metrics.shift_psnr import squared_error

Errors = Mapping[str, Sequence[float]]


def corruption_errors(
    generator: nn.Module | Callable[[Tensor], Tensor],
    images: Tensor,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    forward_batch: int = 32,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    clean: Tensor | None = None,
) -> Tensor:
    """Compute the mean squared errors between G(x) and G(corrupt(x)); `decibel` converts them to dB.

    G(x) is computed once. A module is called in eval mode and its mode restored. The outputs may differ in size from
    the inputs.

    Args:
        generator: maps images in [−1, 1] to images.
        images: (N, C, H, W), on the device of the generator, with H and W of at least 32.
        names: corruptions of `genstab.metrics.corruptions`; by default all that support the number of channels.
        severities: severities from 1 to 5.
        seed: seed of the random numbers, see `genstab.metrics.corruptions.corrupt`.
        indices: indices of the images, see `genstab.metrics.corruptions.corrupt`.
        forward_batch: images in a forward pass.
        progress: show a progress bar.
        dtype: precision of the forward pass of a module, see `genstab.inference.eval_mode.inference`.
        clean: G(x), if it has been computed already.

    Returns:
        float64, shape (len(names), len(severities), N), in squared units of the value range.

    Raises:
        InputError: as `corrupt`; there are no images, names or severities; or an output is not finite.

    >>> errors = corruption_errors(nn.Identity(), torch.zeros(2, 1, 32, 32), ["brightness", "contrast"], [1, 5])
    >>> errors.mean(-1)
    tensor([[0.0400, 1.0000],
            [0.0000, 0.0000]], dtype=torch.float64)
    """
    names = _check(images, names, severities)
    errors = torch.empty(len(names), len(severities), len(images), dtype=torch.float64)
    with inference(generator, dtype) if isinstance(generator, nn.Module) else nullcontext(generator) as generate:
        clean = in_chunks(generate, images, forward_batch) if clean is None else clean
        _check_finite(clean, indices, "the clean image")
        for row, column, corrupted in _corrupted(images, names, severities, seed, indices, progress):
            output = in_chunks(generate, corrupted, forward_batch)
            _check_finite(output, indices, f"{names[row]} at severity {severities[column]}")
            error, count = squared_error(clean, output)
            errors[row, column] = (error / count).cpu()
    return errors


def classification_corruption_errors(
    model: nn.Module | Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    forward_batch: int = 32,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, list[float]]:
    """Compute the top-1 error rate of a classifier under each corruption, from 0 to 1, for each severity.

    Args:
        model: maps images (N, C, H, W) in [−1, 1] to logits (N, classes).
        labels: (N,), the true classes.
        images, names, severities, seed, indices, forward_batch, progress, dtype: as for
            `corruption_errors`.

    Raises:
        InputError: as `corruption_errors`; labels or logits of another shape.

    >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the class is the brightest channel
    >>> image = torch.full((1, 2, 32, 32), -0.5)
    >>> image[:, 1] = 0.5
    >>> classification_corruption_errors(model, image, torch.tensor([1]), ["brightness"])
    {'brightness': [0.0, 0.0, 0.0, 0.0, 0.0]}
    """
    names = _check(images, names, severities)
    if labels.shape != (len(images),):
        raise InputError(f"labels of shape {tuple(labels.shape)} are not one class for each of {len(images)} images")
    rates: dict[str, list[float]] = {name: [] for name in names}
    with inference(model, dtype) if isinstance(model, nn.Module) else nullcontext(model) as classify:
        for row, column, corrupted in _corrupted(images, names, severities, seed, indices, progress):
            logits = in_chunks(classify, corrupted, forward_batch)
            if logits.ndim != 2 or len(logits) != len(images):
                raise InputError(f"the model turns {tuple(images.shape)} into {tuple(logits.shape)}, not (N, classes)")
            _check_finite(logits, indices, f"{names[row]} at severity {severities[column]}")
            wrong = logits.argmax(1) != labels.to(logits.device)
            rates[names[row]].append(wrong.double().mean().item())
    return rates


def relative_corruption_error(
    errors: Errors,
    baseline_errors: Errors,
    severities: Sequence[int] = SEVERITIES,
    baseline_severities: Sequence[int] = SEVERITIES,
) -> tuple[dict[str, float], float]:
    """Compute the error of each corruption relative to a baseline, and its mean: CE and mCE of the paper.

    The ratio is the sum of the errors over the severities divided by that of the baseline (equation 1); below 1 is more
    robust than the baseline. The paper uses error rates of classifiers and AlexNet as the baseline; mean squared errors
    work too.

    Args:
        errors: {corruption: [error for each severity]}.
        baseline_errors: the same for the baseline.
        severities: the severities of `errors`.
        baseline_severities: the severities of `baseline_errors`.

    Raises:
        InputError: corruptions, severities or lengths differ, or a baseline has no errors.

    >>> relative_corruption_error({"fog": [0.1, 0.2]}, {"fog": [0.2, 0.4]}, [1, 2], [1, 2])
    ({'fog': 0.5}, 0.5)
    """
    if list(severities) != list(baseline_severities):
        raise InputError(f"the baseline has severities {[*baseline_severities]}, not {[*severities]}")
    if not errors or set(errors) != set(baseline_errors):
        raise InputError(f"the baseline has corruptions {sorted(baseline_errors)}, not {sorted(errors)}")
    ratios = {}
    for name, values in errors.items():
        baseline = baseline_errors[name]
        if not len(values) == len(baseline) == len(severities):
            raise InputError(f"{name}: {len(values)} errors, {len(baseline)} of the baseline; not {len(severities)}")
        if not sum(baseline) > 0:
            raise InputError(f"{name}: the baseline has no error; leave this corruption out")
        ratios[name] = float(sum(values) / sum(baseline))
    return ratios, sum(ratios.values()) / len(ratios)


def corruption_picture(decibels: Errors, severities: Sequence[int] = SEVERITIES, title: str = "") -> np.ndarray:
    """Draw a heat map of dB over corruptions and severities.

    The colours always range from 5 dB (dark) to 40 dB (bright), so that pictures can be compared.

    Shape: {corruption: [dB for each severity]} → (height, width, 3), uint8.
    """
    values = np.array([list(row) for row in decibels.values()])
    figure = Figure(figsize=(2.6 + 0.75 * len(severities), 1.3 + 0.3 * len(decibels)), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(values, cmap="viridis", vmin=5, vmax=40, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        ink = "black" if value > 26 else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    axes.set_yticks(range(len(decibels)), [name.replace("_", " ") for name in decibels])
    axes.tick_params(length=0)
    axes.set(xlabel="severity", title=title)
    figure.colorbar(picture, label="PSNR of the outputs, dB")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _check(images: Tensor, names: Sequence[str] | None, severities: Sequence[int]) -> list[str]:
    if images.ndim != 4 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} are not (N, C, H, W) with N of at least 1")
    names = corruptions_for(images.shape[1]) if names is None else list(names)
    for argument, values in (("names", names), ("severities", severities)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"{argument}={list(values)} must not be empty or have duplicates")
    return names


def _corrupted(
    images: Tensor,
    names: Sequence[str],
    severities: Sequence[int],
    seed: int,
    indices: Sequence[int] | None,
    progress: bool,
) -> Iterator[tuple[int, int, Tensor]]:
    grid = [(row, column) for row in range(len(names)) for column in range(len(severities))]
    for row, column in tqdm(grid, "corruptions", leave=False, disable=None if progress else True):
        yield row, column, corrupt(images, names[row], severities[column], seed, indices)


def _check_finite(outputs: Tensor, indices: Sequence[int] | None, under: str) -> None:
    finite = outputs.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int(finite.int().argmin())
        raise InputError(
            f"the model's output for {under} is not finite, image {first if indices is None else indices[first]}"
        )
