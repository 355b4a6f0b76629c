"""The numbers that a page compares runs by."""

import itertools
import math
import random
from pathlib import Path

import pytest

from genstab.metrics.registry import Metric, metrics
from genstab.report.runs import Run
from genstab.report.table import best_of, columns_of, differences, options_of, pareto_front


def run(**summary):
    return Run("run", Path(), summary)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 1), (1, 1)], [0, 1]),  # equals don't beat each other
        ([(1, 2), (1, 3)], [1]),  # as good in one, better in the other
        ([(1, 2), (2, 2)], [1]),
        ([(3, 1), (1, 3), (2, 2), (2, 1), (0, 3)], [1, 2, 0]),
        ([(2, 2), (1, 1), (3, 0), (0, 3)], [3, 0, 2]),
        ([(-0.3, 35), (-0.2, 30), (-0.1, 25), (-0.25, 28)], [0, 1, 2]),
    ],
)
def test_the_front_worked_out_by_hand(points, front):
    assert pareto_front(points) == front


def test_the_front_is_what_a_sweep_from_the_right_finds():
    random.seed(0)
    points = [(random.randrange(6), random.randrange(6)) for _ in range(40)]
    best, found = -math.inf, set()
    for x, same in itertools.groupby(sorted(set(points), reverse=True), key=lambda point: point[0]):
        highest = max(y for _, y in same)
        if highest > best:
            found.add((x, highest))
        best = max(best, highest)
    front = pareto_front(points)
    assert {points[i] for i in front} == found
    assert [points[i] for i in front] == sorted(points[i] for i in front)
    assert len(front) == sum(point in found for point in points)


@pytest.mark.parametrize(
    ("values", "best", "places"),
    [
        ([1.0, 3.0, 3.0, None], "max", {1, 2}),
        ([1.0, 3.0, None], "min", {0}),
        ([0.5, 1.4, 1.6], "one", {1}),
        ([2.0, 2.0], "max", set()),  # nothing to choose between
        ([2.0], "min", set()),
        ([None, None], "max", set()),
        ([1.0, 2.0], "", set()),
    ],
)
def test_the_best_values(values, best, places):
    assert best_of(values, Metric("val/toy", "toy", "", better=best)) == places


def test_values_in_the_units_of_the_table():
    measured = {"val/tv": 0.03, "val/tv_target": 0.04, "parameters": 2_500_000, "val/l1": float("nan"), "seconds": True}
    assert metrics()["tv_ratio"].of(measured) == pytest.approx(0.75)
    assert metrics()["parameters"].of(measured) == 2.5
    assert metrics()["val/l1"].of(measured) is None
    assert metrics()["seconds"].of(measured) is None
    assert metrics()["tv_ratio"].of({"val/tv": 1.0, "val/tv_target": 0}) is None


def test_columns_are_those_that_a_run_has_in_order_and_unknown_ones_last():
    columns = columns_of(
        [run(**{"val/zzz": 1.0, "val/l1": 0.1}), run(**{"val/shift_psnr": 30.0, "val/bad": None, "val/aaa": 2})]
    )
    assert [column.key for column in columns] == ["val/shift_psnr", "val/l1", "val/aaa", "val/zzz"]


def test_options_that_differ_and_which_stand_out():
    options = [{"a": "1", "b": "x", "c": "1"}, {"a": "1", "b": "y", "c": "2"}, {"a": "1", "b": "y", "d": "0"}]
    found = {
        "b": [("x", True), ("y", False), ("y", False)],
        "c": [("1", False), ("2", True), (None, True)],
        "d": [(None, False), (None, False), ("0", True)],
    }
    assert differences(options) == (found, 0)
    assert differences(options[:1]) == ({}, 0)


def test_an_option_that_another_run_could_not_have_is_no_difference():
    training = {"seed": "1", "trainer.max_steps": "9", "net._target_": "a.Net", "net.width": "4", "lr": "0.1"}
    wider = training | {"net.width": "8", "trainer.max_time": "1"}
    measurement = {"seed": "1", "images": "64", "net._target_": "a.Other", "net.depth": "2"}
    found, left_out = differences([training, wider, measurement])
    assert {key: [value for value, _ in values] for key, values in found.items()} == {
        "net._target_": ["a.Net", "a.Net", "a.Other"],
        "net.width": ["4", "8", None],
        "trainer.max_time": [None, "1", None],  # the first training could have it
    }
    assert left_out == 4  # trainer.max_steps, lr, images, net.depth


def test_the_runs_own_folder_is_no_option():
    config = {
        "output_dir": "/runs/7",
        "callbacks": {"last": {"dirpath": "/runs/7/checkpoints"}},
        "run_name": "x",
        "l": [1, None],
    }
    assert options_of(run(config=config)) == {
        "output_dir": "…",
        "callbacks.last.dirpath": "…/checkpoints",
        "l": "[1, null]",
    }
    assert options_of(run(config=None)) == {}
