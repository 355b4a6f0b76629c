"""Pictures: maps of layers, and the animations of several runs beside each other."""

import numpy as np
import pytest
import torch

from genstab.errors import InputError
from genstab.report.figures import animations_beside, feature_map_picture
from genstab.report.runs import read_runs
from genstab.report.slider_frames import save_frames
from tests.helpers.run_folder import make_run, slide_frames


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


SIDE, TILE, LEFT, TOP, GAP = 64, 128, 12, 24, 4  # pixels; pictures of 64 are shown twice as large


def tile(picture, row, column):
    top, left = TOP + row * (TILE + GAP), LEFT + column * (TILE + GAP)
    return picture[top : top + TILE : 2, left : left + TILE : 2]


def test_what_is_moved_back_stands_still_where_there_is_no_flicker(tmp_path):
    folders = [make_run(tmp_path / name, 0, name, SIDE, flicker) for name, flicker in (("calm", 0), ("wild", 60))]
    frames = animations_beside(read_runs(folders))
    source, wild = slide_frames(SIDE, 0, 60)
    assert len(frames) == 16
    for i, frame in enumerate(frames):
        assert np.array_equal(tile(frame, 0, 0), source[i])
        assert np.array_equal(tile(frame, 0, 1), source[i])  # the calm one draws its source
        assert np.array_equal(tile(frame, 0, 2), wild[i])
        assert np.array_equal(tile(frame, 1, 0), source[0])
        assert np.array_equal(tile(frame, 1, 1), source[0])
        assert np.array_equal(tile(frame, 1, 2), np.roll(wild[i], -i, axis=1))


def test_an_output_larger_than_its_source_is_moved_at_its_scale(tmp_path):
    folder = make_run(tmp_path / "a", 0, "a", SIDE)
    source, _ = slide_frames(SIDE, 0)
    save_frames(source.repeat(2, 1).repeat(2, 2), folder / "slide_output.webp")
    for frame in animations_beside(read_runs([folder])):
        back = frame[TOP + TILE + GAP :, LEFT + TILE + GAP :][:TILE, :TILE]
        assert np.array_equal(back, source[0].repeat(2, 0).repeat(2, 1))


def test_runs_that_cannot_be_beside_each_other_are_named(tmp_path):
    first = make_run(tmp_path / "first", 0, "first", SIDE)
    other = make_run(tmp_path / "other", 0, "other", SIDE)
    save_frames(slide_frames(SIDE, 5)[0], other / "slide_source.webp")
    with pytest.raises(InputError, match="other slid another picture than first"):
        animations_beside(read_runs([first, other]))
    (other / "slide_source.webp").unlink()
    with pytest.raises(InputError, match=r"slide_source\.webp cannot be read"):
        animations_beside(read_runs([first, other]))
    (other / "slide_output.webp").unlink()
    with pytest.raises(InputError, match=r"^other: no animation"):
        animations_beside(read_runs([first, other]))
