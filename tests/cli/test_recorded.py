"""Secrets that a config takes from the environment stay there."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from genstab.cli import main as cli
from genstab.cli.recorded import recorded
from tests.cli.test_config import TINY_SYNTHETIC
from tests.helpers.wandb_file import finish

pytestmark = pytest.mark.slow
SECRET = "hunter2-of-nobody"
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
GIVEN = ["+token=${oc.env:TOKEN}", '+url="https://${token}@host/${seed}"']
KEPT = {"token": "${oc.env:TOKEN}", "url": "https://${oc.env:TOKEN}@host/1"}
TRAIN = ["hydra.run.dir=run", "trainer=cpu", *TINY_SYNTHETIC, "callbacks.pictures=null", "data.batch_size=4"]
MEASURE = ["hydra.run.dir=measured", "model.checkpoint=run", "data.val_images=1", "data.size=32", "data.crop_size=32"]
MEASURE += ["map=null", "features=null", "corruptions=null", "protocols=[crop]", "shifts=[[0,1]]", "margin=2"]


def test_no_file_of_a_run_holds_the_value_of_a_variable(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOKEN", SECRET)
    for words in (["train", "logger=wandb", *TRAIN], ["measure", "logger=csv", *MEASURE]):
        monkeypatch.setattr(sys, "argv", ["genstab", *words, *QUIET, *GIVEN])
        cli.main()
    finish()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"summary.json", "last.ckpt", "config.yaml", "report.html", "measurements.json"} <= names
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    for folder in ("run", "measured"):
        config = json.loads(Path(folder, "summary.json").read_text())["config"]
        assert {key: config[key] for key in KEPT} == KEPT
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["config"]["url"] == KEPT["url"]
    # nor do what could not be read, the record of a prediction, the terminal, an error
    (tmp_path / SECRET).mkdir()
    for name in "ab":
        Image.new("RGB", (16, 16)).save(tmp_path / SECRET / f"{name}.png")
    (tmp_path / SECRET / "c.png").write_bytes((tmp_path / SECRET / "a.png").read_bytes()[:60])
    monkeypatch.setenv("CLASS", "torch.nn.Identity")
    folder, network = "{}=${{oc.env:TOKEN}}/", "model._target_=${oc.env:CLASS}"
    options = ["logger=csv", "data=folder", folder.format("data.root"), "on_error=skip", network, *MEASURE[5:]]
    for words in (
        ["measure", "hydra.run.dir=skipping", *QUIET, *options],
        ["predict", network, folder.format("input"), "output=out", "on_error=skip"],
    ):
        monkeypatch.setattr(sys, "argv", ["genstab", *words])
        with suppress(SystemExit):
            cli.main()
    assert json.loads(Path("skipping/summary.json").read_text())["notes"]
    made = [path.read_text("latin-1") for path in tmp_path.rglob("*") if path.suffix in (".json", ".html", ".jsonl")]
    assert [text for text in made if SECRET in text or "nn.Identity" in text] == []
    assert any("cannot read ${oc.env:TOKEN}/c.png" in text for text in made)
    monkeypatch.setattr(sys, "argv", ["genstab", "train", *QUIET, "data=paired", 'data.root="/x/${oc.env:TOKEN}"'])
    with pytest.raises(SystemExit, match=r"data\.root=/x/\$\{oc\.env:TOKEN\} does not exist"):
        cli.main()
    assert SECRET not in "".join(capsys.readouterr())


def test_what_is_recorded_means_the_same(monkeypatch):
    OmegaConf.register_new_resolver("twice", lambda number: 2 * int(number), replace=True)
    config = OmegaConf.create(
        {
            "a": '${oc.env:NOBODY,"it\'s, a: b"}',
            "b": ["${a}", {"c": "${..2.d}"}, {"d": 3}],
            "e": "${oc.env:NOBODY,null}",
            "f": "${twice:${oc.env:COUNT}}",
            "g": "${b.1}",
            "h": "???",
        }
    )
    monkeypatch.setenv("COUNT", "21")
    again = OmegaConf.create(recorded(config))
    assert recorded(again) == recorded(config)
    assert (again.a, again.b[0], again.e, again.f, again.g.c) == ("it's, a: b", "it's, a: b", None, 42, 3)
    assert recorded(config)["f"] == "${twice:${oc.env:COUNT}}"
