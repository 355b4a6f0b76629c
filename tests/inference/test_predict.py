"""A folder of images through a generator: names, sizes, channels, depths, and what goes wrong."""

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from genstab import InputError, UNet
from genstab.cli import main as cli
from genstab.data.datamodules import PairedData
from genstab.data.image_io import image_info, image_shape, read_image, to_uint8, write_image
from genstab.inference import predict as predict_module
from genstab.inference.eval_mode import inference
from genstab.inference.load_model import place
from genstab.inference.predict import predict
from genstab.inference.predict_record import RECORD, model_digest
from tests.conftest import tiny_pix2pix

# of networks that nobody trained
pytestmark = pytest.mark.filterwarnings("ignore:the outputs are almost constant")


def network(source=3, target=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(source, 4, 3, padding=1), nn.Dropout(), nn.Conv2d(4, target, 1), nn.Tanh())


class Picky(nn.Module):
    def forward(self, images):
        raise AssertionError


def paint(folder, *names, size=(16, 20), channels=3, depth=8):
    for name in names:
        torch.manual_seed(len(name))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, torch.rand(channels, *size) * 2 - 1, f"uint{depth}")


def names(folder):
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [name for name in found if name != RECORD]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    paint(folder, "1.png", "2.png", "10.png", "a/1.bmp", "a/b/photo.JPG", "a/w.webp")
    paint(folder, "odd.png", "small.png", size=(9, 7))
    paint(folder, "deep.png", "deep.tif", depth=16)
    return folder


def test_names_sizes_channels_and_depths_stay(images, tmp_path):
    result = predict(network(), images, tmp_path / "out", batch_size=2)
    assert names(tmp_path / "out") == names(images) == sorted(result.written)
    for name in result.written:
        before, after = images / name, tmp_path / "out" / name
        assert image_shape(after) == image_shape(before)
        assert image_info(after).dtype == image_info(before).dtype == ("uint16" if "deep" in name else "uint8")
        with Image.open(before) as source, Image.open(after) as output:
            assert output.format == source.format
    assert result.summary("out") == "10 images written to out, 0 already existed"


@pytest.mark.parametrize("batch_size", [1, 3, 99])
def test_the_values_are_those_of_a_direct_call(images, tmp_path, batch_size):
    model = network()
    predict(model, images, tmp_path / "out", batch_size=batch_size)
    with inference(model) as generator:
        for name in names(images):
            expected, written = generator(read_image(images / name)[None])[0], read_image(tmp_path / "out" / name)
            if name.endswith("JPG"):
                assert (written - expected).abs().mean() < 0.04  # noise is what JPEG does worst
            else:  # half a level, of which there are 255 or 65535 in a range of 2
                assert (written - expected).abs().max() <= 1.01 / np.iinfo(image_info(images / name).dtype).max


def test_the_pixels_are_those_of_the_pictures(images, tmp_path):
    model = network()
    predict(model, images, tmp_path / "out", batch_size=1)
    with inference(model) as generator:
        expected = to_uint8(generator(read_image(images / "odd.png")[None]))[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/odd.png")), expected)


def test_it_is_what_validation_gives(tmp_path):
    """The same image through the validation loader, the trained module and `to_uint8`, and by `predict`."""
    for split in ("train", "val"):
        paint(tmp_path / "pairs", f"{split}A/1.png", f"{split}A/2.png", size=(32, 24), channels=1)
        paint(tmp_path / "pairs", f"{split}B/1.png", f"{split}B/2.png", size=(32, 24))
    data = PairedData(str(tmp_path / "pairs"), source_channels=1, load_size=34, crop_size=(32, 32), num_workers=0)
    data.setup("validate")
    model = tiny_pix2pix()
    (batch,) = data.val_dataloader()
    with inference(model) as generator:
        expected = generator(batch["source"])
    predict(model.generator, tmp_path / "pairs/valA", tmp_path / "out", size=(32, 32))
    predict(model.generator, tmp_path / "pairs/valA", tmp_path / "native")
    for i, name in enumerate(("1.png", "2.png")):
        assert image_shape(tmp_path / "out" / name) == image_shape(tmp_path / "native" / name) == (3, 32, 24)
        shrunk = nn.functional.interpolate(expected[i : i + 1], (32, 24), mode="bilinear", antialias=True)
        assert np.abs(np.asarray(Image.open(tmp_path / "out" / name)) - to_uint8(shrunk)[0].astype(int)).max() <= 1


def test_a_second_run_does_what_is_missing(images, tmp_path):
    out = tmp_path / "out"
    predict(network(), images, out)
    times = {name: (out / name).stat().st_mtime_ns for name in names(out)}
    (out / "2.png").unlink()
    for part in (".0123456789abcdef.part", "a/.fedcba9876543210.part"):
        (out / part).write_bytes(b"of a killed run")
    result = predict(network(), images, out)
    assert (result.written, len(result.present)) == (["2.png"], 9)
    assert names(out) == names(images)
    assert {name for name in names(out) if (out / name).stat().st_mtime_ns != times[name]} == {"2.png"}
    assert len(predict(network(), images, out, overwrite=True).written) == 10
    assert predict(network(), images, out).summary(out) == f"0 images written to {out}, 10 already existed"


def test_what_changed_since_is_done_again_and_no_other_is_read(images, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict(nn.Identity(), images, out)
    paint(images, "2.png", size=(5, 6))
    read = []
    monkeypatch.setattr(predict_module, "read_image", lambda path, reading: read.append(path.name) or read_image(path))
    result = predict(nn.Identity(), images, out)
    assert (result.written, len(result.present), read) == (["2.png"], 9, ["2.png"])
    assert read_image(out / "2.png").equal(read_image(images / "2.png"))


def test_results_of_another_model_other_options_or_unknown_origin_are_refused(tmp_path):
    paint(tmp_path / "in", "1.png", "2.png")
    paint(tmp_path / "out", "2.png")
    inputs, out = tmp_path / "in", tmp_path / "out"
    before = (out / "2.png").read_bytes()
    with pytest.raises(InputError, match=r"out holds 2\.png, which predict\.jsonl there does not know: overwrite=true"):
        predict(nn.Identity(), inputs, out)
    assert (names(out), (out / "2.png").read_bytes()) == (["2.png"], before)
    assert len(predict(nn.Identity(), inputs, out, overwrite=True).written) == 2
    for changed, message in (
        ({"generator": nn.Tanh()}, "results of another model: overwrite=true"),
        ({"size": (8, 8)}, r"results size=None, not \[8, 8\]: overwrite=true"),
        ({"made_by": {"value_range": [0, 1]}}, r"results value_range=None, not \[0, 1\]: overwrite=true"),
    ):
        with pytest.raises(InputError, match=message):
            predict(**{"generator": nn.Identity(), "source": inputs, "output": out, **changed})
    # another model over some of them: the others are not called its results
    (inputs / "2.png").rename(tmp_path / "2.png")
    assert predict(nn.Tanh(), inputs, out, overwrite=True).written == ["1.png"]
    (tmp_path / "2.png").rename(inputs / "2.png")
    assert predict(nn.Tanh(), inputs, out).written == ["2.png"]
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert model_digest(first) != model_digest(second)
    second.load_state_dict(first.state_dict())
    assert model_digest(first) == model_digest(second)


def test_nothing_is_written_through_links_or_onto_the_input(tmp_path):
    paint(tmp_path / "in", "1.png", "sub/2.png")
    paint(tmp_path / "elsewhere", "1.png", "2.png")
    originals = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    (tmp_path / "in/3.png").symlink_to(tmp_path / "out2/3.png")
    for number, (link, to, message) in enumerate(
        (
            ("sub", "in/sub", "out0/sub is or lies in a link to .*in/sub, outside of it"),
            ("sub", "elsewhere", "out1/sub is or lies in a link to .*elsewhere"),
            ("3.png", None, "out2/3.png would replace the input .*in/3.png, which links to it"),
            ("predict.jsonl", "precious", "out3/predict.jsonl is not a record"),
        )
    ):
        out = tmp_path / f"out{number}"
        out.mkdir(exist_ok=True)
        if to:
            (out / link).symlink_to(tmp_path / to)
        paint(tmp_path / "out2", "3.png")
        with pytest.raises(InputError, match=message):
            predict(nn.Tanh(), tmp_path / "in", out, overwrite=True)
    (tmp_path / "out4").mkdir()
    (tmp_path / "out4/1.png").symlink_to(tmp_path / "in/1.png")
    predict(nn.Tanh(), tmp_path / "in", tmp_path / "out4", overwrite=True)
    assert not (tmp_path / "out4/1.png").is_symlink()
    assert {path: path.read_bytes() for path in originals} == originals
    assert not (tmp_path / "precious").exists()


def test_two_processes_into_one_folder_lose_nothing(images, tmp_path):
    """The other one writes while this one does, with the same model; one with another model is refused."""
    out, ours = tmp_path / "out", network()

    class Meanwhile(nn.Identity):
        def forward(self, inputs):
            if not (out / "deep.tif").exists():
                answers.append(in_another_process(lambda: len(predict(nn.Identity(), images, out).written)))
                answers.append(in_another_process(lambda: predict(ours, images, out, overwrite=True)))
            return inputs

    answers = []
    Meanwhile.__name__, Meanwhile.__qualname__ = "Identity", "Identity"
    result = predict(Meanwhile(), images, out, batch_size=1)
    refused = f"another genstab predict is writing to output={out}: wait for it to end, or name another folder"
    assert answers == [10, refused]
    assert len(result.written) == 10
    lossless = [name for name in names(images) if "JPG" not in name]
    assert all(read_image(out / name).equal(read_image(images / name)) for name in lossless)
    assert len(predict(nn.Identity(), images, out).present) == 10


def in_another_process(call):
    """Return what a call returns in a forked process, or the text of its error."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def run():
        try:
            queue.put(call())
        except InputError as error:
            queue.put(str(error))

    process = context.Process(target=run)
    process.start()
    process.join(60)
    return queue.get() if process.exitcode == 0 else process.exitcode


def broken(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[60:90] = bytes(30)
    (folder / name).write_bytes(content)


def test_an_unreadable_image_ends_it_or_is_left_out(images, tmp_path):
    out = tmp_path / "out"
    broken(images, "10.png")  # its header is whole
    with pytest.raises(InputError, match=r"cannot read .*in/10\.png"):
        predict(network(), images, out)
    assert "10.png" not in names(out)
    (images / "a/1.bmp").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read .*in/a/1\.bmp: the file is empty"):
        predict(network(), images, tmp_path / "other")
    assert not (tmp_path / "other").exists()  # headers are read before anything is written
    result = predict(network(), images, out, on_error="skip")
    assert set(result.failed) == {"10.png", "a/1.bmp"}
    assert "the file is empty" in result.failed["a/1.bmp"]
    assert names(out) == sorted(set(names(images)) - set(result.failed))
    assert result.summary("out").endswith("2 left out")


def test_what_the_generator_can_not_take_is_named(images, tmp_path):
    paint(images, "z.png", channels=4)
    for model, message in (
        (network(), r"in/z.png, 4 channels of 16×20 pixels: .*expected input\[1, 4, 16, 20\] to have 3 channels"),
        (tiny_pix2pix().generator, r"in/1.png, 3 channels of 16×20 pixels: UNet: in_channels=1, not"),
        (nn.Sequential(nn.Conv2d(3, 3, 2)), r"in/1.png, .*: the generator returns 15×19 pixels: set size="),
        (nn.Flatten(), r"in/1.png, .*: the generator returns \(4, 960\), not images"),
        (Picky(), r"in/1.png, 3 channels of 16×20 pixels: AssertionError$"),
        (nn.Linear(20, 20), r"in/odd.png, 3 channels of 9×7 pixels: "),
    ):
        with pytest.raises(InputError, match=message) as error:
            predict(model, images, tmp_path / f"out{len(message)}", on_error="raise")
        assert "\n" not in str(error.value)
    result = predict(network(), images, tmp_path / "out", on_error="skip")
    assert list(result.failed) == ["z.png"]
    assert len(result.written) == 10


def test_alpha_stays_where_the_generator_takes_it(tmp_path):
    paint(tmp_path / "in", "x.png", channels=4)
    predict(nn.Identity(), tmp_path / "in", tmp_path / "out")
    assert read_image(tmp_path / "out/x.png").equal(read_image(tmp_path / "in/x.png"))


def test_formats_that_can_not_hold_the_output(tmp_path):
    paint(tmp_path / "in", "1.jpg", "2.png")
    with pytest.raises(InputError, match=r"cannot write .*out/1.jpg: 4 channels, but .jpg of 8 bits supports 1, 3"):
        predict(network(3, 4), tmp_path / "in", tmp_path / "out")
    result = predict(network(3, 4), tmp_path / "in", tmp_path / "out", on_error="skip")
    assert (list(result.failed), result.written) == (["1.jpg"], ["2.png"])
    assert names(tmp_path / "out") == ["2.png"]


def test_formats_that_are_read_alone_become_png_and_those_that_are_not_read_are_left_out(tmp_path):
    for name in ("ulm/1.GIF", "2.JPE", "3.ppm", "._3.ppm", "__MACOSX/3.ppm", ".4.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (0, 255, 0)).save(tmp_path / "in" / name)
    (tmp_path / "in/5.heic").write_bytes(b"\0\0\0 ftypheic")
    done = predict(nn.Identity(), tmp_path / "in", tmp_path / "out", on_error="skip")
    assert names(tmp_path / "out") == [".4.png", "2.JPE", "3.png", "ulm/1.png"]
    assert read_image(tmp_path / "out/3.png").equal(read_image(tmp_path / "in/3.ppm"))
    assert list(done.failed) == ["5.heic"]
    assert "genstab does not read .heic: convert it to PNG or TIFF" in done.failed["5.heic"]
    with pytest.raises(InputError, match=r"5.heic: genstab does not read .heic"):
        predict(nn.Identity(), tmp_path / "in", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    Image.new("RGB", (8, 6)).save(tmp_path / "in/3.png")
    with pytest.raises(InputError, match=r"the results of .*in/3.png and .*in/3.ppm would both be a 3.png: rename one"):
        predict(nn.Identity(), tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_image(tmp_path, number):
    class Overflow(nn.Module):
        def forward(self, images):
            return images * number

    paint(tmp_path / "in", "1.png")
    with pytest.raises(InputError, match=r"1.png: the output contains NaN or infinite values"):
        predict(Overflow(), tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(("model", "scale"), [(nn.Upsample(scale_factor=2), 2), (nn.AvgPool2d(4), 0.25)])
def test_outputs_of_an_integer_scale(tmp_path, model, scale):
    paint(tmp_path / "in", "1.png", size=(16, 24))
    predict(model, tmp_path / "in", tmp_path / "out")
    assert image_shape(tmp_path / "out/1.png") == (3, 16 * scale, 24 * scale)
    predict(model, tmp_path / "in", tmp_path / "resized", size=(8, 8))
    assert image_shape(tmp_path / "resized/1.png") == (3, 16, 24)


def test_16_bits_are_not_lost_on_the_way(tmp_path):
    (tmp_path / "in").mkdir()
    levels = np.arange(600, dtype=np.uint16).reshape(20, 30) * 109
    tifffile.imwrite(tmp_path / "in/x.tif", levels)
    predict(nn.Identity(), tmp_path / "in", tmp_path / "out")
    assert np.array_equal(tifffile.imread(tmp_path / "out/x.tif"), levels)
    (tmp_path / "shares").mkdir()
    shares = (levels[::-1] / 65535).astype("<f4")  # a PFM begins with its last row
    (tmp_path / "shares/x.pfm").write_bytes(b"Pf\n30 20\n-1.0\n" + shares.tobytes())
    predict(nn.Identity(), tmp_path / "shares", tmp_path / "out", source_range=[0, 1], overwrite=True)
    assert image_info(tmp_path / "out/x.png").dtype == "uint16"
    assert read_image(tmp_path / "out/x.png").equal(read_image(tmp_path / "out/x.tif"))


def test_folders_that_do_not_do(images, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(images)
    (tmp_path / "empty").mkdir()
    for source, output, message in (
        (images, images, "is the input folder"),
        (images, tmp_path / "link", "is the input folder"),
        (images, images / "out", "is inside input=.*recursive=false"),
        (images, tmp_path / "file", "output=.*file is a file, not a folder"),
        (images, tmp_path / "file/out", "output=.*file/out cannot be written: Not a directory"),
        (tmp_path / "nowhere", tmp_path / "out", "input=.*nowhere does not exist"),
        (tmp_path / "file", tmp_path / "out", "input=.*file is not a folder"),
        (tmp_path / "empty", tmp_path / "out", "input=.*empty has no images .*found nothing"),
    ):
        with pytest.raises(InputError, match=message):
            predict(network(), source, output)
    assert len(names(images)) == 10
    result = predict(network(), images, images / "out", recursive=False)
    assert sorted(result.written) == sorted(path.name for path in images.glob("*.*"))
    with pytest.raises(InputError, match="batch_size=0"):
        predict(network(), images, tmp_path / "out", batch_size=0)
    with pytest.raises(InputError, match="on_error='no' is not one of raise, skip"):
        predict(network(), images, tmp_path / "out", on_error="no")


def test_devices():
    assert place(network(), "cpu") == torch.device("cpu")
    for device, message in {
        "gpu": "device='gpu' is not one of auto, cpu, mps, cuda",
        "cuda:99": "device=cuda:99: this machine has . CUDA devices",
    }.items():
        with pytest.raises(InputError, match=message):
            place(network(), device)


# --- the command


def genstab(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["genstab", *arguments])
    cli.main()


NETWORK = ["model._target_=genstab.UNet", "model.channels=2", "model.levels=3"]


def test_the_command(images, tmp_path, monkeypatch, capsys):
    torch.manual_seed(3)
    torch.save(UNet(channels=2, levels=3).state_dict(), "x.pth")
    for done in ("10 images written to out, 0 already existed", "0 images written to out, 10 already existed"):
        genstab(monkeypatch, "predict", *NETWORK, "model.checkpoint=x.pth", "input=in", "output=out", "device=cpu")
        assert capsys.readouterr().out == f"{done}\n"
    assert names(tmp_path / "out") == names(images)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "x.pth"}  # nothing of Hydra's


def test_a_generator_of_other_values_and_folders_with_any_name(tmp_path, monkeypatch, capsys):
    images = tmp_path / "it's a, b=[c] (1)"
    paint(images, "1.png")
    # of images in [0, 1], nothing is brighter than grey; in [-1, 1], nothing than three quarters
    clipped = ["model._target_=torch.nn.Hardtanh", "model.min_val=0", "model.max_val=0.5"]
    genstab(monkeypatch, "predict", *clipped, f"input={images}", "output=a: b", "value_range=[0,1]")
    given, done = (to_uint8(read_image(folder / "1.png")[None]) for folder in (images, tmp_path / "a: b"))
    assert abs(done.astype(int) - given.clip(0, 128)).max() <= 1
    assert capsys.readouterr().out == "1 image written to a: b, 0 already existed\n"


def test_the_command_leaves_out_and_says_so(images, monkeypatch, capsys):
    (images / "1.png").write_bytes(b"")
    options = [*NETWORK, "input=in", "output=out", "on_error=skip", "size=[16,16]", "batch_size=2"]
    with pytest.raises(SystemExit, match=r"genstab: 1 image was left out: 1\.png"):
        genstab(monkeypatch, "predict", *options)
    printed = capsys.readouterr()
    assert printed.out == "9 images written to out, 0 already existed, 1 left out\n"
    assert "left out: cannot read in/1.png: the file is empty\n" in printed.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "input and output are missing: add input=DIR output=DIR"),
        (["input=in", "output=out"], "no model: set model.checkpoint to a checkpoint or run folder of genstab"),
        (["input=in", "output=in", *NETWORK], "output=in is the input folder"),
        (["input=in", "output=out", *NETWORK, "size=[1,2,3]"], r"size=\[1, 2, 3\] is not of the right length or null"),
        (
            ["input=in", "output=out", *NETWORK, "value_range=[1,0]"],
            r"value_range=\[1, 0\] is not \[least, greatest\] with least < greatest",
        ),
        (["input=nowhere", "output=out", *NETWORK], "input=nowhere does not exist"),
    ],
)
def test_bad_input_is_one_line(images, monkeypatch, capsys, overrides, message):
    with pytest.raises(SystemExit, match=f"genstab: .*{message}") as error:
        genstab(monkeypatch, "predict", *overrides)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")
    assert not Path("out").exists()


def test_a_sweep_over_models(images, tmp_path, monkeypatch):
    options = ["input=in", "recursive=false", "output=out${hydra:job.num}", "model.bias=true,false"]
    network = ["model._target_=torch.nn.Conv2d", "model.in_channels=3", "model.out_channels=3", "model.kernel_size=1"]
    genstab(monkeypatch, "predict", "-m", *options, *network)
    assert names(tmp_path / "out0") == names(tmp_path / "out1")


def test_a_killed_run_goes_on(images, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def replace(part, path):  # the first image is finished, the second one written and not yet in place
        if (out / "1.png").exists():
            os.kill(os.getpid(), 9)
        os.rename(part, path)

    monkeypatch.setattr(os, "replace", replace)
    assert in_another_process(lambda: predict(network(), images, out, recursive=False)) == -9
    monkeypatch.undo()
    assert len(names(out)) == 2
    result = predict(network(), images, out, recursive=False)
    assert (result.present, len(result.written)) == (["1.png"], 6)
    assert names(out) == sorted(path.name for path in images.glob("*.*"))
