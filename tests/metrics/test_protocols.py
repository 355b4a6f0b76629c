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
from genstab.loggers.wandb_tables import tables
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
    each = ("", "_pooled", "_worst_shift")
    assert logged == {f"val/shift_psnr_{name}{end}" for name in ("mirrored", "crop", "crop_edge") for end in each}
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
    assert summary["verdict"][0].startswith("Shimmers when the image is mirrored: 26.0 dB at the worst shift")
    assert re.search(r"shift PSNR mirror +│ 26\.02 +│ dB", capsys.readouterr().out)
    page = (tmp_path / "report.html").read_text()
    assert "the image is mirrored and rolled" in page
    assert 'mirror <span class="unit">dB</span>' in page
    assert "| `val/shift_psnr_mirrored` | shift PSNR mirror | dB | higher |" in key_list()
    assert tables(measured.measurements)["per_shift"][1][0][:4] == ["mirrored", "[1, 0]", 1, 0]


def quarter_turns(images, motion, scale, margin):
    turned = torch.rot90(images, motion[0], (-2, -1))
    return turned, torch.ones((1, 1, *turned.shape[-2:]), dtype=torch.bool)


TURNED = Protocol(
    "turned", "turns", "the image is turned by 90 and 180 degrees", "when the camera turns", quarter_turns,
    motions=((1,), (2,)), reductions=("mean", "worst"),
)  # fmt: skip


def test_motions_that_are_no_shifts(monkeypatch, tmp_path):
    monkeypatch.setitem(PROTOCOLS, "turned", TURNED)
    options = MeasureOptions(protocols=["circular", "turned"], map=None, features=None, corruptions=None)
    measured = measure(Brighter(), Items(*noise(2, 3, 32, 32)), tmp_path, options)
    # by 90°, the bright halves of S G(x) and G(S x) share a quarter, and half of the pixels differ by a tenth:
    # 10 log10(4 / 0.005) = 29.0309; by 180° all of them do
    expected = [29.0309, 26.0206]
    decibels = measured.measurements["shift_psnr"]["turned"]["decibels"]
    assert decibels == [pytest.approx([each, each], abs=1e-4) for each in expected]
    assert measured.summary["val/shift_psnr_turned"] == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert measured.summary["val/shift_psnr_turned_worst"] == pytest.approx(26.0206, abs=1e-4)
    rows = [row[:4] for row in tables(measured.measurements)["per_shift"][1] if row[0] == "turned"]
    assert rows == [["turned", "[1]", None, None], ["turned", "[2]", None, None]]
    publish(measured, tmp_path, {"run_name": "brighter"}, 1.0)
    page = (tmp_path / "report.html").read_text()
    assert re.search(r'"x": ?\["\(1\)", ?"\(2\)"\]', page)
    callback = ShiftStability(protocols=["turned"])
    model = tiny_pix2pix()
    Trainer(callbacks=[callback], **QUIET).validate(model, pairs_loader(3, 2), verbose=False)
    torch.testing.assert_close(
        callback.tables["turned"], shift_psnr(model, Pairs(3).source, TURNED.motions, "turned"), atol=1e-3, rtol=0
    )


def test_what_is_not_registered_is_named_with_the_choices():
    with pytest.raises(InputError, match="protocol='mirrored' is not one of circular, crop, crop_edge, fractional"):
        shift_psnr(nn.Identity(), noise(1, 1, 8, 8), SHIFTS, "mirrored")


def test_log_keys():
    keys = {name: protocol.keys() for name, protocol in PROTOCOLS.items()}
    assert keys == {
        "circular": {
            "mean": "val/shift_psnr", "worst": "val/shift_psnr_worst", "pooled": "val/shift_psnr_pooled",
            "worst_shift": "val/shift_psnr_worst_shift",
        },
        "crop": {
            "mean": "val/shift_psnr_crop", "pooled": "val/shift_psnr_crop_pooled",
            "worst_shift": "val/shift_psnr_crop_worst_shift",
        },
        "crop_edge": {
            "mean": "val/shift_psnr_crop_edge", "pooled": "val/shift_psnr_crop_edge_pooled",
            "worst_shift": "val/shift_psnr_crop_edge_worst_shift",
        },
        "fractional": {
            "mean": "val/shift_psnr_fractional", "pooled": "val/shift_psnr_fractional_pooled",
            "worst_shift": "val/shift_psnr_fractional_worst_shift",
        },
        **{name: {"pooled": f"val/shift_psnr_{name}"} for name in ("eqt", "eqt_frac", "eqr")},
    }  # fmt: skip
