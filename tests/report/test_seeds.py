"""Runs of one option with several seeds, taken together."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from genstab.bench.step import OPTIONS, STABLE, STABLE_LOSSES, config_of
from genstab.cli.jobs import run_report
from genstab.errors import InputError
from genstab.report.pareto import STABILITY, name_points, pareto_picture
from genstab.report.runs import Run
from genstab.report.seeds import Option, options_among, options_table, read_costs
from tests.cli.test_config import composed


def run(name, seed, filter="tri3", **numbers):
    """A run as `read_runs` gives it: what a folder is called is in its config in more than one place."""
    config = {
        "seed": seed,
        "run_name": name,
        "output_dir": f"/runs/{name}",
        "logger": {"name": name, "save_dir": f"/runs/{name}"},
        "data": {"seed": seed},
        "antialias": {"filter": filter, "placement": "pre"},
        "ckpt_path": None if seed == 1 else "last",
    }
    return Run(name, Path(f"/runs/{name}"), {**numbers, "config": config})


def test_only_seed_name_and_folder_may_differ():
    runs = [run("tri3-pre-seed1", 1), run("bin5-pre-seed1", 1, "bin5"), run("tri3-pre-seed2", 2)]
    assert [(option.name, [each.name for each in option.runs]) for option in options_among(runs)] == [
        ("tri3-pre", ["tri3-pre-seed1", "tri3-pre-seed2"]),
        ("bin5-pre", ["bin5-pre-seed1"]),
    ]


def test_runs_without_a_config_stay_by_themselves():
    runs = [Run("a", Path("/runs/a"), {"val/l1": 1.0}), Run("b", Path("/runs/b"), {"val/l1": 1.0})]
    assert [option.name for option in options_among(runs)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "seed", "cut"),
    [
        ("a-seed12", 12, "a"),
        ("a-seed12", 1, "a-seed12"),
        ("a-seed1-b", 1, "a-b"),
        ("seed3", 3, "seed3"),  # or nothing would be left
    ],
)
def test_a_name_loses_its_own_seed_only(name, seed, cut):
    assert [option.name for option in options_among([run(name, seed)])] == [cut]


def test_mean_and_spread_are_numpys():
    values = [20.0, 23.5, 21.0]
    option = Option("tri3", [run(f"tri3-{i}", i, **{"val/shift_psnr": value}) for i, value in enumerate(values)])
    assert option.mean("val/shift_psnr") == pytest.approx(np.mean(values))
    assert option.spread("val/shift_psnr") == pytest.approx(np.std(values, ddof=1))
    assert option.mean("val/l1") is None
    assert option.spread("val/l1") is None


def test_the_table_has_the_columns_that_some_run_has():
    runs = [
        run("none-pre-seed1", 1, "none", **{"val/shift_psnr_crop": 22.0, "val/swd": 100.0}),
        run("none-pre-seed2", 2, "none", **{"val/shift_psnr_crop": 24.0, "val/swd": 120.0}),
        run("tri3-pre-seed1", 1, **{"val/shift_psnr_crop": 30.0}),
    ]
    assert options_table(options_among(runs, costs(none=1.0))).splitlines() == [
        "| option | runs | shift PSNR crop, dB | sliced Wasserstein | step, × |",
        "|---|---|---|---|---|",
        "| none-pre | 2 | 23.0 ± 1.4 | 110.0 ± 14.1 | 1.00 |",
        "| tri3-pre | 1 | 30.0 | – | – |",
    ]


def test_any_name_is_one_cell_of_a_table(tmp_path):
    (tmp_path / "run").mkdir()
    content = {"val/l1": 0.5, "config": {"run_name": "a|b\nc\ud800"}}
    (tmp_path / "run/summary.json").write_text(json.dumps(content), encoding="utf-8")
    config = dict.fromkeys(("costs", "title", "output", "plot", "film", "baseline"))
    table = tmp_path / "table.md"
    run_report(OmegaConf.create({**config, "runs": [str(tmp_path / "run")], "table": str(table), "overwrite": False}))
    assert table.read_text(encoding="utf-8").splitlines()[2] == "| a\\|b c\\ud800 | 1 | 0.500 |"


def costs(**ratios):
    return [(config_of(name), ratio) for name, ratio in ratios.items()]


def cost_of(config):
    """What a run of a configuration costs, where each contestant of the benchmark costs its own name."""
    (option,) = options_among([Run("run", Path(), {"config": config})], costs(**{name: name for name in OPTIONS}))
    return option.cost


def bench_file(path, *contestants):
    results = [
        {"contestant": name, "config": config_of(name), "times": {"step": {"ratio": ratio}}}
        for name, ratio in contestants
    ]
    path.write_text(json.dumps({"results": results}))
    return path


def test_costs_are_read_from_the_benchmark(tmp_path):
    path = bench_file(tmp_path / "step.json", ("none", {}), ("tri3xpre", {"none": 1.06}))
    assert read_costs(path) == costs(none=1.0, tri3xpre=1.06)
    stored = read_costs(Path(__file__).parents[1] / "results/step.json")
    assert [config for config, _ in stored] == [config_of(name) for name in OPTIONS]


def test_costs_of_two_batch_sizes_or_of_another_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="has an option more than once: measure one --batch"):
        read_costs(bench_file(tmp_path / "two.json", ("none", {}), ("none", {})))
    for content in ({}, {"results": 3}, {"results": [{"contestant": "none", "config": {}, "times": {}}]}):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"other.json is not what python -m genstab.bench step"):
            read_costs(tmp_path / "other.json")
    with pytest.raises(InputError, match="cannot read"):
        read_costs(tmp_path / "nothing.json")


def test_a_run_costs_what_the_benchmark_timed_of_its_configuration():
    for name, antialias in OPTIONS.items():
        if name != STABLE:
            assert cost_of({"antialias": vars(antialias)}) == name
    assert cost_of({"antialias": {"filter": "none", "placement": "post"}}) == "none"  # the same network
    assert cost_of({"antialias": {"filter": "none", "placement": "post", "polyphase": True}}) is None
    assert cost_of({"antialias": None}) is None
    assert cost_of({"seed": 1}) is None


@pytest.mark.parametrize(
    "option", ["none", "rect2", "tri3", "bin4", "bin5", "bin6", "bin7", "ideal", "polyphase", "stable"]
)
def test_what_the_benchmark_times_is_what_the_option_trains(tmp_path, option):
    config = OmegaConf.to_container(composed(tmp_path, f"antialias={option}"), resolve=True)
    placement = config["antialias"]["placement"]
    same = option if option in ("none", "polyphase", "stable") else f"{option}x{placement}"
    assert cost_of(config) == same


def test_the_benchmark_knows_the_option_that_is_more_than_a_blur(tmp_path):
    config = OmegaConf.to_container(composed(tmp_path, "antialias=stable"), resolve=True)
    changed = [
        {"antialias": {**config["antialias"], "placement": "post"}},
        {"antialias": {**config["antialias"], "filter": "bin7"}},
        {"model": {**config["model"], "detail_weight": 0.0}},
        {"model": {**config["model"], "equivariance_weight": 5.0}},
    ]
    for change in changed:  # their steps were not timed
        assert cost_of({**config, **change}) is None
    others = {"l1_weight": 100}  # as for all options
    assert {key: config["model"][key] for key in others} == others
    assert {*STABLE_LOSSES, *others} == {key for key in config["model"] if key.endswith("_weight")}


def test_the_picture_shows_each_option_and_its_cost():
    numbers = [("none-pre-seed1", "none", 22.0, 100.0, None), ("tri3-pre-seed1", "tri3", 30.0, 170.0, 1.1)]
    runs = [
        run(name, 1, filter, **{"val/shift_psnr_crop": crop, "val/swd": swd, "val/tv": 0.07, "val/tv_target": 0.08})
        for name, filter, crop, swd, _ in numbers
    ]
    plain, priced = (pareto_picture(options_among(runs, each)) for each in ((), costs(none=1.0, tri3xpre=1.1)))
    assert plain.shape[0] == 520
    assert not np.array_equal(plain, priced)


def test_names_of_neighbours_cover_neither_each_other_nor_points():
    figure = Figure(figsize=(6, 5))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    key = "val/swd"
    places = {"first": (100.0, 30.0), "second": (100.5, 30.05), "third": (99.8, 29.9), "at the edge": (129.5, 40.0)}
    options = [Option(name, [Run(name, Path(), {key: x, STABILITY: y})]) for name, (x, y) in places.items()]
    axes.set(xlim=(90, 130), ylim=(20, 50))
    name_points(axes, key, options)
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(texts) == set(places)
    points = {name: axes.transData.transform(place) for name, place in places.items()}
    for name, box in texts.items():
        assert axes.bbox.x0 < box.x0 < box.x1 < axes.bbox.x1
        assert not any(box.overlaps(other) for each, other in texts.items() if each != name)
        assert not any(box.contains(*point) for point in points.values())
        assert np.hypot(*(points[name] - (box.x0 + box.x1, box.y0 + box.y1) / np.array(2.0))) < 60  # beside its own


def test_nothing_to_draw_is_said():
    with pytest.raises(InputError, match=r"no run has both val/shift_psnr_crop and val/swd"):
        pareto_picture(options_among([run("tri3", 1, **{"val/shift_psnr_crop": 3.0})]))
