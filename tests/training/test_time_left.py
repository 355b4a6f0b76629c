"""The time that is left, against a clock whose ticks are known."""

import time

import pytest
from pytorch_lightning import Trainer

from genstab import InputError
from genstab.training.callbacks.time_left import TimeEstimate
from tests.conftest import pairs_loader, tiny_pix2pix
from tests.training.test_pix2pix import QUIET


@pytest.mark.parametrize(
    ("max_steps", "line"),
    # the clock is read after batches 1 and 4, once each: 30 s for three batches
    [(100, "96 batches to go at 10 s each: about 0:16:00 plus validations\n"), (4, ""), (-1, "")],
)
def test_the_time_that_is_left(monkeypatch, capsys, max_steps, line):
    readings = iter([100.0, 130.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings, 0.0))
    trainer = Trainer(max_steps=max_steps, max_epochs=-1, limit_train_batches=6, **QUIET)
    estimate = TimeEstimate(after=3)
    trainer.callbacks.append(estimate)
    model = tiny_pix2pix()
    model.on_train_batch_end = lambda *args: setattr(trainer, "should_stop", estimate.seen > 4)
    trainer.fit(model, pairs_loader(12, 2))
    assert capsys.readouterr().out == line


def test_the_number_of_batches_is_checked():
    with pytest.raises(InputError, match="after=0 is not an integer of at least 1"):
        TimeEstimate(after=0)
