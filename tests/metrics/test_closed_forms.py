"""Shift PSNR of generators whose error is known: what is measured is what was worked out on paper, to 0.01 dB."""

import cmath
import math

import numpy as np
import pytest
import scipy.signal
import torch
from torch import nn

from genstab import BlurPool2d, UNet, shift_psnr
from genstab.metrics.shift_ops import fourier_shift
from genstab.metrics.shift_psnr import shift_errors

PROTOCOLS = ("circular", "crop", "fractional")
AMPLITUDE = 0.8


class Pixelate(nn.Module):
    """Keeps every k-th pixel and repeats it k times."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        held = x[..., :: self.k, :: self.k].repeat_interleave(self.k, -1).repeat_interleave(self.k, -2)
        return held[..., : x.shape[-2], : x.shape[-1]]


class Enlarge(nn.Module):
    """Repeats every pixel k times: nearest-neighbour super-resolution."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return x.repeat_interleave(self.k, -1).repeat_interleave(self.k, -2)


class Resample(nn.Module):
    """Keeps every second column, without a filter, and interpolates ideally: a sinusoid comes back as its alias."""

    def forward(self, x):
        return torch.from_numpy(scipy.signal.resample(x[..., ::2].numpy(), x.shape[-1], axis=-1))


class Constant(nn.Module):
    def forward(self, x):
        return torch.full_like(x, 0.3)


class Weighted(nn.Module):
    """Multiplies by a ramp: bound to the frame, as far from equivariant as can be."""

    def forward(self, x):
        return x * torch.linspace(0, 1, x.shape[-1], dtype=x.dtype) * torch.linspace(1, 0, x.shape[-2])[:, None]


def sinusoid(height, width, cycles, axis=-1):
    """A cosine and, as the second channel, its sine: the sum of their squares is the same at every pixel.

    So is that of any error that has one frequency, and whatever pixels the mask leaves have the same mean.
    """
    size = height if axis == -2 else width
    wave = AMPLITUDE * torch.exp(2j * torch.pi * cycles * torch.arange(size, dtype=torch.float64))
    wave = (wave[:, None] if axis == -2 else wave[None]).expand(height, width)
    return torch.stack([wave.real, wave.imag])[None].float()


def psnr(error):
    return min(100.0, 10 * math.log10(4 / error)) if error > 1e-12 else 100.0


def staircase(k, cycles, distance):
    """Mean squared error of holding every k-th pixel of a sinusoid, for a shift along it.

    Keeping every k-th pixel of e^{2πiνx} gives the k frequencies ν + l/k, each of amplitude 1/k; holding them for k
    pixels multiplies by Σ_b e^{−2πi(ν+l/k)b}. A shift turns each by its own frequency, a shift of the input all by ν.
    """
    error = 0.0
    for harmonic in range(k):
        frequency = cycles + harmonic / k
        held = abs(sum(cmath.exp(-2j * math.pi * frequency * b) for b in range(k))) / k
        signed = (frequency + 0.5) % 1 - 0.5
        error += (2 * held * math.sin(math.pi * (signed - cycles) * distance)) ** 2
    return AMPLITUDE**2 / 2 * error


@pytest.mark.parametrize("size", [(15, 18), (16, 16), (17, 21)])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "generator",
    [
        nn.Identity(),
        Constant(),
        nn.Conv2d(3, 2, 5, padding=2, padding_mode="circular"),
        BlurPool2d("bin5", stride=1, padding_mode="circular"),
    ],
    ids=["identity", "constant", "convolution", "blur"],
)
def test_equivariant_generators_reach_the_cap(generator, protocol, size):
    shifts = [(0, 1), (3, -2), (-1, 0)] + ([(0, 0.5), (-1.25, 2.75)] if protocol == "fractional" else [])
    values = shift_psnr(generator, torch.rand(2, 3, *size), shifts, protocol, margin=2)
    torch.testing.assert_close(values, torch.full_like(values, 100))


# On a ramp with steps a, G(S x) − S G(x) is −r a at k − r of k pixels and (k − r) a at the other r, r = d mod k: a
# mean square of r (k − r) a². Rolling, the first k − r pixels see the other end of the ramp: W − r in place of −r.
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("distance", [1, 2, 5, -1])
@pytest.mark.parametrize("axis", [-1, -2])
def test_nearest_down_and_up_of_a_ramp(k, distance, axis):
    step, margin, r = 1 / 32, 2, distance % k
    shift = (0, distance) if axis == -1 else (distance, 0)

    def ramp(size):
        row = step * torch.arange(size)
        return (row[None] if axis == -1 else row[:, None]).expand(size, size)[None, None]

    value = shift_psnr(Pixelate(k), ramp(24), [shift], "circular")
    assert value.item() == pytest.approx(psnr((k - r) * (24 - r) * step**2 * (r > 0)), abs=0.01)
    larger = 12 + 2 * abs(distance) + 2 * margin  # so that twelve pixels count: whole blocks
    value = shift_psnr(Pixelate(k), ramp(larger), [shift], "crop", margin=margin)
    assert value.item() == pytest.approx(psnr(r * (k - r) * step**2), abs=0.01)


@pytest.mark.parametrize(
    ("protocol", "k", "width", "margin", "distance"),
    [
        ("circular", 2, 24, 0, 1),
        ("circular", 3, 27, 0, -2),
        ("circular", 4, 24, 0, 3),
        ("circular", 4, 24, 0, 4),
        ("crop", 2, 33, 3, 1),  # two of 33 − 1 pixels; 32 − 1 − 6 of them count, of which one frequency asks nothing
        ("crop", 3, 36, 4, 2),  # two of 34; 34 − 2 − 8 = 24 count: whole blocks
        ("crop", 4, 32, 3, -3),  # two of 29; 29 − 3 − 6 = 20
        ("fractional", 2, 30, 7, 0.5),
        ("fractional", 2, 26, 3, -2.75),
        ("fractional", 3, 27, 1, 0.25),  # 27 − 1 − 2 = 24
        ("fractional", 4, 32, 1, 1.5),  # 32 − 2 − 2 = 28
        ("fractional", 4, 32, 1, 2),
    ],
)
@pytest.mark.parametrize("axis", [-1, -2])
def test_nearest_down_and_up_of_a_sinusoid(protocol, k, width, margin, distance, axis):
    cycles = 5 / width
    size, shift = ((7 + 4 * margin, width), (0, distance)) if axis == -1 else ((width, 7 + 4 * margin), (distance, 0))
    value = shift_psnr(Pixelate(k), sinusoid(*size, cycles, axis), [shift], protocol, margin=margin)
    assert value.item() == pytest.approx(psnr(staircase(k, cycles, distance)), abs=0.01)


def test_the_staircase_of_two_by_hand():
    # k = 2, d = 1: neighbours are subtracted, and those of a sinusoid differ by 2 sin(πν) times another one
    assert staircase(2, 0.1, 1) == pytest.approx(AMPLITUDE**2 / 2 * (2 * math.sin(math.pi * 0.1)) ** 2)
    assert staircase(2, 0.1, 0.5) == pytest.approx(staircase(2, 0.1, 1) / 2)


@pytest.mark.parametrize(
    ("protocol", "distance"), [("circular", 1), ("crop", 3), ("fractional", 0.5), ("fractional", 1.25)]
)
def test_a_blur_before_the_staircase_weakens_it_by_its_response(protocol, distance):
    blurred = nn.Sequential(BlurPool2d("tri3", stride=1, padding_mode="circular"), Pixelate(2))
    cycles = 6 / 30
    response = math.cos(math.pi * cycles) ** 2  # of [1, 2, 1] / 4
    value = shift_psnr(blurred, sinusoid(24, 30, cycles), [(0, distance)], protocol, margin=3)
    assert value.item() == pytest.approx(psnr(response**2 * staircase(2, cycles, distance)), abs=0.01)


# ν above 1/4 comes back as ν − 1/2. A shift of the input turns it by 2πνd, of the output by 2π(ν − 1/2)d: they differ
# by an angle of πd, and by an amplitude of 2 sin(πd / 2) times the sinusoid's.
@pytest.mark.parametrize(
    ("protocol", "distance"),
    [
        ("circular", 1),
        ("circular", 2),
        ("circular", -3),
        ("crop", 1),
        ("crop", -2),
        ("fractional", 0.5),
        ("fractional", -0.25),
        ("fractional", 1.75),
    ],
)
def test_an_aliased_sinusoid(protocol, distance):
    width = 24 + (abs(distance) if protocol == "crop" else 0)  # windows of whole periods, as rings have to be
    value = shift_psnr(Resample(), sinusoid(15, width, 3 / 8), [(0, distance)], protocol, margin=2)
    expected = psnr(AMPLITUDE**2 / 2 * (2 * math.sin(math.pi * distance / 2)) ** 2)
    assert value.item() == pytest.approx(expected, abs=0.01)
    if distance in (1, -3):
        assert expected == pytest.approx(10 * math.log10(2 / AMPLITUDE**2))


# Repeating pixels is Pixelate(k) of the sinusoid that is k times as fine, and moves k times as far.
@pytest.mark.parametrize(
    ("protocol", "k", "distance", "margin"),
    [
        ("circular", 2, 1, 0),
        ("circular", 3, -5, 0),
        ("crop", 2, 2, 3),
        ("fractional", 2, 0.5, 2),
        ("fractional", 2, -1.25, 0),
        ("fractional", 3, 0.9, 1),  # of 3 · 20 columns, 3 came in and 6 are margin: a rest of 51, whole blocks
        ("fractional", 3, 1, 2),
    ],
)
def test_nearest_enlargement_at_its_scale(protocol, k, distance, margin):
    images = sinusoid(13, 20, 3 / 20)
    value = shift_psnr(Enlarge(k), images, [(0, distance)], protocol, margin=margin)
    assert value.item() == pytest.approx(psnr(staircase(k, 3 / 20 / k, k * distance)), abs=0.01)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("generator", [Pixelate(3), Weighted(), Enlarge(2)], ids=lambda g: type(g).__name__)
def test_grey_as_three_channels_gives_the_same_decibels(generator, protocol):
    grey = torch.rand(2, 1, 17, 21) * 2 - 1
    shifts = [(0, 1), (-2, 3)] if protocol != "fractional" else [(0, 0.5), (1.75, -2.25)]
    one, three = (
        shift_psnr(generator, images, shifts, protocol, margin=2) for images in (grey, grey.expand(-1, 3, -1, -1))
    )
    torch.testing.assert_close(one, three, rtol=0, atol=1e-9)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_batch_size_gives_the_same_number(protocol):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.Tanh(), nn.ConvTranspose2d(8, 2, 4, 2, 1))
    images = torch.rand(5, 1, 22, 26) * 2 - 1
    shifts = [(0, 1), (1, 0), (2, -2), (-1, 3)] + ([(0.5, 0.25)] if protocol == "fractional" else [])
    options = {"margin": 2, "multiple": 2}
    expected = shift_psnr(network, images, shifts, protocol, **options)
    assert expected.max() < 60
    for forward_batch in (1, 3, 7, 11, 100):
        values = shift_psnr(network, images, shifts, protocol, forward_batch=forward_batch, **options)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
    for size in (1, 2, 4):
        parts = [shift_psnr(network, batch, shifts, protocol, **options) for batch in images.split(size)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-6)


def test_crop_is_what_cutting_the_windows_by_hand_gives():
    torch.manual_seed(0)
    generator = UNet(3, 3, channels=4, levels=3).eval()
    scene = torch.rand(2, 3, 27, 32) * 2 - 1
    shifts, margin = [(0, 5), (3, 0), (-2, 1)], 2
    # The windows need 5 rows (3 down, 2 up) and 5 columns of room: 22×27, and 16×24 in whole eights. The first one
    # starts at row 3 and column 5, the others as much higher and further to the left as the scene moves.
    values = shift_psnr(generator, scene, shifts, "crop", margin=margin, multiple=8)
    with torch.no_grad():
        first = generator(scene[:, :, 3:19, 5:29])
        for row, (top, left) in zip(values, [(3, 0), (0, 5), (5, 4)], strict=True):
            other = generator(scene[:, :, top : top + 16, left : left + 24])
            dy, dx = 3 - top, 5 - left
            for decibels, a, b in zip(row, first.numpy(), other.numpy(), strict=True):
                squares = [
                    (float(b[c, i, j]) - float(a[c, i - dy, j - dx])) ** 2
                    for c in range(3)
                    for i in range(max(dy, 0) + margin, 16 + min(dy, 0) - margin)
                    for j in range(max(dx, 0) + margin, 24 + min(dx, 0) - margin)
                ]
                assert decibels.item() == pytest.approx(10 * math.log10(4 / np.mean(squares)), abs=1e-4)


def interpolation(size, distance):
    """The matrix of a shift without any FFT: the periodic interpolation kernel at i − j − d, frequency by frequency."""
    apart = torch.arange(size, dtype=torch.float64)[:, None] - torch.arange(size)
    kernel = torch.ones_like(apart)
    for k in range(1, (size + 1) // 2):
        kernel += 2 * torch.cos(2 * torch.pi * k * (apart - distance) / size)
    if size % 2 == 0:
        kernel += torch.cos(torch.pi * apart) * math.cos(math.pi * distance)
    return kernel / size


@pytest.mark.parametrize("size", [(15, 21), (16, 24), (13, 18)])
@pytest.mark.parametrize("shift", [(0, 0.5), (-1.25, 0), (0.75, 2.5)])
def test_fractional_agrees_with_the_exact_shift_of_band_limited_images(size, shift):
    def scene(dy, dx):
        y, x = torch.meshgrid(
            (torch.arange(size[0], dtype=torch.float64) - dy) / size[0],
            (torch.arange(size[1], dtype=torch.float64) - dx) / size[1],
            indexing="ij",
        )
        highest = [(side - 1) // 2 for side in size]
        waves = [(1, 2, 0.1), (-3, 1, 0.7), (highest[0], -highest[1], 1.3), (0, highest[1], 2.0)]
        return (sum(torch.cos(2 * torch.pi * (m * y + n * x) + phase) for m, n, phase in waves) / 4)[None, None]

    image, exact = scene(0, 0).float(), scene(*shift).float()
    shifted, mask = fourier_shift(image, shift, margin=2)
    assert 10 * torch.log10(4 / (shifted - exact).square().mean()) > 120
    generator = Weighted()
    error, count = shift_errors(generator, image, [shift], "fractional", margin=2)
    # the output is not band-limited
    moved = interpolation(size[0], shift[0]) @ generator(image).double() @ interpolation(size[1], shift[1]).T
    squares = (generator(exact) - moved).square()[mask]
    assert error.item() == pytest.approx(squares.sum().item(), rel=1e-5)
    assert count.item() == len(squares)
