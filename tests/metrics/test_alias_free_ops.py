"""EQ-T, EQ-T_frac and EQ-R against NumPy, written from appendix E of Karras 2021, pixel by pixel."""

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.signal import fftconvolve
from torch import nn

from genstab import InputError, shift_psnr
from genstab.evaluation.measure import measure
from genstab.evaluation.options import MeasureOptions
from genstab.evaluation.verdict import verdict
from genstab.metrics.alias_free_ops import ANGLES, TRANSLATIONS
from genstab.metrics.shift_psnr import shift_errors
from tests.conftest import Items, noise

# Sides of pictures with detail everywhere, and of the largest window that has room to move in them.
SIDES = {"eqt": (40, 32), "eqt_frac": (40, 26), "eqr": (41, 19)}


class Grid(nn.Module):
    """Adds a pattern that sticks to the picture, beside twice as strong an edge."""

    def forward(self, images):
        rows, columns = (torch.arange(side).to(images) for side in images.shape[-2:])
        return images - images.roll(1, -1) + 0.1 * torch.cos(rows[:, None] + 2 * columns)


def sinc(x):
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def lanczos(x):
    return sinc(x) * sinc(x / 3) if abs(x) < 3 else 0.0


def whole(picture, dy, dx):
    """T of appendix E.1 for pixels, and where it is known."""
    moved, known = np.zeros_like(picture), np.zeros(picture.shape, bool)
    for y, x in product(*map(range, picture.shape)):
        if 0 <= y - dy < picture.shape[0] and 0 <= x - dx < picture.shape[1]:
            moved[y, x], known[y, x] = picture[y - dy, x - dx], True
    return moved, known


def along(row, distance):
    """T of appendix E.2 for one row: six pixels weighed by the Lanczos filter."""
    base = math.floor(distance)
    weights = {j: lanczos(j - (distance - base)) for j in range(-2, 4)}
    total = sum(weights.values())
    moved = np.zeros(len(row))
    known = np.ones(len(row), bool)
    for i, (j, weight) in product(range(len(row)), weights.items()):
        if 0 <= i - base - j < len(row):
            moved[i] += row[i - base - j] * weight / total
        else:
            known[i] = False
    return moved, known


def fractional(picture, dy, dx):
    rows, right = zip(*(along(row, dx) for row in picture), strict=True)
    columns, down = zip(*(along(column, dy) for column in np.stack(rows).T), strict=True)
    return np.stack(columns).T, np.outer(down[0], right[0])


@cache
def band_limits(angle, fine):
    """The square sincs of the two grids convolved, times their windows convolved; for whole `fine`-ths of a pixel."""
    line = np.arange(-64 * fine + 1, 64 * fine) / fine
    y, x = np.meshgrid(line, line, indexing="ij")
    turned = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    of = {}
    for name, function in (("band", np.sinc), ("window", lambda t: np.where(abs(t) < 3, np.sinc(t / 3), 0))):
        of[name] = fftconvolve(function(x) * function(y), function(turned[0]) * function(turned[1]), mode="same")
    half = len(line) // 2
    kept = slice(half - 6 * fine + 1, half + 6 * fine)
    taps = (of["band"] * of["window"])[kept, kept]
    for i, j in product(range(fine), repeat=2):
        taps[i::fine, j::fine] /= taps[i::fine, j::fine].sum()
    return taps


def rotated(picture, angle):
    """R of appendix E.3: between four times as many pixels, linearly; known 6 pixels and more from the border."""
    (height, width), taps = picture.shape, band_limits(angle, 4)
    fine = np.zeros((4 * height + 47, 4 * width + 47))
    for y, x in product(range(height), range(width)):
        fine[4 * y : 4 * y + 47, 4 * x : 4 * x + 47] += picture[y, x] * taps
    turned, known = np.zeros_like(picture), np.zeros(picture.shape, bool)
    for y, x in product(range(height), range(width)):
        down, right = y - (height - 1) / 2, x - (width - 1) / 2
        v = math.sin(angle) * right + math.cos(angle) * down + (height - 1) / 2
        u = math.cos(angle) * right - math.sin(angle) * down + (width - 1) / 2
        known[y, x] = 6 <= v + 0.5 <= height - 6 and 6 <= u + 0.5 <= width - 6
        v, u = 4 * v + 23, 4 * u + 23
        if 0 <= v < len(fine) - 1 and 0 <= u < len(fine[0]) - 1:
            (i, s), (j, t) = divmod(v, 1), divmod(u, 1)
            four = fine[int(i) : int(i) + 2, int(j) : int(j) + 2]
            turned[y, x] = (1 - s) * ((1 - t) * four[0, 0] + t * four[0, 1]) + s * (
                (1 - t) * four[1, 0] + t * four[1, 1]
            )
    return turned, known


def pseudo_rotated(picture, angle):
    """R* of appendix E.3."""
    taps, padded = band_limits(-angle, 1), np.pad(picture, 5)
    places = product(*map(range, picture.shape))
    filtered = [(padded[y : y + 11, x : x + 11] * taps[::-1, ::-1]).sum() for y, x in places]
    known = np.zeros(picture.shape, bool)
    known[5:-5, 5:-5] = True
    return np.reshape(filtered, picture.shape), known


def published(protocol, generate, picture, motion):
    """Return the squared error and the number of pixels of one picture of one channel."""
    whole_side, side = SIDES[protocol]
    inner = (slice((whole_side - side) // 2, (whole_side + side) // 2),) * 2
    if protocol == "eqr":
        angle = math.radians(motion[0])
        reference, known = rotated(generate(picture[inner]), angle)
        output, valid = pseudo_rotated(generate(rotated(picture, angle)[0][inner]), angle)
        known = known & valid
    else:
        pixels = [share * side for share in motion]
        move, pixels = (whole, [round(each) for each in pixels]) if protocol == "eqt" else (fractional, pixels)
        reference, known = move(generate(picture[inner]), *pixels)
        output = generate(move(picture, *pixels)[0][inner])
    return ((reference - output) ** 2)[known].sum(), known.sum()


@pytest.mark.parametrize("protocol", ["eqt", "eqt_frac", "eqr"])
def test_they_are_those_of_numpy_to_a_ten_thousandth_of_a_decibel(protocol):
    pictures = noise(2, 1, *[SIDES[protocol][0]] * 2).double()
    motions = (ANGLES if protocol == "eqr" else TRANSLATIONS)[:3]
    errors, counts = shift_errors(Grid(), pictures, motions, protocol, dtype=torch.float64)

    def generate(picture):
        return Grid()(torch.from_numpy(picture.copy())[None, None])[0, 0].numpy()

    expected = [[published(protocol, generate, each[0].numpy(), motion) for each in pictures] for motion in motions]
    squares, pixels = np.moveaxis(np.array(expected), -1, 0)
    np.testing.assert_array_equal(counts, pixels)
    decibels = [10 * np.log10(4 * pixels / squares), 10 * (4 * counts / errors).log10().numpy()]
    np.testing.assert_allclose(decibels[1], decibels[0], rtol=0, atol=1e-4)
    assert (decibels[0] < 40).all()


def test_they_are_logged_pooled_and_the_verdict_leaves_them_out(tmp_path):
    options = MeasureOptions(protocols=["eqt", "eqt_frac", "eqr", "crop"], map=None, features=None, corruptions=None)
    found = measure(Grid(), Items(*noise(3, 3, 40, 48)), tmp_path, options)
    for protocol in ("eqt", "eqt_frac", "eqr"):
        motions = found.measurements["shift_psnr"][protocol]["shifts"]
        errors, counts = shift_errors(Grid(), noise(3, 3, 40, 48), motions, protocol)
        pooled = 10 * math.log10(4 * counts.sum() / errors.sum())
        assert found.summary[f"val/shift_psnr_{protocol}"] == pytest.approx(pooled, abs=1e-4)
    assert {key for key in found.summary if "eq" in key} == {f"val/shift_psnr_{each}" for each in SIDES}
    assert "EQ" not in " ".join(verdict(found.summary))


def test_motions_are_uniform_and_every_image_has_all():
    assert len(TRANSLATIONS) == len(ANGLES) == 16
    assert 0.1 < max(abs(share) for each in TRANSLATIONS for share in each) < 0.125
    assert 90 < max(abs(angle) for (angle,) in ANGLES) < 180


@pytest.mark.parametrize("protocol", ["eqt", "eqt_frac", "eqr"])
def test_a_generator_of_twice_the_size_is_measured_at_its_scale(protocol):
    motions = (ANGLES if protocol == "eqr" else TRANSLATIONS)[:2]
    smooth = torch.cos(torch.arange(48) / 3)
    picture = (smooth[:, None] * smooth)[None, None]
    larger = nn.Upsample(scale_factor=2, mode="bicubic")
    assert shift_psnr(larger, picture, motions, protocol).min() > 38
    with pytest.raises(InputError, match="8×8 is too small for windows that move in it"):
        shift_psnr(larger, picture[..., :8, :8], motions, "eqr")
