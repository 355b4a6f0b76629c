import json
import math

import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from genstab import InputError, PatchGAN, Pix2Pix, ShiftStability, UNet, shift_psnr
from genstab.data.collate import names_of, source_of
from genstab.loggers.lifecycle import close
from genstab.loggers.wandb import wandb_logger
from genstab.metrics.protocols import shift_pairs
from genstab.metrics.shift_psnr import ShiftPSNR, decibel, psnr_table, shift_errors, squared_error
from genstab.training.callbacks.pictures import ShiftPictures
from genstab.training.callbacks.summary import RunSummary
from tests.conftest import Pairs, pairs_loader, tiny_pix2pix
from tests.helpers.wandb_file import finish, read_config, read_history, read_summary, run_file
from tests.training.test_pix2pix import QUIET

SHIFTS = [(0, 1), (2, -3)]


def stability(**kwargs):
    return ShiftStability(**{"shifts": SHIFTS, "margin": 2, **kwargs})


def validated(model, loader, **kwargs):
    trainer = Trainer(callbacks=[stability(**kwargs)], **QUIET)
    trainer.validate(model, loader, verbose=False)
    return {key: value.item() for key, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("forward_batch", [1, 32])
def test_it_logs_what_the_pure_function_gives(batch_size, forward_batch):
    model, images = tiny_pix2pix(), Pairs(5).source
    logged = validated(model, pairs_loader(5, batch_size), forward_batch=forward_batch)
    circular = shift_psnr(model, images, SHIFTS)
    assert logged["val/shift_psnr"] == pytest.approx(circular.mean().item(), abs=1e-4)
    assert logged["val/shift_psnr_worst"] == pytest.approx(circular.min().item(), abs=1e-4)
    error = (10 ** (-circular / 10)).mean()
    assert logged["val/shift_psnr_pooled"] == pytest.approx(-10 * error.log10().item(), abs=1e-4)
    crop = shift_psnr(model, images, SHIFTS, "crop", margin=2)
    assert logged["val/shift_psnr_crop"] == pytest.approx(crop.mean().item(), abs=1e-4)


def test_batches_of_any_lengths_and_several_loaders_count_once():
    model, pairs = tiny_pix2pix(), Pairs(10)
    expected = shift_psnr(model, pairs.source[:8], SHIFTS).mean().item()
    uneven = DataLoader(pairs, batch_sampler=[list(range(7)), [7, 8, 9]])
    assert validated(model, uneven, images=8)["val/shift_psnr"] == pytest.approx(expected, abs=1e-4)
    torch.manual_seed(0)
    foreign, images = Foreign(), torch.rand(3, 1, 16, 16)
    first = DataLoader(TensorDataset(images, images), 2)
    logged = validated(foreign, {"a": first, "b": DataLoader(TensorDataset(images[:1], images[:1]), 1)}, multiple=2)
    assert logged["val/shift_psnr"] == pytest.approx(shift_psnr(foreign, images, SHIFTS).mean().item(), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_budget_takes_the_first_images(batch_size):
    model = tiny_pix2pix()
    logged = validated(model, pairs_loader(5, batch_size), images=3)
    assert logged["val/shift_psnr"] == pytest.approx(
        shift_psnr(model, Pairs(5).source[:3], SHIFTS).mean().item(), abs=1e-4
    )


THREE = ("circular", "crop", "fractional")
PARTS = [(0, 0.5), (1.25, -0.75), (0, 1)]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_tables_of_each_shift_and_image_are_those_of_the_pure_function(batch_size):
    model, images = tiny_pix2pix(), Pairs(5).source
    callback = stability(protocols=THREE, fractional_shifts=PARTS, images=4)
    trainer = Trainer(callbacks=[callback], **QUIET)
    trainer.validate(model, pairs_loader(5, batch_size), verbose=False)
    assert callback.names == ["0", "1", "2", "3"]
    assert callback.shifts == {"circular": SHIFTS, "crop": SHIFTS, "crop_edge": SHIFTS, "fractional": PARTS}
    for protocol in callback.shifts:
        error, count = shift_errors(model, images[:4], callback.shifts[protocol], protocol, margin=2)
        table, pooled = callback.tables[protocol], callback.pooled[protocol]
        assert table.dtype == torch.float64
        torch.testing.assert_close(table, decibel(error / count), rtol=0, atol=1e-3)
        torch.testing.assert_close(pooled, decibel(error.sum(1) / count.sum(1)), rtol=0, atol=1e-3)
        key = "val/shift_psnr" + {"circular": ""}.get(protocol, f"_{protocol}")
        assert trainer.callback_metrics[key].item() == pytest.approx(table.mean().item(), abs=1e-4)
        together = -10 * (error.sum() / count.sum() / 4).log10().item()
        assert trainer.callback_metrics[f"{key}_pooled"].item() == pytest.approx(together, abs=1e-4)
        assert trainer.callback_metrics[f"{key}_worst_shift"].item() == pytest.approx(pooled.min().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("protocols", "passes"),
    [
        (THREE, 1 + 2 + (1 + 2) + 3),  # G(x) serves circular and fractional; crop has a window of its own at rest
        (("crop",), 1 + 2),
    ],
)
def test_the_generator_sees_each_image_once_for_all_protocols(protocols, passes):
    model, seen = Foreign(), []
    model.net.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    images = torch.rand(5, 1, 16, 16)
    callback = stability(protocols=protocols, fractional_shifts=PARTS, images=3, multiple=2)
    Trainer(callbacks=[callback], **QUIET).validate(model, DataLoader(TensorDataset(images, images), 2), verbose=False)
    assert sum(seen) == 3 * passes


def test_a_table_of_one_shift_and_one_image_is_still_a_table():
    callback = stability(shifts=[(0, 1)], images=1)
    Trainer(callbacks=[callback], **QUIET).validate(tiny_pix2pix(), pairs_loader(2, 2), verbose=False)
    assert (callback.tables["crop"].shape, callback.pooled["crop"].shape) == ((1, 1), (1,))


def test_names_come_from_the_batch_or_are_positions():
    class Named(Pairs):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "name": "abcdefgh"[index]}

    callback = stability(images=None)
    trainer = Trainer(callbacks=[callback], limit_val_batches=2, **QUIET)
    trainer.validate(tiny_pix2pix(), DataLoader(Named(8), 3), verbose=False)
    assert callback.names == list("abcdef")
    assert callback.tables["crop"].shape == (2, 6)
    images = torch.rand(3, 1, 16, 16)
    trainer.validate(Foreign(), DataLoader(TensorDataset(images, images), 2), verbose=False)
    assert callback.names == ["0", "1", "2"]
    assert names_of({"name": "one for all"}, torch.tensor([7, 8])) == ["7", "8"]
    assert names_of({"name": torch.tensor([3, 1])}, torch.tensor([7, 8])) == ["3", "1"]


def test_a_table_has_room_for_the_first_images_and_its_rows_count_all():
    parts = [
        (torch.tensor([start, start + 1]), torch.tensor([[0.04, 0.0]]), torch.tensor([[1.0, 1.0]])) for start in (2, 0)
    ]
    decibels, pooled, reductions = psnr_table(parts, images=2)
    torch.testing.assert_close(decibels, torch.tensor([[20.0, 100.0]]))
    assert pooled.item() == pytest.approx(10 * math.log10(4 / 0.02))
    assert (reductions["mean"], reductions["worst"], reductions["pooled"]) == (60, 20, pooled)
    assert reductions["worst_shift"] == 20  # without the two images that nothing changes
    # two processes, in either order, and an image that nobody measured
    torch.testing.assert_close(
        psnr_table(parts, images=5)[0], torch.tensor([[20.0, 100, 20, 100, math.nan]]), equal_nan=True
    )
    decibels, pooled, reductions = psnr_table([(torch.zeros(0).long(), *torch.zeros(2, 3, 0))], images=0)
    assert (decibels.shape, pooled.shape) == ((3, 0), (3,))
    assert all(value.isnan().all() for value in (pooled, *reductions.values()))


def test_a_generator_that_diverges_logs_nan_and_the_training_goes_on(tmp_path):
    model = tiny_pix2pix()
    callback = stability(protocols=THREE, fractional_shifts=PARTS)
    trainer = Trainer(max_epochs=1, callbacks=[callback, ShiftPictures(tmp_path, reach=1, frames=2)], **QUIET)
    with torch.no_grad():
        next(model.generator.parameters()).fill_(torch.nan)
    trainer.fit(model, pairs_loader(4, 2), pairs_loader(3, 2))
    for key in ("val/shift_psnr", "val/shift_psnr_crop", "val/shift_psnr_fractional"):
        assert trainer.callback_metrics[key].isnan()
    assert all(table.isnan().all() and table.shape[1] == 3 for table in callback.tables.values())


class Foreign(LightningModule):
    """Knows nothing of genstab: a tuple for a batch, automatic optimisation, a network under another name."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(1, 1, 4, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x):
        return self.up(self.net(x))

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - batch[1]).abs().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_it_works_in_any_lightning_module():
    torch.manual_seed(0)
    images = torch.rand(3, 1, 16, 16)
    loader = DataLoader(TensorDataset(images, images), 2)
    model = Foreign()
    trainer = Trainer(max_epochs=1, callbacks=[stability(), ShiftPictures("pictures", reach=1, frames=2)], **QUIET)
    trainer.fit(model, loader, loader)
    expected = shift_psnr(model, images, SHIFTS).mean().item()
    assert trainer.callback_metrics["val/shift_psnr"].item() == pytest.approx(expected, abs=1e-4)
    with Image.open("pictures/samples.png") as picture:
        assert picture.size == (2 * 128 + 4 + 24, 24 + 2 * 132 - 4 + 16)  # source, output; two images, 8 × larger

    inner = Foreign()
    inner.generator = nn.Identity()
    assert validated(inner, loader, generator="generator")["val/shift_psnr"] == 100


def trained(callbacks):
    torch.manual_seed(1)
    # six levels: dropout in the decoder draws from the random state; batch norm has running statistics
    model = Pix2Pix(UNet(1, 3, channels=2, levels=6), PatchGAN(1, 3, channels=2))
    trainer = Trainer(max_epochs=3, callbacks=callbacks, **QUIET)
    trainer.fit(model, pairs_loader(6, 2, shuffle=True), pairs_loader(3, 2))
    return model, [optimizer.state_dict() for optimizer in trainer.optimizers], torch.get_rng_state()


def test_training_is_untouched_bit_for_bit(tmp_path):
    plain, optimizers, random_state = trained([])
    measured, other_optimizers, other_random_state = trained(
        [stability(), ShiftPictures(tmp_path, reach=1, frames=2), RunSummary(tmp_path, {})]
    )
    for key, value in plain.state_dict().items():
        assert torch.equal(value, measured.state_dict()[key]), key
    assert torch.equal(random_state, other_random_state)
    for one, other in zip(optimizers, other_optimizers, strict=True):
        for a, b in zip(one["state"].values(), other["state"].values(), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_its_pictures_and_its_summary(tmp_path, capsys):
    callbacks = [stability(), ShiftPictures(tmp_path, reach=2, frames=3), RunSummary(tmp_path, {"seed": 1})]
    trainer = Trainer(max_epochs=1, callbacks=callbacks, **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(4, 2), pairs_loader(3, 2))
    with Image.open(tmp_path / "shift.gif") as film:
        assert film.n_frames == 3
    for name in ("samples.png", "shift_map.png"):
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["val/shift_psnr"] == trainer.callback_metrics["val/shift_psnr"].item()
    assert summary["config"] == {"seed": 1}
    assert summary["steps"] == 2
    assert summary["images_per_second"] > 0
    assert summary["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert f"{summary['val/shift_psnr']:.2f}" in printed
    assert f"{summary['val/tv_target']:.4f}" in printed


@pytest.mark.parametrize(
    ("options", "validated_at"),
    [
        ({"max_epochs": 3, "check_val_every_n_epoch": 2}, [7, 11]),
        ({"max_steps": 2}, [1]),
        ({"max_epochs": 9, "max_steps": 6, "check_val_every_n_epoch": 3}, [5]),
    ],
)
def test_the_last_weights_are_validated_wherever_the_training_ends(tmp_path, options, validated_at):
    logger = CSVLogger(tmp_path, name="", version="")
    callbacks = [stability(), RunSummary(tmp_path, {})]
    trainer = Trainer(callbacks=callbacks, log_every_n_steps=1, **options, **{**QUIET, "logger": logger})
    model = tiny_pix2pix()
    trainer.fit(model, pairs_loader(8, 2), pairs_loader(3, 2))
    header, *lines = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert [int(row["step"]) for row in rows if row["val/shift_psnr"]] == validated_at
    summary = json.loads((tmp_path / "summary.json").read_text())
    last = shift_psnr(model, Pairs(3).source, SHIFTS).mean().item()
    assert summary["val/shift_psnr"] == pytest.approx(last, abs=1e-4)


def test_a_run_without_validation_says_so(tmp_path, capsys):
    trainer = Trainer(max_steps=1, callbacks=[RunSummary(tmp_path, {})], **QUIET)
    trainer.fit(tiny_pix2pix(), pairs_loader(2, 2))
    assert "No results: no validation ran." in capsys.readouterr().out


@pytest.mark.slow
def test_the_offline_wandb_file_has_metrics_and_pictures_at_the_same_step(tmp_path):
    logger = wandb_logger(tmp_path, mode="offline")
    callbacks = [stability(), ShiftPictures(tmp_path, reach=1, frames=2)]
    trainer = Trainer(max_epochs=3, callbacks=callbacks, log_every_n_steps=1, **{**QUIET, "logger": logger})
    logger.log_hyperparams({"filter": "tri3"})
    trainer.fit(tiny_pix2pix(), pairs_loader(4, 2), pairs_loader(3, 2))
    close(logger)
    finish()
    path = run_file(tmp_path)
    history = read_history(path)
    steps = {
        key: [row["trainer/global_step"] for row in history if key in row]
        for key in ("val/shift_psnr", "val/shift_psnr_crop", "val/l1", "train/loss_g", "samples", "shift", "shift_map")
    }
    assert steps["val/shift_psnr"] == steps["val/shift_psnr_crop"] == steps["val/l1"] == [1, 3, 5]
    assert steps["samples"] == steps["shift"] == [1, 3, 5]
    assert steps["train/loss_g"] == [0, 1, 2, 3, 4, 5]
    assert len(steps["shift_map"]) == 1
    assert "filter" in read_config(path)
    best = read_summary(path)["val/shift_psnr"]
    values = [row["val/shift_psnr"] for row in history if "val/shift_psnr" in row]
    assert best == {"max": max(values), "last": values[-1]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shifts": []}, "shifts: the list is empty"),
        ({"shifts": [[0, 1], [0, 0]]}, "the zero shift"),
        ({"protocols": ["circular", "zoom"]}, "protocol='zoom' is not one of circular, crop, crop_edge, fractional"),
        ({"images": 0}, "images=0"),
        ({"margin": -1}, "margin=-1"),
        ({"fractional_shifts": [[0, math.nan]]}, r"shifts: \[0, nan\] is not a pair of finite numbers"),
        ({"forward_batch": 0}, "forward_batch=0"),
        ({"data_range": 0}, "data_range=0 and cap=100"),
    ],
)
def test_bad_options_are_named_at_once(options, message):
    with pytest.raises(InputError, match=message):
        ShiftStability(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shifts": [[0, 40]]}, "32×32 is too small for shifts"),
        ({"margin": 16}, "margin=16 leave no pixel"),
        ({"source_key": "image"}, "source_key='image' is not in the batch, which has source, target, name"),
        ({"generator": "net"}, "generator='net' is not a submodule of Pix2Pix: generator, discriminator, quality"),
    ],
)
def test_what_only_the_data_shows_is_named_before_any_training(options, message):
    model = tiny_pix2pix()
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = Trainer(max_epochs=1, callbacks=[stability(**options)], **QUIET)
    with pytest.raises(InputError, match=message):
        trainer.fit(model, pairs_loader(4, 2), pairs_loader(3, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_source_of_any_batch():
    images = torch.zeros(2, 3, 4, 4)
    for batch in (images, (images, 1), [images], {"source": images}):
        assert source_of(batch) is images
    for batch in ({"source": images[0]}, ("a", 1)):
        with pytest.raises(InputError, match=r"must be images \(N, C, H, W\)"):
            source_of(batch)


def test_metric_and_function_agree_on_the_crop_mask():
    images, generator = torch.rand(2, 1, 20, 20), tiny_pix2pix().generator.eval()
    metric = ShiftPSNR(reduction="pooled")
    total, count = 0.0, 0.0
    with torch.no_grad():
        for _, a, b, mask in shift_pairs(generator, images, SHIFTS, "crop", margin=3):
            metric.update(a, b, mask)
            error, pixels = squared_error(a, b, mask)
            total, count = total + error.sum(), count + pixels.sum()
    assert metric.compute().item() == pytest.approx(10 * torch.log10(4 * count / total).item(), abs=1e-5)
