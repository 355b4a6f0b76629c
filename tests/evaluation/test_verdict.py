import math

import pytest

from genstab.evaluation.verdict import verdict

PSNR, CROP, FRACTIONAL, WORST, POOLED, PSNR_WORST_SHIFT, CROP_POOLED, CROP_WORST_SHIFT = (
    f"val/shift_psnr{end}"
    for end in ("", "_crop", "_fractional", "_worst", "_pooled", "_worst_shift", "_crop_pooled", "_crop_worst_shift")
)
TV, TARGET, FLOOR, PERIOD, SHARE = (
    "val/tv", "val/tv_target", "val/noise_floor", "val/shift_period", "val/constant_outputs"
)  # fmt: skip
SPREAD, STD, RELATIVE = "val/output_spread", "val/output_std", "val/corruption_relative"


def below(value):
    return math.nextafter(value, -math.inf)


def above(value):
    return math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    ("decibels", "sentence"),
    [
        (3.0, "Flickers visibly {}: 3.0 dB, a change of 70.8 % of the value range."),
        (below(25.0), "Flickers visibly {}: 25.0 dB, a change of 5.6 % of the value range."),
        (25.0, "Shimmers {}: 25.0 dB, a change of 5.6 % of the value range."),
        (below(35.0), "Shimmers {}: 35.0 dB, a change of 1.8 % of the value range."),
        (35.0, "Is steady {}: 35.0 dB, a change of 1.8 % of the value range."),
        (40.0, "Is steady {}: 40.0 dB, a change of 1.0 % of the value range."),
        (below(45.0), "Is steady {}: 45.0 dB, a change of 0.56 % of the value range."),
        (45.0, "No visible flicker {}: 45.0 dB, a change of 0.56 % of the value range."),
        (90.0, "No visible flicker {}: 90.0 dB, a change of 0.0032 % of the value range."),
        (100.0, "Follows its input exactly {}: 100.0 dB, the cap."),
    ],
)
@pytest.mark.parametrize(
    ("key", "when"),
    [
        (CROP, "when the camera moves"),
        (PSNR, "when the image is rolled around"),
        (FRACTIONAL, "when the image moves by fractions of a pixel"),
    ],
)
def test_how_stable(key, when, decibels, sentence):
    assert verdict({key: decibels})[0] == sentence.format(when)


def test_crop_comes_first_then_circular_and_the_worst_shift_before_the_pooled_number():
    assert verdict({PSNR: 31.0, CROP: 36.0, FRACTIONAL: 20.0})[0].startswith("Is steady when the camera moves: 36.0 dB")
    assert verdict({PSNR: 31.0, CROP: None, FRACTIONAL: 30.0})[0].startswith("Shimmers when the image is rolled around")
    both = {CROP: 46.0, CROP_POOLED: 44.0, CROP_WORST_SHIFT: 24.0}
    assert verdict(both)[0].startswith("Flickers visibly when the camera moves: 24.0 dB at the worst shift, a change")
    del both[CROP_WORST_SHIFT]
    assert verdict(both)[0].startswith("Is steady when the camera moves: 44.0 dB pooled, a change")


def test_a_camera_shows_the_border_too():
    edge = {"val/shift_psnr_crop_edge": 21.0, "val/shift_psnr_crop_edge_worst_shift": 20.0}
    for inside in (30.0, 100.0):
        assert verdict({CROP: inside, **edge})[1] == "Up to the border: 20.0 dB at the worst shift."


def words_of(metrics):
    """The first word of each sentence but that on how stable it is."""
    return [sentence.split()[0].rstrip(":,") for sentence in verdict({TV: 1.0, TARGET: 1.0, **metrics})[1:]]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({PSNR: 20.0}, []),
        ({PSNR: 20.0, FLOOR: 100.0}, []),
        ({PSNR: 20.0, FLOOR: below(100.0)}, ["Not"]),
        # 10 dB and more between circular and the others
        ({PSNR: 40.0, CROP: 30.0}, ["Circular"]),
        ({PSNR: 40.0, CROP: above(30.0)}, []),
        ({PSNR: 30.0, CROP: 40.0}, []),
        ({PSNR: 40.0, FRACTIONAL: 30.0}, ["Circular"]),
        ({PSNR: 100.0, CROP: below(45.0)}, ["Circular"]),
        ({PSNR: 100.0, CROP: 45.0, FRACTIONAL: 90.0}, []),  # not to be seen
        # between the mean and the worst
        ({PSNR: 40.0, WORST: 30.0}, ["Uneven"]),
        ({PSNR: 40.0, WORST: above(30.0)}, []),
        ({PSNR: 70.0, WORST: 45.0}, []),
        # 3 dB between the mean and one PSNR of all
        ({PSNR: 40.0, POOLED: 37.0}, ["Uneven"]),
        ({PSNR: 40.0, POOLED: above(37.0)}, []),
        ({PSNR: 70.0, POOLED: 45.0}, []),
        ({CROP: 40.0, CROP_POOLED: 37.0}, ["Uneven"]),
        ({CROP: 40.0, PSNR: 40.0, POOLED: 37.0}, ["Uneven"]),
        ({PSNR: 20.0, PERIOD: 2}, ["Aliasing"]),
        ({PSNR: 20.0, PERIOD: 1, SHARE: 0.0}, []),
        ({PSNR: 20.0, SHARE: 0.5}, ["50"]),
        ({PSNR: 20.0, SHARE: 1.0}, []),  # another sentence says so
    ],
)
def test_what_is_worth_mentioning(metrics, expected):
    assert words_of(metrics) == [*expected, "About"]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({TV: below(3.0), TARGET: 4.0}, ["Blurry"]),
        ({TV: 3.0, TARGET: 4.0}, ["About"]),
        ({TV: 5.0, TARGET: 4.0}, ["About"]),
        ({TV: above(5.0), TARGET: 4.0}, ["Too"]),
        ({TV: 0.0, TARGET: 0.0}, []),
        ({SPREAD: 0.01, STD: 0.01}, ["About"]),
    ],
)
def test_sharpness_at_its_thresholds(metrics, expected):
    assert words_of({CROP: 20.0, **metrics}) == expected


SHARP = "About as sharp as the targets: 100 % of the targets' total variation."


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, []),
        ({PSNR: None, "config": {"a": 1}, "checkpoint": "last.ckpt"}, []),
        ({PSNR: 30.0, TV: 0.1, TARGET: 0.1, FLOOR: 33.0},
         ["Not deterministic (noise floor 33.0 dB), but shifts change its output more.", SHARP]),
        ({PSNR: 30.5, TV: 0.1, TARGET: 0.1, FLOOR: 33.0},
         ["Not deterministic (noise floor 33.0 dB): shifts change its output hardly more than noise does.", SHARP]),
        ({PSNR: 100.0, CROP: 30.8, FRACTIONAL: 27.0, TV: 0.087, TARGET: 0.092},
         ["Circular shifts overstate its stability: 100.0 dB, but 30.8 dB when the camera moves and 27.0 dB when the"
          " image moves by fractions of a pixel.",
          "About as sharp as the targets: 95 % of the targets' total variation."]),
        ({PSNR: 62.0, WORST: 21.0, POOLED: 26.0, TV: 0.1, TARGET: 0.1},  # half of the images are constant, 100 dB each
         ["Uneven: a mean of 62.0 dB, but 26.0 dB pooled and 21.0 dB at the worst shift and image.", SHARP]),
        # every second shift is exact: the mean of 20.0, 73.6, 20.0, 70.9 dB is no number of any shift
        ({CROP: 46.1, CROP_POOLED: 23.0, CROP_WORST_SHIFT: 20.0, PERIOD: 2, TV: 0.1, TARGET: 0.1},
         ["Uneven: a mean of 46.1 dB, but 23.0 dB pooled; aliasing: shifts by multiples of 2 pixels change the output"
          " much less.", SHARP]),
        # 63 of 64 outputs are constant
        ({PSNR: 98.75, POOLED: 38.1, PSNR_WORST_SHIFT: 20.0, SHARE: 63 / 64, "images": 64, TV: 0.1, TARGET: 0.1},
         ["Uneven: a mean of 98.8 dB, but 38.1 dB pooled; 63 of 64 outputs are constant, which no shift changes.",
          SHARP]),
        # a training does not say how many images there are; nothing is hidden here
        ({CROP: 46.0, CROP_POOLED: 46.0, SHARE: 0.25, PERIOD: 1, TV: 0.1, TARGET: 0.1},
         ["25 % of the outputs are constant, which no shift changes.", SHARP]),
        ({CROP: 42.0, TV: 0.044, TARGET: 0.092},
         ["Blurry, which makes it more stable: 48 % of the targets' total variation."]),
        ({CROP: below(25.0), TV: 0.044, TARGET: 0.092}, ["Blurry: 48 % of the targets' total variation."]),
        ({CROP: 25.0, TV: 0.2, TARGET: 0.1}, ["Too busy: 200 % of the targets' total variation."]),
        ({CROP: 42.0, TV: 0.044},
         ["Without targets, blur cannot be ruled out as the reason (total variation 0.044)."]),
        ({CROP: 25.0}, ["Without targets, blur cannot be ruled out as the reason."]),
        ({CROP: below(25.0)}, []),  # there is nothing to explain
    ],
)  # fmt: skip
def test_what_follows_how_stable(metrics, expected):
    assert verdict(metrics)[1:] == expected


@pytest.mark.parametrize(
    ("metrics", "first"),
    [
        (
            {SPREAD: below(0.01), STD: 0.001, TV: 0.01, TARGET: 0.1},
            "Produces nearly the same image for every input: outputs differ",
        ),
        ({STD: below(0.01)}, "Its outputs are nearly flat: they vary"),
    ],
)
def test_outputs_that_make_any_stability_worthless_come_first(metrics, first):
    said = verdict({CROP: 60.0, **metrics})
    assert said[0] == f"{first} by 1 % of the value range."
    assert said[1].startswith("No visible flicker")
    assert len(said) == 2


def test_what_is_no_number_says_nothing():
    nothing = {PSNR: None, FLOOR: math.nan, TV: "0", TARGET: 4.0, SPREAD: None, "val/accuracy": math.nan}
    assert verdict({**nothing, CROP: math.nan, RELATIVE: math.inf, WORST: 10.0, POOLED: 20.0}) == []


@pytest.mark.parametrize(
    ("relative", "sentence"),
    [
        (below(0.9), "More robust to corruptions than the baseline: errors 0.90 times as large."),
        (0.9, "About as robust to corruptions as the baseline: errors 0.90 times as large."),
        (1.1, "About as robust to corruptions as the baseline: errors 1.10 times as large."),
        (above(1.1), "Less robust to corruptions than the baseline: errors 1.10 times as large."),
    ],
)
def test_robustness(relative, sentence):
    assert verdict({RELATIVE: relative}) == [sentence]


@pytest.mark.parametrize(
    ("consistency", "often"), [(below(0.9), "Often"), (0.9, "Sometimes"), (below(0.98), "Sometimes"), (0.98, "Hardly")]
)
def test_classifiers(consistency, often):
    shown = f"the same class in {100 * consistency:.1f} % of pairs of shifts."
    for key, when in (("", "the camera moves"), ("_roll", "the image is rolled around")):
        sentences = verdict({f"val/consistency{key}": consistency, "val/accuracy": 0.971})
        assert sentences[0].startswith(often)
        assert sentences[0].endswith(f"changes its answer when {when}: {shown}")
        assert sentences[1:] == ["Right in 97.1 % of cases."]
    assert verdict({"val/accuracy": 0.5}) == ["Right in 50.0 % of cases."]
    wrong = "Right in 12.0 % of cases, less than half: a constant answer would be perfectly consistent."
    assert verdict({"val/accuracy": 0.12}) == [wrong]


def test_six_sentences_at_most():
    everything = {PSNR: 60.0, CROP: 24.0, WORST: 10.0, CROP_POOLED: 20.0, FRACTIONAL: 20.0, FLOOR: 24.0}
    everything |= {SPREAD: 0.001, STD: 0.001, PERIOD: 4, SHARE: 0.5}
    assert len(verdict({**everything, TV: 0.01, TARGET: 1.0, RELATIVE: 3.0})) == 6


def test_a_constant_generator_is_not_said_to_follow_its_input():
    for key in (SPREAD, STD):
        _, stability = verdict({CROP: 100.0, key: 0.0})
        assert stability == "No evidence of stability: constant outputs always reach 100.0 dB, the cap."
        assert verdict({CROP: 99.9, key: 0.0})[1].startswith("No visible flicker")
