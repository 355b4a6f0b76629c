import numpy as np
import pytest
import torch

from genstab.report.figures import feature_map_picture


def colours(picture):
    """The colours of large areas, the most frequent one first."""
    found, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return [tuple(int(value) for value in found[i]) for i in np.argsort(-counts)]


BLUE, RED, YELLOW = (49, 54, 149), (165, 0, 38), (254, 254, 192)


def test_zero_is_blue_and_the_largest_red():
    zero, red = np.zeros((9, 9)), np.full((9, 9), 0.3)
    assert colours(feature_map_picture({"conv": zero}))[:2] == [(255, 255, 255), BLUE]
    assert colours(feature_map_picture({"conv": zero + 1e-7}))[:2] == [(255, 255, 255), BLUE]
    assert set(colours(feature_map_picture({"conv": zero, "pool": red}))[:3]) == {(255, 255, 255), BLUE, RED}
    half = colours(feature_map_picture({"conv": zero, "pool": torch.from_numpy(red), "half": red / 2}))[1:4]
    assert any(np.allclose(colour, YELLOW, atol=3) for colour in half)


@pytest.mark.parametrize("layers", [1, 4, 5, 24])
def test_a_picture_of_any_number_of_layers(layers):
    picture = feature_map_picture({f"encoder.{i}": np.random.default_rng(i).random((5, 5)) for i in range(layers)})
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[0] < 1000
    assert picture.shape[1] < 1500
