"""`genstab export`: a file that equals the model at sizes of its own choice, or no file."""

import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from genstab import BlurConv2d, InputError, load_model
from genstab.cli import main as cli
from genstab.inference.export import export

pytestmark = pytest.mark.slow
needs_onnx = pytest.mark.skipif(not find_spec("onnxscript"), reason="needs the extra onnx")
# One layer, which is recorded in a second or two: test_export.py does it with the networks.
LAYER = ["model._target_=genstab.BlurConv2d", "model.in_channels=3", "model.out_channels=2", "model.kernel_size=2"]
LAYER += ["model.stride=2"]


@pytest.fixture
def weights(tmp_path):
    network = BlurConv2d(3, 2, 2, stride=2).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return network, tmp_path / "weights.pth"


@pytest.mark.parametrize("name", [pytest.param("model.onnx", marks=needs_onnx), "model.pt", "model.pt2"])
def test_one_command_makes_a_file_that_equals_the_model(weights, tmp_path, monkeypatch, capsys, name):
    network, file = weights
    words = ["genstab", "export", str(file), f"output={tmp_path / name}", "size=[8,12]", *LAYER]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    printed = capsys.readouterr()
    assert "for images of any size; differs from the model by" in printed.out
    assert printed.out.strip().endswith("at 8×12 and 20×16")
    assert printed.err == ""
    images = torch.randn(3, 3, 13, 10)
    torch.testing.assert_close(load_model(tmp_path / name)(images), network(images), atol=1e-5, rtol=0)
    assert {path.name for path in tmp_path.iterdir()} == {"weights.pth", name}


def test_neither_the_weights_nor_a_file_that_exists_is_replaced(weights, tmp_path, monkeypatch):
    mine, words = tmp_path / "mine.pt", ["genstab", "export", str(weights[1]), "size=[8,12]", "format=torchscript"]
    mine.write_text("mine")
    (link := tmp_path / "link.pth").symlink_to(weights[1])
    before = weights[1].read_bytes()
    for output, more, message in (
        (mine, [], "mine.pt exists already: name another file, or replace it with overwrite=true"),
        (weights[1], ["overwrite=true"], "weights.pth is a file that this command reads: name another file"),
        (link, ["overwrite=true"], "link.pth is a file that this command reads"),
    ):
        monkeypatch.setattr(sys, "argv", [*words, f"output={output}", *more, *LAYER])
        with pytest.raises(SystemExit, match=message):
            cli.main()
    assert (mine.read_text(), weights[1].read_bytes()) == ("mine", before)
    monkeypatch.setattr(sys, "argv", [*words, f"output={mine}", "overwrite=true", *LAYER])
    cli.main()
    assert load_model(mine)(torch.zeros(1, 3, 8, 12)).shape == (1, 2, 4, 6)


class Odd(nn.Module):
    """Does what cannot be recorded, as `how` says."""

    def __init__(self, how=""):
        super().__init__()
        self.conv, self.how = nn.Conv2d(1, 1, 1), how

    def forward(self, x):
        if self.how == "branch" and int(x.shape[-1]) > 12:
            return x
        if self.how == "random":
            return x + torch.rand_like(x)
        if self.how == "fixed" and x.shape[-2] != 8:
            raise ValueError("eight rows, please")
        return (x, x) if self.how == "tuple" else self.conv(x) + 9


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("branch", {}, "the exported file differs from the model by .* at 1×1×20×16: it was not written"),
        ("random", {}, "differs from the model"),
        (
            "fixed",
            {},
            r"shape \(1, 1, 20, 16\): eight rows, please \(dynamic=false exports for size alone\)",
        ),
        ("tuple", {}, "returns a tuple, not a tensor"),
        (
            "",
            {"channels": 4},
            r"shape \(2, 4, 8, 12\): Given .* \(size=\[H,W\] and channels=C set them\)",
        ),
        ("", {"format": "onnx"}, "has the suffix of torchscript, but format=onnx"),
        ("", {"format": "coreml"}, "format='coreml' is not one of onnx, torchscript, pt2"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(tmp_path, how, options, message):
    with pytest.raises(InputError, match=message) as error:
        export(Odd(how), tmp_path / "model.pt", size=(8, 12), **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_of_one_size_is_exported_for_that_size(tmp_path):
    said = export(Odd("fixed"), tmp_path / "model.pt2", size=(8, 12), dynamic=False)
    assert said.endswith("for images of 8×12; differs from the model by 0e+00 at most, at 8×12")
    program = load_model(tmp_path / "model.pt2")
    assert program(torch.zeros(3, 1, 8, 12)).shape == (3, 1, 8, 12)
    with pytest.raises(InputError, match="takes images of 1 channel and 8×12 pixels, not"):
        program(torch.zeros(1, 1, 8, 13))
    with pytest.raises(InputError, match=r"model\.pt2 is an exported program already"):
        export(program, tmp_path / "again.pt")
    with pytest.raises(InputError, match=r"does not tell the format: name it \.onnx, \.pt, \.pt2"):
        export(Odd(), tmp_path / "model.bin")
    with pytest.raises(InputError, match="Tanh has no convolution that tells them: set channels=3"):
        export(nn.Tanh(), tmp_path / "model.pt")
