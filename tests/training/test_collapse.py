"""Signs of collapse: each is said once, with its number, and a training run that is well hears nothing."""

import itertools
import json
import math
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from genstab import InputError
from genstab.cli import main as cli
from genstab.metrics.output_spread import OutputSpread
from genstab.training.callbacks.collapse import CollapseWatch
from genstab.training.callbacks.summary import RunSummary
from genstab.training.losses import CHANCE, GAN_LOSSES, adversarial_loss
from tests.cli.test_main import PLAIN
from tests.conftest import Pairs, pairs_loader, tiny_pix2pix
from tests.training.test_pix2pix import QUIET
from tests.training.test_shift_stability import stability


@pytest.mark.parametrize("kind", GAN_LOSSES)
@pytest.mark.parametrize("answer", [-3.0, 0.0, 0.5, 2.0])
def test_no_constant_answer_has_less_than_chance(kind, answer):
    logits = torch.full((2, 1, 3, 3), answer)
    loss = (adversarial_loss(logits, True, kind) + adversarial_loss(logits, False, kind)).item() / 2
    assert loss >= CHANCE[kind] - 1e-6
    best = {"bce": 0.0, "lsgan": 0.5}[kind]
    assert (loss == pytest.approx(CHANCE[kind], abs=1e-6)) == (answer == best)


def watched(losses, kind="bce", window=6, every=2):
    """Show a watch the discriminator's losses of a training run."""
    watch, trainer = CollapseWatch(window), SimpleNamespace(log_every_n_steps=every)
    for loss in losses:
        watch.on_train_batch_end(trainer, SimpleNamespace(gan_loss=kind), {"loss_d": torch.tensor(loss)}, None, 0)
    return watch


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_a_discriminator_that_is_never_wrong_is_said_once_with_the_number(kind):
    low = 0.009 * CHANCE[kind]
    with pytest.warns(
        UserWarning, match="the discriminator is never wrong: .* over 6 batches, 0.9 % of guessing"
    ) as said:
        watch = watched([0.8 * CHANCE[kind]] * 2 + [low] * 20, kind)
    assert len(said) == 1
    assert list(watch.said) == ["wins"]
    assert f"a mean of {low:.2g} over" in watch.said["wins"]


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_a_discriminator_that_guesses_is_said_once_with_the_number(kind):
    with pytest.warns(UserWarning, match="no better than chance: .* over 6 batches, 100 % of guessing") as said:
        watched([CHANCE[kind]] * 20, kind)
    assert len(said) == 1


@pytest.mark.parametrize(
    "losses",
    [
        [0.5] * 30,
        [0.011 * math.log(2)] * 30,
        [0.98 * math.log(2)] * 30,
        [0.9] * 5 + [0.5] * 30,  # a start
        [0.5, 0.5, 0.5, 0.001, 0.001, 0.001] * 5,  # some batches alone
        [0.0] * 5,  # too few
        [],
        [math.nan] * 30,
    ],
)
def test_a_discriminator_that_works_hears_nothing(losses):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert watched(losses).said == {}


class Fixed(torch.nn.Module):
    """Answers the same to everything; its only weight changes nothing."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.weight = answer, torch.nn.Parameter(torch.zeros(()))

    def forward(self, source, image):
        return image[:, :1] * 0 + self.answer + 0 * self.weight


def test_a_discriminator_that_cannot_learn_is_found_in_training():
    model, watch = tiny_pix2pix(), CollapseWatch(10)
    model.discriminator = Fixed(0.0)
    with pytest.warns(UserWarning, match="no better than chance: its loss has a mean of 0.69 over 10 batches, 100 %"):
        Trainer(callbacks=[watch], max_epochs=5, log_every_n_steps=5, **QUIET).fit(model, pairs_loader(8, 2))
    assert list(watch.said) == ["guesses"]


@pytest.mark.filterwarnings("ignore:the discriminator is never wrong")
@pytest.mark.parametrize("stopped", [2, 7, 15])
def test_it_goes_on_where_it_stopped(stopped):
    losses = [0.8 * CHANCE["bce"]] * 3 + [0.009 * CHANCE["bce"]] * 17
    whole, first, second = watched(losses, every=1), watched(losses[:stopped]), watched([])
    second.load_state_dict(first.state_dict())
    for loss in losses[stopped:]:
        outputs = {"loss_d": torch.tensor(loss)}
        second.on_train_batch_end(SimpleNamespace(log_every_n_steps=1), SimpleNamespace(), outputs, None, 0)
    assert list(second.said) == ["wins"]
    assert second.state_dict() == whole.state_dict()


def test_losses_are_looked_at_now_and_then(monkeypatch):
    looks, stack = [], torch.stack
    monkeypatch.setattr(
        "genstab.training.callbacks.collapse.torch.stack", lambda losses: looks.append(len(losses)) or stack(losses)
    )
    watched([0.5] * 25, every=10)
    assert looks == [10, 10]


def brute_force(images):
    pairs = list(itertools.combinations(images.double(), 2))
    spread = math.sqrt(sum((a - b).square().mean().item() for a, b in pairs) / len(pairs)) / 2
    return spread, sum(image.double().std(correction=0).item() for image in images) / len(images) / 2


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_spread_is_the_root_mean_square_distance_of_all_pairs(batch_size):
    images = torch.rand(5, 3, 4, 6) * 2 - 1
    spread = OutputSpread()
    for batch in images.split(batch_size):
        spread.add(batch)
    assert spread.compute() == pytest.approx((*brute_force(images), 0), abs=1e-12)


def test_spread_of_few_and_of_several_shapes():
    assert OutputSpread().compute() == (None, None, None)
    spread = OutputSpread()
    spread.add(torch.zeros(0, 3, 4, 4))
    assert spread.compute() == (None, None, None)
    spread.add(torch.tensor([[[[-1.0, 1.0]]]]))
    assert spread.compute() == (None, 0.5, 0)
    many = torch.rand(3, 1, 2, 2)
    spread.add(many)
    assert spread.compute()[0] == pytest.approx(brute_force(many)[0], abs=1e-12)
    same = OutputSpread()
    same.add(torch.full((4, 1, 8, 8), 0.3))
    assert same.compute() == pytest.approx((0, 0, 1), abs=1e-7)


class Constant(torch.nn.Module):
    """Draws one picture; its only weight changes nothing."""

    def __init__(self, picture):
        super().__init__()
        self.picture, self.weight = picture, torch.nn.Parameter(torch.zeros(()))

    def forward(self, source):
        return self.picture.expand(len(source), 3, *source.shape[-2:]) + 0 * self.weight


def constant_pix2pix(picture):
    model = tiny_pix2pix()
    model.generator = Constant(picture)
    return model


@pytest.mark.parametrize(("window", "validations", "count"), [(1, 2, 0), (1, 3, 1), (1, 5, 1), (6, 4, 0), (6, 5, 1)])
def test_a_constant_generator_is_said_once_after_three_validations(tmp_path, window, validations, count):
    watch = CollapseWatch(window)
    trainer = Trainer(callbacks=[watch, RunSummary(tmp_path, {})], max_epochs=validations, **QUIET)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(constant_pix2pix(torch.linspace(-1, 1, 32)), pairs_loader(4, 2), pairs_loader(3, 2))
    texts = [str(each.message) for each in said if "the generator ignores its input" in str(each.message)]
    assert len(texts) == count
    kept = json.loads((tmp_path / "summary.json").read_text())["warnings"]
    assert kept == texts
    if count:
        target = 100 * brute_force(Pairs(3).target)[0]
        assert f"differ by 0 % of the value range, their targets by {target:.2g} %" in texts[0]


def test_a_constant_generator_whose_targets_are_alike_is_right():
    pairs = Pairs(3)
    pairs.target = pairs.target[:1].expand(3, -1, -1, -1)
    watch = CollapseWatch(1)
    loader = DataLoader(pairs, 2)
    Trainer(callbacks=[watch], max_epochs=4, **QUIET).fit(constant_pix2pix(torch.zeros(32)), loader, loader)
    assert watch.said == {}


def test_a_shift_psnr_at_the_cap_of_a_constant_output_is_flagged(tmp_path, capsys):
    callbacks = [stability(), CollapseWatch(), RunSummary(tmp_path, {})]
    trainer = Trainer(callbacks=callbacks, max_epochs=1, **QUIET)
    trainer.fit(constant_pix2pix(torch.tensor(0.25)), pairs_loader(4, 2), pairs_loader(3, 2))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["val/shift_psnr"] == 100
    assert summary["val/output_spread"] == pytest.approx(0, abs=1e-7)
    assert summary["val/output_std"] == pytest.approx(0, abs=1e-7)
    flat, stability_of_it = summary["verdict"]
    assert flat.startswith("Produces nearly the same image for every input")
    assert stability_of_it == "No evidence of stability: constant outputs always reach 100.0 dB, the cap."
    assert stability_of_it in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_what_is_logged_depends_on_no_batch_size(batch_size):
    model = tiny_pix2pix()
    trainer = Trainer(callbacks=[CollapseWatch()], **QUIET)
    trainer.validate(model, pairs_loader(5, batch_size), verbose=False)
    with torch.no_grad():
        outputs = model.eval()(Pairs(5).source)
    expected = brute_force(outputs)
    found = [trainer.callback_metrics[f"val/output_{key}"].item() for key in ("spread", "std")]
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_an_ordinary_run_is_not_warned_of_and_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["genstab", "train", *PLAIN, "trainer.max_epochs=5"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cli.main()
    assert not [each for each in said if "generator" in str(each.message) or "discriminator" in str(each.message)]
    summary = json.loads(Path("run/summary.json").read_text())
    assert (summary["warnings"], summary["updates_left_out"], summary["skipped"]) == ([], [], [])
    assert summary["val/output_spread"] > 0


def test_bad_options_are_named():
    with pytest.raises(InputError, match="window=0 is not an integer of at least 1"):
        CollapseWatch(0)
