"""What a run leaves in its folder: JSON that everything can read, no half of it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genstab import InputError
from genstab.runtime.files import read_json, write_json

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


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"map": [[1.5, math.nan], [-math.inf, 2]], "name": "["})
    assert json.loads((tmp_path / "a.json").read_text()) == {"map": [[1.5, None], [None, 2]], "name": "["}


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_json_that_is_none_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"cannot read .*a\.json"):
        read_json(tmp_path / "a.json")
