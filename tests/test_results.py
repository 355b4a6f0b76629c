"""What a run leaves in its folder: JSON that everything can read, frames that lose nothing."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genstab import InputError
from genstab.results import read_json, read_slide, save_slide, write_json

NUMBERS = st.none() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    NUMBERS | st.booleans() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_whatever_is_written_reads_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, content)
    assert read_json(path) == content
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


def test_json_has_no_nan_and_a_list_of_numbers_takes_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"map": [[1.5, math.nan], [-math.inf, 2]], "name": "["})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"map": [[1.5, None], [None, 2]], "name": "["}
    assert "    [1.5, null]," in text.split("\n")


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_json_that_is_none_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"cannot read .*a\.json"):
        read_json(tmp_path / "a.json")


def test_a_slide_of_equal_frames_keeps_all_of_them(tmp_path):
    save_slide(np.full((16, 3, 5, 3), 7, np.uint8), tmp_path / "a.webp")
    assert read_slide(tmp_path / "a.webp").shape == (16, 3, 5, 3)


def test_the_frames_of_a_slide_lie_row_by_row(tmp_path):
    frames = np.arange(16, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    save_slide(frames, tmp_path / "a.webp")
    assert read_slide(tmp_path / "a.webp")[:, 0, 0, 0].tolist() == list(range(16))


def test_a_slide_of_another_shape_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"uint8 of shape \(15, 4, 4, 3\)"):
        save_slide(np.zeros((15, 4, 4, 3), np.uint8), tmp_path / "a.webp")
    with pytest.raises(InputError, match="cannot read"):
        read_slide(tmp_path / "missing.webp")
