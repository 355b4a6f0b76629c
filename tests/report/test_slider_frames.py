"""The moving pictures of a page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from genstab.errors import InputError
from genstab.report.page import slide_decibels
from genstab.report.slider_frames import (
    COLUMNS,
    Slide,
    data_uri,
    flicker_strip,
    middle,
    read_frames,
    read_slide,
    save_frames,
    sheet,
)
from tests.helpers.run_folder import slide_frames


def test_frames_come_back_as_they_were_written(tmp_path):
    source, output = slide_frames(20, seed=1)
    save_frames(source, tmp_path / "source.webp")
    save_frames(output, tmp_path / "output.webp")
    slide = read_slide(tmp_path / "source.webp", tmp_path / "output.webp")
    assert np.array_equal(slide.source, source[0])
    assert np.array_equal(slide.frames, output)


def test_a_larger_output_has_a_scale_and_an_odd_one_is_an_error(tmp_path):
    source, _ = slide_frames(10, seed=1)
    save_frames(source, tmp_path / "source.webp")
    save_frames(source.repeat(3, 1).repeat(3, 2), tmp_path / "three.webp")
    assert read_slide(tmp_path / "source.webp", tmp_path / "three.webp").scale == 3
    for name, frames in {"odd": source[:, :9], "wide": source.repeat(2, 2)}.items():
        save_frames(frames, tmp_path / f"{name}.webp")
        with pytest.raises(InputError, match=rf"{name}.webp has .* pixels, no multiple of the 10×10 of .*source.webp"):
            read_slide(tmp_path / "source.webp", tmp_path / f"{name}.webp")


def test_equal_frames_are_all_kept(tmp_path):
    save_frames(np.full((16, 3, 5, 3), 7, np.uint8), tmp_path / "a.webp")
    assert read_frames(tmp_path / "a.webp").shape == (16, 3, 5, 3)


def test_a_picture_of_another_shape_is_refused(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.webp")
    with pytest.raises(InputError, match="6×8 pixels, no grid of 4 by 4 frames"):
        read_frames(tmp_path / "a.webp")
    with pytest.raises(InputError, match="cannot be read"):
        read_frames(tmp_path / "missing.webp")


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "broken.webp").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken.webp cannot be read as a picture"):
        read_frames(tmp_path / "broken.webp")


@pytest.mark.parametrize("scale", [1, 2])
def test_the_strip_of_a_perfect_output_has_equal_rows(scale):
    source, _ = slide_frames(12, seed=2)
    perfect = source.repeat(scale, 1).repeat(scale, 2)
    strip = flicker_strip(perfect, scale)
    assert (strip == perfect[0, 12 * scale // 2]).all()
    _, output = slide_frames(12, seed=2)
    assert np.array_equal(flicker_strip(output)[3], np.roll(output[3, 6], -3, axis=0))


@pytest.mark.parametrize(("shape", "side"), [((9, 30), 8), ((9, 10), 128), ((30, 5), 4)])
def test_the_middle_is_one_place_of_source_and_output(shape, side):
    random = np.random.default_rng(0)
    still = random.integers(0, 256, (*shape, 3), np.uint8)
    source = np.stack([np.roll(still, i, axis=1) for i in range(16)])
    strip, frames = middle(Slide(still, source.repeat(2, 1).repeat(2, 2), 2), 2 * side)
    height, width = min(shape[0], side), min(shape[1], side)
    assert frames.shape == (16, 2 * height, 2 * width, 3)
    assert strip.shape == (height, width + 15, 3)
    for i in range(16):
        assert np.array_equal(strip[:, 15 - i : 15 - i + width], frames[i, ::2, ::2])


def test_a_sheet_holds_the_frames_row_by_row():
    _, output = slide_frames(6, seed=3, count=8)
    grid = sheet(output)
    for i, frame in enumerate(output):
        top, left = 6 * (i // COLUMNS), 6 * (i % COLUMNS)
        assert np.array_equal(grid[top : top + 6, left : left + 6], frame)


def test_a_data_uri_loses_nothing():
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(data_uri(picture).partition(",")[2]))) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), picture)


def test_decibels_of_the_frames():
    source, _ = slide_frames(8, seed=4, count=3)
    frames = source.copy()
    assert slide_decibels(Slide(source[0], frames)) == [None, 100, 100]
    frames[2, 0, 0, 0] ^= 16  # one of 192 values is 16 off: 10 log10(255² / (256 / 192))
    assert slide_decibels(Slide(source[0], frames))[2] == pytest.approx(46.8811, abs=1e-3)
