"""Run folders, read back: which are runs, what they are called, what they lack."""

import json
import math
import re

import pytest

from genstab.errors import InputError
from genstab.metrics.registry import metrics
from genstab.report.missing import missing_of
from genstab.report.runs import Run, read_runs
from tests.helpers.run_folder import make_run


def bare(folder, **summary):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_folder_of_runs_stands_for_them_in_natural_order(tmp_path):
    for name in ("10", "9", "2/deep/deeper"):
        bare(tmp_path / "sweep" / name)
    bare(tmp_path / "one")
    (tmp_path / "sweep" / ".submitit").mkdir()
    runs = read_runs([tmp_path / "one", tmp_path / "sweep"])
    assert [run.name for run in runs] == ["one", "deeper", "9", "10"]


def test_what_lies_inside_a_run_or_too_deep_is_no_run(tmp_path):
    bare(tmp_path / "run")
    bare(tmp_path / "run" / "inner")
    assert [run.name for run in read_runs([tmp_path])] == ["run"]
    bare(tmp_path / "a/b/c/d/e")
    with pytest.raises(
        InputError, match="a is not a run folder: neither it nor a folder up to 3 levels below it has a"
    ):
        read_runs([tmp_path / "a"])
    assert [run.name for run in read_runs([tmp_path / "a/b"])] == ["e"]


def test_a_run_given_twice_is_read_once(tmp_path, monkeypatch):
    bare(tmp_path / "sweep/0")
    monkeypatch.chdir(tmp_path)
    assert len(read_runs(["sweep", "sweep/0", tmp_path / "sweep/../sweep/0"])) == 1


PER_SHIFT = (
    '{"shift_psnr": {"crop": {"shifts": [[0, 1], [0, 2]], "images": ["a", "b"], "decibels": [[20, 21], [30, 31]]}}}'
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "run does not exist$"),
        (lambda path: path.write_text(""), "run is a file, not the folder of a run$"),
        (lambda path: path.mkdir(), "run is not a run folder: neither it nor"),
        (
            lambda path: (path.mkdir(), (path / "summary.json").write_text('{"a": ')),
            "cannot read .*summary.json: .*line 1",
        ),
        (lambda path: (path.mkdir(), (path / "summary.json").write_text("[1]")), "holds a list, not an object"),
        (
            lambda path: (bare(path), (path / "measurements.json").write_bytes(b"\xff")),
            "cannot read .*measurements.json",
        ),
        (
            lambda path: (bare(path), (path / "measurements.json").write_text('{"features": [1]}')),
            "cannot read .*measurements.json: features is a list, not an object",
        ),
    ],
)
def test_what_is_no_run_is_named(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        read_runs([tmp_path / "run"])


def shift_map(text):
    return f'{{"shift_map": {{"decibels": {text}}}}}'


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("summary", "[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("summary", '{"a":' * 100_000, "nested more than 64 deep"),
        ("summary", '{"verdict": "Steady."}', "verdict is not a list of texts"),
        ("summary", '{"notes": [1e999]}', "notes is not a list of texts"),
        ("summary", '{"config": [1]}', "config is a list, not an object of keys and values"),
        ("summary", '{"versions": 3}', "versions is a int, not an object of keys and values"),
        ("summary", '{"val/l1": -1}', "val/l1 is -1, not from 0 to 1e+15"),
        ("summary", '{"val/accuracy": 7}', "val/accuracy is 7, not from 0 to 1"),
        ("summary", '{"val/shift_psnr": -5e300}', "val/shift_psnr is -5e+300, not from -1e+15 to 1e+15"),
        ("measurements", '{"shift_psnr": {"crop": []}}', "shift_psnr.crop is a list, not an object"),
        ("measurements", '{"shift_psnr": {"crop": {}}}', "shift_psnr.crop.shifts is not a list"),
        ("measurements", PER_SHIFT.replace("[0, 2]", '["up", 2]'), "crop.shifts[1] holds 'up', not a number"),
        ("measurements", PER_SHIFT.replace("[0, 2]", "[]"), "crop.shifts[1] is not a list of numbers"),
        ("measurements", PER_SHIFT.replace("[30, 31]", "[30]"), "crop.decibels[1] is not a list of 2"),
        ("measurements", PER_SHIFT.replace("31]", "true]"), "crop.decibels[1] holds True, not a number"),
        ("measurements", PER_SHIFT.replace(", [30, 31]", ""), "crop.decibels is not a list of 2"),
        ("measurements", PER_SHIFT.replace('"b"', "7"), "crop.images is not a list of texts"),
        ("measurements", shift_map("[[1, 2]]"), "shift_map.decibels[0] is not a list of 1"),
        ("measurements", shift_map("[]"), "shift_map.decibels has 0 rows, and so none in the middle"),
        ("measurements", '{"features": {"layers": {"a": [[[]]]}}}', "features.layers.a[0] holds [], not a number"),
        ("measurements", '{"corruptions": {"severities": [], "decibels": {"fog": [1]}}}', "fog is not a list of 0"),
        ("measurements", '{"quality": {"images": ["a"], "l1": [1, 2]}}', "quality.l1 is not a list of 1"),
    ],
)
def test_broken_json_is_one_line_that_names_the_key(tmp_path, file, text, message):
    path = bare(tmp_path / "run") / f"{file}.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"cannot read {re.escape(str(path))}: .*{re.escape(message)}"):
        read_runs([tmp_path / "run"])


def test_no_path_is_an_error():
    with pytest.raises(InputError, match="no run to compare: give a folder with a summary"):
        read_runs([])


def test_names_come_from_the_config_else_the_folder_and_are_unique(tmp_path):
    for folder, name in [("a/0", "tri3"), ("a/1", "tri3"), ("b/1", "tri3"), ("b/2", None), ("c/2", None), ("c/3", " ")]:
        bare(tmp_path / folder, config={} if name is None else {"run_name": name})
    names = [run.name for run in read_runs([tmp_path])]
    assert names == ["tri3 (a/0)", "tri3 (a/1)", "tri3 (b/1)", "b/2", "c/2", "3"]


def test_nan_is_none(tmp_path):
    folder = bare(tmp_path / "run", **{"val/l1": math.nan, "val/psnr": math.inf, "val/ssim": 0.5})
    (folder / "measurements.json").write_text('{"quality": {"images": ["a", "b", "c"], "l1": [NaN, -Infinity, 1e999]}}')
    (run,) = read_runs([folder])
    assert run.summary == {"val/l1": None, "val/psnr": None, "val/ssim": 0.5}
    assert run.measurements["quality"]["l1"] == [None] * 3


def test_what_a_folder_lacks_is_said(tmp_path):
    (whole,) = read_runs([make_run(tmp_path / "whole")])
    assert missing_of(whole, []) == []

    (empty,) = read_runs([bare(tmp_path / "empty")])
    assert missing_of(empty, []) == [
        "Not measured: shift PSNR per shift and per image; shift map; feature distance; PSNR under corruption; "
        "quality per image",
        "no measurements.json",
        "no slide_source.webp, no slide_output.webp: no slider, no flicker strip",
        "summary.json has no verdict, no config, no versions",
    ]

    part = make_run(tmp_path / "part")
    (part / "measurements.json").write_text(PER_SHIFT.replace("}}}", '}}, "features": null}'))
    (part / "slide_source.webp").unlink()
    (run,) = read_runs([part])
    assert missing_of(run, []) == [
        "Not measured: shift map; feature distance; PSNR under corruption; quality per image",
        "no slide_source.webp: no slider, no flicker strip",
    ]


def test_what_was_switched_off_and_what_cannot_be_measured_are_told_apart(tmp_path):
    off = {"map": None, "features": None, "corruptions": {"baseline": None}, "perceptual": [], "noise_floor": False}
    off["realism"] = False
    (run,) = read_runs([make_run(tmp_path / "off")])
    summary = {key: each for key, each in run.summary.items() if key not in ("val/l1", "val/psnr", "val/ssim")}
    summary |= {"config": {**off, "protocols": ["circular", "crop"]}, "notes": ["corruptions: not measured, x"]}
    del summary["val/tv_target"], summary["versions"]
    own = ("pooled", "worst_shift", "period", "outputs", "spread", "std", "seconds", "ratio", "eqt", "eqt_frac", "eqr")
    own += ("edge", "_4", "_8", "_16", "kid", "kid_error", "patches")
    columns = [each for key, each in metrics().items() if "fractional" in key or not key.endswith(own)]
    said = missing_of(Run("off", run.folder, summary, {}), columns)
    assert said[0] == "corruptions: not measured, x"
    assert said[1:] == [
        "Switched off: shift PSNR fractional; shift PSNR fractional pooled; shift PSNR fractional at worst shift; "
        "feature distance; noise floor; corruption error / baseline; FID; LPIPS; perceptual distance; shift map",
        "For classifiers only: error rate under corruption; consistency, crop; consistency, circular; accuracy",
        "Not measured without targets: L1; PSNR; SSIM; TV of targets; spectrum error; sliced Wasserstein",
        "Not measured: shift PSNR per shift and per image; quality per image",
        "summary.json has no versions",
    ]
    with_targets = Run("off", run.folder, summary | {"val/tv_target": 0.1}, {})
    assert "Not measured: L1; shift PSNR per shift and per image; quality per image" in missing_of(
        with_targets, [metrics()["val/l1"]]
    )
    trained = {"config": {"trainer": {}, "callbacks": {"stability": {"protocols": ["crop"]}}}, "val/shift_psnr_crop": 1}
    asked = [metrics()[key] for key in ("val/shift_psnr", "val/noise_floor", "val/l1")]
    assert missing_of(Run("trained", tmp_path, trained, {"shift_psnr": {"crop": 1}}), asked)[:3] == [
        "Switched off: shift PSNR circular",
        "Not measured in training, but by genstab measure: noise floor; feature distance; PSNR under corruption; "
        "quality per image",
        "Not measured: L1; shift map",
    ]
