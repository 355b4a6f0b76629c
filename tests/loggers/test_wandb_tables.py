"""Tables for W&B, from measurements made up by hand and read back from an offline run."""

import json

import pytest
from pytorch_lightning.loggers import CSVLogger

from genstab.loggers import wandb_tables
from genstab.loggers.wandb import STEP, wandb_logger
from genstab.loggers.wandb_tables import log_tables, tables
from tests.helpers.run_folder import measurements
from tests.helpers.wandb_file import finish, read_history, run_file

MEASURED = {
    "shift_psnr": {
        "circular": {
            "shifts": [[0, 1], [2, 0]],
            "images": ["a", "b", "a"],
            "decibels": [[20.0, 30.0, 40.0], [10.0, None, 20.0]],
            "pooled": [24.0, 12.0],
        },
        "fractional": {"shifts": [[0.5, 0.25]], "images": ["b", "c"], "decibels": [[None, None]]},
    },
    "quality": {"images": ["a", "c"], "l1": [0.1, 0.3], "psnr": [10.0, None], "ssim": [], "tv": [0.5, 0.6]},
}


def rows(key, measurements):
    return tables(measurements)[key][1]


def test_rows_per_shift():
    assert rows("per_shift", MEASURED) == [
        ["circular", "[0, 1]", 0, 1, 30.0, 20.0, 24.0],
        ["circular", "[2, 0]", 2, 0, 15.0, 10.0, 12.0],
        ["fractional", "[0.5, 0.25]", 0.5, 0.25, None, None, None],
    ]


def test_rows_per_image_join_what_was_measured_and_keep_images_of_one_name_apart():
    columns, table = tables(MEASURED)["per_image"]
    named = [dict(zip(columns, row, strict=True)) for row in table]
    assert [{key: value for key, value in row.items() if value is not None} for row in named] == [
        {"image": "a", "circular dB": 15.0, "l1": 0.1, "psnr": 10.0, "tv": 0.5},
        {"image": "b", "circular dB": 30.0},
        {"image": "a (2)", "circular dB": 30.0},
        {"image": "c", "l1": 0.3, "tv": 0.6},
    ]


def test_rows_of_corruptions_and_features():
    measured = measurements(seed=3)
    assert len(rows("corruptions", measured)) == 2 * 5
    assert len(rows("features", measured)) == 3 * 24
    grid = measured["features"]["layers"]["encoder.1"]
    assert ["encoder.1", 2, -1, grid[4][1]] in rows("features", measured)


@pytest.mark.parametrize("key", ["per_shift", "per_image", "corruptions", "features"])
def test_what_was_not_measured_has_no_rows(key):
    assert rows(key, {}) == rows(key, dict.fromkeys(("shift_psnr", "features", "corruptions"))) == []


def read_tables(path):
    found = {}
    for line in read_history(path):
        for key, value in line.items():
            if isinstance(value, dict) and value.get("_type") == "table-file":
                found[key] = json.loads((path.parent / "files" / value["path"]).read_text()) | {"step": line[STEP]}
    return found


def test_an_offline_run_holds_the_tables(tmp_path):
    measured = measurements(seed=5)
    logger = wandb_logger(tmp_path, mode="offline")
    log_tables(logger, measured, step=7)
    finish()
    found = read_tables(run_file(tmp_path))
    assert set(found) == {"per_shift", "per_image", "corruptions", "features"}
    assert {table["step"] for table in found.values()} == {7}
    for key, (columns, made) in tables(measured).items():
        assert found[key]["columns"] == columns
        for one, other in zip(found[key]["data"], made, strict=True):
            assert one == pytest.approx(other)


def test_a_long_table_is_cut_with_a_warning_and_an_absent_one_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_tables, "MOST_ROWS", 2)
    monkeypatch.setattr("wandb.Table.MAX_ROWS", 2)
    logger = wandb_logger(tmp_path, mode="offline")
    shifts = {"shifts": [[0, 1], [0, 2], [0, 3]], "images": ["a"], "decibels": [[1.0], [2.0], [3.0]]}
    with pytest.warns(UserWarning, match="W&B keeps 2 of the 3 rows of per_shift"):
        log_tables(logger, {"shift_psnr": {"circular": shifts}}, step=0)
    finish()
    found = read_tables(run_file(tmp_path))
    assert len(found["per_shift"]["data"]) == 2
    assert set(found) == {"per_shift", "per_image"}


def test_other_loggers_get_none(tmp_path):
    logger = CSVLogger(tmp_path)
    log_tables(logger, measurements(), step=0)
    assert not any(tmp_path.iterdir())
