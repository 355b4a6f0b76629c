import numpy as np
import pytest
import torch
from torch import nn

from genstab import InputError
from genstab.protocols import shift_pairs
from genstab.shift import grid_shifts, parse_shifts, roll, translate, window, window_size


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
    assert window_size((9, 12), shifts) == (7, 7)
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
        window_size((4, 5), [(4, 0)])
    with pytest.raises(InputError, match="protocol='zoom' is not one of circular, crop"):
        next(shift_pairs(torch.tanh, ramp(4, 5), [(0, 1)], "zoom"))
    with pytest.raises(InputError, match="another size"):
        next(shift_pairs(lambda x: x[..., ::2], ramp(4, 5), [(0, 1)]))
    with pytest.raises(InputError, match=r"shift=\(4, -5\) rolls an image of 4×5 onto itself"):
        next(shift_pairs(torch.tanh, ramp(4, 5), [(0, 4), (4, -5)]))
    with pytest.raises(InputError, match="N of at least 1"):
        next(shift_pairs(torch.tanh, ramp(4, 5)[:0], [(0, 1)]))
    with pytest.raises(InputError, match="margin=-1 must not be negative"):
        translate(ramp(4, 5), (0, 1), margin=-1)


def test_windows_are_cut_to_a_multiple():
    assert window_size((40, 37), [(0, 3), (-2, 0)], multiple=8) == (32, 32)

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
