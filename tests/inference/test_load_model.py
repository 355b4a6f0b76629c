"""Any model from any file: the same outputs as the module that was saved."""

import os
import pickle
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning import Trainer
from safetensors.torch import save_file
from torch import nn

from genstab import AntiAlias, InputError, UNet, load_model
from genstab.cli.jobs import model_of
from genstab.cli.model_options import check_model
from genstab.inference.eval_mode import inference
from genstab.inference.exported_programs import Program
from genstab.inference.predict_record import model_digest
from tests.conftest import pairs_loader, tiny_pix2pix
from tests.inference.test_cyclegan_checkpoints import FILE, REFERENCE, real_file
from tests.training.test_pix2pix import QUIET


def network(seed=0, channels=3):
    """Convolutions and a norm with statistics that matter; dropout, which eval mode must switch off."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 3, 1))
    nn.init.normal_(layers[1].running_mean)
    return layers.eval()


def test_the_test_fails_on_a_trained_mode():
    x = torch.rand(2, 3, 16, 16)
    assert (network()(x) - network().train()(x)).abs().max() > 0.1


def assert_same(model, original, *sizes, channels=3):
    assert not model.training
    for batch, height, width in sizes:
        x = torch.rand(batch, channels, height, width) * 2 - 1
        with torch.no_grad():
            expected = original(x)
            torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
        with inference(model) as generator:
            torch.testing.assert_close(generator(x), expected, rtol=0, atol=1e-5)


SIZES = [(1, 16, 16), (3, 15, 18)]


# --- weights of a network


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module.model.{key}": value for key, value in state.items()},
        # as Lightning saves a generator beside a discriminator
        lambda state: {
            "state_dict": {f"generator.{key}": value for key, value in state.items()}
            | {f"discriminator.{key}": torch.zeros(1) for key in state},
            "hyper_parameters": {"lr": 1e-4},
        },
        # twice the same
        lambda state: {"params": state, "params_ema": OrderedDict(state)},
        # before torch 1.0 norms did not count their batches
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
    ],
)
def test_weights_wherever_they_lie_in_the_file(tmp_path, wrap):
    original = network(1).half().float()  # so that half precision loses nothing
    torch.save(wrap(original.state_dict()), tmp_path / "some.weights")
    assert_same(load_model(tmp_path / "some.weights", network(2)), original, *SIZES)


def test_weights_of_an_old_file_and_of_safetensors(tmp_path):
    original = network(1)
    torch.save(original.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({f"net.{key}": value for key, value in original.state_dict().items()}, tmp_path / "new.bin")
    for name in ("old.pth", "new.bin"):
        assert_same(load_model(str(tmp_path / name), network(2).train()), original, *SIZES)


def test_a_network_alone_keeps_its_weights():
    original = network(1)
    assert load_model(None, original.train()) is original
    assert_same(original, original, *SIZES)


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        ({"weight": torch.zeros(3)}, "does not fit Conv2d: missing bias; shape mismatch: weight .3, not 3×1×1×1.$"),
        ({"a": {"weight": torch.zeros(3, 1, 1, 1), "bias": torch.zeros(())}}, "mismatch: bias .a number, not 3.$"),
        (
            {f"net.{name}": torch.zeros(3, 1, 1, 1) for name in ("weight", "w1", "w2", "w3", "w4")},
            "does not fit Conv2d: missing bias; unexpected w1, w2, w3 and 1 more$",
        ),
        ({"epoch": 3}, "does not fit Conv2d: it holds no weights$"),
        ([torch.zeros(3)], "does not fit Conv2d: its tensors are in lists, without names$"),
        ({"net": {"weight": torch.eye(3).to_sparse()}}, r"net\.weight is a sparse tensor: save a dense one$"),
        ({"a": [torch.zeros(2, device="meta")]}, r"a\.0 is a meta tensor"),
        (
            {f"G_{way}.{key}": i + torch.zeros(3, 1, 1, 1) if key == "weight" else torch.zeros(3)
             for i, way in enumerate(("AB", "BA")) for key in ("weight", "bias")},
            "2 different sets of weights that fit Conv2d: G_AB, G_BA; model.prefix=G_AB chooses",
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named_on_one_line(tmp_path, holds, message):
    torch.save(holds, tmp_path / "x.pth")
    with pytest.raises(InputError, match=f"x.pth .*{message}") as error:
        load_model(tmp_path / "x.pth", nn.Conv2d(1, 3, 1))
    assert "\n" not in str(error.value)


def test_weights_in_many_dicts_and_a_file_that_was_cut_off(tmp_path):
    original = network(1)
    holds = original.state_dict()
    for key in "abcd":
        holds = {key: holds}
    torch.save(holds, tmp_path / "x.pth")
    assert_same(load_model(tmp_path / "x.pth", network(2)), original, *SIZES)
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"x\.pth is cut off: it begins as a file of torch\.save"):
        load_model(tmp_path / "x.pth", network(2))


# --- checkpoints


def test_a_checkpoint_and_a_run_folder(tmp_path):
    model = tiny_pix2pix()
    trainer = Trainer(max_steps=1, **QUIET)
    trainer.fit(model, pairs_loader(4, 2))
    trainer.save_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    model.eval()
    for path in (tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt"):
        assert_same(load_model(path), model.generator, (2, 32, 32), channels=1)
    # its weights in a network given by hand
    plain, given = load_model(tmp_path / "run"), UNet(1, 3, 4, 3, antialias=AntiAlias("tri3"))
    assert_same(load_model(tmp_path / "run", given), plain, (2, 32, 32), channels=1)
    with pytest.raises(InputError, match=r"checkpoints is a folder without checkpoints.last\.ckpt"):
        load_model(tmp_path / "run/checkpoints")


@real_file
def test_the_real_file_gives_its_recorded_output():
    with np.load(REFERENCE / "cyclegan_repo_unet128_ngf8_io.npz") as recorded:
        source, output = torch.from_numpy(recorded["input"]), torch.from_numpy(recorded["output"])
    with inference(load_model(FILE)) as generator:
        torch.testing.assert_close(generator(source), output, rtol=0, atol=1e-5)


# --- programs


def torchscript(original, path, how=torch.jit.script):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        how(original).save(path)
    return path


def frozen(original):
    return torch.jit.freeze(torch.jit.script(original))


def traced(original):
    return torch.jit.trace(original, torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("how", [torch.jit.script, traced, frozen])
def test_torchscript(tmp_path, how):
    original = network()
    model = load_model(torchscript(original, tmp_path / "x.bin", how))
    assert_same(model, original, *SIZES)
    assert model.parameter_count == (None if how is frozen else sum(p.numel() for p in original.parameters()))
    assert model.train().eval() is model


def test_what_a_torchscript_file_cannot_take_is_told_in_one_line(tmp_path):
    model = load_model(torchscript(network(), tmp_path / "x.pt"))
    with pytest.raises(InputError, match=r"^x.pt cannot take images of 1 channel and 8×8 pixels: .*channels") as error:
        model(torch.zeros(1, 1, 8, 8))
    assert "\n" not in str(error.value)


def test_torchscript_in_train_mode_and_in_half_precision(tmp_path):
    original = network().half().float()
    assert_same(load_model(torchscript(network().half(), tmp_path / "half.pt")), original, *SIZES)
    model = load_model(torchscript(original.train(), tmp_path / "train.pt"))
    assert_same(model, original.eval(), *SIZES)
    assert model(torch.rand(1, 3, 8, 8).bfloat16()).dtype == torch.float32  # a program has its own precision


def exported(original, path, dynamic=None, batch=2):
    x = torch.rand(batch, 3, 16, 16, dtype=next(original.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(original, (x,), dynamic_shapes=(dynamic,) if dynamic else None), path)
    return path


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One network as exported programs and ONNX, of fixed and of any size; export takes a second each."""
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    folder, x = tmp_path_factory.mktemp("programs"), torch.rand(2, 3, 16, 16)
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    exported(network(), folder / "fixed.pt2")
    exported(network(), folder / "any.pt2", axes)
    for name, dynamic in {"fixed": None, "any": (axes,)}.items():
        torch.onnx.export(network(), (x,), folder / f"{name}.onnx", dynamo=True, verbose=False, dynamic_shapes=dynamic)
    return folder


@pytest.mark.parametrize("name", ["any.pt2", "any.onnx"])
def test_programs_of_any_size(programs, name):
    assert_same(load_model(programs / name), network(), *SIZES)


@pytest.mark.parametrize("name", ["fixed.pt2", "fixed.onnx"])
def test_programs_of_one_size_take_any_number_of_images(programs, name):
    model = load_model(programs / name)
    assert_same(model, network(), (1, 16, 16), (2, 16, 16), (5, 16, 16))
    x = torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(model(x), torch.cat([model(image[None]) for image in x]), rtol=0, atol=1e-6)
    for size in ((3, 16, 24), (3, 8, 16), (1, 16, 16)):
        wanted = rf"{name} takes images of 3 channels and 16×16 pixels, not {size[0]} channels? and {size[1]}×{size[2]}"
        with pytest.raises(InputError, match=wanted):
            model(torch.rand(1, *size))
    with pytest.raises(InputError, match=r"a batch of images .N, C, H, W., not .3, 16, 16."):
        model(torch.rand(3, 16, 16))


def test_the_name_of_a_file_says_nothing(programs, tmp_path):
    for name in ("any.pt2", "fixed.pt2"):
        (tmp_path / "model.onnx").write_bytes((programs / name).read_bytes())
        assert_same(load_model(tmp_path / "model.onnx"), network(), (2, 16, 16))


def test_an_exported_program_with_bounds(tmp_path):
    axes = {0: torch.export.Dim("n", min=3, max=4), 2: 8 * torch.export.Dim("h", min=1, max=2)}
    model = load_model(exported(network(), tmp_path / "x.pt2", axes, batch=3))
    assert model.shape == (None, 3, None, 16)
    assert model.parameter_count == sum(p.numel() for p in network().parameters())
    assert_same(model, network(), (3, 16, 16), (4, 8, 16))
    for shape in ((3, 3, 24, 16), (9, 3, 16, 16)):
        with pytest.raises(InputError, match=rf"x.pt2 cannot take images of .* {shape[2]}×16 pixels: Guard failed"):
            model(torch.rand(shape))


def test_an_exported_program_in_half_precision(tmp_path):
    path = exported(network().half(), tmp_path / "x.pt2")
    x = torch.rand(2, 3, 16, 16)
    with inference(load_model(path)) as generator, torch.no_grad():
        torch.testing.assert_close(generator(x), network().half()(x.half()).float(), rtol=0, atol=1e-5)


def test_weights_beside_an_onnx_file_belong_to_the_model(programs, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(programs / "any.onnx")
    onnx.save(model, tmp_path / "x.onnx", save_as_external_data=True, location="x.weights", size_threshold=0)
    before = model_digest(load_model(tmp_path / "x.onnx"))
    assert before == model_digest(load_model(tmp_path / "x.onnx"))
    content = (tmp_path / "x.weights").read_bytes()
    (tmp_path / "x.weights").write_bytes(bytes(len(content)))
    assert model_digest(load_model(tmp_path / "x.onnx")) != before


def test_onnx_without_onnxruntime(programs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"any.onnx is .* needs onnxruntime: pip install 'genstab\[onnx\]'"):
        load_model(programs / "any.onnx")


def test_onnx_on_a_device_that_it_has_not(programs):
    with pytest.raises(InputError, match=r"any.onnx cannot run on meta: this onnxruntime has .*CPUExecutionProvider"):
        load_model(programs / "any.onnx").to("meta")


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


class Fork(nn.Module):
    def forward(self, x):
        return x, -x


def test_programs_with_further_inputs_and_outputs(tmp_path):
    x = torch.rand(2, 3, 16, 16)
    torch.export.save(torch.export.export(Two(), (x, -x)), tmp_path / "two.pt2")
    with pytest.raises(
        InputError, match=r"two.pt2 takes 2 inputs, x \[2, 3, 16, 16\], y .*: set model.inputs.y=VALUE$"
    ):
        load_model(tmp_path / "two.pt2")
    assert load_model(tmp_path / "two.pt2", inputs={"y": [[[1.0]], [[2.0]], [[3.0]]]})(x).equal(
        x + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    )
    with pytest.raises(InputError, match=r"model.inputs.z is no input of .*two.pt2: it takes x .*, y "):
        load_model(tmp_path / "two.pt2", inputs={"z": 1})
    torch.onnx.export(Fork().eval(), (x,), tmp_path / "fork.onnx", dynamo=True, verbose=False)
    with pytest.raises(InputError, match=r"fork.onnx has 2 outputs: (\w+) .*; model.output=\1 chooses one"):
        load_model(tmp_path / "fork.onnx")
    torchscript(Fork().eval(), tmp_path / "fork.pt")
    with pytest.raises(InputError, match=r"fork.pt returns a tuple, .*: 0 \(2, 3, 16, 16\), 1 .*; model.output=KEY"):
        load_model(tmp_path / "fork.pt")(x)
    for name in ("fork.onnx", "fork.pt"):
        assert load_model(tmp_path / name, output=1)(x).equal(-x)
    with pytest.raises(InputError, match=r"fork.pt is .*, which has no choice of weights: leave out model.prefix=a"):
        load_model(tmp_path / "fork.pt", prefix="a")


def test_a_program_is_filled_up_with_the_last_image():
    seen = []

    def run(images):
        seen.append(images.flatten().tolist())
        return images * 2

    model = Program("x", lambda device: run, (2, None, None, None))
    assert model(torch.arange(3.0).view(3, 1, 1, 1)).flatten().tolist() == [0, 2, 4]
    assert seen == [[0, 1], [2, 2]]


def test_a_program_moves_by_being_loaded_there():
    model = Program("x", lambda device: lambda images: images.to(device))
    assert model.to(torch.float64).device == torch.device("cpu")
    assert model.to("meta")(torch.zeros(1, 1, 1, 1)).is_meta


@pytest.mark.parametrize(
    "device",
    [
        "meta",  # computes shapes only, and mixes with no other device
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
        ),
    ],
)
def test_programs_move_to_a_device(tmp_path, device):
    unet = UNet(channels=2, levels=3, antialias=AntiAlias("tri3")).eval()  # its program makes tensors on a device
    x = torch.rand(2, 3, 16, 16)
    torch.export.save(torch.export.export(unet, (x,)), tmp_path / "x.pt2")
    torchscript(network(), tmp_path / "x.pt")
    for name, original in {"x.pt2": unet, "x.pt": network()}.items():
        output = load_model(tmp_path / name).to(device)(x.to(device))
        assert output.device.type == device
        if device != "meta":
            torch.testing.assert_close(output.cpu(), original(x), rtol=0, atol=1e-4)


# --- what is refused


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def evil_export(path, member):
    """An exported program in which a pickle takes a member's place."""
    source = exported(network(), path.with_name("good.pt2"))
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            torch.save(Evil(), path.with_name("evil.pth"))
            content = good.read(name)
            if name.endswith(member):
                content = path.with_name("evil.pth").read_bytes()
            if name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            bad.writestr(name, content)


@pytest.mark.parametrize("alone", [True, False])
def test_pickles_are_refused_and_nothing_in_them_runs(tmp_path, alone):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    torch.save(Evil(), tmp_path / "evil.pth")
    torch.save({"state_dict": Evil()}, tmp_path / "nested.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "evil.data").write_bytes(pickle.dumps(Evil(), 2))
    for name in ("module.pth", "evil.pth", "nested.ckpt", "evil.pkl", "evil.data"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a check.*nothing in it was run") as error:
            load_model(tmp_path / name, None if alone else network())
        assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_pickles_inside_of_an_exported_program_are_refused(tmp_path):
    for i, member in enumerate(("sample_inputs/model.pt", "weights/weight_0")):
        evil_export(tmp_path / f"{i}.pt2", member)
        with pytest.raises(InputError, match=f"{i}.pt2 cannot be read as an exported program") as error:
            load_model(tmp_path / f"{i}.pt2")
        assert "\n" not in str(error.value)
    evil_export(tmp_path / "x.pt2", "no member")
    with zipfile.ZipFile(tmp_path / "x.pt2", "a") as archive:
        archive.writestr("x/data/constants/opaque_obj_0", pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"x.pt2 holds x.data.*opaque_obj_0, which is compiled or pickled: refused"):
        load_model(tmp_path / "x.pt2")
    assert not Path("executed").exists()


def test_what_is_no_model_is_one_line_that_says_what_is_wanted(tmp_path, capfd):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.onnx").write_text("some text")
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("a.txt", "")
    for name, message in {
        "image.png": "is not a model file",
        "empty.pth": "is empty",
        "text.onnx": "is not a model file",
        "some.zip": "is not a model file",
        "folder": "is a folder without checkpoints/last.ckpt",
    }.items():
        wanted = f"{name} {message}.*; expected a checkpoint or run folder of genstab, .*ONNX, or weights"
        for given in (None, network()):
            with pytest.raises(InputError, match=wanted) as error:
                load_model(tmp_path / name, given)
            assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"checkpoint .*missing.ckpt does not exist"):
        load_model(tmp_path / "missing.ckpt")
    assert capfd.readouterr() == ("", "")


def test_damaged_files(tmp_path, programs, capfd):
    for name in ("any.pt2", "any.onnx"):
        content = (programs / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(b"conv2d", b"konv2d").replace(b"Conv", b"Konv"))
        with pytest.raises(InputError, match=f"{name} cannot be read as") as error:
            load_model(tmp_path / name)
        assert "\n" not in str(error.value)
    save_file(network().state_dict(), tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"x.safetensors cannot be read as a safetensors file"):
        load_model(tmp_path / "x.safetensors", network())
    torchscript(network(), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as good, zipfile.ZipFile(tmp_path / "y.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"(" if name.endswith(".py") else good.read(name))
    with pytest.raises(InputError, match=r"y.pt cannot be read as a TorchScript file") as error:
        load_model(tmp_path / "y.pt")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_files_without_and_with_a_network_too_many(tmp_path):
    save_file(network().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x.safetensors is not .*; other weights need their network"):
        load_model(tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"x.pt is a TorchScript file, which contains its network: leave out model"):
        load_model(torchscript(network(), tmp_path / "x.pt"), network())
    with pytest.raises(InputError, match=r"network is a dict, not a torch.nn.Module"):
        load_model(tmp_path / "x.safetensors", {})
    with pytest.raises(InputError, match=r"no model: set model.checkpoint to a checkpoint or run folder"):
        load_model(None)


# --- the keys of the command line


def options(**keys):
    return OmegaConf.create(keys)


def test_a_model_by_its_keys(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Conv2d):\n    def __init__(self, width=3):\n"
        "        super().__init__(width, width, 1)\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    original = nn.Conv2d(2, 2, 1)
    torch.save(original.state_dict(), tmp_path / "x.pth")
    assert_same(model_of(options(_target_="mine.Net", width=2, checkpoint="x.pth")), original, *SIZES, channels=2)
    keys = {"_target_": "genstab.UNet", "channels": 4, "levels": 3, "norm": "instance"}
    assert model_of(options(**keys, checkpoint=None)).config["norm"] == "instance"
    # keys of genstab's own that a network takes without naming them
    (tmp_path / "open.py").write_text(
        "import torch\n\ndef net(**kwargs):\n    return torch.nn.Conv2d(1, 1, 3, **kwargs)\n"
    )
    keys = {"_target_": "open.net", "padding": 2, "padding_mode": "circular"}
    check_model(keys)
    assert model_of(options(**keys)).padding == (2, 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"chekpoint": "x"}, "model.chekpoint is an argument of a network: name it with model._target_"),
        ({"checkpoint": None}, "no model: set model.checkpoint"),
        ({"_target_": "nowhere.Net"}, "model._target_=nowhere.Net: .*No module named 'nowhere'"),
        ({"_target_": "genstab.Net"}, "model._target_=genstab.Net: genstab has no Net"),
        (
            {"_target_": "genstab.UNet", "chanels": 3},
            "model.chanels is not known: did you mean model.channels",
        ),
        ({"_target_": "torch.nn.Conv2d"}, "model._target_=torch.nn.Conv2d: .*missing 3 required positional arguments"),
        ({"_target_": "torch.zeros", "size": [3]}, "network is a Tensor, not a torch.nn.Module"),
        ({"_target_": "genstab.UNet", "norm": "layer"}, "norm='layer' is not one of"),
    ],
)
def test_bad_keys_are_one_line(keys, message):
    with pytest.raises(InputError, match=message) as error:  # noqa: PT012
        check_model(keys)
        model_of(options(**keys))
    assert "\n" not in str(error.value)
