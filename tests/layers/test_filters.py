import pytest
import torch
from scipy.signal import firwin, kaiser_atten

from genstab import AntiAlias, BlurPool2d, InputError, UNet, kaiser_taps
from genstab.layers.filters import taps


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
    ("size", "cutoff", "half_width"),
    [(13, 0.25, 0.25 * (2**0.5 - 1)), (12, 0.25, 0.1), (25, 0.15, 0.06), (6, 0.3, 0.2)],
)
def test_kaiser_is_scipys_design_less_the_ripple_at_the_nyquist_frequency(size, cutoff, half_width):
    ours = torch.tensor(kaiser_taps(size, cutoff, half_width), dtype=torch.float64)
    design = torch.from_numpy(firwin(size, cutoff, width=2 * half_width, fs=1.0))
    signs = (-1.0) ** torch.arange(size, dtype=torch.float64)
    assert (ours @ signs).abs() < 1e-15
    ripple = (design @ signs).abs()
    attenuation = kaiser_atten(size, 2 * half_width / 0.5)
    assert ripple < 3 * 10 ** (-attenuation / 20)
    # the two sorts of taps sum to (1 ± ripple) / 2 there: each is scaled to 1/2, nothing else
    scale = ours[design != 0] / design[design != 0]
    assert torch.minimum((scale * (1 + ripple) - 1).abs(), (scale * (1 - ripple) - 1).abs()).max() < 1e-12
    if size % 2 == 0:  # the two sorts mirror each other: no difference at all
        torch.testing.assert_close(ours, design, rtol=0, atol=1e-15)


def test_kaisers_gain_is_one_half_at_the_cutoff_and_small_beyond_the_band():
    kernel = torch.tensor(kaiser_taps(33, 0.2, 0.05), dtype=torch.float64)
    position = torch.arange(33, dtype=torch.float64) - 16

    def gain(frequency):
        return (kernel @ torch.cos(2 * torch.pi * frequency * position)).item()

    assert gain(0.2) == pytest.approx(0.5, abs=0.01)
    assert all(abs(gain(f / 1000) - 1) < 0.02 for f in range(150))
    assert all(abs(gain(f / 1000)) < 0.02 for f in range(250, 501))


def test_taps_of_ones_own():
    mine = kaiser_taps(9, 0.2, 0.1)
    assert taps(mine).tolist() == pytest.approx(mine, abs=1e-15)
    assert taps([1, 4, 6, 4, 1]).equal(taps("bin5"))
    x = torch.rand(1, 2, 5, 7)
    assert torch.equal(BlurPool2d([1, 2, 1])(x), BlurPool2d("tri3")(x))
    assert AntiAlias([2, 2]) == AntiAlias((0.5, 0.5))
    assert hash(AntiAlias([1, 2, 1])) == hash(AntiAlias((1.0, 2.0, 1.0)))
    net = UNet(1, 1, channels=2, levels=2, antialias=AntiAlias([1, 2, 1]))
    net.load_state_dict((same := UNet(1, 1, channels=2, levels=2, antialias="tri3")).state_dict())
    y = torch.rand(1, 1, 8, 8)
    assert torch.equal(net.eval()(y), same.eval()(y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter": "tri5"}, "filter='tri5' is not one of none, rect2, tri3"),
        ({"filter": None}, "filter=None is not one of none, rect2, tri3"),
        ({"filter": []}, r"filter=\[\] is not one of none.* nor a list of numbers"),
        ({"filter": ["1"]}, r"filter=\['1'\] is not one of none.* nor a list of numbers"),
        ({"filter": [1, float("nan")]}, r"nor a list of numbers"),
        ({"filter": [1, 0, -1]}, r"filter=\[1, 0, -1\] sums to zero"),
        ({"placement": "after"}, "placement='after' is not one of pre, post"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror' is not one of reflect"),
    ],
)
def test_unknown_choice_lists_the_choices(arguments, message):
    with pytest.raises(InputError, match=message):
        AntiAlias(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 1}, "size=1 is not an integer from 2 to 1000"),
        ({"size": 2.5}, "size=2.5 is not an integer"),
        ({"half_width": 0}, "half_width=0: the band"),
        ({"cutoff": 0.45}, "cutoff=0.45, half_width=0.1035.* does not lie within 0 to 0.5"),
        ({"cutoff": 0.05}, "cutoff=0.05"),
    ],
)
def test_a_band_that_no_filter_can_have(arguments, message):
    with pytest.raises(InputError, match=message):
        kaiser_taps(**arguments)
