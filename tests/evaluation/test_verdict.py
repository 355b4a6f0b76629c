import math

import pytest

from genstab.evaluation.verdict import flags, verdict

PSNR, CROP, FRACTIONAL, WORST, POOLED = (
    f"val/shift_psnr{suffix}" for suffix in ("", "_crop", "_fractional", "_worst", "_pooled")
)
TV, TARGET, FLOOR = "val/tv", "val/tv_target", "val/noise_floor"
CROP_POOLED, CROP_WORST_SHIFT, PERIOD, SHARE = (
    "val/shift_psnr_crop_pooled", "val/shift_psnr_crop_worst_shift", "val/shift_period", "val/constant_outputs"
)  # fmt: skip
SPREAD, STD, RELATIVE = "val/output_spread", "val/output_std", "val/corruption_relative"
SHARP = {TV: 0.1, TARGET: 0.1}


def below(value):
    return math.nextafter(value, -math.inf)


def above(value):
    return math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    ("decibels", "sentence"),
    [
        (3.0, "Flickers visibly {}: shift PSNR{} 3.0 dB, a change of 70.8 % of the value range."),
        (below(25.0), "Flickers visibly {}: shift PSNR{} 25.0 dB, a change of 5.6 % of the value range."),
        (25.0, "Shimmers {}: shift PSNR{} 25.0 dB, a change of 5.6 % of the value range."),
        (below(35.0), "Shimmers {}: shift PSNR{} 35.0 dB, a change of 1.8 % of the value range."),
        (35.0, "Is steady {}: shift PSNR{} 35.0 dB, a change of 1.8 % of the value range."),
        (40.0, "Is steady {}: shift PSNR{} 40.0 dB, a change of 1.0 % of the value range."),
        (below(45.0), "Is steady {}: shift PSNR{} 45.0 dB, a change of 0.56 % of the value range."),
        (45.0, "No visible flicker {}: shift PSNR{} 45.0 dB, a change of 0.56 % of the value range."),
        (90.0, "No visible flicker {}: shift PSNR{} 90.0 dB, a change of 0.0032 % of the value range."),
        (100.0, "Follows its input exactly {}: shift PSNR{} 100.0 dB, the cap."),
    ],
)
@pytest.mark.parametrize(
    ("key", "name", "when"),
    [
        (CROP, " crop", "when the camera moves"),
        (PSNR, " circular", "when the image is rolled around"),
        (FRACTIONAL, " fractional", "when the image moves by fractions of a pixel"),
    ],
)
def test_how_stable(key, name, when, decibels, sentence):
    assert verdict({key: decibels, **SHARP})[0] == sentence.format(when, name)
    assert ("flickers" in flags({key: decibels})) == (decibels < 25)


def test_crop_comes_first_then_circular():
    assert "crop 36.0 dB" in verdict({PSNR: 31.0, CROP: 36.0, FRACTIONAL: 20.0})[0]
    assert "shift PSNR circular 31.0 dB" in verdict({PSNR: 31.0, CROP: None, FRACTIONAL: 30.0})[0]
    assert flags({PSNR: 20.0, CROP: 36.0}) == []


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, []),
        ({PSNR: 24.9}, ["flickers"]),
        ({PSNR: 25.0}, []),
        # not deterministic
        ({FLOOR: 100.0}, []),
        ({FLOOR: below(100.0)}, ["random"]),
        # 10 dB and more between circular and the others
        ({PSNR: 40.0, CROP: 30.0}, ["rolling-only"]),
        ({PSNR: 40.0, CROP: above(30.0)}, []),
        ({PSNR: 30.0, CROP: 40.0}, []),
        ({PSNR: 40.0, FRACTIONAL: 30.0}, ["rolling-only"]),
        ({PSNR: 100.0, CROP: below(45.0)}, ["rolling-only"]),
        ({PSNR: 100.0, CROP: 45.0, FRACTIONAL: 90.0}, []),  # not to be seen
        ({CROP: 20.0}, ["flickers"]),
        ({PSNR: 40.0, WORST: 30.0}, ["uneven"]),
        ({PSNR: 40.0, WORST: above(30.0)}, []),
        ({PSNR: 70.0, WORST: 45.0}, []),
        ({WORST: 10.0}, []),
        # 3 dB between the mean and one PSNR of all
        ({PSNR: 40.0, POOLED: 37.0}, ["uneven"]),
        ({PSNR: 40.0, POOLED: above(37.0)}, []),
        ({PSNR: 70.0, POOLED: 45.0}, []),
        ({POOLED: 20.0}, []),
        ({CROP: 40.0, CROP_POOLED: 37.0}, ["uneven"]),
        ({CROP: 40.0, CROP_WORST_SHIFT: below(25.0)}, ["flickers"]),
        ({PERIOD: 2}, ["periodic"]),
        ({PERIOD: 1, SHARE: 0.0}, []),
        ({SHARE: 0.5}, ["partly-constant"]),
        ({SHARE: 1.0}, []),  # another sentence says so
        # sharpness; 0.75 of 4 and 1.25 of 4
        ({TV: below(3.0), TARGET: 4.0}, ["blurry"]),
        ({TV: 3.0, TARGET: 4.0}, []),
        ({TV: 5.0, TARGET: 4.0}, []),
        ({TV: above(5.0), TARGET: 4.0}, ["busy"]),
        ({TV: 0.0, TARGET: 0.0}, []),
        ({TV: 0.01}, []),
        ({TARGET: 0.01}, []),
        # constant
        ({SPREAD: below(0.01)}, ["constant"]),
        ({SPREAD: 0.01, STD: 0.01}, []),
        ({STD: below(0.01)}, ["flat"]),
        # corruptions
        ({RELATIVE: 1.1}, []),
        ({RELATIVE: above(1.1)}, ["fragile"]),
        ({RELATIVE: 0.2}, []),
        # classifiers
        ({"val/consistency": below(0.9)}, ["inconsistent"]),
        ({"val/consistency": 0.9}, []),
        ({"val/consistency": 0.95, "val/consistency_roll": 0.5}, []),
        ({"val/consistency_roll": 0.5}, ["inconsistent"]),
        ({"val/accuracy": below(0.5)}, ["inaccurate"]),
        ({"val/accuracy": 0.5}, []),
        # what is no number says nothing
        ({PSNR: None, FLOOR: math.nan, TV: "0", TARGET: 4.0, SPREAD: None}, []),
    ],
)
def test_flags_at_their_thresholds(metrics, expected):
    assert flags(metrics) == expected


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({}, []),
        ({PSNR: None, "config": {"a": 1}, "checkpoint": "last.ckpt"}, []),
        (
            {PSNR: 30.0, **SHARP, FLOOR: 33.0},
            ["Not deterministic: two runs on one input agree to 33.0 dB; shifts change it more, 3.0 dB below that noise"
             " floor.", "Not due to blur: its outputs have 100 % of the targets' total variation."],
        ),
        (
            {PSNR: 30.5, **SHARP, FLOOR: 33.0},
            ["Not deterministic: two runs on one input agree to 33.0 dB, "
             "so that 30.5 dB is indistinguishable from its noise.",
             "Not due to blur: its outputs have 100 % of the targets' total variation."],
        ),
        (
            {PSNR: 100.0, CROP: 30.8, FRACTIONAL: 27.0, TV: 0.087, TARGET: 0.092},
            ["Circular shifts overstate its stability: 100.0 dB when the image is rolled around, but 30.8 dB"
             " when the camera moves and"
             " 27.0 dB when the image moves by fractions of a pixel.",
             "Not due to blur: its outputs have 95 % of the targets' total variation."],
        ),
        (
            {PSNR: 38.0, WORST: 16.0, TV: 0.2, TARGET: 0.1},
            ["Uneven: the mean is 38.0 dB, but 16.0 dB at the worst shift and image; some shifts or some images are"
             " much worse than others.",
             "Its outputs are too busy, with 200 % of the targets' total variation."],
        ),
        (
            {PSNR: 62.0, WORST: 21.0, POOLED: 26.0, **SHARP},  # half of the images are constant, 100 dB each
            ["Uneven: the mean is 62.0 dB, but 26.0 dB pooled and 21.0 dB at the worst shift and image; some shifts or"
             " some images are much worse than others.",
             "Not due to blur: its outputs have 100 % of the targets' total variation."],
        ),
        (
            {CROP: 42.0, TV: 0.044, TARGET: 0.092},
            ["Its outputs are blurry, with 48 % of the targets' total variation:"
             " part of its stability comes from blur."],
        ),
        ({CROP: 20.0, TV: 0.044, TARGET: 0.092},
         ["Its outputs are blurry, with 48 % of the targets' total variation."]),
        ({CROP: 42.0, TV: 0.044},
         ["Without targets, blur cannot be ruled out as the reason for its 42.0 dB (total variation 0.044)."]),
        ({CROP: 42.0}, ["Without targets, blur cannot be ruled out as the reason for its 42.0 dB."]),
        ({CROP: 25.0}, ["Without targets, blur cannot be ruled out as the reason for its 25.0 dB."]),
        ({CROP: 20.0, **SHARP}, ["About as sharp as the targets: 100 % of the targets' total variation."]),
        ({CROP: below(25.0)}, []),  # there is nothing to buy
        ({CROP: 60.0, SPREAD: 0.004, STD: 0.001, TV: 0.01, TARGET: 0.1},
         ["Produces nearly the same image for every input: outputs differ by 0.4 % of the range."]),
        ({CROP: 60.0, STD: 0.004}, ["Its outputs are nearly flat: they vary by 0.4 % of the range."]),
        ({CROP: 42.0, **SHARP, RELATIVE: 0.8},
         ["Not due to blur: its outputs have 100 % of the targets' total variation.",
          "More robust to corruptions than the baseline: errors 0.80 times as large."]),
    ],
)  # fmt: skip
def test_what_follows_how_stable(metrics, expected):
    assert verdict(metrics)[1:] == expected


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        # every second shift is exact: the mean of 20.0, 73.6, 20.0, 70.9 dB is no number of any shift
        ({CROP: 46.1, CROP_POOLED: 23.0, CROP_WORST_SHIFT: 20.0, PERIOD: 2},
         ["Flickers visibly when the camera moves: shift PSNR crop at worst shift 20.0 dB, a change of 10.0 % of the"
          " value range.", "Uneven: the mean is 46.1 dB, but 23.0 dB pooled; a period of 2 pixels (aliasing): its"
          " multiples change the output much less."]),
        # 63 of 64 outputs are constant
        ({PSNR: 98.75, POOLED: 38.1, "val/shift_psnr_worst_shift": 20.0, SHARE: 63 / 64, "images": 64},
         ["Flickers visibly when the image is rolled around: shift PSNR circular at worst shift 20.0 dB, a change of"
          " 10.0 % of the value range.", "Uneven: the mean is 98.8 dB, but 38.1 dB pooled; 63 of 64 images have"
          " constant outputs, which no shift changes."]),
        # a film shows its border
        ({CROP: 45.0, CROP_WORST_SHIFT: 44.0, f"{CROP}_edge": 33.0, f"{CROP}_edge_worst_shift": 32.0},
         ["Is steady when the camera moves: shift PSNR crop at worst shift 44.0 dB, a change of 0.63 % of the value"
          " range; up to the border 32.0 dB.", "Without targets, blur cannot be ruled out as the reason for its 44.0 dB"
          " (total variation 0.100)."]),
        # a training does not say how many images there are; nothing is hidden here
        ({CROP: 46.0, CROP_POOLED: 46.0, CROP_WORST_SHIFT: 45.5, SHARE: 0.25, PERIOD: 1},
         ["No visible flicker when the camera moves: shift PSNR crop at worst shift 45.5 dB, a change of 0.53 % of the"
          " value range.", "25 % of the images have constant outputs, which no shift changes."]),
    ],
)  # fmt: skip
def test_the_worst_shift_is_judged_and_the_mean_explained(metrics, expected):
    assert verdict({**metrics, TV: 0.1})[:2] == expected


def test_what_is_no_number_says_nothing():
    assert verdict({CROP: math.nan, "val/accuracy": math.nan, RELATIVE: math.inf, TV: None, TARGET: 0.1}) == []


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
    shown = f"one class for two shifts in {100 * consistency:.1f} % of pairs."
    for key, when in (("", "the camera moves"), ("_roll", "the image is rolled around")):
        sentences = verdict({f"val/consistency{key}": consistency, "val/accuracy": 0.971})
        assert sentences[0].startswith(often)
        assert sentences[0].endswith(f"changes its answer when {when}: {shown}")
        assert sentences[1:] == ["It is right in 97.1 % of cases."]
    wrong = "It is right in 12.0 % of cases, less than half: a constant answer would be perfectly consistent."
    assert verdict({"val/accuracy": 0.12}) == [wrong]


def test_six_sentences_at_most_and_a_number_in_each():
    everything = {PSNR: 60.0, CROP: 24.0, WORST: 10.0, CROP_POOLED: 20.0, FRACTIONAL: 20.0, FLOOR: 24.0}
    everything |= {SPREAD: 0.001, STD: 0.001, PERIOD: 4, SHARE: 0.5}
    sentences = verdict({**everything, TV: 0.01, TARGET: 1.0, RELATIVE: 3.0})
    assert len(sentences) == 6
    assert all(any(letter.isdigit() for letter in sentence) for sentence in sentences)
    assert flags({**everything, TV: 0.01, TARGET: 1.0, RELATIVE: 3.0}) == [
        "flickers", "random", "rolling-only", "uneven", "periodic", "partly-constant", "blurry", "constant", "flat",
        "fragile",
    ]  # fmt: skip


def test_a_constant_generator_is_not_said_to_follow_its_input():
    first, second = verdict({CROP: 100.0, SPREAD: 0.0})
    assert first == "Not evidence of stability: shift PSNR crop 100.0 dB is the cap, which any constant output reaches."
    assert second.startswith("Produces nearly the same image for every input")
