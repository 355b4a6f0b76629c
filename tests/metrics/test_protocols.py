"""A protocol is one object: a new one, defined here alone, is seen wherever protocols are."""

import json
import re

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from genstab import InputError, ShiftStability, shift_psnr
from genstab.evaluation.measure import measure
from genstab.evaluation.options import MeasureOptions
from genstab.evaluation.publish import publish
from genstab.loggers.wandb_tables import per_shift_rows
from genstab.metrics.protocols import PROTOCOLS, Protocol, register_protocol
from genstab.metrics.shift_ops import roll
from tests.conftest import Items, Pairs, noise, pairs_loader, tiny_pix2pix
from tests.helpers.key_list import key_list
from tests.training.test_pix2pix import QUIET


def mirror(images, motion, scale, margin):
    dy, dx = motion
    return roll(images.flip(-1), (scale * dy, scale * dx))


MIRRORED = Protocol("mirrored", "mirror", "the image is mirrored and rolled", "when the image is mirrored", mirror)


@pytest.fixture
def mirrored():
    register_protocol(MIRRORED)
    yield
    del PROTOCOLS["mirrored"]


class Brighter(nn.Module):
    """Adds a tenth to the left half: its error under a mirror image is known."""

    def forward(self, images):
        columns = torch.arange(images.shape[-1], device=images.device)
        return images + 0.1 * (columns < images.shape[-1] // 2)


SHIFTS = [(1, 0), (2, 0)]  # down: what is left stays left


@pytest.mark.usefixtures("mirrored")
def test_shift_psnr_of_a_new_protocol_by_its_formula():
    images = noise(2, 3, 12, 10)
    # G(S x) − S G(x) is a tenth on the left and minus a tenth on the right: 10 log10(4 / 0.01)
    expected = torch.full((2, 2), 26.0206, dtype=torch.float64)
    torch.testing.assert_close(shift_psnr(Brighter(), images, SHIFTS, "mirrored"), expected, atol=1e-4, rtol=0)
    assert (shift_psnr(nn.Upsample(scale_factor=2), images, SHIFTS, "mirrored") == 100).all()
    # circular rolls only, and Brighter's halves lie in columns
    assert (shift_psnr(Brighter(), images, SHIFTS) == 100).all()


@pytest.mark.usefixtures("mirrored")
def test_a_training_logs_it():
    callback = ShiftStability(SHIFTS, protocols=["mirrored", "crop"], margin=2)
    trainer = Trainer(callbacks=[callback], **QUIET)
    model = tiny_pix2pix()
    trainer.validate(model, pairs_loader(3, 2), verbose=False)
    logged = {key for key in trainer.callback_metrics if "shift" in key}
    assert logged == {"val/shift_psnr_mirrored", "val/shift_psnr_crop"}
    expected = shift_psnr(model, Pairs(3).source, SHIFTS, "mirrored")
    assert trainer.callback_metrics["val/shift_psnr_mirrored"].item() == pytest.approx(expected.mean().item(), abs=1e-4)
    torch.testing.assert_close(callback.tables["mirrored"], expected, atol=1e-3, rtol=0)


@pytest.mark.usefixtures("mirrored")
def test_a_measurement_has_it_in_summary_and_table(tmp_path):
    options = MeasureOptions(
        shifts=SHIFTS, protocols=["circular", "mirrored"], map={"reach": 1, "protocol": "mirrored"}, features=None,
        corruptions=None,
    )  # fmt: skip
    measured = measure(Brighter(), Items(*noise(2, 3, 32, 32)), tmp_path, options)
    assert measured.summary["val/shift_psnr_mirrored"] == pytest.approx(26.0206, abs=1e-4)
    assert measured.summary["val/shift_psnr"] == 100
    written = json.loads((tmp_path / "measurements.json").read_text())
    assert written["shift_psnr"]["mirrored"]["shifts"] == [[1, 0], [2, 0]]
    assert written["shift_map"]["protocol"] == "mirrored"
    assert written["shift_map"]["decibels"][0][1] == pytest.approx(26.0206, abs=1e-4)


@pytest.mark.usefixtures("mirrored")
def test_tables_page_and_verdict_speak_of_it(tmp_path, capsys):
    options = MeasureOptions(shifts=SHIFTS, protocols=["mirrored"], map=None, features=None, corruptions=None)
    measured = measure(Brighter(), Items(*noise(2, 3, 32, 32)), tmp_path, options)
    summary = publish(measured, tmp_path, {"run_name": "brighter"}, 1.0)
    assert summary["verdict"][0].startswith("Shimmers when the image is mirrored: shift PSNR mirror 26.0 dB")
    assert re.search(r"shift PSNR mirror +│ 26\.02 +│ dB", capsys.readouterr().out)
    page = (tmp_path / "report.html").read_text()
    assert "the image is mirrored and rolled" in page
    assert 'mirror <span class="unit">dB</span>' in page
    assert "| `val/shift_psnr_mirrored` | shift PSNR mirror | dB | higher |" in key_list()
    assert per_shift_rows(measured.measurements)[0][:3] == ["mirrored", 1, 0]


def test_what_is_not_registered_is_named_with_the_choices():
    with pytest.raises(InputError, match="protocol='mirrored' is not one of circular, crop, fractional"):
        shift_psnr(nn.Identity(), noise(1, 1, 8, 8), SHIFTS, "mirrored")


def test_log_keys():
    keys = {name: protocol.keys() for name, protocol in PROTOCOLS.items()}
    assert keys == {
        "circular": {
            "mean": "val/shift_psnr", "worst": "val/shift_psnr_worst", "pooled": "val/shift_psnr_pooled",
        },
        "crop": {"mean": "val/shift_psnr_crop"},
        "fractional": {"mean": "val/shift_psnr_fractional"},
    }  # fmt: skip
