"""What the values of a model's images mean: by options, by trying, and what is said where they do not fit."""

import sys

import pytest
import torch
from torch import nn

from genstab import InputError
from genstab.cli import main as cli
from genstab.data.image_io import read_image, write_image
from genstab.evaluation.measure import measure
from genstab.evaluation.options import MeasureOptions
from genstab.inference.eval_mode import inference
from genstab.inference.predict import predict
from genstab.inference.value_range import SettledCall, Values, converted, doubt, parse_values
from tests.conftest import Items, noise

SMALL = {"map": None, "features": None, "corruptions": None, "margin": 2, "shifts": [(0, 1)], "protocols": ["circular"]}


class Between(nn.Module):
    """A network of images in a range: it makes them a little brighter and clips them, as published ones do."""

    def __init__(self, least, greatest):
        super().__init__()
        self.least, self.greatest = least, greatest

    def forward(self, images):
        span = self.greatest - self.least
        part = (images - self.least) / span
        return self.least + span * (0.9 * part + 0.05).clamp(0, 1)


AS_IT_SHOULD = Between(-1.0, 1.0)  # on images in [−1, 1]


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("targets", [False, True])
def test_a_range_is_found_by_trying_and_said(bounds, targets):
    images, notes = noise(2, 3, 16, 16), []
    expected, model = AS_IT_SHOULD(images), Between(*bounds)
    with inference(model) as call:
        converting = SettledCall(call, parse_values("auto"), notes)
        output = converting(images, expected if targets else None)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(converting(images), expected, rtol=0, atol=1e-5)
    assert notes[0].startswith(f"value_range=auto took value_range=[{bounds[0]:g},{bounds[1]:g}]: outputs lie in ")


def test_tanh_and_sigmoid_tell_their_range():
    images = noise(2, 3, 16, 16)
    for last, found in ((nn.Tanh(), (-1, 1)), (nn.Sigmoid(), (0, 1))):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), last)
        with inference(model) as call:
            SettledCall(call, parse_values("auto"), notes := [])(images)
        assert f"took value_range=[{found[0]},{found[1]}]" in notes[0]


def test_logits_tell_no_range():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with (
        inference(model) as call,
        pytest.raises(InputError, match=r"auto looks at images, .* returns \(2, 3\)"),
    ):
        SettledCall(call, parse_values("auto"), [])(noise(2, 3, 4, 4))


def test_what_is_no_image_in_the_range_is_refused_and_what_may_be_another_one_is_said(tmp_path):
    images = noise(2, 3, 16, 16)
    (tmp_path / "in").mkdir()
    for index, image in enumerate(images):
        write_image(tmp_path / f"in/{index}.png", image)

    class Bright(nn.Module):
        def forward(self, x):
            return 127.5 + 100 * x

    options = MeasureOptions(**SMALL)
    refused = (
        r"outputs lie in \[2.*,22.*\], 1?\d\d % of them outside of \[-1,1\]: value_range=auto tries .* output_range="
    )
    with pytest.raises(InputError, match=refused):
        measure(Bright(), Items(*images), tmp_path, options)
    with pytest.raises(InputError, match=f"0.png.*{refused}"):
        predict(Bright(), tmp_path / "in", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))
    skipped = predict(Bright(), tmp_path / "in", tmp_path / "out", batch_size=1, on_error="skip")
    assert len(skipped.failed) == 2  # also the batches after the first one
    fine = MeasureOptions(**SMALL, output_range=[0, 255])
    assert measure(Bright(), Items(*images), tmp_path, fine).notes == []
    (note,) = measure(nn.Sigmoid(), Items(*images), tmp_path, options).notes
    assert note.startswith("outputs lie in [0.2")
    assert "never below zero, where [-1,1] is expected: if that is not meant, value_range=auto tries" in note


def test_black_images_tell_nothing_of_the_range(tmp_path):
    black, picture = torch.full((3, 16, 16), -1.0), noise(3, 16, 16)
    for name, image in (("0", black), ("1", picture)):
        write_image(tmp_path / f"in/{name}.png", image)
    one_by_one = {**SMALL, "batch_size": 1}

    class Brighter(nn.Module):  # of [0, 255]
        def forward(self, images):
            return (1.1 * images).clamp(0, 255)

    class Bytes(nn.Module):  # from [−1, 1], so that a black image becomes 0
        def forward(self, images):
            return 127.5 * (images + 1)

    with pytest.raises(InputError, match=r"1\.png.*outputs lie in"):
        predict(Bytes(), tmp_path / "in", tmp_path / "out", batch_size=1)
    assert not list((tmp_path / "out").glob("*.png"))
    with pytest.raises(InputError, match="outputs lie in"):
        measure(Bytes(), Items(black, picture), tmp_path / "m", MeasureOptions(**one_by_one))
    model, auto = Brighter(), parse_values("auto")
    predict(model, tmp_path / "in", tmp_path / "auto", batch_size=1, values=auto, notes=(notes := []))
    assert [note.partition(":")[0] for note in notes] == ["value_range=auto took value_range=[0,255]"]
    expected = (1.1 * (read_image(tmp_path / "in/1.png") + 1) - 1).clamp(-1, 1)
    assert (read_image(tmp_path / "auto/1.png") - expected).abs().max() < 2 / 255
    write_image(tmp_path / "in/2.png", black)  # alone, it would be taken for [−1, 1]
    predict(model, tmp_path / "in", tmp_path / "auto", values=auto, notes=(notes := []))
    assert notes[0].startswith("value_range=auto: value_range=[0,255], as for the results in ")
    assert (tmp_path / "auto/2.png").read_bytes() == (tmp_path / "auto/0.png").read_bytes()
    options = MeasureOptions(**one_by_one, value_range="auto")
    with pytest.raises(InputError, match=r"took .*\[-1,1\] for the first .* but value_range=\[0,255\] fits these"):
        measure(model, Items(black, picture), tmp_path / "m", options)


def test_bright_sources_say_nothing_of_the_range():
    assert doubt(torch.rand(1, 3, 4, 4) - 0.4, torch.rand(1, 3, 4, 4)) == ("", False)
    assert doubt(noise(1, 3, 4, 4), 1.05 * noise(1, 3, 4, 4)) == ("", False)  # overshoots a little
    assert doubt(noise(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)) == ("", False)  # nothing to see in it


def test_mean_and_deviation_by_hand():
    images = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)  # 0, 127.5 and 255 of 255
    (values,) = parse_values(mean=[0.5], std=[0.25])
    model = nn.Identity()
    assert converted(model, values)(images).flatten().tolist() == [-2, 0, 2]
    (imagenet,) = parse_values(normalize="imagenet")
    white = converted(model, imagenet)(torch.ones(1, 3, 1, 1)).flatten().tolist()  # (1 − 0.485) / 0.229, …
    assert white == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)
    with pytest.raises(InputError, match="for 2 channels, not"):
        converted(model, Values(mean=(0.1, 0.2), std=(1.0, 1.0)))(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_range": "best"}, r"value_range='best' is not \[least, greatest\] with least"),
        ({"value_range": [1, 0]}, r"value_range=\[1, 0\] is not \[least, greatest\]"),
        ({"output_range": [3]}, r"output_range=3|output_range=\[3\]"),
        ({"normalize": "cifar"}, "normalize='cifar' is not imagenet or null"),
        ({"normalize": "imagenet", "mean": [0]}, "leave out either it or them"),
        ({"mean": [0.5]}, r"mean=\[0.5\] std=None: set both"),
        ({"mean": [0.5], "std": [0]}, "std above 0"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        parse_values(**options)


def test_the_command_tries_and_says_what_it_took(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    images = noise(2, 3, 16, 16)
    for index, image in enumerate(images):
        write_image(tmp_path / f"in/{index}.png", image)
    network = ["model._target_=tests.inference.test_value_range.Between", "model.least=0", "model.greatest=255"]
    arguments = ["genstab", "predict", *network, "input=in", "output=out", "value_range=auto"]
    monkeypatch.setattr(sys, "argv", arguments)
    cli.main()
    assert "note: value_range=auto took value_range=[0,255]: outputs lie in [" in capsys.readouterr().err
    for index in range(2):
        source, output = (read_image(tmp_path / folder / f"{index}.png") for folder in ("in", "out"))
        assert (output - AS_IT_SHOULD(source)).abs().max() < 2 / 255
