"""Controls: as much detail as the targets, as steady as before, and nothing more real."""

import pytest
import scipy.ndimage
import torch
from torch import nn

from genstab.errors import InputError
from genstab.evaluation.controls import strength_for, with_noise
from genstab.evaluation.measure import measure
from genstab.evaluation.options import MeasureOptions as Options
from tests.conftest import Items, noise

ONLY = {"protocols": ["crop"], "shifts": [[0, 1], [2, 3]], "map": None, "corruptions": None}


class Pale(nn.Module):
    """Draws the source, smooth and pale."""

    def forward(self, images):
        return 0.4 * nn.functional.avg_pool2d(images, 3, 1, 1)


def measured(control, tmp_path, network=None, targets=True, **options):
    # smooth patches with edges between them, as noise and sharpening find in a picture
    sources = noise(4, 3, 8, 8).repeat_interleave(6, -1).repeat_interleave(6, -2)
    data = Items(*sources, targets=0.8 * sources.roll(1, -1) if targets else None)
    return measure(network or Pale(), data, tmp_path, Options(**{**ONLY, **options}, control=control))


@pytest.mark.parametrize("control", ["noise", "sharpen"])
def test_outputs_get_the_total_variation_of_their_targets_and_stay_steady(control, tmp_path):
    plain, changed = (measured(each, tmp_path, batch_size=2) for each in (None, control))
    before, after, targets = (
        torch.tensor(found.measurements["quality"][key]).view(2, 2).mean(1)
        for found, key in ((plain, "tv"), (changed, "tv"), (changed, "tv_target"))
    )
    assert (before < 0.5 * targets).all()
    assert after[0].item() == pytest.approx(targets[0].item(), rel=1e-5)  # the first batch, by which it is tuned
    assert after[1].item() == pytest.approx(targets[1].item(), rel=0.3)
    assert changed.summary["val/shift_psnr_crop"] > 99  # what is added moves with the source
    assert "val/feature_distance" not in changed.summary


def test_the_strength_is_noted_and_is_that_of_the_function(tmp_path):
    found = measured("noise", tmp_path)
    sources = noise(4, 3, 8, 8).repeat_interleave(6, -1).repeat_interleave(6, -2)
    strength = strength_for(with_noise, sources, Pale()(sources), 0.8 * sources.roll(1, -1))
    assert found.notes[0] == (
        f"control=noise: strength {strength:.3g}, for the total variation of the targets of the first 4 images"
    )
    assert strength_for(with_noise, sources, sources, 0.8 * sources) == 0


def test_blurred_targets_stand_in_for_outputs(tmp_path):
    found = measured("blur", tmp_path)
    taps = torch.tensor([1, 6, 15, 20, 15, 6, 1]) / 64
    targets = 0.8 * noise(4, 3, 8, 8).repeat_interleave(6, -1).repeat_interleave(6, -2).roll(1, -1).numpy()
    outputs = scipy.ndimage.correlate1d(targets, taps.numpy(), -1, mode="mirror")
    outputs = scipy.ndimage.correlate1d(outputs, taps.numpy(), -2, mode="mirror")
    assert found.summary["val/l1"] == pytest.approx(abs(outputs - targets).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("control", "given", "message"),
    [
        ("noise", {"targets": False}, "control=noise is tuned to targets of the size of the outputs, and there are no"),
        ("blur", {"targets": False}, "control=blur needs targets"),
        ("noise", {"network": nn.Upsample(scale_factor=2), "targets": False}, "control=noise is tuned to targets"),
        ("sharpen", {"network": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())}, "a classifier draws no images"),
        ("glow", {}, "control='glow' is not one of noise, sharpen, blur"),
    ],
)
def test_what_has_no_control(control, given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        measured(control, tmp_path, **given)


def test_a_flat_output_has_nothing_to_sharpen(tmp_path):
    class Flat(nn.Module):
        def forward(self, images):
            return images.mean((2, 3), keepdim=True).expand_as(images)

    with pytest.raises(InputError, match="the outputs are too flat to reach the targets' total variation"):
        measured("sharpen", tmp_path, Flat())
