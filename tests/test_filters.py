import pytest

from genstab import AntiAlias, InputError
from genstab.filters import taps


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("none", [1]),
        ("rect2", [1, 1]),
        ("tri3", [1, 2, 1]),
        ("bin4", [1, 3, 3, 1]),
        ("bin5", [1, 4, 6, 4, 1]),
        ("bin6", [1, 5, 10, 10, 5, 1]),
        ("bin7", [1, 6, 15, 20, 15, 6, 1]),
    ],
)
def test_taps_are_rows_of_pascals_triangle(filter, expected):
    assert taps(filter).tolist() == [e / sum(expected) for e in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter": "tri5"}, "filter='tri5' is not one of none, rect2, tri3"),
        ({"placement": "after"}, "placement='after' is not one of pre, post"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror' is not one of reflect"),
    ],
)
def test_unknown_choice_lists_the_choices(arguments, message):
    with pytest.raises(InputError, match=message):
        AntiAlias(**arguments)
