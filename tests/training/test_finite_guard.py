"""Losses and weights that are not finite: the run stops in time, or goes on as if the batch had not been there."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from genstab import InputError, PatchGAN, Pix2Pix, UNet
from genstab.cli import main as cli
from genstab.training.callbacks import finite_guard as guards
from genstab.training.callbacks.finite_guard import FiniteGuard, NotFiniteError
from genstab.training.callbacks.summary import RunSummary
from tests.cli.test_main import PLAIN
from tests.conftest import Pairs, pairs_loader, tiny_pix2pix
from tests.helpers.commands import HELPERS, program
from tests.training.test_pix2pix import QUIET

GUARDED = {**QUIET, "enable_checkpointing": True}


class Broken(Pairs):
    """Pairs of which some have a value that is no number."""

    def __init__(self, length, bad, key="source", value=math.nan):
        super().__init__(length)
        for index in bad:
            getattr(self, key)[index, 0, 3, 4] = value


class Spoil(Callback):
    """From some batch on of some epoch, images have a value that is no number."""

    def __init__(self, epoch, batch):
        self.when = epoch, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.when:
            batch["source"][0] = math.nan


def last(folder):
    return ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("every", [1, 3, 50])
@pytest.mark.parametrize(("key", "loss"), [("source", "loss_d"), ("target", "loss_d")])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_bad_loss_is_named_with_its_step_and_images(tmp_path, every, key, loss, value):
    loader = DataLoader(Broken(12, [5, 9], key, value), 2)
    trainer = Trainer(callbacks=[FiniteGuard(), last(tmp_path)], max_epochs=1, log_every_n_steps=every, **GUARDED)
    with pytest.raises(
        NotFiniteError, match=rf"^{loss} is (nan|inf) at step 2 \(4, 5\): training stopped, there is no"
    ):
        trainer.fit(tiny_pix2pix(), loader)
    assert trainer.global_step == min(6, math.ceil(3 / every) * every)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("batch", [0, 2, 3])
def test_the_last_good_checkpoint_is_kept_and_named(tmp_path, batch):
    model, good = tiny_pix2pix(), {}
    callbacks = [FiniteGuard(), Spoil(2, batch), last(tmp_path)]
    trainer = Trainer(callbacks=callbacks, max_epochs=4, log_every_n_steps=50, **GUARDED)

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            good.update({key: value.clone() for key, value in pl_module.state_dict().items()})

    trainer.callbacks.insert(0, Watch())
    with pytest.raises(NotFiniteError) as error:
        trainer.fit(model, pairs_loader(8, 2), pairs_loader(2, 2))
    assert f"loss_d is nan at step {8 + batch}" in str(error.value)
    assert f"the last good checkpoint is {tmp_path / 'last.ckpt'}" in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    kept = weights(tmp_path / "last.ckpt")
    assert all(torch.equal(kept[key], value) for key, value in good.items())  # of the second epoch
    resumed = Trainer(callbacks=[FiniteGuard(), last(tmp_path)], max_epochs=4, **GUARDED)
    going_on = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    resumed.fit(tiny_pix2pix(), pairs_loader(8, 2), pairs_loader(2, 2), **going_on)
    assert resumed.global_step == 16


def test_weights_that_a_finite_loss_left_broken_are_not_saved(tmp_path):
    class Overflow(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            weight = next(pl_module.generator.parameters())
            if trainer.global_step == 7 and optimizer.param_groups[0]["params"][0] is weight:
                weight.grad.fill_(math.nan)  # in the last batch of the second epoch: no loss will tell

    callbacks = [FiniteGuard(), Overflow(), last(tmp_path)]
    trainer = Trainer(callbacks=callbacks, max_epochs=4, log_every_n_steps=1, **GUARDED)
    with pytest.raises(NotFiniteError, match=r"a weight is not finite at step 7: .* checkpoint is .*last\.ckpt"):
        trainer.fit(tiny_pix2pix(), pairs_loader(8, 2))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    assert all(value.isfinite().all() for value in weights(tmp_path / "last.ckpt").values())


def without_dropout():
    torch.manual_seed(0)
    return Pix2Pix(UNet(1, 3, channels=4, levels=3, dropout=0), PatchGAN(1, 3, channels=4))


@pytest.mark.filterwarnings("ignore:on_nan=skip skips an update:UserWarning")
@pytest.mark.parametrize("key", ["source", "target"])
def test_a_bad_image_in_any_batch_of_an_update_is_found(key):
    def trained(guard, most=6):
        model = tiny_pix2pix(accumulate_grad_batches=2)
        Trainer(callbacks=[guard], max_epochs=1, limit_train_batches=most, **QUIET).fit(
            model, DataLoader(Broken(12, [5], key), 2)
        )
        return model

    with pytest.raises(NotFiniteError, match=r"^loss_d is nan at step 3 \(4, 5, 6, 7\): training stopped"):
        trained(FiniteGuard())
    guard = FiniteGuard("skip")
    skipped, before = trained(guard, 4), trained(FiniteGuard(), 2)
    assert [(each["step"], each["images"]) for each in guard.left_out] == [(3, ["4", "5", "6", "7"])]
    for one, other in zip(skipped.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:on_nan=skip skips an update:UserWarning")
@pytest.mark.parametrize(("key", "value"), [("source", math.nan), ("source", math.inf), ("target", math.nan)])
def test_skip_goes_on_as_if_the_batch_had_not_been_there(key, value):
    model, reference, guard = without_dropout(), without_dropout(), FiniteGuard("skip")
    loader = DataLoader(Broken(8, [3], key, value), 2)
    trainer = Trainer(callbacks=[guard], max_epochs=2, **QUIET)
    seen = {}

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.setdefault("weights", {name: value.clone() for name, value in pl_module.state_dict().items()})

    trainer.callbacks.append(Watch())
    trainer.fit(model, loader)
    adams = reference.adams()
    for index, batch in enumerate(loader):
        if index != 1:
            reference.update(batch, *adams)
    for name, value in reference.state_dict().items():
        assert torch.equal(seen["weights"][name], value), name  # also BatchNorm's statistics
    assert [(each["step"], each["images"]) for each in guard.left_out] == [(1, ["2", "3"]), (5, ["2", "3"])]
    assert trainer.global_step == 8


def test_a_gradient_that_overflows_is_left_out_alone():
    class Overflow(Callback):
        def on_after_backward(self, trainer, pl_module):
            weight = next(pl_module.discriminator.parameters())
            if trainer.global_step == 1 and weight.grad is not None:
                weight.grad[0] = math.inf

    guard, model = FiniteGuard("skip"), tiny_pix2pix()
    trainer = Trainer(callbacks=[Overflow(), guard], max_epochs=1, **QUIET)
    loader = pairs_loader(8, 2)
    with pytest.warns(UserWarning, match=r"skips an update: a gradient is not finite at step 1 \(2, 3\)"):
        trainer.fit(model, loader)
    assert [each["step"] for each in guard.left_out] == [1]
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_without_bad_batches_neither_mode_changes_anything():
    trained = []
    for callbacks in ([], [FiniteGuard("stop")], [FiniteGuard("skip")]):
        model = tiny_pix2pix()
        Trainer(callbacks=callbacks, max_epochs=2, log_every_n_steps=3, **QUIET).fit(model, pairs_loader(8, 2))
        trained.append(model.state_dict())
    for other in trained[1:]:
        assert all(torch.equal(value, other[key]) for key, value in trained[0].items())


@pytest.mark.filterwarnings("ignore:on_nan=skip skips an update")
def test_too_many_left_out_in_a_row_stop(monkeypatch):
    monkeypatch.setattr(guards, "MOST_IN_A_ROW", 3)
    guard = FiniteGuard("skip")
    with pytest.raises(NotFiniteError, match="loss_d is nan, the last of 3 consecutive skipped updates, at step 5"):
        Trainer(callbacks=[guard], max_epochs=2, **QUIET).fit(tiny_pix2pix(), DataLoader(Broken(10, [0, 3, 4, 5]), 1))
    assert [each["step"] for each in guard.left_out] == [0, 3, 4]


@pytest.mark.filterwarnings("ignore:on_nan=skip skips an update")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_what_was_left_out_is_in_the_summary_and_survives_a_checkpoint(tmp_path):
    callbacks = [FiniteGuard("skip"), RunSummary(tmp_path, {}), last(tmp_path / "kept")]
    trainer = Trainer(callbacks=callbacks, max_epochs=1, **GUARDED)
    trainer.fit(tiny_pix2pix(), DataLoader(Broken(6, [2]), 2))
    expected = [{"step": 1, "images": ["2", "3"], "reason": "loss_d is nan"}]
    assert json.loads((tmp_path / "summary.json").read_text())["updates_left_out"] == expected
    again = FiniteGuard("skip")
    trainer = Trainer(callbacks=[again, last(tmp_path / "kept")], max_epochs=2, **GUARDED)
    trainer.fit(tiny_pix2pix(), pairs_loader(6, 2), ckpt_path=tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert again.left_out == expected


class Foreign(LightningModule):
    """Somebody's module: automatic optimization, a batch without names, no statistics."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_any_module_that_returns_its_loss(tmp_path, on_nan):
    data = torch.rand(4, 2)
    guard, model = FiniteGuard(on_nan), Foreign()
    trainer = Trainer(callbacks=[guard, last(tmp_path)], max_epochs=1, log_every_n_steps=1, **GUARDED)
    trainer.fit(model, DataLoader(torch.utils.data.TensorDataset(data), 1))
    assert (tmp_path / "last.ckpt").is_file()  # a mask of −∞ is no weight
    data[2] = math.nan
    trainer = Trainer(callbacks=[guard], max_epochs=1, log_every_n_steps=1, **QUIET)
    loader = DataLoader(torch.utils.data.TensorDataset(data), 1)
    if on_nan == "stop":
        with pytest.raises(NotFiniteError, match=r"^loss is nan at step 2: training stopped"):
            trainer.fit(model, loader)
    else:
        with pytest.warns(UserWarning, match="loss is nan at step 2$"):
            trainer.fit(model, loader)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("every", "looks"), [(1, 9), (4, 3), (50, 1)])
def test_stop_looks_at_the_losses_only_so_often(monkeypatch, every, looks):
    calls, look = [], guards._first_bad
    monkeypatch.setattr(guards, "_first_bad", lambda recent: calls.append(len(recent)) or look(recent))
    trainer = Trainer(callbacks=[FiniteGuard()], max_epochs=1, log_every_n_steps=every, **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(9, 1))
    assert len(calls) == looks
    assert sum(calls) == 9  # and misses none


def test_a_diverged_run_ends_with_one_line(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["genstab", "train", *PLAIN, "model.lr=1e36", "trainer.max_epochs=20", "data=synthetic"]
    )
    with pytest.raises(
        SystemExit, match=r"^genstab: (loss|a weight).* is .* at step \d+.*training stopped, .*model\.lr"
    ) as error:
        cli.main()
    assert "\n" not in str(error.value)
    for path in Path("run").rglob("*.ckpt"):
        assert all(value.isfinite().all() for value in weights(path).values())


def test_the_option_reaches_the_guard(monkeypatch):
    with pytest.raises(InputError, match="on_nan='go' is not one of stop, skip"):
        FiniteGuard("go")
    monkeypatch.setattr(sys, "argv", ["genstab", "train", *PLAIN, "on_nan=go"])
    with pytest.raises(SystemExit, match="on_nan='go' is not one of stop, skip"):
        cli.main()


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_two_processes_decide_alike(tmp_path, on_nan):
    program(HELPERS / "guard_on_two.py", on_nan, tmp_path / "out")
    one, two = (json.loads(Path(f"{tmp_path}/out.{rank}").read_text()) for rank in (0, 1))
    assert one == two
    if on_nan == "stop":
        assert one["said"].startswith("loss_d is nan at step 2 (5.png): training stopped")
        assert one["steps"] == 4
    else:
        assert [(each["step"], each["images"]) for each in one["left_out"]] == [(2, ["5.png"])]
        assert math.isfinite(one["weights"])
        assert one["steps"] == 8
