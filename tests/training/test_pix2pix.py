import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader

from genstab import AntiAlias, InputError, PatchGAN, Pix2Pix, SlicedWasserstein, UNet, load_generator, shift_psnr
from genstab.data.datamodules import SyntheticData
from genstab.data.overlapping_crops import overlapping_crops
from genstab.training.gradients import gradient_norm
from genstab.training.losses import adversarial_loss
from tests.conftest import Pairs, pairs_loader, tiny_pix2pix

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def test_one_step_is_the_papers_update():
    model = tiny_pix2pix()
    generator, discriminator = copy.deepcopy(model.generator), copy.deepcopy(model.discriminator)
    loader = pairs_loader(4, 4)
    batch = next(iter(loader))
    Trainer(max_epochs=2, limit_train_batches=1, max_steps=1, **QUIET).fit(model, loader)

    # the same by hand: two plain Adams, discriminator first, the generator against the updated discriminator
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    optimizer_d = torch.optim.Adam(discriminator.parameters(), **adam)
    optimizer_g = torch.optim.Adam(generator.parameters(), **adam)
    output = generator(batch["source"])
    on_output = adversarial_loss(discriminator(batch["source"], output.detach()), False)
    on_target = adversarial_loss(discriminator(batch["source"], batch["target"]), True)
    ((on_output + on_target) / 2).backward()
    optimizer_d.step()
    gan = adversarial_loss(discriminator(batch["source"], output), True)
    (gan + 100 * (output - batch["target"]).abs().mean()).backward()
    optimizer_g.step()

    for trained, expected in ((model.generator, generator), (model.discriminator, discriminator)):
        for (name, a), b in zip(trained.named_parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6, msg=name)


def test_an_update_without_a_trainer_is_the_same_step():
    trained, bare = tiny_pix2pix(), tiny_pix2pix()
    loader = pairs_loader(4, 4)
    torch.manual_seed(1)  # dropout
    Trainer(max_epochs=2, limit_train_batches=1, max_steps=1, **QUIET).fit(trained, loader)
    torch.manual_seed(1)
    losses = bare.update(next(iter(loader)), *bare.adams())
    assert set(losses) == {"loss_d", "loss_g", "loss_g_gan", "loss_g_l1"}
    for key, loss in losses.items():
        torch.testing.assert_close(trained.trainer.callback_metrics[f"train/{key}"], loss)
    for a, b in zip(trained.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


CLIPS = [{}, {"gradient_clip_val": 0.05}, {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}]


def exact_pix2pix(**options):
    """No batch norm, no dropout, so that a loss of several images is a mean of theirs."""
    torch.manual_seed(0)
    generator = UNet(1, 3, channels=4, levels=3, norm="instance", dropout=0.0, antialias=AntiAlias("tri3"))
    return Pix2Pix(generator, PatchGAN(1, 3, channels=4, norm="instance"), **options)


@pytest.mark.parametrize("clip", CLIPS)
def test_batches_that_are_accumulated_make_the_step_of_one(tmp_path, clip):
    trained, rows = [], []
    for count, batch_size in ((3, 2), (1, 6)):  # of 15 images, in the last step 3
        model = exact_pix2pix(accumulate_grad_batches=count, **clip)
        logger = CSVLogger(tmp_path, name="", version=str(count))
        trainer = Trainer(precision="64-true", max_epochs=2, log_every_n_steps=1, **{**QUIET, "logger": logger})
        trainer.fit(model, pairs_loader(15, batch_size), pairs_loader(2, 2))
        assert trainer.global_step == 6
        assert trainer.accumulate_grad_batches == 1  # afterwards
        trained.append(list(model.parameters()))
        header, *lines = (tmp_path / str(count) / "metrics.csv").read_text().splitlines()
        rows.append([dict(zip(header.split(","), line.split(","), strict=True)) for line in lines])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for one, other in zip(*rows, strict=True):
        found, expected = ({key: float(value) for key, value in row.items() if value} for row in (one, other))
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("clip", CLIPS[1:])
def test_clipping_is_that_of_a_loop_by_hand(clip):
    model, batch = exact_pix2pix(**clip).double(), next(iter(pairs_loader(4, 4)))
    batch = {key: batch[key].double() for key in ("source", "target")}
    generator, discriminator = copy.deepcopy(model.generator), copy.deepcopy(model.discriminator)
    model.update(batch, *model.adams())

    def step(network, loss):
        loss.backward()
        before = torch.cat([each.grad.flatten() for each in network.parameters()])
        if "gradient_clip_algorithm" in clip:
            torch.nn.utils.clip_grad_value_(network.parameters(), clip["gradient_clip_val"])
        else:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip["gradient_clip_val"])
        assert not before.equal(torch.cat([each.grad.flatten() for each in network.parameters()]))
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)).step()

    output = generator(batch["source"])
    losses = [
        adversarial_loss(discriminator(batch["source"], image), real)
        for image, real in ((output.detach(), False), (batch["target"], True))
    ]
    step(discriminator, sum(losses) / 2)
    gan = adversarial_loss(discriminator(batch["source"], output), True)
    step(generator, gan + 100 * (output - batch["target"]).abs().mean())
    for trained, expected in ((model.generator, generator), (model.discriminator, discriminator)):
        for one, other in zip(trained.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_the_scale_of_mixed_precision_is_taken_out_before_the_clip():
    for precision in ("16-mixed", "bf16-mixed"):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if precision == "16-mixed" else None
        model = exact_pix2pix(gradient_clip_val=0.01, accumulate_grad_batches=2)
        trainer = Trainer(max_steps=1, plugins=[MixedPrecision(precision, "cpu", scaler)], **QUIET)
        trainer.fit(model, pairs_loader(4, 2))
        assert trainer.global_step == 1
        for network in (model.generator, model.discriminator):
            assert gradient_norm(network.parameters()).item() == pytest.approx(0.01, rel=1e-3)


def test_an_accumulated_batch_is_seen_twice_with_the_same_dropout_and_counts_once():
    model, outputs = tiny_pix2pix(), []
    for module in model.generator.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5  # a U-Net has some from six levels on
    model.generator.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    batches = [{"source": torch.rand(2, 1, 32, 32), "target": torch.rand(2, 3, 32, 32)} for _ in range(3)]
    torch.manual_seed(1)
    model.update(batches, *model.adams())
    after = torch.rand(())
    first, second, third, second_again, first_again = outputs
    assert first.equal(first_again)
    assert second.equal(second_again)
    assert not first.requires_grad
    assert third.requires_grad
    assert {int(value) for name, value in model.generator.named_buffers() if "num_batches" in name} == {3}
    torch.manual_seed(1)
    for batch in batches:
        model.generator(batch["source"])
    assert torch.rand(()) == after


def test_an_update_leaves_frozen_what_was_frozen_and_keeps_the_gradients_apart():
    model = tiny_pix2pix()
    frozen = next(model.generator.parameters()).requires_grad_(False)
    before = frozen.clone()
    batch = next(iter(pairs_loader(2, 2)))
    calls = []

    def backward(loss):
        loss.backward()
        calls.append([parameter.grad.clone() for parameter in model.discriminator.parameters()])

    model.update(batch, *model.adams(), backward)
    assert torch.equal(frozen, before)
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    for a, b in zip(*calls, strict=True):  # the generator's loss adds nothing to the discriminator's gradients
        assert torch.equal(a, b)


class Watch(Callback):
    def __init__(self):
        self.forwards, self.rates, self.steps = 0, [], []

    def on_train_start(self, trainer, pl_module):
        pl_module.generator.register_forward_hook(lambda *_: setattr(self, "forwards", self.forwards + 1))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])
        self.steps.append(trainer.global_step)


def test_steps_count_batches_the_rate_decays_and_one_forward_serves_both():
    watch = Watch()
    trainer = Trainer(max_epochs=4, callbacks=[watch], **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(8, 4))
    assert watch.steps == list(range(8))
    assert trainer.global_step == 8
    assert watch.forwards == 8
    expected = [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]  # step 4 of 8 is the middle
    for rates, factor in zip(watch.rates, expected, strict=True):
        assert rates == pytest.approx([2e-4 * factor] * 2)


def test_max_steps_is_in_batches():
    trainer = Trainer(max_steps=3, **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(8, 1))
    assert trainer.fit_loop.epoch_loop.total_batch_idx == 2


def test_it_learns():
    model, pairs = tiny_pix2pix(lr=5e-3), Pairs(4)
    pairs.target = torch.tensor([0.6, -0.6]).repeat_interleave(16).expand(4, 3, 32, 32)  # two halves
    loader = DataLoader(pairs, 4)
    trainer = Trainer(max_steps=60, **QUIET)
    trainer.fit(model, loader)
    assert trainer.callback_metrics["train/loss_g_l1"] < 0.2  # an untrained generator gives zeros: 0.6


def test_every_log_key_on_one_axis_of_batches(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = Trainer(max_epochs=2, log_every_n_steps=1, **{**QUIET, "logger": logger})
    trainer.fit(tiny_pix2pix(), pairs_loader(6, 2), pairs_loader(3, 2))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    keys = {f"train/{key}" for key in ("loss_d", "loss_g", "loss_g_gan", "loss_g_l1")}
    keys |= {f"val/{key}" for key in ("l1", "psnr", "ssim", "tv", "tv_target", "spectrum_error", "swd")}
    header = lines[0].split(",")
    assert keys <= set(header)
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    assert [int(row["step"]) for row in rows if row["train/loss_g"]] == [0, 1, 2, 3, 4, 5]
    assert [int(row["step"]) for row in rows if row["val/l1"]] == [2, 5]  # the last batch before it
    for row in rows:
        if row["train/loss_g"]:
            total = float(row["train/loss_g_gan"]) + 100 * float(row["train/loss_g_l1"])
            assert float(row["train/loss_g"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_validation_is_the_mean_over_images_at_any_batch_size(batch_size):
    model = tiny_pix2pix()
    trainer = Trainer(**QUIET)
    trainer.validate(model, pairs_loader(5, batch_size), verbose=False)
    model.eval()
    pairs = Pairs(5)
    with torch.no_grad():
        expected = [(model(s[None]) - t[None]).abs().mean() for s, t in zip(pairs.source, pairs.target, strict=True)]
    assert trainer.callback_metrics["val/l1"].item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)


def test_metrics_are_summed_and_computed_in_float32_whatever_the_precision():
    pairs, found = Pairs(60, size=8), {}
    pairs.target = pairs.target.mul(8).round().div(8)  # what every type can hold
    for precision in ("32-true", "bf16-true", "16-true", "bf16-mixed"):
        trainer = Trainer(precision=precision, **QUIET)
        trainer.validate(tiny_pix2pix(), DataLoader(pairs, 4), verbose=False)
        found[precision] = {key: value.item() for key, value in trainer.callback_metrics.items()}
    squares = pairs.target.square().mean((1, 2, 3))
    for metrics in found.values():  # an untrained generator gives almost zeros
        assert metrics["val/l1"] == pytest.approx(pairs.target.abs().mean().item(), abs=1e-4)
        assert metrics["val/psnr"] == pytest.approx((10 * (4 / squares).log10()).mean().item(), abs=1e-3)
        assert metrics == pytest.approx(found["32-true"], rel=2e-3, abs=1e-4)


def small_pix2pix(**options):
    torch.manual_seed(0)
    generator = UNet(channels=4, levels=3, dropout=0.0, antialias="tri3")
    return Pix2Pix(generator, PatchGAN(channels=4), **options)


def test_the_equivariance_loss_is_the_difference_between_crops_and_moves_the_generator():
    model = small_pix2pix(equivariance_weight=10.0)
    whole = torch.rand(4, 3, 36, 36) * 2 - 1
    batch = overlapping_crops(whole, whole, offset=4)._asdict()
    output = model(batch["source"])
    dy, dx = batch["shift"]
    expected = [
        (output[0, :, y, x] - output[1, :, y + dy, x + dx]).abs().mean()
        for y, x in itertools.product(range(32), range(32))
        if all(8 + max(0, -by) <= at < 24 - max(0, by) for at, by in ((y, dy), (x, dx)))
    ]
    # as on one of two processes, which has the only pair of crops and so twice the weight of pairs
    losses = model.update({**batch, "pairs": 1, "weights": (1.0, 2.0)}, *model.adams())
    assert losses["loss_g_shift"].item() == pytest.approx(2 * torch.stack(expected).mean().item(), rel=1e-4)
    total = losses["loss_g_gan"] + 100 * losses["loss_g_l1"] + 10 * losses["loss_g_shift"]
    assert losses["loss_g"].item() == pytest.approx(total.item(), rel=1e-5)
    with pytest.raises(InputError, match=r"equivariance_weight needs overlapping crops: set data\.overlap_offset"):
        model.update({"source": whole, "target": whole}, *model.adams())


def test_the_detail_loss_is_added_with_its_weight():
    model = small_pix2pix(detail_weight=3.0)
    source, target = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    output = model(source).detach().numpy()

    def contrast(image):
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(1, 2))
        return np.sqrt(np.mean((image[:, 1:-1, 1:-1] - windows.mean((-2, -1))) ** 2))

    expected = np.mean([abs(contrast(y) - contrast(t)) for y, t in zip(output, target.numpy(), strict=True)])
    losses = model.update({"source": source, "target": target}, *model.adams())
    assert losses["loss_g_detail"].item() == pytest.approx(expected, rel=1e-3)
    total = losses["loss_g_gan"] + 100 * losses["loss_g_l1"] + 3 * losses["loss_g_detail"]
    assert losses["loss_g"].item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.slow
def test_overlapping_crops_teach_a_network_to_move_with_its_input():
    def difference(weight):
        model = small_pix2pix(equivariance_weight=weight)
        data = SyntheticData(8, 2, size=40, crop_size=32, batch_size=4, overlap_offset=4, num_workers=0)
        Trainer(max_steps=60, limit_val_batches=0, **QUIET).fit(model, datamodule=data)
        images = torch.stack([data.val_set[i]["source"] for i in range(2)])
        return shift_psnr(model.generator, images, [(0, 1), (3, 0)], "crop").mean().item()

    assert difference(300.0) > difference(0.0) + 1


def test_patches_are_compared_of_the_first_images_only(monkeypatch):
    monkeypatch.setattr("genstab.training.pix2pix.MOST_PATCHED", 3)
    few, many = tiny_pix2pix(), Trainer(**QUIET)
    many.validate(few, pairs_loader(5, 2), verbose=False)
    found = many.callback_metrics["val/swd"].item()
    pairs, expected = Pairs(5), SlicedWasserstein()
    with torch.no_grad():
        expected.update(few.eval()(pairs.source[:3]), pairs.target[:3])
    assert found == pytest.approx(expected.compute().item(), rel=1e-4)


@pytest.mark.parametrize("options", [{"gan_loss": "lsgan"}, {"channels_last": False}])
def test_options_train(options):
    trainer = Trainer(max_steps=2, **QUIET)
    trainer.fit(tiny_pix2pix(**options), pairs_loader(4, 2))
    assert trainer.callback_metrics["train/loss_g"].isfinite()


def test_bfloat16_trains_with_float32_weights():
    model = tiny_pix2pix()
    Trainer(max_steps=2, precision="bf16-mixed", **QUIET).fit(model, pairs_loader(4, 2))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_compiled_networks_give_the_same_step(monkeypatch):
    # the same graphs without inductor's C++, which `test_compile` compares
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = tiny_pix2pix(), tiny_pix2pix(compile=True)
    for model in (plain, compiled):
        Trainer(max_steps=1, **QUIET).fit(model, pairs_loader(4, 2))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(plain.generator.parameters(), compiled.generator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_generator_comes_back_from_the_checkpoint(tmp_path):
    model = tiny_pix2pix()
    trainer = Trainer(max_steps=1, **QUIET)
    trainer.fit(model, pairs_loader(4, 2))
    path = tmp_path / "some.ckpt"
    trainer.save_checkpoint(path)
    generator = load_generator(path)
    assert not generator.training
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(generator(x), model.eval()(x), rtol=0, atol=1e-7)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(InputError, match=r"x.ckpt does not exist"):
        load_generator(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"x.ckpt is not a model file; expected a checkpoint or run folder of genstab"):
        load_generator(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(InputError, match=r"x.ckpt is not a checkpoint of a genstab U-Net"):
        load_generator(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gan_loss": "hinge"}, "gan_loss='hinge' is not one of bce, lsgan"),
        ({"lr": 0}, "lr=0 is not a positive finite number"),
        ({"equivariance_weight": float("nan")}, "equivariance_weight=nan is not a finite number of at least 0"),
        ({"l1_weight": -1}, "l1_weight=-1 is not a finite number of at least 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        tiny_pix2pix(**options)
