"""A measurement finds what is known beforehand, leaves its files, and names what does not fit."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from genstab import AntiAlias, InputError, UNet, shift_psnr
from genstab.data.folder import ClassImages, FolderImages
from genstab.data.image_io import write_image
from genstab.evaluation.dataset_batches import batches
from genstab.evaluation.generators import fitting_multiple
from genstab.evaluation.measure import PartlyMeasuredError, measure
from genstab.evaluation.options import MeasureOptions as Options
from genstab.evaluation.verdict import verdict
from genstab.loggers.wandb_tables import tables
from genstab.metrics.measurements import is_constant
from genstab.metrics.quality import total_variation
from genstab.metrics.shift_map import measure_map
from genstab.metrics.shift_ops import grid_shifts
from genstab.metrics.sliced_wasserstein import SlicedWasserstein
from genstab.report.slider_frames import read_frames
from genstab.runtime.files import read_json
from tests.conftest import Items, Pairs, noise

pytestmark = pytest.mark.usefixtures("undrawn")
SMALL = {"map": {"reach": 1}, "features": None, "corruptions": None, "margin": 2, "shifts": [(0, 1), (2, 0)]}
WHOLE = {**SMALL, "protocols": ["circular", "crop"]}  # shifts by parts of a pixel overshoot the range of values


class Constant(nn.Module):
    def forward(self, images):
        return torch.zeros_like(images)


class Untouched(nn.Module):
    def forward(self, images):
        raise AssertionError("no image is to be measured")


class Restless(nn.Module):
    def forward(self, images):
        return images + 0.1 * torch.randn_like(images)


class Wild(nn.Module):
    def forward(self, images):
        return torch.where(images > 0.999, torch.nan, images)


def test_the_identity_is_perfect(tmp_path):
    found = measure(nn.Identity(), Items(*noise(3, 3, 32, 40)), tmp_path, Options(**SMALL))
    keys = ("val/shift_psnr", "val/shift_psnr_worst", "val/shift_psnr_pooled", "val/shift_psnr_crop")
    assert [found.summary[key] for key in keys] == [100.0] * 4
    assert found.summary["val/shift_psnr_fractional"] > 99.9
    assert found.summary["val/noise_floor"] == 100
    assert (found.summary["images"], found.summary["parameters"]) == (3, 0)
    assert found.measurements["shift_map"]["decibels"] == [[100.0] * 3, [100.0, None, 100.0], [100.0] * 3]
    assert not found.notes


def test_every_number_is_that_of_the_pure_function(tmp_path):
    torch.manual_seed(0)
    generator = UNet(3, 3, channels=4, levels=3, antialias=AntiAlias("none"))
    images = noise(5, 3, 40, 32)
    found = measure(generator, Items(*images), tmp_path, Options(**SMALL, batch_size=2))
    for protocol, table in found.measurements["shift_psnr"].items():
        expected = shift_psnr(generator, images, table["shifts"], protocol, margin=2)
        torch.testing.assert_close(torch.tensor(table["decibels"], dtype=torch.float64), expected, atol=1e-5, rtol=0)
        key = "val/shift_psnr" + ("" if protocol == "circular" else f"_{protocol}")
        assert found.summary[key] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert list(found.measurements["shift_psnr"]) == ["circular", "crop", "crop_edge", "fractional"]
    worst = shift_psnr(generator, images, SMALL["shifts"]).min().item()
    assert found.summary["val/shift_psnr_worst"] == pytest.approx(worst, abs=1e-5)


def test_no_number_depends_on_the_batch_size(tmp_path):
    generator = UNet(1, 3, channels=4, levels=3).eval()
    plan = {**SMALL, "features": {"reach": 1}, "corruptions": {"names": ["gaussian_noise", "contrast"]}}
    whole, *others = (
        measure(generator, Pairs(7), tmp_path, Options(**plan, batch_size=size)).summary for size in (7, 1, 3)
    )
    for key, value in whole.items():
        if key.startswith("val/"):
            assert [each[key] for each in others] == [pytest.approx(value, rel=1e-6)] * 2, key


def test_quality_is_that_of_each_image(tmp_path):
    sources, targets = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    found = measure(nn.Identity(), Items(*sources, targets=targets), tmp_path, Options(**SMALL))
    expected = [(source - target).abs().mean().item() for source, target in zip(sources, targets, strict=True)]
    assert found.measurements["quality"]["l1"] == pytest.approx(expected)
    assert found.measurements["quality"]["images"] == ["0.png", "1.png"]
    assert found.summary["val/l1"] == pytest.approx(np.mean(expected))


def test_quality_as_a_set_is_of_images_of_all_sizes(tmp_path):
    sources = [noise(3, 32, 32), noise(3, 40, 36, seed=1), noise(3, 32, 32, seed=2)]
    targets = [source.flip(-1) / 2 for source in sources]
    found = measure(nn.Identity(), Items(*sources, targets=targets), tmp_path, Options(**SMALL, batch_size=2))
    of_each = SlicedWasserstein()
    for source, target in zip(sources, targets, strict=True):
        of_each.update(source[None], target[None])
    assert found.summary["val/swd"] == pytest.approx(of_each.compute().item(), rel=1e-5)
    assert found.summary["val/spectrum_error"] == pytest.approx(20 * math.log10(2), rel=0.05)


def test_quality_is_of_the_images_whose_targets_have_the_outputs_size(tmp_path):
    targets = [noise(3, 32, 32, seed=1), noise(3, 16, 16), noise(3, 32, 32, seed=2)]
    found = measure(nn.Identity(), Items(*noise(3, 3, 32, 32), targets=targets), tmp_path, Options(**SMALL))
    table = found.measurements["quality"]
    assert [math.isnan(value) for value in table["l1"]] == [False, True, False]
    assert found.summary["val/l1"] == pytest.approx((table["l1"][0] + table["l1"][2]) / 2)
    assert found.notes == ["quality: not measured, outputs are 3×32×32 and targets 3×16×16"]
    assert [row[0] for row in tables(read_json(tmp_path / "measurements.json"))["per_image"][1]] == [
        "0.png",
        "1.png",
        "2.png",
    ]


def test_without_targets_only_the_outputs_total_variation_is_known(tmp_path):
    found = measure(nn.Identity(), Items(noise(1, 8, 8)), tmp_path, Options(**{**SMALL, "protocols": ["circular"]}))
    assert found.summary["val/tv"] == pytest.approx(total_variation(noise(1, 1, 8, 8)).item())
    assert "val/l1" not in found.summary
    items = Items(noise(1, 8, 8), targets=noise(1, 1, 8, 8))
    doubled = measure(nn.Upsample(scale_factor=2), items, tmp_path, Options(**{**SMALL, "protocols": ["circular"]}))
    assert doubled.notes == ["quality: not measured, outputs are 1×16×16 and targets 1×8×8"]


def test_a_generator_that_is_not_deterministic_has_a_noise_floor(tmp_path):
    found = measure(Restless(), Items(*noise(4, 3, 32, 32)), tmp_path, Options(**SMALL))
    # the difference of two draws of σ = 0.1 has the variance 0.02
    assert found.summary["val/noise_floor"] == pytest.approx(10 * math.log10(4 / 0.02), abs=0.2)
    assert found.summary["val/shift_psnr"] == pytest.approx(10 * math.log10(4 / 0.02), abs=0.2)
    without = measure(Restless(), Items(*noise(4, 3, 32, 32)), tmp_path, Options(**SMALL, noise_floor=False))
    assert "val/noise_floor" not in without.summary
    rows = found.measurements["shift_map"]["decibels"]  # of the shared G(x) and of draws of its own
    around = [value for row in rows for value in row if value is not None]
    assert around == pytest.approx([10 * math.log10(4 / 0.02)] * 8, abs=0.4)


def test_easy_shifts_and_constant_images_do_not_hide_the_flicker(tmp_path):
    class EverySecond(nn.Module):
        def forward(self, images):
            return images[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)

    flat = torch.full((3, 32, 32), 0.3)
    shifts = [(0, 1), (0, 2), (0, 3), (0, 4)]
    options = Options(**{**SMALL, "shifts": shifts, "protocols": ["circular", "crop"]})
    image = noise(3, 32, 32)
    found = measure(EverySecond(), Items(image, flat, flat), tmp_path, options).summary
    assert (found["val/shift_period"], found["val/constant_outputs"]) == (2, pytest.approx(2 / 3))
    # of 12 numbers 10 are 100 dB; the others are those of the first image alone
    alone = shift_psnr(EverySecond(), image[None], shifts, "crop", margin=2, multiple=2).min().item()
    assert found["val/shift_psnr_crop_worst_shift"] == pytest.approx(alone, abs=1e-4)
    assert alone < 25 < 80 < found["val/shift_psnr_crop"]
    first, _, third, *_ = verdict(found)
    assert first.startswith(f"Flickers visibly when the camera moves: {alone:.1f} dB at the worst shift")
    assert "aliasing: shifts by multiples of 2 pixels" in third
    assert "2 of 3 outputs are constant" in third


def test_how_far_outputs_lie_apart(tmp_path):
    flat = [torch.full((3, 32, 32), value) for value in (-0.5, 0.0, 0.7)]
    found = measure(nn.Identity(), Items(*flat), tmp_path, Options(**SMALL))
    # root mean square of the distances 0.5, 0.7 and 1.2, as a share of the range of 2
    assert found.summary["val/output_spread"] == pytest.approx(math.sqrt((0.25 + 0.49 + 1.44) / 3) / 2)
    assert found.summary["val/output_std"] == pytest.approx(0)
    constant = measure(Constant(), Items(*noise(3, 3, 32, 32)), tmp_path, Options(**SMALL)).summary
    assert (constant["val/output_spread"], constant["val/shift_psnr"]) == (0, 100)
    assert "val/output_spread" not in measure(nn.Identity(), Items(flat[0]), tmp_path, Options(**SMALL)).summary


def test_a_generator_of_other_values_is_measured_in_its_own_range(tmp_path):
    class Unit(nn.Module):
        def forward(self, images):
            assert images.min() >= 0
            assert images.max() <= 255
            return images.round()

    images = noise(2, 3, 32, 32)
    found = measure(Unit(), Items(*images, targets=images), tmp_path, Options(**WHOLE, value_range=(0, 255)))
    assert found.summary["val/shift_psnr"] == 100
    assert 0 < found.summary["val/l1"] <= 1 / 255
    assert not Unit()._forward_hooks


def test_a_generator_that_refuses_a_shifted_image_is_measured_without_that_protocol(tmp_path):
    class Strict(nn.Module):
        def forward(self, images):
            assert images.abs().max() <= 1, "out of range"
            return images

    found = measure(Strict(), Items(*noise(2, 3, 32, 32).sign()), tmp_path, Options(**SMALL))
    assert list(found.measurements["shift_psnr"]) == ["circular", "crop", "crop_edge"]
    assert found.notes == ["fractional: not measured for 0.png, 1.png: the generator failed: out of range"]


def test_a_second_measurement_leaves_no_picture_of_the_first(tmp_path, drawn):
    parts = {"features": {"reach": 1}, "corruptions": {"names": ["contrast"]}}
    measure(UNet(1, 3, channels=2, levels=3), Pairs(1), tmp_path, Options(**{**SMALL, **parts}))
    measure(UNet(1, 3, channels=2, levels=3), Pairs(1), tmp_path, Options(**{**SMALL, "map": None}))
    assert not {"features.png", "corruptions.png", "shift_map.png"} & {path.name for path in tmp_path.iterdir()}


def test_a_larger_output_is_measured_at_its_scale(tmp_path, drawn):
    found = measure(nn.Upsample(scale_factor=3), Items(*noise(2, 3, 32, 32)), tmp_path, Options(**SMALL))
    assert found.summary["val/shift_psnr"] == found.summary["val/shift_psnr_crop"] == 100
    assert read_frames(tmp_path / "slide_output.webp").shape == (16, 96, 96, 3)


def test_images_of_several_sizes_are_measured_in_batches_of_one_size(tmp_path):
    sources = [*noise(2, 3, 32, 32), *noise(3, 3, 48, 40), *noise(1, 3, 32, 32)]
    assert [batch.positions for batch in batches(Items(*sources), None, 2, False, [], [])] == [[0, 1], [2, 3], [4], [5]]
    found = measure(nn.Identity(), Items(*sources), tmp_path, Options(**SMALL))
    assert found.summary["images"] == 6
    assert found.measurements["shift_psnr"]["crop"]["images"] == [f"{i}.png" for i in range(6)]


def test_everything_is_left_in_the_folder(tmp_path, drawn):
    generator = UNet(1, 3, channels=4, levels=3)
    generator.train()
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    torch.manual_seed(3)
    random = torch.random.get_rng_state()
    plan = {**SMALL, "features": {"reach": 1}, "corruptions": {"names": ["contrast"], "severities": [2]}}
    found = measure(generator, Pairs(3), tmp_path / "new", Options(**plan))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "measurements.json", "samples.png", "shift_map.png", "shift.gif", "features.png", "corruptions.png",
        "slide_source.webp", "slide_output.webp", ".lock",
    }  # fmt: skip
    assert read_json(tmp_path / "new" / "measurements.json") == found.measurements
    assert generator.training
    assert all((generator.state_dict()[key] == value).all() for key, value in before.items())
    assert (torch.random.get_rng_state() == random).all()


def test_a_baseline_of_itself_is_one(tmp_path):
    plan = {**SMALL, "corruptions": {"names": ["gaussian_noise", "contrast"], "severities": [1, 3]}}
    measure(nn.Tanh(), Items(*noise(2, 3, 32, 32)), tmp_path / "a", Options(**plan))
    part = {**plan["corruptions"], "baseline": str(tmp_path / "a")}
    found = measure(nn.Tanh(), Items(*noise(2, 3, 32, 32)), tmp_path / "b", Options(**{**plan, "corruptions": part}))
    assert found.summary["val/corruption_relative"] == 1
    # G(x) = x / 2 moves half as far as the identity: a quarter of the squared error
    measure(nn.Identity(), Items(*noise(2, 3, 32, 32)), tmp_path / "a", Options(**plan))
    half = nn.Conv2d(3, 3, 1, bias=False)
    half.weight = nn.Parameter(0.5 * torch.eye(3)[..., None, None])
    found = measure(half, Items(*noise(2, 3, 32, 32)), tmp_path / "b", Options(**{**plan, "corruptions": part}))
    assert found.summary["val/corruption_relative"] == pytest.approx(0.25)
    found = measure(half, Items(noise(3, 32, 32)), tmp_path / "b", Options(**{**plan, "corruptions": part}))
    (note,) = found.notes
    assert note == "corruptions: not measured, the baseline has images ['0.png', '1.png'], not ['0.png']"


def test_an_output_that_is_not_finite_is_named_with_its_image_and_shift(tmp_path):
    images = noise(3, 3, 32, 32) * 0.9
    images[1, 0, 5, 5] = 1.0
    with pytest.raises(InputError, match=r"image 1\.png .*not finite"):
        measure(Wild(), Items(*images), tmp_path, Options(**SMALL))


def test_a_generator_that_cannot_take_the_images_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"the generator cannot take 0\.png \(1, 3, 32, 32\): .*channels") as error:
        measure(nn.Conv2d(1, 3, 3), Items(noise(3, 32, 32)), tmp_path, Options(**SMALL))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="32×32 into 30×30"):
        measure(nn.Conv2d(3, 3, 3), Items(noise(3, 32, 32)), tmp_path, Options(**SMALL))


class Asserting(nn.Module):
    def forward(self, images):
        assert images.shape[-1] % 16 == images.shape[-2] % 16 == 0, "sides must be multiples of 16"
        return images


def test_what_the_author_of_a_network_asserts_is_heeded(tmp_path):
    found = measure(Asserting(), Items(noise(3, 48, 48)), tmp_path, Options(**SMALL))
    assert found.summary["val/shift_psnr_crop"] == 100
    found = measure(Asserting(), Items(noise(3, 48, 40)), tmp_path, Options(**SMALL))
    assert found.notes == ["the model takes multiples of 16: images are cut to their centre, 48×32 of 0.png"]
    with pytest.raises(InputError, match=r"cannot take 0\.png \(1, 3, 15, 40\): sides must be multiples of 16"):
        measure(Asserting(), Items(noise(3, 15, 40)), tmp_path, Options(**SMALL))


class Rounds(nn.Module):
    """Of images in [0, 1]; returns sides of multiples of 4, without an error, as networks with a stride do."""

    def forward(self, images):
        return nn.functional.pad(images.square(), (0, -images.shape[-1] % 4, 0, -images.shape[-2] % 4))


def test_values_are_converted_once_where_sizes_are_found_by_trying(tmp_path):
    images = noise(2, 3, 34, 41)
    options = Options(**{**SMALL, "protocols": ["circular"]}, value_range=[0, 1])
    found = measure(Rounds(), Items(*images, targets=(images + 1).square() / 2 - 1), tmp_path, options)
    assert found.summary["val/l1"] < 1e-6
    assert found.notes == ["the model takes multiples of 4: images are cut to their centre, 32×40 of 0.png"]


def test_a_damaged_image_stops_or_is_skipped_by_name(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ac":
        Image.effect_noise((40, 32), 50).convert("RGB").save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "d.png").write_bytes(b"no image")
    dataset = FolderImages(tmp_path / "images")
    with pytest.raises(InputError, match=r"cannot read .*d\.png.*\(on_error=skip measures the others\)"):
        measure(Untouched(), dataset, tmp_path, Options(**SMALL, batch_size=1))
    found = measure(nn.Identity(), dataset, tmp_path, Options(**SMALL, on_error="skip"))
    assert found.summary["images"] == 2
    assert found.measurements["shift_psnr"]["circular"]["images"] == ["a.png", "c.png"]
    (note,) = found.notes
    assert note.startswith("skipped: cannot read ")
    for name in "ac":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match="no image to measure: all of them are unreadable"):
        measure(nn.Identity(), dataset, tmp_path, Options(**SMALL, on_error="skip"))


def test_a_damaged_last_image_does_not_cost_the_others(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.effect_noise((40, 32), 50).convert("RGB").save(tmp_path / "images" / f"{name}.png")
    last = tmp_path / "images" / "c.png"
    content = last.read_bytes()
    last.write_bytes(content[:200] + bytes(200) + content[400:])  # its header is whole, and its end
    dataset = FolderImages(tmp_path / "images")
    with pytest.raises(PartlyMeasuredError, match=r"c\.png.*: the other 2 images were measured") as error:
        measure(nn.Identity(), dataset, tmp_path, Options(**SMALL, batch_size=1))
    assert error.value.found.summary["images"] == 2
    assert read_json(tmp_path / "measurements.json")["shift_psnr"]["crop"]["images"] == ["a.png", "b.png"]
    assert error.value.found.notes[0].startswith("skipped: cannot read ")


def test_images_that_do_not_fit_do_not_cost_the_others(tmp_path):
    class Strict(nn.Module):  # RGB alone, in sides of multiples of 16
        def forward(self, images):
            assert images.shape[1] == 3, "needs 3 channels"
            assert images.shape[-1] % 16 == images.shape[-2] % 16 == 0, "multiples of 16"
            return images.clone()

    fitting, grey, odd = noise(3, 32, 48), noise(1, 32, 48), noise(3, 35, 50)
    options = {**SMALL, "protocols": ["circular"], "map": None}
    with pytest.raises(PartlyMeasuredError, match=r"1\.png \(1, 1, 32, 48\): needs 3 .*: the other 2 images") as error:
        measure(Strict(), Items(fitting, grey, odd), tmp_path, Options(**options))
    found = measure(Strict(), Items(grey, fitting, odd), tmp_path, Options(**options, on_error="skip"))
    for each, names in ((error.value.found, ["0.png", "2.png"]), (found, ["1.png", "2.png"])):
        assert each.measurements["shift_psnr"]["circular"]["images"] == names
        assert "the model takes multiples of 16: images are cut to their centre, 32×48 of 2.png" in each.notes
    with pytest.raises(InputError, match=r"no image to measure: skipped: .* needs 3 channels"):
        measure(Strict(), Items(grey), tmp_path, Options(**options, on_error="skip"))


def test_it_says_what_it_does_and_how_long_it_takes(tmp_path, monkeypatch):
    """The clock goes by the passes through a model that is free: what takes time is a metric."""
    calls, now, said = [], [0.0], []

    class Counted(UNet):
        def forward(self, images):
            calls.append(len(images))
            now[0] += len(images)
            return super().forward(images)

    monkeypatch.setattr("genstab.evaluation.progress.QUIET", 0.0)
    monkeypatch.setattr("genstab.evaluation.progress.time.monotonic", lambda: now[0])
    plan = {**SMALL, "features": {"reach": 1}, "corruptions": {"names": ["contrast"]}}
    measure(Counted(1, 3, channels=2, levels=3), Pairs(3), tmp_path, Options(**plan, batch_size=2), say=said.append)
    # G(x) and the noise floor; two shifts in each of circular and crop, and four by parts; the window of crop
    assert said[0].startswith(f"Measuring 3 images: {3 * (1 + 1 + 2 + 2 + 4 + 1) + 2 * 8 + 2 * 8 + 3 * 5} passes at ")
    assert re.search(r" per second, at least 0:0\d:\d\d$", said[0])
    assert abs(sum(calls) - 80) < 60  # what is tried, timed and shared is not foreseen
    # a second a pass: 11 of one image and 47 of the other parts are left, then these
    foreseen = [
        re.fullmatch(r"(\d) of 3 images measured, about 0:(\d\d):(\d\d) left", line).groups() for line in said[1:3]
    ]
    assert [number for number, _, _ in foreseen] == ["2", "3"]
    for (_, minutes, seconds), passes in zip(foreseen, (11 + 47, 47), strict=True):
        assert 60 * int(minutes) + int(seconds) == pytest.approx(passes, rel=0.2)
    assert said[3:] == ["Next: features, on 2 images", "Next: corruptions, on 3 images", "Next: map, on 2 images"]


class Picky(nn.Module):
    """Takes sides that are multiples of 16 only, as a U-Net without padding does."""

    def forward(self, images):
        return nn.functional.pixel_shuffle(nn.functional.pixel_unshuffle(images, 16), 16)


def test_the_windows_of_crop_are_cut_to_what_the_generator_needs(tmp_path):
    assert fitting_multiple(Picky(), torch.zeros(1, 3, 48, 48), [(0, 1)]) == 16
    assert fitting_multiple(nn.Identity(), torch.zeros(1, 3, 48, 48), [(0, 1)]) == 1
    found = measure(Picky(), Items(*noise(1, 3, 48, 48)), tmp_path, Options(**SMALL))
    expected = shift_psnr(Picky(), noise(1, 3, 48, 48), SMALL["shifts"], "crop", margin=2, multiple=16)
    assert found.measurements["shift_psnr"]["crop"]["decibels"] == expected.tolist()
    both = measure(Picky(), Items(noise(3, 48, 48), noise(3, 16, 16)), tmp_path, Options(**WHOLE))
    crop = both.measurements["shift_psnr"]["crop"]["decibels"]
    assert crop == [pytest.approx([row[0], math.nan], nan_ok=True) for row in expected.tolist()]
    assert both.summary["val/shift_psnr_crop"] == pytest.approx(expected.mean().item())
    assert both.notes == [
        "crop: not measured for 1.png: the generator takes no window smaller than the image",
        "map, features, corruptions, animation: on images of 48×48 alone",
    ]
    with pytest.raises(InputError, match=r"crop: not measured for 0\.png: the generator takes no window smaller"):
        measure(Picky(), Items(*noise(1, 3, 16, 16)), tmp_path, Options(**{**SMALL, "protocols": ["crop"]}))


def test_a_protocol_without_room_is_left_out_with_a_note(tmp_path):
    found = measure(nn.Identity(), Items(noise(3, 8, 8)), tmp_path, Options(**{**SMALL, "margin": 3}))
    assert list(found.measurements["shift_psnr"]) == ["circular", "fractional"]
    (note,) = found.notes
    assert note.startswith("crop: not measured for 0.png: shift=(0, 1) and margin=3 leave no pixel of a 6×7 image")


def test_a_row_of_pixels_has_no_map(tmp_path):
    plan = {**SMALL, "shifts": [(0, 1)], "protocols": ["circular"], "features": {}}
    found = measure(nn.Identity(), Items(noise(3, 1, 32)), tmp_path, Options(**plan))
    assert [note.split(",")[0] for note in found.notes] == ["features: not measured", "map: not measured"]
    assert found.summary["val/shift_psnr"] == 100


def test_what_a_forward_pass_changes_is_put_back(tmp_path):
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images):
            self.calls += 1
            return images

    model = Counter()
    measure(model, Items(noise(3, 32, 32)), tmp_path, Options(**SMALL))
    assert model.calls == 0


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return torch.tanh(images)


def test_no_image_passes_the_generator_twice(tmp_path, drawn):
    generator = Counting()
    parts = {
        "map": {"reach": 2, "images": 2},
        "features": {"layers": ["1"], "reach": 1, "images": 2},
        "corruptions": {"names": ["contrast"], "severities": [1, 2], "images": 2},
    }
    options = Options(**{**SMALL, **parts}, fractional_shifts=[(0, 0.25), (0, 0.5), (0.5, 0.5)])
    measure(nn.Sequential(generator, nn.ReLU()), Items(*noise(5, 3, 32, 32)), tmp_path, options)
    everyone = 5 * (
        1  # G(x), for the quality and all protocols that do not cut windows
        + 1  # once more, for the noise floor
        + 2  # circular
        + (1 + 2)  # crop: the window at rest and the moved ones
        + 3  # fractional
    )
    first = {
        "which windows it takes": 1,
        "which layers there are, before any work and again": 1 + 1,
        "speed": 3 * 4,
        "features": 2 * (1 + 8),
        "corruptions": 2 * 2,  # G(x) is known
        "map": 2 * (24 - 8 - 1),  # features know the 8 shifts by one pixel, circular (2, 0)
        "animation": 32 - 1 - 2,  # G(x) and what map and features know, (0, 1) and (0, 2)
    }
    assert generator.images == everyone + sum(first.values())


@pytest.mark.parametrize("protocol", ["circular", "crop"])
def test_the_map_calls_the_generator_once_for_each_shift_and_the_unmoved_image(protocol):
    generator = Counting()
    images = noise(2, 3, 24, 20)
    decibels = measure_map(generator, images, 2, protocol=protocol, margin=1, forward_batch=7)
    assert generator.images == 2 * (24 + 1)
    assert list(decibels) == grid_shifts(2)
    expected = shift_psnr(generator, images, grid_shifts(2), protocol, margin=1).mean(1)
    assert list(decibels.values()) == pytest.approx(expected.tolist())


def test_the_map_of_crop_has_windows_that_the_generator_takes(tmp_path):
    plan = {**SMALL, "protocols": ["circular"], "map": {"reach": 1, "protocol": "crop"}}
    found = measure(Picky(), Items(noise(3, 48, 48)), tmp_path, Options(**plan))
    expected = shift_psnr(Picky(), noise(1, 3, 48, 48), grid_shifts(1), "crop", margin=2, multiple=16).flatten()
    rows = found.measurements["shift_map"]["decibels"]
    assert [value for row in rows for value in row if value is not None] == expected.tolist()
    found = measure(Picky(), Items(noise(3, 16, 16)), tmp_path, Options(**plan))
    assert "shift_map" not in found.measurements
    assert found.notes == ["map: not measured, the generator takes no window smaller than the image"]


def test_an_image_whose_output_is_not_finite_in_the_map_alone_is_named(tmp_path):
    class Wild(nn.Module):
        def forward(self, images):
            return torch.where((images[..., :1, :1] > 0.999), torch.nan, images)

    images = noise(2, 3, 32, 32) * 0.9
    images[1, :, 31, 0] = 1.0  # comes into the corner with (1, 0)
    plan = {**SMALL, "shifts": [(0, 1)], "protocols": ["circular"]}
    (note,) = measure(Wild(), Items(*images), tmp_path, Options(**plan)).notes
    assert note == "map: not measured, the model's output for image 1.png at shift=(1, 0) is not finite"


def test_every_part_can_be_left_out(tmp_path):
    found = measure(nn.Identity(), Items(noise(3, 32, 32)), tmp_path, Options(**{**SMALL, "map": None}))
    assert list(found.measurements) == ["shift_psnr", "quality"]


class Recording(nn.Conv2d):
    """Remembers the precisions that it was called in."""

    def forward(self, images):
        self.seen.add(images.dtype)
        return super().forward(images)


@pytest.mark.parametrize("classifier", [False, True])
def test_every_part_is_measured_in_the_precision_asked_for(tmp_path, classifier):
    layer = Recording(3, 3, 1)
    layer.seen = set()
    model = nn.Sequential(layer, Brightest() if classifier else nn.Tanh())
    parts = {"features": {"reach": 1}, "corruptions": {"names": "contrast", "severities": [1]}}
    found = measure(
        model, Labelled(*noise(2, 3, 32, 32)), tmp_path, Options(**{**SMALL, **parts}, precision="bfloat16")
    )
    assert layer.seen == {torch.bfloat16}
    assert {"features", "corruption_errors" if classifier else "corruptions"} <= set(found.measurements)


def test_small_images_are_measured_without_corruptions(tmp_path):
    plan = Options(**{**SMALL, "corruptions": {"names": ["contrast"]}})
    for model in (nn.Identity(), Brightest()):
        found = measure(model, Labelled(*noise(2, 3, 28, 40)), tmp_path, plan)
        assert found.notes == ["corruptions: not measured, 28×40 images are smaller than 32×32"]


def test_a_baseline_that_is_not_there_or_has_no_corruptions_is_named_before_any_work(tmp_path):
    generator = Counting()
    plan = Options(**{**SMALL, "corruptions": {"baseline": str(tmp_path / "none")}})
    with pytest.raises(InputError, match=r"cannot read .*none/measurements\.json"):
        measure(generator, Items(noise(3, 32, 32)), tmp_path, plan)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/measurements.json").write_text('{"features": {}}')
    with pytest.raises(InputError, match=r"none/measurements\.json has no corruptions: measure them there first"):
        measure(generator, Items(noise(3, 32, 32)), tmp_path, plan)
    assert not generator.images


class Brightest(nn.Module):
    """The class is the brightest of three channels: no shift changes it, noise may."""

    def forward(self, images):
        return images.mean((2, 3))


class Labelled(Items):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "label": index % 3}


def test_a_classifier_is_measured_as_one(tmp_path):
    images = noise(6, 3, 32, 32) * 0.1
    for index, image in enumerate(images):
        image[(index + (index == 4)) % 3] += 0.5  # one of six is labelled wrongly
    plan = {**SMALL, "corruptions": {"names": ["brightness", "contrast"], "severities": [1, 2], "images": 6}}
    found = measure(Brightest(), Labelled(*images), tmp_path, Options(**plan))
    assert (found.summary["val/consistency"], found.summary["val/consistency_roll"]) == (1, 1)
    assert found.summary["val/accuracy"] == pytest.approx(5 / 6)
    assert found.measurements["consistency"]["circular"]["correct"] == [True] * 4 + [False, True]
    assert found.summary["val/output_spread"] == pytest.approx(1 - (4 + 1 + 9) / 36)  # 2, 1 and 3 images of a class
    # neither moves one channel past another
    assert found.measurements["corruption_errors"]["errors"] == {
        name: [pytest.approx(1 / 6)] * 2 for name in ("brightness", "contrast")
    }
    assert "val/shift_psnr" not in found.summary
    always = measure(nn.Sequential(Constant(), Brightest()), Labelled(*images), tmp_path, Options(**SMALL)).summary
    assert is_constant(always)
    assert verdict(always)[0] == "No evidence of stability: it gives the same class to every image."
    unlabelled = measure(Brightest(), Items(*images), tmp_path, Options(**SMALL))
    assert unlabelled.notes == ["accuracy: not measured, the images have no labels (data=classes has)"]


def test_a_classifier_of_more_classes_than_the_folders_is_not_called_wrong(tmp_path):
    """Images of two of three classes: the network is right each time, but folders alone do not say which they are."""
    images = noise(2, 3, 32, 40) * 0.1
    images[0, 2] += 0.5
    images[1, 1] += 0.5
    for name, image in zip(("blue", "green"), images, strict=True):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_image(tmp_path / "data" / name / "1.png", image)
    found = measure(Brightest(), ClassImages(tmp_path / "data"), tmp_path, Options(**SMALL))
    assert "val/accuracy" not in found.summary
    assert found.summary["val/consistency"] == 1
    (note,) = found.notes
    assert note.startswith(
        "accuracy: not measured, the model has 3 classes and the data have folders for 2: data.classes="
    )
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    named = ClassImages(tmp_path / "data", class_file=tmp_path / "classes.txt")
    assert measure(Brightest(), named, tmp_path, Options(**SMALL)).summary["val/accuracy"] == 1
    (tmp_path / "classes.txt").write_text("background\nred\ngreen\nblue\n")
    wrong = ClassImages(tmp_path / "data", class_file=tmp_path / "classes.txt")
    with pytest.raises(InputError, match=r"data.classes=.*classes.txt names 4 classes, but the model has 3"):
        measure(Brightest(), wrong, tmp_path, Options(**SMALL))


class OneSize(Brightest):
    def forward(self, images):
        if images.shape[2:] != (32, 32):
            raise ValueError(f"Input height ({images.shape[2]}) doesn't match model (32).")
        return super().forward(images)


def test_a_classifier_of_one_size_sees_windows_of_it(tmp_path):
    found = measure(OneSize(), Labelled(*noise(2, 3, 40, 50)), tmp_path, Options(**SMALL))
    assert found.summary["val/consistency_roll"] == 1
    assert found.notes == ["the model takes 32×32 alone: images are cut to their centre, 32×32 of 0.png"]
    with pytest.raises(
        InputError, match=r"consistency.max_shift=8 needs images of 40×40, not 32×50: data.size=\[40,40\]"
    ):
        measure(OneSize(), Labelled(*noise(2, 3, 32, 50)), tmp_path, Options(**SMALL))


def test_a_model_without_layers_has_no_feature_distance(tmp_path):
    found = measure(nn.Identity(), Items(noise(3, 32, 32)), tmp_path, Options(**{**SMALL, "features": {"reach": 1}}))
    (note,) = found.notes
    assert note.startswith("features: not measured, ")
    with pytest.raises(InputError, match="Identity has no layer with a feature map"):
        measure(
            nn.Identity(),
            Items(noise(3, 32, 32)),
            tmp_path,
            Options(**{**SMALL, "features": {"layers": ["encoder.*"]}}),
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocols": ["roll"]}, "protocols='roll' is not one of circular, crop, crop_edge, fractional"),
        ({"shifts": [[0, 0]]}, "zero shift"),
        ({"shifts": [[0, 0.5]]}, r"\[0, 0\.5\] is not a pair of integers"),
        ({"batch_size": 0}, "batch_size=0 is not an integer of at least 1"),
        ({"images": -1}, "images=-1"),
        ({"reach": 0}, "reach=0"),
        ({"margin": -1}, "margin=-1"),
        ({"precision": "int8"}, "precision='int8' is not one of float32, float64, bfloat16, float16"),
        ({"value_range": [1, 0]}, r"value_range=\[1, 0\] is not \[least, greatest\] with least < greatest"),
        ({"on_error": "ignore"}, "on_error='ignore' is not one of raise, skip"),
        ({"map": {"rich": 3}}, "map='rich' is not one of reach, images, protocol"),
        ({"map": {"protocol": "fractional"}}, r"map\.protocol='fractional'"),
        ({"features": {"reach": 0}}, r"features\.reach=0"),
        ({"corruptions": {"images": 0}}, r"corruptions\.images=0"),
        ({"corruptions": {"names": ["frog"]}}, r"corruptions\.names='frog' is not one of gaussian_noise, "),
        ({"corruptions": {"severities": [1, 6]}}, r"corruptions\.severities=\[1, 6\] are not some of 1, 2, 3, 4, 5"),
        ({"corruptions": {"severities": [2.0]}}, r"corruptions\.severities=\[2\.0\] are not some of"),
    ],
)
def test_a_bad_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        Options(**options)


def test_one_protocol_may_stand_alone_and_counts_once():
    assert Options(protocols="crop").protocols == Options(protocols=["crop", "crop"]).protocols == ["crop"]


def test_a_range_of_shifts():
    assert Options(reach=2).shifts == grid_shifts(2)


def test_the_summary_has_the_keys_of_a_training(tmp_path):
    from genstab.evaluation.publish import publish

    found = measure(nn.Identity(), Items(*noise(2, 3, 32, 32), targets=noise(2, 3, 32, 32)), tmp_path, Options(**SMALL))
    publish(found, tmp_path, {"run_name": "identity"}, 1.0)
    summary = json.loads(Path(tmp_path, "summary.json").read_text())
    assert {"val/shift_psnr", "val/shift_psnr_worst", "val/shift_psnr_pooled", "val/shift_psnr_crop"} <= set(summary)
    assert {"val/l1", "val/psnr", "val/ssim", "val/tv", "val/tv_target", "versions", "config", "verdict"} <= set(
        summary
    )
    assert (tmp_path / "report.html").stat().st_size > 1e6
