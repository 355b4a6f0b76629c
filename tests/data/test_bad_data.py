"""Every kind of bad image and folder: it works, or it is named with its reason; nothing passes in silence."""

import builtins
import json
import os
import shutil
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from genstab import InputError
from genstab.cli import main as cli
from genstab.data.datamodules import PairedData
from genstab.data.pairs import find_pairs
from genstab.metrics.quality import image_quality
from genstab.runtime.files import read_json, write_json
from tests.cli.test_config import TINY
from tests.data.test_bombs import png
from tests.data.test_image_io import png16

SIZE = (40, 32)  # width, height
RNG = np.random.default_rng(0)


def noise(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training pairs and one for validation, in two folders; the second of trainA is for the tests to spoil."""
    for split, names in {"train": "123", "val": "4"}.items():
        for side in "AB":
            (tmp_path / "data" / f"{split}{side}").mkdir(parents=True)
            for name in names:
                noise().save(tmp_path / "data" / f"{split}{side}" / f"{name}.png")
    return tmp_path / "data"


def write(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


def save(image: Callable[[], Image.Image], kind: str, **options) -> Callable[[Path], None]:
    return lambda path: image().save(path, kind, **options)


def cut(kind: str, **options) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        noise().save(path, kind, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return make


def tiff(shape: tuple[int, ...], dtype: str = "uint8", **options) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, np.ones(shape, dtype), **options)


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        path.unlink()
        make(path)

    return do


def exif(orientation: int) -> Callable[[Path], None]:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return save(noise, "JPEG", exif=tags)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def sparse(path: Path) -> None:
    with open(path, "ab") as file:
        file.truncate(1 << 36)


def looped(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


class Bad(NamedTuple):
    """What is done to `trainA/2.png`, why it is refused, and whether its header tells."""

    name: str
    make: Callable[[Path], object]
    reason: str
    header: bool = True


FILES = [
    Bad("zero bytes", write(b""), "the file is empty"),
    Bad("text", write(b"I am a picture"), "not an image in a format that genstab reads"),
    Bad("a web page", write(b"<!DOCTYPE html><html>404</html>"), "not an image in a format that genstab reads"),
    Bad("an archive", write(b"PK\3\4" + bytes(100)), "not an image in a format that genstab reads"),
    Bad("zeros", write(bytes(5000)), "not an image in a format that genstab reads"),
    Bad("one byte", write(b"\x89"), "not an image in a format that genstab reads"),
    Bad("a signature alone", write(b"\x89PNG\r\n\x1a\n"), "truncated, it ends before its IEND chunk"),
    Bad("PDF", save(noise, "PDF"), "not an image in a format that genstab reads"),
    Bad("truncated PNG", cut("PNG"), "truncated, it ends before its IEND chunk"),
    Bad("truncated 16-bit PNG", write(png16(np.ones((32, 40, 3), np.uint16))[:-40]), "truncated"),
    Bad("truncated TIFF", cut("TIFF"), "truncated, its pixels reach beyond the end of the file"),
    Bad("truncated JPEG", cut("JPEG"), "truncated", header=False),
    Bad("truncated WebP", cut("WEBP"), "could not create decoder object"),
    Bad("truncated BMP", cut("BMP"), "truncated", header=False),
    Bad("a flipped bit", flipped, "broken data stream", header=False),
    Bad("animated WebP", save(noise, "WEBP", save_all=True, append_images=[noise()]), "several images"),
    Bad("animated PNG", save(noise, "PNG", save_all=True, append_images=[noise()]), "several images"),
    Bad("pages", tiff((5, 32, 40), photometric="minisblack"), "is a stack of pages"),
    Bad("floating point", tiff((32, 40), "float32"), "pixels of float32, 32 bits, are not uint8 or uint16"),
    Bad("32 bits", tiff((32, 40), "int32"), "pixels of int32, 32 bits, are not uint8 or uint16"),
    Bad("inks at 16 bits", tiff((32, 40, 4), "uint16", photometric="separated"), "save it as grey or RGB"),
    Bad("a header's bomb", write(png(60_000)), "exceeds limit"),
    Bad("a file of 64 GB", sparse, "bytes exceed the limit"),
    Bad("a pipe", instead(os.mkfifo), "not a file but a device or a pipe"),
    Bad("a device", instead(lambda path: path.symlink_to("/dev/zero")), "not a file but a device or a pipe"),
    Bad("a link to nowhere", instead(lambda path: path.symlink_to("nowhere")), "No such file"),
    Bad("a link to itself", looped, "Too many levels of symbolic links"),
    Bad("grey", save(lambda: noise("L"), "PNG"), "has 1 channel, but side A needs 3: set data.source_channels=1"),
    Bad("bilevel", save(lambda: noise("1"), "PNG"), "has 1 channel, but side A needs 3"),
    Bad("grey at 16 bits", tiff((32, 40), "uint16"), "has 1 channel, but side A needs 3"),
    Bad("grey and alpha", save(lambda: noise("LA"), "PNG"), "has 2 channels, but side A needs 3"),
    Bad("alpha", save(lambda: noise("RGBA"), "PNG"), "has 4 channels, but side A needs 3: set data.source_channels=4"),
    Bad("seven channels", tiff((32, 40, 7), photometric="minisblack", planarconfig="contig"), "has 7 channels"),
    Bad("turned by EXIF", exif(6), "is 40×32 but .*2.png is 32×40"),
]


def data(root: Path, **options) -> PairedData:
    return PairedData(
        str(root), **{"crop_size": 24, "load_size": 28, "batch_size": 2, "num_workers": 0, "flip": False, **options}
    )


def read(loaded: PairedData) -> list[str]:
    """Go through an epoch as a trainer does; return the names."""
    names = []
    for batch in (*loaded.train_dataloader(), *loaded.val_dataloader()):
        batch = loaded.on_before_batch_transfer(batch, 0)
        assert set(batch) == {"source", "target", "name"}
        for key in ("source", "target"):
            assert batch[key].shape[1] == 3
            assert batch[key].abs().max() <= 1
        names += batch["name"]
    return names


@pytest.mark.parametrize("bad", FILES, ids=[bad.name for bad in FILES])
@pytest.mark.parametrize("check", ["fast", "full", "off"])
def test_a_bad_file_is_named_with_its_reason_as_early_as_the_check_allows(root: Path, bad: Bad, check: str) -> None:
    path = root / "trainA" / "2.png"
    bad.make(path)
    loaded, before = data(root, check=check), False
    with pytest.raises(InputError, match=f"2.png.*{bad.reason}") as error:  # noqa: PT012
        loaded.prepare_data()
        loaded.setup("fit")
        before = True
        read(loaded)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert before == (check == "off" or (check == "fast" and not bad.header))


@pytest.mark.parametrize("bad", FILES, ids=[bad.name for bad in FILES])
@pytest.mark.parametrize("check", ["fast", "full", "off"])
def test_a_bad_file_is_skipped_named_and_counted_once(root: Path, bad: Bad, check: str) -> None:
    bad.make(root / "trainA" / "2.png")
    loaded = data(root, check=check, on_error="skip")
    with pytest.warns(UserWarning, match=f"data.on_error=skip leaves out a pair: .*2.png.*{bad.reason}") as warned:  # noqa: PT031
        loaded.prepare_data()
        loaded.setup("fit")
        assert sorted(read(loaded)) == ["1", "3", "3", "4"]  # as many as before, the next one in its place
        read(loaded)
    assert len([each for each in warned if "leaves out" in str(each.message)]) == 1
    assert len(loaded.skipped) == 1
    assert "2.png" in loaded.skipped[0]


def deep(path: Path) -> None:
    path.write_bytes(png16(RNG.integers(0, 65536, (32, 40, 3), dtype=np.uint16)))


def both(root: Path, make: Callable[[Path], object]) -> None:
    for side in "AB":
        make(root / f"train{side}" / "2.png")


def named(name: str, other: str | None = None) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / "trainA" / "2.png").rename(root / "trainA" / f"{name}.png")
        (root / "trainB" / "2.png").rename(root / "trainB" / f"{other or name}.png")

    return make


WORKS = {
    "CMYK": lambda root: both(root, save(lambda: noise("CMYK"), "JPEG")),
    "YCbCr": lambda root: both(root, save(lambda: noise("YCbCr"), "JPEG")),
    "CMYK TIFF": lambda root: both(root, save(lambda: noise("CMYK"), "TIFF")),
    "palette": lambda root: both(root, save(lambda: noise("P"), "PNG")),
    "palette with a transparent colour": lambda root: both(root, save(lambda: noise("P"), "PNG", transparency=3)),
    "16-bit PNG": lambda root: both(root, deep),
    "16-bit TIFF": lambda root: both(root, tiff((32, 40, 3), "uint16", photometric="rgb")),
    "16 bits beside 8": lambda root: deep(root / "trainA" / "2.png"),
    "LZW TIFF": lambda root: both(root, save(noise, "TIFF", compression="tiff_lzw")),
    "progressive JPEG": lambda root: both(root, save(noise, "JPEG", progressive=True)),
    "a suffix that lies": lambda root: both(root, save(noise, "WEBP")),
    "GIF": lambda root: both(root, save(noise, "GIF")),
    "ICO": lambda root: both(root, save(noise, "ICO", sizes=[(32, 32)])),
    "JPEG 2000": lambda root: both(root, save(noise, "JPEG2000")),
    "AVIF": lambda root: both(root, save(noise, "AVIF")),
    "PPM": lambda root: both(root, save(noise, "PPM")),
    "another size, resized anyway": lambda root: noise(size=(83, 61)).save(root / "trainA" / "2.png"),
    "one pixel": lambda root: both(root, save(lambda: noise(size=(1, 1)), "PNG")),
    "one row": lambda root: both(root, save(lambda: noise(size=(40, 1)), "PNG")),
    "huge": lambda root: both(root, save(lambda: Image.new("RGB", (1600, 1200)), "PNG")),
    "spaces": named("my picture (2)  final"),
    "Unicode": named("façade 夜景 🏠"),
    "Unicode taken apart": named(unicodedata.normalize("NFD", "façade"), unicodedata.normalize("NFC", "façade")),
    "no Unicode": named(os.fsdecode(b"fa\xe7ade")),
    "a new line": named("two\nlines"),
    "quotes and brackets": named('it\'s [2], "x" = {y} % $z; *'),
    "a long name": named("x" * 251),
    "other files": lambda root: [(root / "trainA" / name).write_bytes(b"") for name in ("Thumbs.db", "notes.txt")],
    "folders between them": lambda root: (root / "trainA" / "old.png").mkdir(),
    "a linked folder": lambda root: (
        shutil.move(root / "trainA", root / "away"),
        (root / "trainA").symlink_to("away"),
    ),
}


@pytest.mark.filterwarnings("ignore:images of several types", "ignore:.*no images by name")
@pytest.mark.parametrize("make", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("check", ["fast", "full", "off"])
def test_what_is_unusual_works(root: Path, make: Callable[[Path], object], check: str, tmp_path: Path) -> None:
    make(root)
    loaded = data(root, check=check)
    loaded.prepare_data()
    loaded.setup("fit")
    names = read(loaded)
    assert len(set(names)) == 4
    assert loaded.skipped == []
    write_json(tmp_path / "names.json", {"names": names})
    assert read_json(tmp_path / "names.json") == {"names": names}


FOLDERS = {  # beside those of test_pairs.py
    "an ending twice": (
        lambda root: [
            path.rename(path.with_name(f"2{end}.png"))
            for path, end in ((root / "trainA/2.png", "_A"), (root / "trainA/3.png", "_B"), (root / "trainB/3.png", ""))
        ],
        "two images named '2': 2_A.png and 2_B.png",
    ),
    "one name in two encodings": (
        lambda root: [
            noise().save(root / "trainA" / f"{unicodedata.normalize(form, 'ü')}.png") for form in ("NFC", "NFD")
        ],
        "two images named 'ü'",
    ),
    "no partner": (lambda root: (root / "trainB" / "2.png").unlink(), r"without a partner: 1 in trainA \(2.png\)"),
    "a folder for a file": (
        lambda root: ((root / "trainB" / "2.png").unlink(), (root / "trainB" / "2.png").mkdir()),
        r"without a partner: 1 in trainA \(2.png\)",
    ),
    "odd width side by side": (
        lambda root: (
            [shutil.rmtree(root / f"train{side}") for side in "AB"],
            (root / "train").mkdir(),
            noise(size=(41, 32)).save(root / "train" / "2.png"),
        ),
        "2.png is 41 pixels wide: images side by side need an even width",
    ),
}


@pytest.mark.parametrize(("make", "reason"), FOLDERS.values(), ids=FOLDERS)
def test_a_bad_folder_is_named_before_training_whatever_is_skipped(root: Path, make, reason: str) -> None:
    make(root)
    loaded = data(root, on_error="skip")
    with pytest.raises(InputError, match=reason) as error:  # noqa: PT012
        loaded.prepare_data()
        loaded.setup("fit")
    assert "data" in str(error.value)


def denied(path: str | Path, *_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_a_file_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may read everything: let `open` refuse as it would for others
    refused = str(root / "trainA" / "2.png")

    def opened(path, *rest):
        return denied(path) if str(path) == refused else builtins.open(path, *rest)

    monkeypatch.setattr("genstab.data.image_io.open", opened, raising=False)
    with pytest.raises(InputError, match=r"cannot read .*trainA/2.png: Permission denied"):
        data(root).setup("fit")
    loaded = data(root, on_error="skip")
    with pytest.warns(UserWarning, match="2.png: Permission denied"):
        loaded.setup("fit")
    assert sorted(read(loaded)) == ["1", "3", "3", "4"]


def test_a_folder_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("os.scandir", denied)
        with pytest.raises(InputError, match=r"cannot open the folder .*trainA: Permission denied"):
            find_pairs(root, "train")
    monkeypatch.setattr(Path, "is_dir", denied)
    with pytest.raises(InputError, match=r"data.root=.*cannot open the folder .*: Permission denied"):
        find_pairs(root, "train")


def test_the_next_readable_pair_stands_in_whoever_reads(root: Path) -> None:
    for name in ("1", "3"):
        (root / "trainB" / f"{name}.png").write_bytes(b"")
    loaded = data(root, on_error="skip", check="off")
    loaded.setup("fit")
    items = [loaded.train_set[i] for i in (0, 1, 2, -1)]
    assert [item["name"] for item in items] == ["2", "2", "2", "2"]
    assert [item["skipped"].count("the file is empty") for item in items] == [1, 0, 2, 2]
    for item in items[1:]:
        assert torch.equal(item["source"], items[0]["source"])
    with pytest.raises(IndexError):
        loaded.train_set[3]
    (root / "trainB" / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 3 pairs can be read; cannot read .*2.png: the file is empty"):
        loaded.train_set[1]
    with pytest.raises(InputError, match=r"none of the 3 pairs for train can be used; .*1.png: the file is empty"):
        data(root, on_error="skip").setup("fit")


def test_workers_tell_what_they_left_out(root: Path) -> None:
    cut("JPEG")(root / "trainA" / "2.png")
    loaded = data(root, on_error="skip", num_workers=2, batch_size=1)
    loaded.setup("fit")
    with pytest.warns(UserWarning, match="leaves out a pair: .*2.png") as warned:
        assert sorted(read(loaded)) == ["1", "3", "3", "4"]
    assert len(warned) == 1


def test_pairs_of_two_sizes_in_a_validation_batch_that_no_check_foresaw_are_named(root: Path) -> None:
    for side in "AB":
        noise(size=(64, 64)).save(root / f"val{side}" / "5.png")
    loaded = data(root, load_size=None, check="off")
    loaded.setup("fit")
    with pytest.raises(
        InputError, match=r"sizes in one batch: '4' is 32×40 but '5' is 64×64; set data.val_batch_size=1"
    ):
        read(loaded)


def test_too_small_for_the_crop_is_named_when_met(root: Path) -> None:
    both(root, save(lambda: noise(size=(8, 8)), "PNG"))
    loaded = data(root, load_size=None, check="off", batch_size=1)
    loaded.setup("fit")
    with pytest.raises(InputError, match=r"2.png is 8×8, smaller than the crop of 24×24"):
        read(loaded)


def test_too_small_to_validate_is_named(root: Path) -> None:
    for side in "AB":
        noise(size=(5, 9)).save(root / f"val{side}" / "4.png")
    with pytest.raises(InputError, match=r"valA/4.png is 9×5, smaller than the window of SSIM of 6×6: set data.load"):
        data(root, load_size=None).setup("fit")
    assert data(root).setup("fit") is None
    for side, pixels in zip("AB", (noise(size=(6, 6)), noise(size=(6, 6))), strict=True):
        pixels.save(root / f"val{side}" / "4.png")
    loaded = data(root, load_size=None)
    loaded.setup("fit")
    assert image_quality(*(loaded.val_set[0][key][None] for key in ("source", "target")))["ssim"].isfinite()


def train(monkeypatch: pytest.MonkeyPatch, root: Path, *options: str) -> None:
    tiny = [option for option in TINY if "num_workers" not in option]
    arguments = ["train", "data=paired", f"data.root={root}", "data.crop_size=32", "data.load_size=32", *tiny, *options]
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.run.dir=run", "logger=csv", "trainer=cpu"]
    monkeypatch.setattr(sys, "argv", ["genstab", *arguments, *quiet])
    cli.main()


@pytest.mark.parametrize("workers", [0, 1])
def test_training_ends_with_one_line_at_a_file_that_only_reading_shows(root, monkeypatch, workers: int) -> None:
    cut("JPEG")(root / "trainA" / "2.png")
    with pytest.raises(SystemExit, match=r"^genstab: cannot read .*trainA/2.png: .*truncated") as error:
        train(monkeypatch, root, f"data.num_workers={workers}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("check", ["fast", "full", "off"])
def test_the_summary_names_what_training_left_out(root: Path, monkeypatch, check: str) -> None:
    cut("JPEG")(root / "trainA" / "2.png")
    (root / "valA" / "5.png").write_bytes(b"")
    noise().save(root / "valB" / "5.png")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        train(monkeypatch, root, "data.on_error=skip", f"data.check={check}", "data.num_workers=0")
    summary = json.loads(Path("run/summary.json").read_text())
    assert [Path(each.split(":")[0].removeprefix("cannot read ")).name for each in summary["skipped"]] == [
        "2.png", "5.png",
    ]  # fmt: skip
    assert len([each for each in warned if "leaves out a pair" in str(each.message)]) == 2


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning")
def test_a_checkpoint_to_go_on_from_runs_nothing(root: Path, monkeypatch) -> None:
    class Evil:
        def __reduce__(self):
            return os.mkdir, ("owned",)

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # which holds wherever nobody says otherwise
    torch.save({"state_dict": {}, "epoch": Evil()}, "evil.ckpt")
    with pytest.raises(BaseException, match=r"(?i)weights|evil.ckpt"):
        train(monkeypatch, root, "ckpt_path=evil.ckpt", "data.num_workers=0")
    assert not Path("owned").exists()
