import numpy as np
import pytest
import torch
from torch import nn

from genstab import InputError
from genstab.metrics.protocols import shift_pairs
from genstab.metrics.shift_ops import fourier_shift, grid_shifts, parse_shifts, roll, translate, window


def ramp(height, width):
    return (torch.arange(height)[:, None] * 100.0 + torch.arange(width))[None, None]


def test_roll_moves_down_and_right():
    shifted, mask = roll(ramp(4, 5), (1, 2))
    assert shifted[0, 0, 1, 2] == 0  # the pixel (0, 0) lies at (1, 2) now
    assert shifted[0, 0, 0, 0] == 303  # wrapped around: from (3, 3)
    assert mask.all()


@pytest.mark.parametrize(("shift", "margin", "count"), [((0, 1), 0, 4 * 4), ((-1, 2), 0, 3 * 3), ((1, 0), 1, 1 * 3)])
def test_translation_masks_what_came_in(shift, margin, count):
    shifted, mask = translate(ramp(4, 5), shift, margin)
    assert mask.sum() == count
    rows, columns = mask[0, 0].nonzero().T
    # every valid pixel is the one that lay (dy, dx) before
    assert torch.equal(shifted[0, 0, rows, columns], (rows - shift[0]) * 100.0 + columns - shift[1])


def test_windows_see_the_scene_moved():
    shifts = [(1, -2), (0, 3), (-1, 0)]
    image = ramp(9, 12)
    reference = window(image, (0, 0), shifts)
    for shift in shifts:
        moved, mask = translate(reference, shift)
        seen = window(image, shift, shifts)
        assert seen.shape == (1, 1, 7, 7)
        assert torch.equal(seen[mask], moved[mask])


def test_grid_has_every_shift_but_zero():
    assert sorted([*grid_shifts(1), (0, 0)]) == [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ([], "the list is empty"),
        ([[0, 1], [0, 0]], "zero shift"),
        ([[0, 1, 2]], r"\[0, 1, 2\] is not a pair of integers"),
        ([[0, 1.5]], r"\[0, 1.5\] is not a pair of integers"),
        (3, "shifts=3 is not a list of pairs"),
        ([3], "3 is not a pair of integers"),
    ],
)
def test_bad_shifts_are_named(shifts, message):
    with pytest.raises(InputError, match=message):
        parse_shifts(shifts)


def test_shifts_that_leave_nothing():
    with pytest.raises(InputError, match=r"shift=\(0, 1\) and margin=2 leave no pixel of a 4×5 image"):
        translate(ramp(4, 5), (0, 1), margin=2)
    with pytest.raises(InputError, match="4×5 is too small"):
        window(ramp(4, 5), (0, 0), [(4, 0)])
    with pytest.raises(InputError, match="protocol='zoom' is not one of circular, crop, crop_edge, fractional"):
        next(shift_pairs(torch.tanh, ramp(4, 5), [(0, 1)], "zoom"))
    with pytest.raises(InputError, match="another size"):
        next(shift_pairs(lambda x: x[..., ::2], ramp(4, 5), [(0, 1)]))
    with pytest.raises(InputError, match=r"\(1, 1, 4, 5\) into \(1, 1\): not one image"):
        next(shift_pairs(lambda x: x.mean((2, 3)), ramp(4, 5), [(0, 1)]))
    with pytest.raises(InputError, match=r"shift=\(4, -5\) rolls an image of 4×5 onto itself"):
        next(shift_pairs(torch.tanh, ramp(4, 5), [(0, 4), (4, -5)]))
    with pytest.raises(InputError, match="N of at least 1"):
        next(shift_pairs(torch.tanh, ramp(4, 5)[:0], [(0, 1)]))
    with pytest.raises(InputError, match="margin=-1 must not be negative"):
        translate(ramp(4, 5), (0, 1), margin=-1)


def test_windows_are_cut_to_a_multiple():
    assert window(ramp(40, 37), (0, 0), [(0, 3), (-2, 0)], multiple=8).shape == (1, 1, 32, 32)

    def needs_eights(x):
        return nn.functional.interpolate(nn.functional.avg_pool2d(x, 8), scale_factor=8)

    images = torch.rand(1, 1, 32, 32)
    with pytest.raises(InputError, match="leave out the protocol crop, or set multiple"):
        next(shift_pairs(needs_eights, images, [(0, 1)], "crop", 2))
    _, a, b, mask = next(shift_pairs(needs_eights, images, [(0, 1)], "crop", 2, multiple=8))
    assert a.shape == b.shape == (1, 1, 32, 24)
    assert mask.sum() == (32 - 4) * (24 - 1 - 4)


def test_numpys_integers_are_integers():
    assert parse_shifts(np.array([[0, 1], [2, -3]])) == [(0, 1), (2, -3)]


def test_several_shifts_share_a_forward_and_change_nothing():
    images, shifts = torch.rand(2, 1, 8, 8), [(0, 1), (1, 0), (2, 2), (0, 3), (3, 0)]
    sizes = []

    def generate(x):
        sizes.append(len(x))
        return x * torch.linspace(0, 1, 8)

    together = list(shift_pairs(generate, images, shifts, forward_batch=6))
    assert sizes == [2, 6, 4]  # two images: three shifts a forward
    sizes.clear()
    list(shift_pairs(generate, images, shifts, forward_batch=1))
    assert set(sizes) == {1}
    for (shift, *one), (_, *other) in zip(
        together, shift_pairs(generate, images, shifts, forward_batch=1), strict=True
    ):
        assert shift in shifts
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def waves(height, width, dy=0.0, dx=0.0):
    """A sum of sinusoids below the Nyquist frequency, moved by (dy, dx): (1, 2, H, W) in float64."""
    y = (torch.arange(height, dtype=torch.float64)[:, None] - dy) / height
    x = (torch.arange(width, dtype=torch.float64) - dx) / width
    turn = 2 * torch.pi
    one = 0.3 * torch.sin(turn * (2 * y + 3 * x) + 0.4) + 0.2 * torch.cos(turn * (y - 2 * x)) + 0.1
    other = 0.5 * torch.cos(turn * ((height - 1) // 2 * y + (width - 1) // 2 * x) + 1)  # the highest there is
    return torch.stack([one, other])[None]


@pytest.mark.parametrize("size", [(16, 16), (15, 18), (9, 13)])
@pytest.mark.parametrize("shift", [(0, 0.25), (0.5, 0), (-1.75, 2.3), (3, -0.5)])
def test_fourier_shift_is_the_exact_shift_of_a_band_limited_image(size, shift):
    shifted, mask = fourier_shift(waves(*size), shift, margin=1)
    torch.testing.assert_close(shifted, waves(*size, *shift), rtol=0, atol=1e-13)
    begun = tuple(int(np.sign(d) * np.ceil(abs(d))) for d in shift)
    assert mask.sum() == (size[0] - abs(begun[0]) - 2) * (size[1] - abs(begun[1]) - 2)
    assert torch.equal(mask, translate(waves(*size), begun, 1)[1])
    single, _ = fourier_shift(waves(*size).float(), shift)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, waves(*size, *shift).float(), rtol=0, atol=2e-7)


def test_fourier_shift_by_whole_pixels_is_roll_and_by_parts_adds_up_to_it():
    images = torch.rand(2, 3, 7, 9)
    assert torch.equal(fourier_shift(images, (-2, 3.0))[0], roll(images, (-2, 3))[0])
    quarters = images.double()
    for _ in range(4):
        quarters, _ = fourier_shift(quarters, (0.25, -0.5))
    torch.testing.assert_close(quarters, roll(images.double(), (1, -2))[0], rtol=0, atol=1e-12)


def test_fourier_shift_of_the_nyquist_frequency_is_its_cosine():
    stripes = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64).expand(1, 1, 3, 8)
    for distance in (0.25, 0.5, 1.2):
        shifted, _ = fourier_shift(stripes, (0, distance))
        torch.testing.assert_close(shifted, np.cos(np.pi * distance) * stripes)


def test_fractional_shifts_are_finite_numbers():
    for shifts in ([[0, 0.25], [1, -2]], np.array([[0, 0.25], [1, -2]]), torch.tensor([[0, 0.25], [1, -2]])):
        assert parse_shifts(shifts, fractional=True) == [(0, 0.25), (1, -2)]
    for bad in ([0, float("nan")], [float("inf"), 1], [0, True], ["0", "1"], [0.5], [0, 1j]):
        with pytest.raises(InputError, match=r"shifts: \[.*\] is not a pair of finite numbers"):
            parse_shifts([bad], fractional=True)
    with pytest.raises(InputError, match="zero shift"):
        parse_shifts([(0.0, -0.0)], fractional=True)
    with pytest.raises(InputError, match=r"shift=\(0, 4.5\) and margin=0 leave no pixel of a 4×5 image"):
        fourier_shift(ramp(4, 5), (0, 4.5))
    with pytest.raises(InputError, match=r"images of torch.int64 can't be shifted by parts of a pixel"):
        fourier_shift(torch.ones(1, 1, 4, 4, dtype=torch.long), (0, 0.5))


@pytest.mark.parametrize("wrong", [(2, 3), (1, 2), (2.5, 2.5), (0.5, 0.5)])
@pytest.mark.parametrize("protocol", ["circular", "fractional"])
def test_another_size_must_be_one_whole_factor(wrong, protocol):
    def resized(x):
        return nn.functional.interpolate(x, size=[int(f * side) for f, side in zip(wrong, x.shape[-2:], strict=True)])

    height, width = int(wrong[0] * 4), int(wrong[1] * 6)
    message = f"images of 4×6 into {height}×{width}: another size, which must be an integer multiple"
    with pytest.raises(InputError, match=message):
        next(shift_pairs(resized, ramp(4, 6), [(0, 1)], protocol, margin=0))


@pytest.mark.parametrize("protocol", ["circular", "crop", "fractional"])
def test_larger_outputs_are_compared_at_their_scale(protocol):
    images = torch.rand(2, 1, 10, 12)

    def upsample(x):
        return x.repeat_interleave(3, -1).repeat_interleave(3, -2).expand(-1, 2, -1, -1)

    for shift, shifted_output, output_of_shifted, mask in shift_pairs(upsample, images, [(1, -2)], protocol, margin=2):
        assert shift == (1, -2)
        lost = (3, 6) if protocol == "crop" else (0, 0)
        assert shifted_output.shape == output_of_shifted.shape == (2, 2, 30 - lost[0], 36 - lost[1])
        counted = {
            "circular": 30 * 36,
            "crop": (30 - 3 - 3 - 12) * (36 - 6 - 6 - 12),
            "fractional": (27 - 12) * (30 - 12),
        }
        assert mask.sum() == counted[protocol]
        assert torch.equal(shifted_output * mask, output_of_shifted * mask)
