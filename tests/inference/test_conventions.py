"""Models as they come: outputs, further inputs, layouts, sizes, and whatever they raise."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from genstab import InputError, load_model, shift_psnr
from genstab.data.image_io import read_image, write_image
from genstab.evaluation.measure import measure
from genstab.evaluation.options import MeasureOptions
from genstab.inference.eval_mode import inference
from genstab.inference.exported_programs import Program
from genstab.inference.input_size import InputSize
from genstab.inference.predict import predict
from genstab.inference.value_range import Values, converted
from tests.conftest import Items, noise

SMALL = {"map": None, "features": None, "corruptions": None, "margin": 2, "shifts": [(0, 1), (2, 0)]}


class Returns(nn.Module):
    """Returns what a function of the images gives."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


@pytest.mark.parametrize(
    ("output", "function"),
    [
        (1, lambda x: (x * 2, -x)),
        (-1, lambda x: [x * 2, -x]),
        ("out", lambda x: {"aux": x * 2, "out": -x}),
        ("sample", lambda x: type("Output", (), {})() if x is None else _Data(-x)),
    ],
)
def test_one_of_several_outputs(output, function):
    x = torch.rand(2, 3, 4, 5)
    model = load_model(None, Returns(function), output=output)
    with inference(model) as generate:
        assert generate(x).equal(-x)
    with pytest.raises(InputError, match=r"model.output=7 is none of the outputs of Returns: .*\(2, 3, 4, 5\)"):
        load_model(None, Returns(function), output=7)(x)
    unchosen = Returns(function)
    with inference(unchosen) as generate, pytest.raises(InputError, match=r"model\.output=KEY chooses one"):
        generate(x)


class _Data:
    def __init__(self, sample):
        self.sample = sample


def test_a_grey_image_without_channel_and_a_map_of_classes():
    x = torch.rand(2, 3, 4, 5)
    with inference(Returns(lambda x: x.mean(1))) as generate:
        assert generate(x).shape == (2, 1, 4, 5)
    with (
        inference(Returns(lambda x: x.argmax(1))) as generate,
        pytest.raises(
            InputError, match=r"returns a map of classes \(2, 4, 5\) of torch.int64: let it return .* logits"
        ),
    ):
        generate(x)
    with pytest.raises(InputError, match=r"model.output=0: Returns returns one Tensor: leave it out"):
        load_model(None, Returns(lambda x: x), output=0)(x)


def test_a_head_of_one_pixel_gives_logits_and_other_shapes_are_one_line():
    x = torch.rand(2, 3, 4, 5)
    with inference(Returns(lambda x: x.mean((2, 3), keepdim=True))) as generate:
        assert generate(x).shape == (2, 3)
        assert generate(x[..., :1, :1]).shape == (2, 3, 1, 1)  # images of one pixel stay images
    for reduced in (lambda x: x.mean((1, 2, 3)), lambda x: x[..., 0]):
        with (
            inference(Returns(reduced)) as generate,
            pytest.raises(InputError, match=r"returns \(2,.*\), not images .* or logits \(N, K\)"),
        ):
            generate(x)


@pytest.mark.parametrize("error", [KeyError("a"), ZeroDivisionError(), TypeError("no"), SystemExit(3), StopIteration()])
def test_whatever_a_model_raises_is_one_line(tmp_path, error):
    def fail(_):
        raise error

    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/1.png", noise(3, 8, 9))
    for call in (
        lambda: measure(Returns(fail), Items(noise(3, 8, 9)), tmp_path, MeasureOptions(**SMALL)),
        lambda: predict(Returns(fail), tmp_path / "in", tmp_path / "out"),
    ):
        with pytest.raises(InputError, match=f"1?.png.*{type(error).__name__}") as caught:
            call()
        assert "\n" not in str(caught.value)


class Strength(nn.Module):
    def forward(self, images, strength, offset=0.0):
        return images * strength.view(len(images), 1, 1, 1) + offset


def test_further_inputs_are_constants():
    x = torch.rand(2, 3, 4, 5)
    model = load_model(None, Strength(), inputs={"strength": [0.5], "offset": 1})
    with inference(model) as generate:
        assert generate(x).equal(x * 0.5 + 1)
    for inputs, message in (
        ({}, "Strength takes strength beside its images: set model.inputs.strength=VALUE"),
        ({"strenght": 1}, "model.inputs.strenght: Strength takes strength, offset beside its images"),
        ({"strength": "much"}, "model.inputs.strength='much' is not a number or a list of numbers"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(None, Strength(), inputs=inputs)


class ChannelsLast(nn.Module):
    def forward(self, images):
        if images.shape[-1] != 3:
            raise ValueError("channels last")
        return images * torch.tensor([1.0, 0.5, 0.25])


def test_channels_last_by_an_option_that_the_error_names(tmp_path):
    x = noise(1, 3, 16, 17)
    with pytest.raises(InputError, match=r"cannot take 0.png .*: channels last; model.layout=nhwc works"):
        measure(ChannelsLast(), Items(*x), tmp_path, MeasureOptions(**SMALL))
    model = load_model(None, ChannelsLast(), layout="nhwc")
    assert model(x).equal(x * torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1))
    call = converted(model, Values(mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 1.0)))  # of channels, before they are last
    assert call(torch.ones(1, 3, 2, 2))[0, :, 0, 0].tolist() == [1, 1, 0.25]
    with pytest.raises(InputError, match=r"model.layout='hwc' is not one of nchw, nhwc"):
        load_model(None, ChannelsLast(), layout="hwc")


class Multiple(nn.Module):
    """Takes sides of multiples of 8, and prints before it fails, as some do."""

    def forward(self, images):
        if images.shape[-1] % 8 or images.shape[-2] % 8:
            print("no!", file=sys.stderr)
            raise IndexError(f"sides of {tuple(images.shape[2:])}")
        return images.flip(1)


def test_predict_pads_to_what_a_model_needs_and_crops(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    sizes = [(16, 16), (16, 15), (16, 15), (16, 17)]  # the second one is a multiple of 8 also when it is one of 2
    for index, size in enumerate(sizes):
        write_image(tmp_path / f"in/{index}.png", noise(3, *size))
    notes: list[str] = []
    predict(Multiple(), tmp_path / "in", tmp_path / "out", notes=notes)
    assert notes == [f"images are padded to multiples of {n}, which the model needs, and cropped" for n in (2, 8)]
    for index in range(len(sizes)):
        source, output = (read_image(tmp_path / folder / f"{index}.png") for folder in ("in", "out"))
        assert output.equal(source.flip(0))
    assert capfd.readouterr().err.count("no!") == 2  # of the calls that were no trials


def fixed(size):
    """A program that moves with its image, of one size alone."""
    return Program("fixed.onnx", lambda device: lambda x: x.flip(1), (None, 3, *size))


def test_windows_of_the_size_that_a_program_has(tmp_path):
    images = noise(2, 3, 30, 41)
    found = measure(fixed((16, 24)), Items(*images), tmp_path, MeasureOptions(**SMALL))
    assert found.summary["val/shift_psnr"] == found.summary["val/shift_psnr_crop"] == 100
    assert found.notes == ["the model takes 16×24 alone: images are cut to their centre, 16×24 of 0.png"]
    tight = measure(fixed((30, 40)), Items(*images), tmp_path, MeasureOptions(**SMALL))
    assert "val/shift_psnr_crop" not in tight.summary
    assert any("windows that move need images of 32×41" in note for note in tight.notes)
    with pytest.raises(InputError, match=r"0.png is 30×41, but the model takes 64×64 alone: data.size=\[64,64\]"):
        measure(fixed((64, 64)), Items(*images), tmp_path, MeasureOptions(**SMALL))
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in/1.png", images[0])
    with pytest.raises(
        InputError, match=r"1.png, .*: fixed.onnx takes images of 3 channels and 64×64 .*size=\[64,64\]"
    ):
        predict(fixed((64, 64)), tmp_path / "in", tmp_path / "out")
    predict(fixed((64, 64)), tmp_path / "in", tmp_path / "out", size=(64, 64))


def test_a_crop_of_a_fixed_size_is_that_of_the_whole_image(tmp_path):
    """The windows are those of `shift_psnr` on the part of the image in which they can move."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, 3, 4, stride=2, padding=1).eval()
    up = nn.Upsample(scale_factor=2)
    program = Program("x.onnx", lambda device: lambda x: up(network(x)).detach(), (None, 3, 16, 24))
    images = noise(1, 3, 30, 41)
    found = measure(program, Items(*images), tmp_path, MeasureOptions(**SMALL))
    part = images[..., 6:24, 8:33]  # 18×25, in which 16×24 moves by (2, 0) and (0, 1)
    expected = shift_psnr(nn.Sequential(network, up), part, SMALL["shifts"], "crop", margin=2)
    decibels = torch.tensor(found.measurements["shift_psnr"]["crop"]["decibels"], dtype=torch.float64)
    torch.testing.assert_close(decibels, expected, rtol=0, atol=1e-4)


def test_sizes():
    assert InputSize(8).of(17, 30) == (16, 24)
    assert InputSize(fixed=(4, 5)).of(4, 9) == (4, 5)
    assert InputSize(fixed=(4, 5)).of(3, 9) == InputSize(8).of(7, 30) == (0, 0)


def test_onnx_finds_its_layout_and_takes_constants(tmp_path, capfd):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    helper, floating = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Mul", ["image", "weights"], ["out"]), helper.make_node("Relu", ["out"], ["positive"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("image", floating, ["n", 8, 9, 3]),
            helper.make_tensor_value_info("weights", floating, [3]),
        ],
        [helper.make_tensor_value_info(name, floating, None) for name in ("out", "positive")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = Path(tmp_path, "x.onnx")
    onnx.save(model, path)
    x = noise(2, 3, 8, 9)
    loaded = load_model(path, output="positive", inputs={"weights": [1, 2, -1]})
    assert loaded.shape == (None, 3, 8, 9)
    expected = (x * torch.tensor([1.0, 2.0, -1.0]).view(3, 1, 1)).relu()
    assert loaded(x).equal(expected)
    for options, message in (
        ({}, r"x.onnx takes 2 inputs, image .*, weights \[3\]: set model.inputs.weights=VALUE"),
        ({"inputs": {"weights": [1, 2]}}, r"model.inputs.weights of shape \[2\] does not fit x.onnx: it takes \[3\]"),
        ({"inputs": {"weights": 1}}, r"x.onnx has 2 outputs: out .*, positive .*; model.output=out chooses one"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(path, **options)
    assert capfd.readouterr() == ("", "")
