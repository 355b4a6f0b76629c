import pytest
import torch

from genstab import InputError
from genstab.data.overlapping_crops import equivariance_loss, overlapping_crops


def scene(count, height, width):
    """Pictures in which every pixel says which picture, row and column it is."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([1e4 * i + 100 * rows + columns for i in range(count)])[:, None]


@pytest.mark.parametrize(("count", "pairs"), [(1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (8, 2), (11, 2)])
def test_overlapping_crops_show_one_scene_and_the_shift_is_where_it_went(count, pairs):
    whole, seen = scene(count, 11, 9), set()
    for _ in range(200):
        source, target, (dy, dx) = overlapping_crops(whole, -whole, offset=3)
        assert source.shape == (count, 1, 8, 6)
        assert torch.equal(target, -source)
        corners = [int(image[0, 0, 0]) for image in source]
        for i in range(pairs):
            one, two = corners[i] - 10000 * i, corners[pairs + i] - 10000 * i
            assert {one // 100, one % 100, two // 100, two % 100} <= {0, 1, 2, 3}
            # the pixel at the first window's corner appears in the second moved by (dy, dx)
            assert (one // 100 - two // 100, one % 100 - two % 100) == (dy, dx)
        scenes = [corner // 10000 for corner in corners]
        assert scenes == [*range(pairs), *range(pairs), *range(pairs, count - pairs)]
        if pairs:  # who is cropped once is cropped at the first position
            assert {corners[i] % 10000 for i in range(2 * pairs, count)} <= {corners[0] % 10000}
        for image in source:
            assert torch.equal(image[0] - image[0, 0, 0], whole[0, 0, :8, :6])
        seen.add((dy, dx))
    assert (0, 0) not in seen
    assert len(seen) > 30  # of 48


def test_the_loss_is_the_error_of_every_pixel_in_the_overlap_by_loops():
    output = torch.rand(9, 3, 7, 6)  # two pairs and five others
    for shift, margin in (((2, -1), 0), ((-3, 0), 1), ((0, 2), 1)):
        total, count = 0.0, 0
        for i in range(2):
            for y in range(7):
                for x in range(6):
                    there = y + shift[0], x + shift[1]
                    # inside both windows, and off their edges by the margin within the overlap
                    tops = max(0, -shift[0]) + margin, max(0, -shift[1]) + margin
                    ends = min(7, 7 - shift[0]) - margin, min(6, 6 - shift[1]) - margin
                    if tops[0] <= y < ends[0] and tops[1] <= x < ends[1]:
                        total += (output[i, :, y, x] - output[2 + i, :, there[0], there[1]]).abs().sum().item()
                        count += 3
        assert equivariance_loss(output, shift, margin).item() == pytest.approx(total / count, rel=1e-5)


def test_it_is_zero_for_what_moves_with_its_input_and_not_for_what_stays():
    whole = torch.rand(4, 3, 20, 20)
    source, _, shift = overlapping_crops(whole, whole, offset=4)
    assert equivariance_loss(source.square(), shift).item() == 0
    fixed = source * torch.rand(16, 16)
    assert equivariance_loss(fixed, shift).item() > 0.1


def test_nothing_to_compare_is_no_loss_and_still_has_a_gradient_of_none():
    assert equivariance_loss(torch.rand(1, 1, 8, 8), (1, 1)).item() == 0
    assert equivariance_loss(torch.rand(2, 1, 8, 8), (1, 1), margin=4).item() == 0
    assert equivariance_loss(torch.rand(2, 1, 8, 8), (7, 0), margin=2).item() == 0


def test_an_offset_that_leaves_nothing_is_refused():
    for offset in (0, 8, 9):
        with pytest.raises(InputError, match=f"offset={offset} is not from 1 to below the 8×9"):
            overlapping_crops(torch.zeros(2, 1, 8, 9), torch.zeros(2, 1, 8, 9), offset)
