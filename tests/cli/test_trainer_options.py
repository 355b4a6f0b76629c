"""Arguments of Lightning's Trainer are set like any other key, and do what they say."""

import csv
import json
import logging
import sys
from pathlib import Path

import pytest
from torch.utils.data import SequentialSampler

from genstab.cli import main as cli
from genstab.cli.arguments import to_overrides
from genstab.cli.check_config import REFUSED
from genstab.cli.signatures import signature_of
from genstab.data.sampler import EpochSampler, ResumableLoader
from tests.cli.test_config import TINY_SYNTHETIC

pytestmark = pytest.mark.slow
FOUR_BATCHES = [
    "train", "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.run.dir=run", "logger=csv", "trainer=cpu",
    *TINY_SYNTHETIC, "data.batch_size=1", "callbacks.pictures=null",
]  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """Train with options; return the summary and how often the validation was logged."""

    def train(*options):
        monkeypatch.setattr(sys, "argv", ["genstab", *FOUR_BATCHES, *options])
        cli.main()
        rows, run = [], next((each[14:] for each in options if each.startswith("hydra.run.dir=")), "run")
        if (table := Path(run, "csv/metrics.csv")).is_file():
            rows = list(csv.DictReader(table.read_text().splitlines()))
        return json.loads(Path(run, "summary.json").read_text()), sum(bool(row.get("val/l1")) for row in rows)

    return train


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_every_argument_is_a_key(plus):
    for key in signature_of("pytorch_lightning.Trainer").types:
        assert to_overrides([f"{plus}trainer.{key}=1"]) == [f"++trainer.{key}=1"]
    for word in ("~trainer.max_steps", "trainer=cpu", "logger.max_steps=1"):
        assert to_overrides([word]) == [word]


def test_limits_and_helpers_together(trained, caplog):
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        found, validations = trained(
            "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.min_epochs=1",
            "trainer.max_time={minutes: 5}", "trainer.detect_anomaly=true", "trainer.benchmark=false",
            "trainer.profiler=simple", "trainer.enable_progress_bar=false", "trainer.num_sanity_val_steps=0",
            "trainer.enable_model_summary=true", "trainer.reload_dataloaders_every_n_epochs=0",
        )  # fmt: skip
    assert (found["steps"], validations) == (2, 1)
    assert "FIT Profiler Report" in caplog.text


@pytest.mark.parametrize(
    ("options", "steps", "validations"),
    [
        (["trainer.val_check_interval=2", "+trainer.enable_checkpointing=true"], 4, 2),
        (["trainer.limit_val_batches=0"], 4, 0),
        (["trainer.max_time={microseconds: 1}"], 1, 1),
        (["trainer.fast_dev_run=true"], 1, 0),  # without loggers
        (["callbacks.best=null", "callbacks.last=null", "trainer.enable_checkpointing=false"], 4, 1),
    ],
)
def test_one_by_one(trained, options, steps, validations):
    found, logged = trained(*options)
    assert (found["steps"], logged) == (steps, validations)
    assert ("val/l1" in found) == (bool(validations) or "trainer.fast_dev_run=true" in options)


def test_overfitting_sees_the_same_batches_in_every_epoch(trained):
    found, validations = trained("trainer.overfit_batches=2", "trainer.max_epochs=2")
    assert (found["steps"], validations) == (4, 2)
    # half of four training batches; Lightning would refuse half of a single validation batch
    found, validations = trained("trainer.overfit_batches=0.5", "trainer.max_epochs=1", "hydra.run.dir=half")
    assert (found["steps"], validations) == (2, 1)
    order = EpochSampler(range(7), batch_size=2)
    again = ResumableLoader(range(7), order, sampler=SequentialSampler(range(7)))  # as Lightning makes it again
    for epoch in range(2):
        order.set_epoch(epoch)
        assert [batch.tolist() for batch in again] == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize("key", REFUSED)
def test_what_does_not_work_is_one_line_of_ours(trained, key):
    value = {"logger": "false", "callbacks": "[]", "barebones": "true"}.get(key, "2")
    with pytest.raises(SystemExit) as end:
        trained(f"trainer.{key}={value}")
    assert end.value.code == f"genstab: trainer.{key}={value} does not work: {REFUSED[key][1]}"
    assert not Path("run/checkpoints").exists()


def test_checkpoints_are_left_out_by_two_groups(trained):
    with pytest.raises(SystemExit, match=r"^genstab: .*also needs callbacks\.best=null callbacks\.last=null$"):
        trained("trainer.enable_checkpointing=false")
