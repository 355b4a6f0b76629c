"""Errors of outputs under corruptions, relative to those of a baseline (Hendrycks and Dietterich 2019, equation 1)."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from genstab.errors import InputError
from genstab.metrics.corruptions import SEVERITIES, corrupt
from genstab.metrics.protocols import Generate, in_chunks, require_finite
from genstab.metrics.shift_psnr import squared_error
from genstab.report.figures import Picture, pixels


def corruption_errors(
    model: Generate,
    images: Tensor,
    expected: Tensor,
    corruptions: Sequence[str],
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    forward_batch: int = 32,
) -> Tensor:
    """Compute the error of a model under each corruption, severity and image, with a progress bar.

    This is the mean squared error between G(x) and G(corrupt(x)) of a generator; `decibel` converts it to dB. Of a
    classifier it is 1 for a wrong class and 0 for the right one; its mean is the top-1 error rate.

    `expected` is G(x), (N, C, H, W), or the labels of a classifier, (N,); `seed` and `indices` are those of
    `genstab.metrics.corruptions.corrupt`.

    Shape: → (len(corruptions), len(severities), N), float64.
    """
    errors = []
    cells = list(product(corruptions, severities))
    for name, severity in tqdm(cells, "corruptions", leave=False, disable=None):
        output = in_chunks(model, corrupt(images, name, severity, seed, indices), forward_batch)
        require_finite(output, indices, f" under {name} at severity {severity}")
        if expected.ndim == 1:
            errors.append((output.argmax(1).cpu() != expected.cpu()).double())
        else:
            error, count = squared_error(expected, output)
            errors.append((error / count).cpu())
    return torch.stack(errors).unflatten(0, (len(corruptions), len(severities)))


def relative_corruption_error(
    measured: Mapping[str, Any], baseline: Mapping[str, Any]
) -> tuple[dict[str, float], float]:
    """Compute the error of each corruption relative to a baseline, and its mean: CE and mCE of the paper.

    The ratio is the sum of the errors over the severities divided by that of the baseline (equation 1); below 1 is more
    robust than the baseline. The paper uses error rates of classifiers and AlexNet as the baseline; mean squared errors
    work too. Both have `errors` by the name of the corruption, in the order of the `severities`, and their `images`.

    Raises:
        InputError: they are of other images, severities or corruptions, or the baseline has no error.
    """
    for what in ("images", "severities"):
        if measured[what] != baseline[what]:
            raise InputError(f"the baseline has {what} {baseline[what]}, not {measured[what]}")
    errors, others = measured["errors"], baseline["errors"]
    if set(errors) != set(others):
        raise InputError(f"the baseline has corruptions {sorted(others)}, not {sorted(errors)}")
    ratios = {}
    for name, values in errors.items():
        if not sum(others[name]) > 0:
            raise InputError(f"{name}: the baseline has no error; leave this corruption out")
        ratios[name] = float(sum(values) / sum(others[name]))
    return ratios, sum(ratios.values()) / len(ratios)


def corruption_picture(decibels: Mapping[str, Sequence[float]], severities: Sequence[int] = SEVERITIES) -> Picture:
    """Draw a heat map of dB over corruptions and severities.

    The colours always range from 5 dB (dark) to 40 dB (bright), so that pictures can be compared.

    Shape: {corruption: [dB for each severity]} → (height, width, 3), uint8.
    """
    values = np.array([list(row) for row in decibels.values()])
    figure = Figure(figsize=(2.6 + 0.75 * len(severities), 1.3 + 0.3 * len(decibels)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(values, cmap="viridis", vmin=5, vmax=40, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(values):
        ink = "black" if value > 26 else "white"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=9)
    axes.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    axes.set_yticks(range(len(decibels)), [name.replace("_", " ") for name in decibels])
    axes.tick_params(length=0)
    axes.set(xlabel="severity")
    figure.colorbar(picture, label="PSNR of the outputs, dB")
    return pixels(figure)
