import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from genstab import InputError
from genstab.metrics.sliced_wasserstein import SlicedWasserstein, laplacian_pyramid, patches, sliced_distance


def test_the_pyramid_is_burts_by_scipy_and_adds_up_to_the_image():
    image = torch.rand(40, 36, dtype=torch.float64)
    bands = [band[0, 0] for band in laplacian_pyramid(image.expand(1, 1, -1, -1), coarsest=8)]
    taps = np.array([1, 4, 6, 4, 1]) / 16
    gaussian = [image.numpy()]
    while min(gaussian[-1].shape) >= 16:
        blurred = gaussian[-1]
        for axis in (0, 1):
            blurred = scipy.ndimage.correlate1d(blurred, taps, axis, mode="mirror")
        gaussian.append(blurred[::2, ::2])
    assert [band.shape for band in bands] == [level.shape for level in gaussian]
    inner = slice(4, -4)  # at the border the enlarged map is continued in another way than the zeros between its pixels
    for band, level, smaller in zip(bands, gaussian, gaussian[1:], strict=False):
        enlarged = np.zeros(level.shape)
        enlarged[::2, ::2] = smaller
        for axis in (0, 1):
            enlarged = scipy.ndimage.correlate1d(enlarged, 2 * taps, axis, mode="mirror")
        np.testing.assert_allclose(band.numpy()[inner, inner], (level - enlarged)[inner, inner], atol=1e-12)
    np.testing.assert_allclose(bands[-1].numpy(), gaussian[-1], atol=1e-12)


def test_a_constant_has_no_detail():
    *bands, rest = laplacian_pyramid(torch.full((1, 3, 33, 47), 0.7))
    assert len(bands) == 1
    assert bands[0].abs().max() < 1e-6
    torch.testing.assert_close(rest, torch.full((1, 3, 17, 24), 0.7))


def test_patches_are_squares_of_the_image_at_the_same_places():
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(16.0), indexing="ij")
    cut = patches(torch.stack((rows, columns)).expand(3, -1, -1, -1)).unflatten(-1, (7, 7))
    assert cut.shape == (3, 128, 2, 7, 7)
    assert torch.equal(cut[0], cut[2])
    down, right = cut[0, :, 0], cut[0, :, 1]
    assert torch.equal(down - down[:, :1, :1], rows[:7, :7].expand(128, -1, -1))
    assert torch.equal(right - right[:, :1, :1], columns[:7, :7].expand(128, -1, -1))
    assert set(down[:, 0, 0].tolist()) == set(range(14))
    assert set(right[:, 0, 0].tolist()) == set(range(10))
    assert patches(torch.zeros(1, 1, 5, 9)).shape == (1, 128, 1, 25)


def test_distance_is_scipys_wasserstein_along_each_direction():
    ours, theirs = torch.randn(50, 2, 9).double() * 3 + 1, torch.randn(50, 2, 9).double()
    random = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(18, 128, generator=random).double(), dim=0)
    mean, std = theirs.mean((0, 2), keepdim=True), theirs.std((0, 2), keepdim=True, correction=0)
    sets = [((each - mean) / std).flatten(1).numpy() for each in (ours, theirs)]
    distances = [
        scipy.stats.wasserstein_distance(sets[0] @ direction, sets[1] @ direction) for direction in directions.T.numpy()
    ]
    assert sliced_distance(ours, theirs).item() == pytest.approx(1000 * np.mean(distances), rel=1e-6)


def test_a_brighter_set_is_off_by_the_shift_and_a_paler_one_by_its_lost_contrast():
    theirs = torch.randn(4000, 1, 49).double()
    std = theirs.std(correction=0)
    # Along a random unit direction a of 49 dimensions a shift by s is |s Σ a|, and E |Σ a| ≈ √(2 / π).
    assert sliced_distance(theirs + 0.3 * std, theirs).item() == pytest.approx(300 * math.sqrt(2 / math.pi), rel=0.1)
    # Half the contrast moves every quantile half of its way: E |x| / 2 of a normal distribution.
    paler = theirs.mean() + 0.5 * (theirs - theirs.mean())
    assert sliced_distance(paler, theirs).item() == pytest.approx(500 * math.sqrt(2 / math.pi), rel=0.02)


def test_it_asks_for_the_look_and_not_for_the_place():
    target = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    distances = []
    for output in (target.flip(0), target.flip(-1), 0.5 + 0.5 * (target - 0.5), torch.full_like(target, 0.5)):
        metric = SlicedWasserstein()
        metric.update(output, target)
        distances.append(metric.compute().item())
    same, mirrored, pale, flat = distances
    assert same == 0
    assert 0 < mirrored < pale / 5 < flat / 7.5


def test_what_cannot_be_compared_is_refused():
    metric = SlicedWasserstein()
    with pytest.raises(InputError, match="must have the same shape"):
        metric.update(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32))


def test_images_of_other_pyramids_are_compared_apart_and_count_by_their_number():
    small, large = torch.rand(2, 3, 32, 32), torch.rand(1, 3, 64, 70)
    mixed, first, second = SlicedWasserstein(), SlicedWasserstein(), SlicedWasserstein()
    for images in (small[:1], large, small[1:]):
        mixed.update(images / 2, images)
    first.update(small / 2, small)
    second.update(large / 2, large)
    torch.testing.assert_close(mixed.compute(), (2 * first.compute() + second.compute()) / 3)
