"""Bad inputs of every kind through the program: it works, or one line names the thing and the reason; never more.

Neither a traceback nor a hang nor silence. What `test_bad_data` checks of the data module is run here as a user
would, beside more files, names, folders, options, checkpoints and archives.
"""

import io
import json
import math
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from genstab import InputError, load_generator
from genstab.cli import main as cli
from genstab.data import image_io as images
from genstab.inference.predict import predict
from tests.cli.test_config import TINY
from tests.data import test_bad_data as known
from tests.data.test_bad_data import noise, save, write
from tests.data.test_bombs import png
from tests.data.test_image_io import chunk, of_bits

# the network of these runs is hardly trained
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the outputs are almost constant")]
SECONDS = 60  # one of these takes less than one; what takes more waits for something
QUIET = [
    "hydra/job_logging=none", "hydra/hydra_logging=none", "logger=csv",
]  # fmt: skip
TRAIN = [
    "train", "data=paired", "data.root=data", "data.crop_size=32", "data.load_size=32", "trainer=cpu",
    "trainer.max_steps=2", "callbacks.pictures=null", "callbacks.progress=null", "trainer.enable_progress_bar=false",
    "hydra.run.dir=run", *QUIET, *(option for option in TINY if "pictures" not in option),
]  # fmt: skip
MEASURE = [
    "measure", "data=folder", "images=null", "data.size=[32,32]", "map=null", "features=null", "corruptions=null",
    "margin=2", "shifts=[[0,1]]", "protocols=[circular]", "hydra.run.dir=measured", *QUIET,
]  # fmt: skip


class Hangs(BaseException):
    """What no `except` of the program may swallow."""


@pytest.fixture(autouse=True)
def _watched():
    """Let no program run longer than `SECONDS`."""

    def stop(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def said(monkeypatch, capsys):
    """Run the program; return the line with which it ends, None where it does what it was asked for."""

    def run(*arguments: str) -> str | None:
        monkeypatch.setattr(sys, "argv", ["genstab", *arguments])
        line = None
        try:
            cli.main()
        except SystemExit as end:
            line = end.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        if line is not None:
            assert isinstance(line, str), captured.err  # which Python prints to stderr, with the code 1
            assert line.startswith("genstab: ")
            assert line.isprintable()  # no second line, and no command to the terminal
            line.encode()
        return line

    return run


root = known.root  # the fixture


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a training run of two batches."""
    folder = tmp_path_factory.mktemp("trained")
    before, arguments = Path.cwd(), sys.argv
    for side in ("trainA", "trainB", "valA", "valB"):
        (folder / "data" / side).mkdir(parents=True)
        for name in "123" if "train" in side else "5":
            noise().save(folder / "data" / side / f"{name}.png")
    os.chdir(folder)
    sys.argv = ["genstab", *TRAIN]
    try:
        cli.main()
    finally:
        sys.argv = arguments
        os.chdir(before)
    return folder / "run" / "checkpoints" / "last.ckpt"


def summary(folder="run"):
    return json.loads((Path(folder) / "summary.json").read_text())


# ---------------------------------------------------------------------------------------------------- image files


def content(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def header(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    """Write a PNG by hand."""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + b"".join(chunks) + chunk(b"IEND", b"")


def idat(size: int) -> bytes:
    return chunk(b"IDAT", zlib.compress(bytes(size)))


def damaged(image: bytes, place: int) -> bytes:
    return image[:place] + bytes([image[place] ^ 0xFF]) + image[place + 1 :]


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("2.png", b"a picture")
    return file.getvalue()


def bound(path: Path) -> None:
    path.unlink()
    before = Path.cwd()
    os.chdir(path.parent)  # its name may have 108 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(before)


def float_tiff(dtype, value=math.nan) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, np.full((32, 40, 3), value, dtype), photometric="rgb")


NONE = "not an image in a format that genstab reads"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
# What becomes of trainA/2.png, and what is said of it.
MORE_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pointer of Git LFS": (write(POINTER), "a pointer of Git LFS: fetch the image with git lfs pull"),
    "SVG": (write(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), NONE),
    "JSON of an error": (write(b'{"error": 404}'), NONE),
    "an array of NumPy": (write(array(np.zeros((32, 40, 3), np.uint8))), NONE),
    "a real archive": (write(archive()), NONE),
    "an archive of gzip": (write(b"\x1f\x8b\x08" + bytes(99)), NONE),
    "a program": (write(b"\x7fELF" + bytes(99)), NONE),
    "a pickle": (write(b"\x80\x04cos\nsystem\n"), NONE),
    "UTF-16": (write("a picture".encode("utf-16")), NONE),
    "AVIF": (write(b"\0\0\0 ftypavif" + bytes(99)), NONE),
    "HEIC": (write(b"\0\0\0 ftypheic" + bytes(99)), NONE),
    "PSD": (write(b"8BPS\0\1" + bytes(99)), NONE),
    "EXR": (write(b"v/1\1" + bytes(99)), NONE),
    "EPS": (write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 32\n"), NONE),
    "TGA": (save(noise, "TGA"), NONE),
    "animated GIF": (save(noise, "GIF", save_all=True, append_images=[noise()]), "it holds several images, not one"),
    "half a GIF": (write(content(noise(), "GIF")[:-300]), "truncated"),
    "half a JPEG 2000": (write(content(noise(), "JPEG2000")[:700]), "broken data stream"),
    "most of an AVIF": (write(content(noise(), "AVIF")[:-20]), "Truncated data"),
    "AVIF of 10 bits": (lambda path: of_bits(path, ".avif", 10), "AVIF of 10 bits, of which Pillow keeps 8"),
    "JPEG 2000 of 16 bits": (lambda path: of_bits(path, ".jp2", 16), "JPEG2000 of 16 bits, of which Pillow keeps 8"),
    "SGI of 16 bits": (lambda path: of_bits(path, ".sgi", 16), "SGI of 16 bits, of which Pillow keeps 8"),
    "a float in a PPM": (save(lambda: noise("F"), "PPM"), "pixels of float32, 32 bits, are not uint8 or uint16"),
    "a bomb in a PPM": (write(b"P6 60000 60000 255\n" + bytes(99)), "exceeds limit"),
    "JPEG without a picture": (write(b"\xff\xd8\xff\xd9"), NONE),
    "sound in RIFF": (write(b"RIFF\x24\0\0\0WAVEfmt "), NONE),
    "half a progressive JPEG": (write(content(noise(), "JPEG", progressive=True)[:700]), "truncated"),
    "a BMP of zeros": (write(b"BM" + bytes(60)), "Unsupported BMP header type"),
    "PNG without its end": (write(content(noise(), "PNG")[:-12]), "truncated, it ends before its IEND chunk"),
    "PNG whose header has a wrong checksum": (write(damaged(content(noise(), "PNG"), 29)), NONE),
    "PNG without pixels": (write(header(40, 32, 8, 2)), "cannot load this image"),
    "PNG of no width": (write(header(0, 32, 8, 2, idat(32))), NONE),
    "PNG of 3 bits": (write(header(40, 32, 3, 2, idat(5000))), NONE),
    "PNG of an unknown colour type": (write(header(40, 32, 8, 5, idat(5000))), NONE),
    "PNG with a palette of 16 bits": (write(header(40, 32, 16, 3, idat(5000))), "it needs a palette, which is missing"),
    "PNG without its palette": (write(header(40, 32, 8, 3, idat(41 * 32))), "it needs a palette, which is missing"),
    "PNG with too few pixels": (write(header(40, 32, 8, 2, idat(50))), "truncated"),
    "PNG of 16 bits with too few pixels": (write(header(40, 32, 16, 2, idat(50))), "cannot read .*2.png"),
    "PNG whose pixels are no stream": (write(header(40, 32, 8, 2, chunk(b"IDAT", b"no"))), "cannot read .*2.png"),
    "PNG of 16 bits whose pixels are no stream": (
        write(header(40, 32, 16, 2, chunk(b"IDAT", b"no"))),
        "cannot read .*2.png",
    ),
    "PNG with rubbish for EXIF": (save(noise, "PNG", exif=b"Exif\0\0" + b"\xff" * 99), "not a TIFF file"),
    "TIFF without tags": (
        write(b"II*\0\x08\0\0\0" + bytes(6)),
        "truncated, its pixels reach beyond the end of the file",
    ),
    "TIFF whose tags lie beyond its end": (write(b"II*\0\xff\xff\xff\x7f"), "it holds 0 images, not one"),
    "TIFF of NaN": (float_tiff(np.float32), "pixels of float32, 32 bits, are not uint8 or uint16"),
    "TIFF of half precision": (float_tiff(np.float16), "pixels of float16"),
    "TIFF of double precision": (float_tiff(np.float64), "pixels of float64"),
    "TIFF of complex numbers": (float_tiff(np.complex64, 1j), "pixels of complex64"),
    "TIFF of signed bytes": (float_tiff(np.int8, 1), "pixels of int8"),
    "TIFF of a fax": (save(lambda: noise("1"), "TIFF", compression="group4"), "has 1 channel, but side A needs 3"),
    "a bomb": (write(png(30_000, 8, zlib.compress(bytes(1 << 20)))), "exceeds limit"),
    "a socket": (bound, "it is not a file but a device or a pipe"),
    "a device of its own": (
        known.instead(lambda path: os.mknod(path, 0o600 | 0x2000, os.makedev(1, 5))),
        "it is not a file but a device or a pipe",
    ),
    "nothing at all": (known.instead(lambda path: path.symlink_to("/dev/null")), "not a file but a device or a pipe"),
}
FILES = {bad.name: (bad.make, bad.reason) for bad in known.FILES} | MORE_FILES
ROOT_ONLY = "a device of its own"


def spoil(path: Path, name: str) -> str:
    """Put a bad file at a path; return what is said of it."""
    if name == ROOT_ONLY and os.geteuid() != 0:
        pytest.skip("only root can make a device")
    make, reason = FILES[name]
    make(path)
    return reason


@pytest.mark.parametrize("name", MORE_FILES)
def test_a_bad_file_is_named_before_training(root, name):
    reason = spoil(root / "trainA" / "2.png", name)
    data = known.data(root, check="full")
    with pytest.raises(InputError, match=reason) as error:  # noqa: PT012
        data.prepare_data()
        data.setup("fit")
    assert str(root / "trainA" / "2.png") in str(error.value)


@pytest.mark.parametrize("name", [known.FILES[0].name, "a socket", "TIFF of a fax", "PNG with too few pixels"])
def test_training_ends_with_a_line_that_names_the_file(root, said, name):
    reason = spoil(root / "trainA" / "2.png", name)
    line = said(*TRAIN)
    assert re.search(reason, line)
    assert "data/trainA/2.png" in line
    assert not Path("run/checkpoints").exists()


@pytest.mark.filterwarnings("ignore:in the first batch, the sources are almost constant:UserWarning")
@pytest.mark.parametrize("name", FILES)
def test_prediction_names_the_file_or_does_it(tmp_path, trained, name):
    (tmp_path / "in").mkdir()
    for each in "12":
        noise().save(tmp_path / "in" / f"{each}.png")
    spoil(tmp_path / "in" / "2.png", name)
    generator = load_generator(trained)
    done = predict(generator, "in", "out", on_error="skip")
    assert Path("out/1.png").is_file()
    if done.failed:
        assert list(done.failed) == ["2.png"]
        assert "in/2.png" in done.failed["2.png"]
        with pytest.raises(InputError, match=re.escape(done.failed["2.png"])):
            predict(generator, "in", "out")
        return
    # of another size or orientation than its partner, which it does not have here
    with Image.open("out/2.png") as picture, Image.open("in/2.png") as source:
        assert sorted(picture.size) == sorted(source.size)
        assert picture.getcolors(1 << 20) is not None


def test_prediction_ends_with_a_line_that_names_the_file(tmp_path, trained, said):
    (tmp_path / "in").mkdir()
    noise().save(tmp_path / "in" / "1.png")
    write(b"")(tmp_path / "in" / "2.png")
    model = ["predict", f"model.checkpoint={trained}", "input=in", "output=out"]
    assert "in/2.png" in said(*model)
    assert re.fullmatch(r"genstab: 1 image was left out: 2\.png", said(*model, "on_error=skip"))
    assert Path("out/1.png").is_file()


def test_a_measurement_names_every_file_that_it_leaves_out(tmp_path, trained, said):
    (tmp_path / "in").mkdir()
    noise().save(tmp_path / "in" / "good.png")
    bad = {}
    for i, (name, (make, reason)) in enumerate(FILES.items()):
        if name == ROOT_ONLY and os.geteuid() != 0:
            continue
        path = tmp_path / "in" / f"{i:03}.png"
        noise().save(path)
        make(path)
        if not re.search("2.png is|has . channel", reason):  # it may be measured, by itself
            bad[path.name] = reason
        else:
            path.unlink()
    line = said(*MEASURE, f"model.checkpoint={trained}", "data.root=in")
    assert re.search(r"in/000\.png: the file is empty \(on_error=skip measures the others\)", line)
    assert said(*MEASURE, f"model.checkpoint={trained}", "data.root=in", "on_error=skip") is None
    found = summary("measured")
    assert found["images"] == 1
    assert math.isfinite(found["val/shift_psnr"])
    for name, reason in bad.items():
        (note,) = (note for note in found["notes"] if f"/{name}" in note)
        assert re.search(reason.replace("2.png", re.escape(name)), note)
    assert len(bad) >= 50


def test_a_measurement_names_what_the_network_cannot_take(tmp_path, trained, said):
    (tmp_path / "in").mkdir()
    noise("RGBA").save(tmp_path / "in" / "a.png")
    line = said(*MEASURE, f"model.checkpoint={trained}", "data.root=in")
    assert line.startswith("genstab: the generator cannot take a.png (1, 4, 32, 32): UNet: in_channels=3, not")


@pytest.mark.parametrize("check", ["fast", "full", "off"])
def test_training_leaves_out_what_it_is_told_to_and_says_so(root, said, check):
    write(b"")(root / "trainA" / "2.png")
    with pytest.warns(UserWarning, match="data.on_error=skip leaves out a pair: .*2.png: the file is empty"):
        assert said(*TRAIN, "data.on_error=skip", f"data.check={check}", "trainer.max_steps=3") is None
    assert [each.partition(": ")[2] for each in summary()["skipped"]] == ["the file is empty"]


def test_training_where_nothing_is_left(root, said):
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    assert re.search(r"none of the 3 pairs for train can be used; .*1.png: the file is empty", said(
        *TRAIN, "data.on_error=skip"
    ))  # fmt: skip


def test_a_file_that_may_not_be_read(root, said, monkeypatch):
    refused = "data/trainA/2.png"

    def opened(path, *rest):
        return known.denied(path) if str(path) == refused else open(path, *rest)

    monkeypatch.setattr(images, "open", opened, raising=False)  # root may read everything
    assert said(*TRAIN) == f"genstab: cannot read {refused}: Permission denied"


# ---------------------------------------------------------------------------------------------- names of bad files

NAMES = {
    "a line break": ("two\nlines.png", r"two\nlines.png"),
    "a carriage return": ("two\rlines.png", r"two\rlines.png"),
    "a line separator": ("two\u2028lines.png", r"two\u2028lines.png"),
    "a command to the terminal": ("\x1b[31mred\x1b]0;owned\x07.png", r"\x1b[31mred\x1b]0;owned\x07.png"),
    "right to left": ("a\u202egnp.png", r"a\u202egnp.png"),
    "no Unicode": (os.fsdecode(b"fa\xe7ade.png"), r"fa\udce7ade.png"),
    "Unicode": ("façade 夜景.png", "façade 夜景.png"),
    "a dash": ("-rf.png", "-rf.png"),
    "spaces": (" a  b .png", " a  b .png"),
    "quotes": ('it\'s "2".png', 'it\'s "2".png'),
    "a hidden file": (".DS_Store.png", ".DS_Store.png"),
    "a percent sign": ("%s%n{x}.png", "%s%n{x}.png"),
    "the longest": ("x" * 251 + ".png", "x" * 251 + ".png"),
}


@pytest.mark.parametrize(("name", "shown"), NAMES.values(), ids=NAMES)
def test_a_bad_file_of_any_name_is_named(root, said, name, shown):
    (root / "trainA" / name).write_bytes(b"no picture")
    line = said(*TRAIN)
    assert line.startswith("genstab: data.root=data has images without a partner: 1 in trainA (")
    assert shown in line
    noise().save(root / "trainB" / name)
    if len(shown) > len(name):  # written otherwise than it is
        assert said(*TRAIN) == f"genstab: cannot read data/trainA/{shown}: {NONE}, or damaged"
    if name.endswith("lines.png"):
        noise(size=(32, 40)).save(root / "trainA" / name)
        assert said(*TRAIN).startswith(f"genstab: data/trainA/{shown} is 40×32 but data/trainB/{shown} is 32×40: A and")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_name_comes_whole_from_a_worker(root, said, workers):
    for side in "AB":
        (root / f"train{side}" / "2.png").rename(root / f"train{side}" / "two\nlines.png")
    known.flipped(root / "trainA" / "two\nlines.png")
    line = said(*TRAIN, "data.check=off", f"data.num_workers={workers}")
    assert line == r"genstab: cannot read data/trainA/two\nlines.png: broken data stream when reading image file"


ODD_FOLDERS = [
    "it's", "a b", "a,b", "a=b", "(a)", "[a]", "{a}", "a:b", "a;b", "a#b", "a&b", "ü", "🏠", 'a"b', "a%b", "a*b",
    "-a", "~a", "$a", "two\nlines", os.fsdecode(b"fa\xe7ade"), "a|b?", "null",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_FOLDERS, ids=ascii)
def test_a_folder_of_any_name_works(root, said, trained, tmp_path, name):
    root.rename(tmp_path / name)
    (tmp_path / name / "trainA" / "1.png").write_bytes(b"")  # reached it, but trains no longer than that
    line = said(*TRAIN, f"data.root={tmp_path / name}")
    shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
    assert line == f"genstab: cannot read {tmp_path}/{shown}/trainA/1.png: the file is empty"
    if name not in ("it's", "a,b", "two\nlines", os.fsdecode(b"fa\xe7ade")):
        return
    line = said("predict", f"model.checkpoint={trained}", f"input={tmp_path / name / 'trainA'}", f"output={tmp_path}/o")
    assert line == f"genstab: cannot read {tmp_path}/{shown}/trainA/1.png: the file is empty"


@pytest.mark.parametrize("name", ["a b", "ü 🏠", "it's", "a=b", "a,b"])
def test_a_run_folder_of_any_name_works(root, said, tmp_path, name):
    assert said(*TRAIN, f"hydra.run.dir={name}") is None
    assert summary(name)["steps"] == 2
    (tmp_path / name / "checkpoints" / "last.ckpt").rename(tmp_path / f"{name}, epoch=3.ckpt")
    assert said(*TRAIN, f"ckpt_path={name}, epoch=3.ckpt", "trainer.max_epochs=2", "trainer.max_steps=4") is None
    assert summary()["steps"] == 4


# -------------------------------------------------------------------------------------------------- what is unusual


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(noise(), ImageCms.buildTransform(*profiles, "RGB", "LAB"))


def both(make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [make(root / f"train{side}" / "2.png") for side in "AB"]


def tagged(**options) -> Callable[[Path], object]:
    return both(lambda path: tifffile.imwrite(path, np.ones((32, 40, 3), np.uint8), **options))


MORE_WORKS = {
    "LAB": both(save(lab, "TIFF")),
    "YCbCr TIFF": both(save(lambda: noise("YCbCr"), "TIFF")),
    "JPEG in a TIFF": both(save(noise, "TIFF", compression="jpeg")),
    "deflated TIFF": both(save(noise, "TIFF", compression="tiff_adobe_deflate")),
    "BigTIFF": tagged(bigtiff=True),
    "big-endian TIFF": both(lambda path: tifffile.imwrite(path, np.ones((32, 40, 3), np.uint16), byteorder=">")),
    "tiles": tagged(tile=(16, 16)),
    "planes": both(
        lambda path: tifffile.imwrite(path, np.ones((3, 32, 40), np.uint8), planarconfig="separate", photometric="rgb")
    ),
    "a colour profile that is rubbish": both(save(noise, "PNG", icc_profile=b"rubbish" * 9)),
    "one in a JPEG": both(save(noise, "JPEG", icc_profile=b"rubbish" * 9)),
    "a colour profile that is no stream": both(
        write(header(40, 32, 8, 2, chunk(b"iCCP", b"a\0\0no stream"), idat(121 * 32)))
    ),
    "EXIF that is rubbish in a JPEG": both(save(noise, "JPEG", exif=b"Exif\0\0" + b"\xff" * 6000)),
    "an orientation that is none": both(known.exif(99)),
    "both turned": both(known.exif(8)),
    "3 MB of text": both(write(header(40, 32, 8, 2, chunk(b"tEXt", b"a\0" + b"x" * 3_000_000), idat(121 * 32)))),
    "rubbish behind the picture": both(write(content(noise(), "PNG") + b"rubbish" * 99)),
    "an archive behind the picture": both(write(content(noise(), "JPEG") + archive())),
    "a checksum of pixels that is wrong": both(write(damaged(content(noise(), "PNG"), -13))),
    "BMP from its top": both(
        lambda path: path.write_bytes((lambda b: b[:22] + struct.pack("<i", -32) + b[26:])(content(noise(), "BMP")))
    ),
    "one row of 4000": both(save(lambda: noise(size=(4000, 1)), "PNG")),
    "a capital suffix on one side": lambda root: (root / "trainA" / "2.png").rename(root / "trainA" / "2.PNG"),
    "a loop of folders": lambda root: (root / "trainA" / "loop").symlink_to("."),
    "files that are no pictures": lambda root: [
        (root / "trainA" / name).write_bytes(b"x") for name in (".DS_Store", "Thumbs.db", "README", "2.txt", "._2.png")
    ],
}


@pytest.mark.filterwarnings("ignore:an ICC profile, .* changes the colours:UserWarning")
@pytest.mark.filterwarnings("ignore:images of several types", "ignore:.*no images by name")
@pytest.mark.parametrize("make", MORE_WORKS.values(), ids=MORE_WORKS)
def test_what_is_unusual_is_read(root, make):
    make(root)
    data = known.data(root, check="full")
    data.prepare_data()
    data.setup("fit")
    assert len(set(known.read(data))) == 4  # which asks for finite values in [-1, 1]
    assert data.skipped == []


@pytest.mark.filterwarnings("ignore:an ICC profile, .* changes the colours:UserWarning")
@pytest.mark.filterwarnings("ignore:data. in the first batch, the sources are almost constant:UserWarning")
@pytest.mark.parametrize("name", ["LAB", "both turned", "one row of 4000", "a loop of folders"])
def test_what_is_unusual_is_trained_on(root, said, name):
    MORE_WORKS[name](root)
    assert said(*TRAIN, "data.check=full") is None
    found = summary()
    assert found["steps"] == 2
    assert found["skipped"] == []
    assert all(math.isfinite(found[key]) for key in ("train/loss_d", "train/loss_g", "val/l1", "val/shift_psnr"))


# ------------------------------------------------------------------------------------------------------- folders


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def nested(root: Path) -> None:
    (root / "trainA").rename(root / "old")
    (root / "trainA").mkdir()
    (root / "old").rename(root / "trainA" / "old")


def looped(root: Path) -> None:
    shutil.rmtree(root)
    root.symlink_to("data")


MORE_FOLDERS = {
    "one folder deeper on one side": (nested, "without a partner: 3 in trainA .old/1.png, .* and 3 in trainB .1.png"),
    "links to itself": (looped, "data.root=data does not exist"),
    "names that differ in case": (
        lambda root: noise().save(root / "trainA" / "2.PNG"),
        "two images named '2': 2.PNG and 2.png",
    ),
    "an empty validation": (lambda root: [emptied(root / f"val{side}") for side in "AB"], "valA has no images"),
    "a file for trainA": (
        lambda root: (shutil.rmtree(root / "trainA"), (root / "trainA").touch()),
        "trainB exists but .*trainA is missing",
    ),
    "lists only": (
        lambda root: (shutil.rmtree(root), root.mkdir(), (root / "train.txt").touch()),
        "no pairs for split=train.*found train.txt",
    ),
    "a folder of dots": (
        lambda root: [(root / f"train{side}").rename(root / f".train{side}") for side in "AB"],
        "no pairs for split=train.*found .trainA/",
    ),
}


@pytest.mark.parametrize(("make", "reason"), MORE_FOLDERS.values(), ids=MORE_FOLDERS)
def test_a_bad_folder_is_named(root, said, make, reason):
    make(root)
    line = said(*TRAIN)
    assert re.search(reason, line)
    assert "data" in line


# ------------------------------------------------------------------------------------------------------- options

OPTIONS = [
    "data.crop_size=0", "data.crop_size=1.5", "data.crop_size=null", "data.crop_size=abc", "data.load_size=16",
    "data.crop_size=[1,2,3]", "data.batch_size=0", "data.batch_size=null", "data.batch_size=abc",
    "data.num_workers=-1", "data.num_workers=abc", "data.direction=XtoY", "data.check=maybe",
    "data.on_error=ignore", "data.flip=perhaps", "data.root=null", "data.root=5", "~data.root", "++data.sise=1",
    "model.lr=abc", "model.lr=-1", "model.lr=nan", "model.lr=inf", "model.lr=null", "model.betas=5", "model.betas=[]",
    "model.betas=[2,0.9]", "model.gan_loss=foo", "model.compile=abc", "model.channels_last=abc",
    "model.generator=null", "model.generator.channels=0", "model.generator.levels=40", "model.generator.norm=foo",
    "model.generator.dropout=abc", "model.generator._target_=nowhere.Net", "model.generator._target_=genstab.Foo",
    "model.generator._target_=os.getcwd", "model._target_=torch.nn.Identity", "model._target_=5",
    "seed=abc", "seed=-1", "seed=null", "seed=1.5", "seed=4294967296", "on_nan=foo",
    "antialias.filter=foo", "antialias.placement=5", "antialias.padding_mode=foo", "antialias=foo",
    "trainer.max_epochs=abc", "trainer.max_steps=abc", "trainer.max_steps=-5", "trainer.precision=foo",
    "trainer.accelerator=foo", "trainer.devices=foo", "trainer.devices=null", "trainer.check_val_every_n_epoch=0",
    "trainer.log_every_n_steps=abc", "trainer.num_sanity_val_steps=abc", "trainer.deterministic=abc",
    "+trainer.strategy=foo", "+trainer.strategy=ddp", "trainer.val_check_interval=100", "output_dir=5",
    "trainer.limit_train_batches=abc", "trainer.val_check_interval=0", "+trainer.foo=1",
    "callbacks.stability.shifts=abc", "callbacks.stability.images=0", "callbacks.last.dirpath=null",
    "callbacks.best.monitor=val/foo", "callbacks.watch.window=0", "+callbacks.foo=1",
    "+callbacks.foo={_target_: nowhere.Foo}", "+callbacks.foo={_target_: torch.nn.Identity}",
    "logger=foo", "experiment=foo", "data=foo", "data=folder", "foo=1", "run_name=${foo}",
    "run_name=${oc.env:NOWHERE}", "run_name=${", "run_name=${foo:1}", "data.root=${x}", "hydra.run.dir=/proc/x",
    "hydra.run.dir=/dev/null", "ckpt_path=5", "ckpt_path=[a]", "--config-name=foo",
]  # fmt: skip
# What is said where it is neither the option's name nor its value.
SAID = {
    "run_name=${foo}": "Interpolation key 'foo' not found",
    "model.generator._target_=os.getcwd": r"model.generator: posix.getcwd\(\) takes no keyword arguments",
    "model._target_=torch.nn.Identity": "the config builds a Identity instead of a LightningModule",
    "+callbacks.foo={_target_: torch.nn.Identity}": "the config builds a Identity instead of a Callback",
    "run_name=${oc.env:NOWHERE}": "Environment variable 'NOWHERE' not found",
    "~data.root": "data: .*missing 1 required positional argument: 'root'",
    "data=folder": "data.crop_size is not known; genstab.data.FolderData takes",
    "data.root=${x}": "Interpolation key 'x' not found",
    "run_name=${foo:1}": "Unsupported interpolation type foo",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_bad_option_is_named(root, said, option):
    line = said(*TRAIN, option)
    name, _, value = option.lstrip("+-~").partition("=")
    assert re.search(SAID.get(option, f"{re.escape(name.split('.')[-1])}|{re.escape(value) or 'never'}"), line)
    assert not Path("run/checkpoints").exists()


# ---------------------------------------------------------------------------------------------------- checkpoints


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def changed(**changes) -> Callable[[Path, Path], object]:
    """Write the checkpoint with other values; None takes a key away."""

    def make(path: Path, good: Path) -> None:
        checkpoint = torch.load(good, weights_only=True)
        checkpoint = {key: value for key, value in (checkpoint | changes).items() if value is not None}
        torch.save(checkpoint, path)

    return make


def part(share: float) -> Callable[[Path, Path], object]:
    return lambda path, good: path.write_bytes(good.read_bytes()[: int(share * good.stat().st_size)])


def nan(path: Path, good: Path) -> None:
    weights = torch.load(good, weights_only=True)["state_dict"]
    changed(state_dict={k: v * math.nan if v.is_floating_point() else v for k, v in weights.items()})(path, good)


READ, ON = "cannot be read as a checkpoint", "is not a checkpoint to resume from"
# What becomes of bad.ckpt, what training says of it and what prediction does; None: it works.
CHECKPOINTS: dict[str, tuple[Callable[[Path, Path], object], str, str | None]] = {
    "nothing": (lambda path, good: None, "does not exist", "does not exist"),
    "empty": (lambda path, good: path.touch(), "it is empty", "is empty"),
    "text": (lambda path, good: path.write_text("hello"), READ, "is not a model file"),
    "a web page": (lambda path, good: path.write_text("<!DOCTYPE html>"), READ, "is not a model file"),
    "a pointer": (lambda path, good: path.write_bytes(POINTER), READ, "is not a model file"),
    "a picture": (lambda path, good: noise().save(path, "PNG"), READ, "is not a model file"),
    "half": (part(0.5), "cut off or damaged", "is cut off: it begins as a file of torch.save"),
    "all but the end": (part(0.99), "cut off or damaged", "is cut off: it begins as a file of torch.save"),
    "one bit": (
        lambda path, good: path.write_bytes(damaged(good.read_bytes(), good.stat().st_size // 2)),
        "cut off or damaged .archive/data/",
        "cut off or damaged .archive/data/",
    ),
    "another archive": (lambda path, good: path.write_bytes(archive()), READ, "is not a model file"),
    "a pickle": (lambda path, good: path.write_bytes(pickle.dumps(Evil())), "nothing in it was run", "was run"),
    "objects": (
        lambda path, good: torch.save({"state_dict": {}, "x": Evil()}, path),
        "holds Python objects .*mkdir.*refused",
        "holds Python objects .*mkdir.*refused",
    ),
    "objects in an old file": (
        lambda path, good: torch.save({"x": Evil()}, path, _use_new_zipfile_serialization=False),
        "holds Python objects .*mkdir.*refused",
        "holds Python objects .*mkdir.*refused",
    ),
    "a list": (lambda path, good: torch.save([1], path), ON, "it holds list"),
    "a tensor": (lambda path, good: torch.save(torch.zeros(3), path), ON, "it holds Tensor"),
    "another network": (
        lambda path, good: torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), path),
        f"{ON}: it has no state_dict",
        "its first keys: weight, bias",
    ),
    "a folder": (lambda path, good: path.mkdir(), "does not exist", "is a folder without"),
    "a pipe": (lambda path, good: os.mkfifo(path), "does not exist", "does not exist"),
    "a device": (lambda path, good: path.symlink_to("/dev/zero"), "does not exist", "does not exist"),
    "a link to itself": (lambda path, good: path.symlink_to(path), "does not exist", "does not exist"),
    "no place": (changed(resume=None), f"{ON}: it has no resume", None),
    "an odd place": (changed(resume={}), f"{ON}: invalid resume.epoch", None),
    "no optimizer": (changed(optimizer_states=None), f"{ON}: it has no optimizer_states", None),
    "an odd optimizer": (changed(optimizer_states=[1]), f"{ON}: invalid optimizer_states", None),
    "odd loops": (changed(loops={}), f"{ON}: invalid loops", None),
    "odd callbacks": (changed(callbacks=3), f"{ON}: invalid callbacks", None),
    "an odd version": (changed(**{"pytorch-lightning_version": "new"}), f"{ON}: invalid pytorch-l", None),
    "odd weights": (changed(state_dict=[1]), f"{ON}: invalid state_dict", "is not a checkpoint of a genstab"),
    "no weights": (
        changed(state_dict={}),
        "does not fit this training run: .* absent → ",
        "claims 3 levels, but holds 0",
    ),
    "NaN": (nan, rf"{ON}: state_dict\.\S+ contains NaN", "1.png: the output contains NaN"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_bad_checkpoint_is_named(root, said, trained, name):
    make, training, prediction = CHECKPOINTS[name]
    make(Path("bad.ckpt"), trained)
    line = said(*TRAIN, "ckpt_path=bad.ckpt", "trainer.max_epochs=2", "trainer.max_steps=4")
    assert re.search(training, line)
    assert "bad.ckpt" in line
    line = said("predict", "model.checkpoint=bad.ckpt", "input=data/trainA", "output=out")
    if prediction is None:
        assert line is None
        assert len(list(Path("out").glob("*.png"))) == 3
    else:
        assert re.search(prediction, line)
        assert name == "NaN" or "bad.ckpt" in line
    assert not Path("owned").exists()


# ------------------------------------------------------------------------------------------------------- archives


def member(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, target
    return info, io.BytesIO(data)


def packed(*members: tuple) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for info, data in members:
            tar.addfile(info, data)
    return file.getvalue()


FACADES = packed(*(member(f"facades/{split}/1.jpg", content(noise(), "JPEG")) for split in ("train", "val", "test")))
ARCHIVES = {
    "empty": (b"", "corrupted archive"),
    "a web page": (b"<!DOCTYPE html>", "corrupted archive"),
    "half": (FACADES[: len(FACADES) // 2], "corrupted archive .*ended before"),
    "a checksum": (FACADES[:-8] + bytes(8), "corrupted archive .CRC check failed"),
    "another kind": (archive(), "corrupted archive"),
    "no stream": (b"\xfd7zXZ\0" + bytes(50), "corrupted archive"),
    "too few": (FACADES, "is not the façades archive, it holds 1 of 400 in train"),
    "nothing in it": (packed(), "is not the façades archive, it holds 0 of 400"),
    "a link": (packed(member("facades/1.jpg", kind=tarfile.SYMTYPE, target="/etc/passwd")), "unsafe to unpack: .*link"),
    "a hard link": (
        packed(member("facades/1", kind=tarfile.LNKTYPE, target="facades/2")),
        "corrupted archive .*linkname",
    ),
    "a device": (packed(member("facades/1.jpg", kind=tarfile.CHRTYPE)), "unsafe to unpack: .*is a special file"),
    "a pipe in it": (packed(member("facades/1.jpg", kind=tarfile.FIFOTYPE)), "unsafe to unpack: .*is a special file"),
    "a way out": (packed(member("facades/../../evil")), "outside the destination"),
    "from the root": (packed(member("/tmp/evil")), "is not the façades archive, it holds 0 of 400"),
    "a file for a folder": (packed(member("facades/a/b"), member("facades/a")), "cannot unpack .*Is a directory"),
    "a long name": (packed(member(f"facades/{'x' * 300}")), "cannot unpack .*File name too long"),
    "a deep one": (packed(member(f"facades/{'d/' * 2000}x")), "corrupted archive|File name too long"),
    "a pipe": (None, "is not a file but a device or a pipe"),
}


@pytest.mark.parametrize(("data", "reason"), ARCHIVES.values(), ids=ARCHIVES)
def test_a_bad_archive_is_named_and_leaves_nothing(tmp_path, said, data, reason):
    (tmp_path / "root").mkdir()
    path = tmp_path / "root" / "facades.tar.gz"
    os.mkfifo(path) if data is None else path.write_bytes(data)
    line = said(*TRAIN, "data=facades", "data.root=root", "+data.url=http://127.0.0.1:1/facades.tar.gz")
    assert re.search(reason, line)
    assert "root/facades.tar.gz" in line
    assert [each.name for each in (tmp_path / "root").iterdir()] == ["facades.tar.gz"]
    assert not Path("/tmp/evil").exists()


def test_there_are_many_more_than_fifty():
    bad = [FILES, NAMES, known.FOLDERS | MORE_FOLDERS, OPTIONS, CHECKPOINTS, ARCHIVES]
    assert len(FILES) > 80
    assert sum(map(len, bad)) > 250
