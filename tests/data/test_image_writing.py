"""Images written and read again; an independent reader agrees; nothing half-written stays."""

import os

import numpy as np
import pytest
import skimage.io
import tifffile
import torch
from PIL import Image

from genstab.data.image_io import depth_of_format, image_depth, image_shape, read_image, to_uint8, write_image
from genstab.errors import InputError

LOSSLESS = [
    *((".png", 8, channels) for channels in (1, 2, 3, 4)),
    *((".png", 16, channels) for channels in (1, 3, 4)),
    *((".tif", depth, channels) for depth in (8, 16) for channels in (1, 2, 3, 4, 5, 7)),
    (".tiff", 8, 3), (".webp", 8, 3), (".webp", 8, 4), (".bmp", 8, 1), (".bmp", 8, 3),
]  # fmt: skip


def random_levels(channels, size, depth):
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 2**depth, (channels, *size), generator=generator)


def image_of(levels, depth):
    return levels.float() / (2**depth - 1) * 2 - 1


@pytest.mark.parametrize(("suffix", "depth", "channels"), LOSSLESS)
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4), (3, 2)])
def test_the_round_trip_is_exact(tmp_path, suffix, depth, channels, size):
    image = image_of(random_levels(channels, size, depth), depth)
    path = tmp_path / f"x{suffix.upper()}"
    write_image(path, image, depth)
    assert read_image(path).equal(image)
    assert image_depth(path) == depth
    assert image_shape(path) == (channels, *size)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("depth", "kind"), [(8, np.uint8), (16, np.uint16)])
def test_another_reader_agrees(tmp_path, suffix, depth, kind):
    levels = random_levels(1, (5, 6), depth)
    path = tmp_path / f"x{suffix}"
    write_image(path, image_of(levels, depth), depth)
    read = tifffile.imread(path) if suffix == ".tif" else skimage.io.imread(path)
    assert read.dtype == kind
    assert read.tolist() == levels[0].tolist()


def test_all_16_bit_levels_survive(tmp_path):
    levels = torch.arange(2**16).view(1, 256, 256)
    write_image(tmp_path / "x.png", image_of(levels, 16), 16)
    assert np.asarray(Image.open(tmp_path / "x.png")).ravel().tolist() == list(range(2**16))


def test_rounding_and_clamping_by_hand(tmp_path):
    # (v + 1) * 127.5: -1.5 → 0, -0.005 → 126.8625, 0 → 127.5 to even, 0.3 → 165.75, 7 → 255
    image = torch.tensor([[[-1.5, -0.005, 0.0, 0.3, 7.0, float("inf")]]])
    write_image(tmp_path / "x.png", image)
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[0, 127, 128, 166, 255, 255]]
    # (v + 1) * 32767.5
    write_image(tmp_path / "x.tif", image.double(), 16)
    assert tifffile.imread(tmp_path / "x.tif").tolist() == [[0, 32604, 32768, 42598, 65535, 65535]]


def test_8_bit_files_are_the_pictures_that_everything_else_shows(tmp_path):
    image = torch.randn(3, 6, 5)
    write_image(tmp_path / "x.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), to_uint8(image))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_quality_95(tmp_path, channels):
    image = torch.linspace(-1, 1, 32).expand(channels, 32, 32) * torch.tensor([1.0, 0.2, -0.7])[:channels, None, None]
    write_image(tmp_path / "x.jpg", image)
    assert (read_image(tmp_path / "x.jpg") - image).abs().max() < 0.03
    image = Image.new("L", (8, 8))
    image.save(tmp_path / "reference.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as written, Image.open(tmp_path / "reference.jpg") as reference:
        assert written.quantization[0] == reference.quantization[0]


def test_depths_of_formats():
    found = {suffix: depth_of_format(f"x{suffix}", 16) for suffix in (".png", ".TIF", ".tiff", ".jpg", ".webp", ".bmp")}
    assert found == {".png": 16, ".TIF": 16, ".tiff": 16, ".jpg": 8, ".webp": 8, ".bmp": 8}
    assert depth_of_format("x.png", 8) == 8


def test_depth_of_what_others_write(tmp_path):
    for mode, depth in {"1": 8, "P": 8, "L": 8, "RGB": 8, "I;16": 16}.items():
        Image.new(mode, (3, 2)).save(tmp_path / "x.png")
        assert image_depth(tmp_path / "x.png") == depth


@pytest.mark.parametrize(
    ("name", "image", "depth", "message"),
    [
        ("x.gif", torch.zeros(1, 2, 2), 8, "'.gif' is not one of .png, .tif"),
        ("x.jpg", torch.zeros(1, 2, 2), 16, ".jpg has 8 bits, not 16"),
        ("x.png", torch.zeros(1, 2, 2), 12, ".png has 8 or 16 bits, not 12"),
        ("x.jpg", torch.zeros(4, 2, 2), 8, "4 channels, but .jpg of 8 bits supports 1, 3$"),
        ("x.webp", torch.zeros(1, 2, 2), 8, "1 channels, but .webp of 8 bits supports 3, 4$"),
        ("x.png", torch.zeros(5, 2, 2), 8, "5 channels, but .png of 8 bits supports 1, 2, 3, 4$"),
        ("x.png", torch.zeros(2, 2, 2), 16, "2 channels, but .png of 16 bits supports 1, 3, 4$"),
        ("x.png", torch.full((1, 2, 2), torch.nan), 8, "the image contains NaN"),
        ("x.png", torch.zeros(1, 2, 2, dtype=torch.uint8), 8, r"torch.uint8 \(1, 2, 2\) is not floating point"),
        ("x.png", torch.zeros(2, 2), 8, r"\(2, 2\) is not floating point"),
        ("nowhere/x.png", torch.zeros(1, 2, 2), 8, "No such file or directory"),
        ("nowhere/x.png", torch.zeros(1, 2, 2), 16, "x.png: .+"),
        ("folder.png", torch.zeros(1, 2, 2), 8, "Is a directory"),
    ],
)
def test_what_can_not_be_written(tmp_path, name, image, depth, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=f"cannot write .*{message}"):
        write_image(tmp_path / name, image, depth)
    assert os.listdir(tmp_path) == ["folder.png"]


def test_an_interrupted_file_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    write_image(path, torch.zeros(1, 2, 2))
    before = path.read_bytes()

    def interrupt(*arguments):
        assert (tmp_path / ".x.png.part").stat().st_size > 50  # whole, and not yet in place
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, torch.ones(1, 2, 2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.png"]
