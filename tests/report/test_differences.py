"""Differences between options: the interval against the variance of a mean by formula, and what is called better."""

from pathlib import Path

import numpy as np
import pytest

from genstab.errors import InputError
from genstab.metrics.registry import metrics
from genstab.report.differences import difference, differences_table, image_values
from genstab.report.runs import Run
from genstab.report.seeds import Option, options_among

L1, SSIM, CROP = (metrics()[key] for key in ("val/l1", "val/ssim", "val/shift_psnr_crop"))
IMAGES, SEEDS = 40, 5


def option(name, table, key="l1", images=None):
    """An option of which the runs store a number of each image, (seeds, images)."""
    names = [f"{i}.png" for i in range(len(table[0]))] if images is None else images
    runs = [
        Run(f"{name}{i}", Path(name), {}, {"quality": {"images": names, key: list(row)}}) for i, row in enumerate(table)
    ]
    return Option(name, runs)


def drawn(random, image_effects, seed_deviation, own_deviation, offset=0.0):
    seeds = random.normal(0, seed_deviation, (SEEDS, 1))
    return offset + image_effects + seeds + random.normal(0, own_deviation, (SEEDS, IMAGES))


def test_the_interval_is_that_of_paired_images_and_independent_seeds():
    random = np.random.default_rng(3)
    effects = random.normal(0, 1, IMAGES)  # much larger than all else, but the same for both options
    tables = [drawn(random, effects, 0.1, 0.02, offset) for offset in (0.5, 0.0)]
    found = difference(option("a", tables[0]), option("b", tables[1]), L1)
    assert found.mean == pytest.approx(tables[0].mean() - tables[1].mean())
    seeds = sum(table.mean(1).var(ddof=1) / SEEDS for table in tables)
    images = (tables[0].mean(0) - tables[1].mean(0)).var(ddof=1) / IMAGES
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.sqrt(seeds + images), rel=0.08)
    assert found.low < 0.5 < found.high


def test_images_alone_where_there_is_one_seed():
    random = np.random.default_rng(4)
    tables = [random.normal(offset, 1, (1, IMAGES)) for offset in (0, 0.2)]
    found = difference(option("a", tables[0]), option("b", tables[1]), L1)
    error = (tables[0] - tables[1]).std(ddof=1) / np.sqrt(IMAGES)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_only_common_images_count_whatever_their_order():
    first = option("a", [[1.0, 2.0, 3.0]], images=["x", "y", "z"])
    second = option("b", [[7.0, 1.0, 0.0]], images=["w", "z", "y"])
    found = difference(first, second, L1)
    assert (found.mean, found.images) == (2.0, 2)
    assert difference(first, option("b", [[1.0, 2.0]], images=["x", "w"]), L1) is None
    assert difference(first, option("b", [[1.0] * 3], "ssim"), L1) is None


def test_decibels_of_an_image_are_the_mean_over_the_shifts():
    part = {"images": ["x", "y"], "shifts": [[0, 1], [0, 2]], "decibels": [[20.0, 30.0], [22.0, None]]}
    run = Run("a", Path("a"), {}, {"shift_psnr": {"crop": part, "eqt": part}})
    assert image_values(run, CROP) == {"x": 21.0, "y": 30.0}
    assert image_values(run, metrics()["val/shift_psnr_eqt"]) == {}  # pooled: an image has no number of its own


def test_what_is_better_is_bold_and_what_is_not_known_in_parentheses():
    random = np.random.default_rng(5)
    base = random.normal(0, 0.1, (3, IMAGES))
    rows = [
        option(name, base + offset) for name, offset in (("none", 0.0), ("less", -0.2), ("more", 0.2), ("same", 0.0))
    ]
    lines = differences_table(rows).splitlines()
    assert lines[0] == "| minus none | L1 |"
    assert lines[2].startswith("| less | **-0.200 [-0.2")
    assert lines[3].startswith("| more | +0.200 [+0.1")
    assert lines[4].startswith("| same | (+0.000 [-0.0")
    assert lines[-1].endswith(
        "(seeds: none 3, less 3, more 3, same 3). Bold: better. In parentheses: the interval contains zero."
    )
    assert differences_table(rows, "less").startswith("| minus less | L1 |")
    assert differences_table(rows[:1]) == ""
    with pytest.raises(InputError, match="baseline='other' is not one of none, less, more, same"):
        differences_table(rows, "other")


def test_measurements_of_trainings_that_differ_in_their_seed_are_one_option():
    runs = [
        Run(f"{name}{control}", Path(name), {"config": {"seed": 1, "control": control, "model": {"checkpoint": path}}})
        for name in ("none-seed1", "none-seed2", "tri3-seed1")
        for control in ("", " + noise")
        for path in (f"runs/{name}/checkpoints/last.ckpt",)
    ]
    found = {each.name: [run.name for run in each.runs] for each in options_among(runs)}
    assert found == {
        "none": ["none-seed1", "none-seed2"],
        "none + noise": ["none-seed1 + noise", "none-seed2 + noise"],
        "tri3": ["tri3-seed1"],
        "tri3 + noise": ["tri3-seed1 + noise"],
    }
