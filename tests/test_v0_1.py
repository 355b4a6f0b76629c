"""What version 0.1 left behind goes on: a run, a sweep and a measurement that it made, stored as it wrote them."""

import csv
import json
import tarfile
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from genstab import load_generator
from genstab.cli.jobs import run_measure, run_report
from genstab.cli.main import CONF
from genstab.cli.train import run_train

pytestmark = pytest.mark.slow
STORED = Path(__file__).parent / "v0_1" / "runs.tar.xz"
# `_target_` paths of its configs that name a module.
TARGETS = (
    "genstab.csv_log.WholeCSVLogger", "genstab.data.FacadesData", "genstab.data.PairedData",
    "genstab.data.SyntheticData", "genstab.estimate.TimeEstimate", "genstab.folder.ClassData",
    "genstab.folder.FolderData", "genstab.guards.FiniteGuard", "genstab.last_checkpoint.LastCheckpoint",
    "genstab.loggers.wandb_logger", "genstab.pictures.ShiftPictures", "genstab.shard_data.ShardData",
    "genstab.strategy.NetworksDDP", "genstab.watch.CollapseWatch",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path):
    assert STORED.stat().st_size <= 300_000
    with tarfile.open(STORED) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "v0_1"


def config_of(name, run, folder, *options):
    """Compose a command's config with the overrides that made a run, as its user would type them again."""
    # Version 0.1 wanted a + before the keys of the Trainer that its configs lack.
    overrides = [each.lstrip("+") for each in OmegaConf.load(run / ".hydra" / "overrides.yaml")]
    overrides = [f"++{each}" if each.startswith("trainer.") else each for each in overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [*overrides, f"output_dir={folder}", *options])


@pytest.mark.parametrize("target", TARGETS)
def test_targets_of_its_configs_are_found(target):
    assert callable(get_object(target))


@pytest.mark.parametrize(("run", "epochs", "steps"), [("run", 3, 9), ("sweep/1", 2, 6)])
def test_a_run_goes_on_in_its_own_folder(runs, run, epochs, steps):
    """Callbacks find their state, the metrics keep their keys, and the table of logs grows."""
    folder = runs / run
    before = json.loads((folder / "summary.json").read_text())
    rows = table(folder)
    score = best_score(folder)
    run_train(config_of("train", folder, folder, "ckpt_path=last", f"trainer.max_epochs={epochs}"))
    after = json.loads((folder / "summary.json").read_text())
    assert after["steps"] == steps > before["steps"]
    assert {key for key in before if key.startswith(("val/", "train/"))} <= after.keys()
    grown = table(folder)[: len(rows)]
    assert [{key: now[key] for key in then} for then, now in zip(rows, grown, strict=True)] == rows  # beside new keys
    assert best_score(folder) <= score  # of the monitored L1: the best so far was taken over


def table(folder):
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def best_score(folder):
    states = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if key.startswith("ModelCheckpoint"))
    return state["best_model_score"]


def test_its_checkpoint_measures_as_it_did(runs, tmp_path):
    config = config_of("measure", runs / "measured", tmp_path / "again", f"model.checkpoint={runs / 'run'}")
    run_measure(config)
    before, after = (
        json.loads((folder / "summary.json").read_text()) for folder in (runs / "measured", tmp_path / "again")
    )
    numbers = {key: value for key, value in before.items() if key.startswith("val/")}
    assert numbers == pytest.approx({key: after[key] for key in numbers}, rel=1e-4)
    assert not load_generator(runs / "run/checkpoints/best.ckpt").training


def test_its_runs_are_reported(runs, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run_report(compose("report", [f"runs=[{runs}]", f"output={tmp_path / 'report.html'}"]))
    page = (tmp_path / "report.html").read_text()
    assert all(json.loads(path.read_text())["config"]["run_name"] in page for path in runs.rglob("summary.json"))
