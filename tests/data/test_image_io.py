"""Images read at their full depth or refused with the reason; written and read again; nothing half-written stays."""

import importlib.util
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import tifffile
import torch
from PIL import Image, ImageOps

from genstab.data.formats import EXTENSIONS, UNREAD
from genstab.data.image_io import (
    image_info,
    image_shape,
    read_image,
    to_uint8,
    type_of_format,
    write_image,
)
from genstab.errors import InputError

RNG = np.random.default_rng(0)
DEEP = np.array([[[0, 1000, 65535], [257, 1, 32768]]], dtype=np.uint16)  # (1, 2, 3)
# 1000 / 65535 * 2 - 1; cut to 8 bits it would be 3 / 255 * 2 - 1 = -0.976.
DEEP_1000 = -0.96948195620660715


def random(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def scaled(pixels: np.ndarray) -> torch.Tensor:
    """(H, W) or (H, W, C) integers to what `read_image` promises, in float64."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    values = pixels.astype(np.float64) / np.iinfo(pixels.dtype).max * 2 - 1
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def check(path: Path, expected: torch.Tensor, tolerance: float = 1e-7) -> None:
    image = read_image(path)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert image_shape(path) == tuple(image.shape) == tuple(expected.shape)
    assert torch.allclose(image.double(), expected.double(), rtol=0, atol=tolerance)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(pixels: np.ndarray, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """Write (H, W, C) uint16 as a PNG by hand: Pillow can't."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    data = chunk(b"IDAT", zlib.compress(lines))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + data + after + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()[len(b"Exif\0\0") :]


def test_extensions() -> None:
    usual = {
        ".png",
        ".jpg",
        ".jpeg",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".jfif",
        ".jpe",
        ".ppm",
        ".gif",
        ".jp2",
        ".avif",
    }
    assert usual <= EXTENSIONS
    assert not EXTENSIONS & UNREAD
    assert not EXTENSIONS & {".pdf", ".eps", ".mpg", ".h5"}  # documents, films, data and what needs another program


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(suffix, mode) for suffix in ("png", "tif") for mode in ("L", "LA", "RGB", "RGBA")]
    + [("webp", "RGB"), ("webp", "RGBA"), ("bmp", "L"), ("bmp", "RGB")],
)
def test_eight_bits(tmp_path: Path, suffix: str, mode: str) -> None:
    pixels = random(5, 7, len(mode))
    if mode.endswith("A"):
        pixels[..., -1] |= 1  # WebP forgets the colour of what is fully transparent
    image = Image.fromarray(pixels.squeeze())
    assert image.mode == mode
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    check(tmp_path / f"a.{suffix}", scaled(pixels))


def test_values_by_hand(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert torch.allclose(read_image(tmp_path / "a.png"), torch.tensor([[[-1.0, -0.6, 1.0]]]), rtol=0, atol=1e-7)
    assert read_image(tmp_path / "a.png")[0, 0, [0, 2]].tolist() == [-1.0, 1.0]  # the ends are exact


def test_jpeg(tmp_path: Path) -> None:
    for mode, value, channels in [("L", 100, 1), ("RGB", (100, 100, 100), 3), ("CMYK", (0, 0, 0, 155), 3)]:
        Image.new(mode, (9, 6), value).save(tmp_path / f"{mode}.JPG", "JPEG", quality=100)
        check(
            tmp_path / f"{mode}.JPG",
            torch.full((channels, 6, 9), 100 / 255 * 2 - 1),
            tolerance=1.01 * 2 / 255,
        )


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_bilevel_and_palette(tmp_path: Path, suffix: str) -> None:
    bits = Image.fromarray(np.array([[0, 255, 255]], dtype=np.uint8)).convert("1")
    bits.save(tmp_path / f"bits.{suffix}")
    check(tmp_path / f"bits.{suffix}", torch.tensor([[[-1.0, 1.0, 1.0]]]))

    palette = Image.new("P", (2, 1))
    palette.putdata([1, 0])
    palette.putpalette([0, 51, 255, 255, 0, 102])
    palette.save(tmp_path / f"palette.{suffix}")
    check(tmp_path / f"palette.{suffix}", torch.tensor([[[1.0, -1.0]], [[-1.0, -0.6]], [[-0.2, 1.0]]]))


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_transparent_palette_is_rgb(tmp_path: Path, transparency: int | bytes) -> None:
    palette = Image.new("P", (2, 1))
    palette.putdata([1, 0])
    palette.putpalette([0, 51, 255, 255, 0, 102])
    palette.save(tmp_path / "a.png", transparency=transparency)
    with Image.open(tmp_path / "a.png") as image:
        assert "transparency" in image.info
    check(tmp_path / "a.png", torch.tensor([[[1.0, -1.0]], [[-1.0, -0.6]], [[-0.2, 1.0]]]))


def test_cmyk_tiff_is_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 3), (0, 255, 0, 0)).save(tmp_path / "a.tif")
    check(tmp_path / "a.tif", torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1).expand(3, 3, 2))


def test_sixteen_bits_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png16(DEEP))
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="rgb")
    for name in ("a.png", "a.tif"):
        image = read_image(tmp_path / name)
        assert image.shape == (3, 1, 2)
        assert image[1, 0, 0].item() == pytest.approx(DEEP_1000, abs=1e-7)
        assert image[0, 0, 0].item() == -1
        assert image[2, 0, 0].item() == 1
        assert image[0, 0, 1].item() == pytest.approx(1 / 255 * 2 - 1, abs=1e-7)  # 257 = 65535 / 255


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png(tmp_path: Path, channels: int) -> None:
    pixels = random(5, 7, channels, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(pixels))
    check(tmp_path / "a.png", scaled(pixels))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6), (6, 1), (3, 3)])
def test_tiff_layouts(tmp_path: Path, dtype: type, compression: str | None, size: tuple[int, int]) -> None:
    path = tmp_path / "a.tif"
    options = {"compression": compression}
    for channels in (1, 2, 3, 4, 7):
        pixels = random(*size, channels, dtype=dtype)
        kind = "rgb" if channels in (3, 4) else "minisblack"
        if channels == 1:
            tifffile.imwrite(path, pixels[..., 0], **options)
            check(path, scaled(pixels))
        tifffile.imwrite(path, pixels, photometric=kind, planarconfig="contig" if channels > 1 else None, **options)
        check(path, scaled(pixels))
        if channels > 1:
            planar = pixels.transpose(2, 0, 1)
            tifffile.imwrite(path, planar, photometric=kind, planarconfig="separate", **options)
            check(path, scaled(pixels))
            tifffile.imwrite(path, planar, photometric="minisblack", metadata={"axes": "CYX"}, **options)
            check(path, scaled(pixels))
    tifffile.imwrite(path, random(5, 7, 1, dtype=dtype), photometric="minisblack")
    assert image_shape(path) == tuple(read_image(path).shape) == (1, 5, 7)


def test_tiff_details(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = random(32, 16, 3, dtype=np.uint16)
    tifffile.imwrite(path, pixels, photometric="rgb", byteorder=">", tile=(16, 16), bigtiff=True)
    check(path, scaled(pixels))
    tifffile.imwrite(path, pixels[..., 0], photometric="miniswhite")
    check(path, -scaled(pixels[..., 0]))
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, photometric="rgb")
        tiff.write(random(9, 7), subfiletype=1)  # a thumbnail
    check(path, scaled(pixels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16", "P"])
def test_lzw_tiff(tmp_path: Path, mode: str) -> None:
    # tifffile reads LZW with imagecodecs only; Pillow reads these at full depth.
    image = Image.fromarray(random(5, 7, dtype=np.uint16)) if mode == "I;16" else None
    image = image or Image.fromarray(random(5, 7, 3)).convert(mode)
    image.save(tmp_path / "a.tif", compression="tiff_lzw")
    target = {"1": "L", "P": "RGB"}.get(mode, mode)
    check(tmp_path / "a.tif", scaled(np.asarray(image if target == mode else image.convert(target))))


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs reads it")
def test_codec_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, random(5, 7, 3, dtype=np.uint16), **options)
    relabel(path, 259, 5)  # LZW
    for function in (read_image, image_shape):
        with pytest.raises(InputError, match=r"a\.tif: .*LZW.* 16 bits in 3 channels; .* imagecodecs"):
            function(path)
    tifffile.imwrite(path, random(5, 7, 5), photometric="minisblack", planarconfig="contig", compression="zlib")
    relabel(path, 259, 5)
    with pytest.raises(InputError, match=r"a\.tif: .* 8 bits in 5 channels; .* imagecodecs"):
        image_shape(path)


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs reads it")
def test_alpha_that_pillow_would_change(tmp_path: Path) -> None:
    # Where tifffile gives 4 stored channels, Pillow drops an unnamed one and divides by a premultiplied one.
    path, pixels = tmp_path / "a.tif", random(5, 7, 4)
    for kind, name in [(0, "unspecified"), (1, "assocalpha")]:
        tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=[name], compression="zlib", metadata=None)
        check(path, scaled(pixels))
        Image.fromarray(pixels).save(path, compression="tiff_lzw")
        check(path, scaled(pixels))
        relabel(path, 338, kind)
        with pytest.raises(InputError, match=r"a\.tif: .* 8 bits in 4 channels; .* imagecodecs"):
            image_shape(path)


def test_hole_in_a_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", random(5, 7), compression="zlib", metadata=None)
    relabel(tmp_path / "a.tif", 279, 0)  # the strip's length: tifffile would read zeros
    with pytest.raises(InputError, match=r"a\.tif: truncated"):
        read_image(tmp_path / "a.tif")


def test_decoder_that_disagrees_with_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png16(DEEP))
    monkeypatch.setattr("kornia_rs.io.decode_image_png_u16", lambda *_: DEEP[:, :1])
    with pytest.raises(InputError, match=r"a\.png: it holds \(1, 1, 3\), its header says \(1, 2, 3\)"):
        read_image(tmp_path / "a.png")


def relabel(path: Path, tag: int, value: int) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags[tag].overwrite(value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((8, 16), dtype=np.uint8)
    pixels[0, :12], pixels[:4, 0] = 255, 120  # no symmetry
    stored, data = Image.fromarray(pixels), Image.Exif()
    data[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=data, quality=100)
    stored.convert("RGB").save(tmp_path / "a.webp", exif=data, lossless=True)
    stored.save(tmp_path / "a.png", exif=data)
    stored.save(tmp_path / "lzw.tif", tiffinfo={0x0112: orientation}, compression="tiff_lzw")
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(0x0112, 3, 1, orientation, True)])
    deep = pixels.astype(np.uint16)[..., None] * 257
    (tmp_path / "deep.png").write_bytes(png16(deep, before=chunk(b"eXIf", exif(orientation))))
    (tmp_path / "late.png").write_bytes(png16(deep, after=chunk(b"eXIf", exif(orientation))))

    tagged = Image.open(tmp_path / "a.png")
    expected = scaled(np.asarray(ImageOps.exif_transpose(tagged)))
    tagged.close()
    assert expected.shape == ((1, 16, 8) if orientation >= 5 else (1, 8, 16))
    if orientation > 1:
        assert expected.shape[1:] != pixels.shape or not torch.equal(expected, scaled(pixels))
    for name in ("a.png", "a.tif", "lzw.tif", "deep.png", "late.png"):
        check(tmp_path / name, expected)
    check(tmp_path / "a.webp", expected.expand(3, -1, -1))
    check(tmp_path / "a.jpg", expected, tolerance=0.1)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.jfif", 0.3), ("a.JPE", 0.3), ("a.ppm", 0), ("a.gif", 0.6), ("a.jp2", 0), ("a.avif", 0.3), ("a.tga", 0),
        ("a.ico", 0), ("a.dib", 0), ("a.qoi", 0), ("a.sgi", 0), ("a.pcx", 0),
    ],
)  # fmt: skip
def test_what_else_pillow_reads(tmp_path: Path, name: str, tolerance: float) -> None:
    pixels = np.broadcast_to(np.linspace(0, 255, 24, dtype=np.uint8)[:, None, None], (24, 20, 3)).copy()
    Image.fromarray(pixels).save(tmp_path / name, **({"sizes": [(20, 24)]} if name == "a.ico" else {}))
    check(tmp_path / name, scaled(pixels), tolerance or 1e-7)


def test_ppm_of_16_bits(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + DEEP[..., 0].astype(">u2").tobytes() + bytes(4))
    assert image_info(tmp_path / "a.pgm").dtype == "uint16"
    (tmp_path / "b.pgm").write_bytes(b"P5 3 1 1000\n" + np.array([0, 500, 1000], ">u2").tobytes())
    check(tmp_path / "b.pgm", torch.tensor([[[-1, 0, 1]]], dtype=torch.float64), 2e-5)  # a half is 32767.5 of 65535


def of_bits(path: Path, suffix: str, bits: int) -> None:
    """Write a picture of 8 bits in colour, and say of it that it is of more."""
    Image.new("RGB", (24, 24), "red").save(path, Image.registered_extensions()[suffix])
    data = bytearray(path.read_bytes())
    if suffix == ".avif":
        at = data.index(b"pixi")
        data[at + 8 : at + 12] = bytes([3, bits, bits, bits])
        data[data.index(b"av1C") + 6] |= {8: 0, 10: 0x40, 12: 0x60}[bits]
    elif suffix == ".sgi":
        data[3] = bits // 8
        data += bytes(len(data))
    else:
        at = data.index(b"\xff\x4f\xff\x51") + 42
        data[at : at + 9 : 3] = bytes([bits - 1] * 3)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "bits"), [("a.jp2", 16), ("a.j2k", 12), ("a.avif", 10), ("a.avif", 12), ("a.sgi", 16)]
)
def test_colours_of_which_pillow_would_keep_8_bits_are_refused(tmp_path: Path, name: str, bits: int) -> None:
    of_bits(tmp_path / name, name[1:], 8)
    assert read_image(tmp_path / name).shape == (3, 24, 24)
    of_bits(tmp_path / name, name[1:], bits)
    said = rf"{name}: \w+ of {bits} bits, of which Pillow keeps 8: convert it to a PNG or TIFF of 16 bits$"
    with pytest.raises(InputError, match=said):
        image_shape(tmp_path / name)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("greatest", [65535, 1000])
def test_ppm_of_16_bits_in_colour(tmp_path: Path, plain: bool, greatest: int) -> None:
    levels = RNG.integers(0, greatest, (5, 7, 3), endpoint=True)
    data = " ".join(map(str, levels.ravel())).encode() if plain else levels.astype(">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P%d # by hand\n7 5\n%d\n%b" % (3 if plain else 6, greatest, data))
    assert image_info(tmp_path / "a.ppm").dtype == "uint16"
    check(tmp_path / "a.ppm", torch.from_numpy(levels / greatest * 2 - 1).permute(2, 0, 1), 2e-5)


def test_content_not_suffix_decides(tmp_path: Path) -> None:
    pixels = random(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", "PNG")
    check(tmp_path / "a.jpg", scaled(pixels))


@pytest.mark.parametrize("function", [read_image, image_shape])
def test_no_image(tmp_path: Path, function) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("I am no picture")
    (tmp_path / "folder.png").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "targa.png", "TGA")  # which has no signature, so that the name must tell
    Image.new("L", (4, 4)).save(tmp_path / "heic.HEIC", "PNG")
    Image.new("F", (4, 4)).save(tmp_path / "float.pfm")
    for name, reason in [
        ("empty.png", "the file is empty"),
        ("text.png", "not an image in a format that genstab reads, or damaged"),
        ("targa.png", "not an image in a format that genstab reads, or damaged"),
        ("heic.HEIC", "genstab does not read .HEIC: convert it to PNG or TIFF"),
        ("float.pfm", "pixels of float32, 32 bits, are not uint8 or uint16"),
        ("folder.png", "Is a directory"),
        ("absent.png", "No such file"),
    ]:
        with pytest.raises(InputError, match=f"^cannot read .*{name}: {reason}") as caught:
            function(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [read_image, image_shape])
def test_several_pictures(tmp_path: Path, function) -> None:
    first, second = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")
    for name in ("a.webp", "b.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        with pytest.raises(InputError, match=f"{name}: it holds several images"):
            function(tmp_path / name)
    tifffile.imwrite(tmp_path / "c.tif", random(5, 8, 6), photometric="minisblack")
    with pytest.raises(InputError, match=r"c\.tif: \(5, 8, 6\) with the axes QYX is a stack of pages"):
        function(tmp_path / "c.tif")
    with tifffile.TiffWriter(tmp_path / "d.tif") as tiff:
        tiff.write(random(5, 8))
        tiff.write(random(6, 8))
    with pytest.raises(InputError, match=r"d\.tif: it holds 2 images"):
        function(tmp_path / "d.tif")


@pytest.mark.parametrize("function", [read_image, image_shape])
@pytest.mark.parametrize("dtype", ["float32", "int32", "int16", "uint32"])
def test_other_depths(tmp_path: Path, function, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((3, 4), dtype=dtype))
    with pytest.raises(
        InputError,
        match=rf"a\.tif: pixels of {dtype}, \d+ bits, are not uint8 or uint16: set .* data.value_range",
    ):
        function(tmp_path / "a.tif")


def test_sixteen_bit_palette_of_inks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", random(5, 7, 4, dtype=np.uint16), photometric="separated")
    with pytest.raises(InputError, match=r"a\.tif: .*SEPARATED.* 16 bits in 4 channels; save it as grey or RGB"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["a.png", "deep.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "zlib.tif", "lzw.tif"])
def test_truncated_at_every_length(tmp_path: Path, kind: str) -> None:
    pixels, path = random(16, 16, 3), tmp_path / kind
    if kind == "deep.png":
        path.write_bytes(png16(random(16, 16, 3, dtype=np.uint16)))
    elif kind in ("a.tif", "zlib.tif"):
        tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib" if kind == "zlib.tif" else None)
    else:
        Image.fromarray(pixels).save(path, **{"lzw.tif": {"compression": "tiff_lzw"}}.get(kind, {}))
    whole, data = read_image(path), path.read_bytes()
    refused = 0
    for length in range(0, len(data), 11):
        path.write_bytes(data[:length])
        try:
            image = read_image(path)
        except InputError as error:
            assert str(error).startswith(f"cannot read {path}: ")  # noqa: PT017
            if kind.endswith("png") and length > 33:  # past the header chunk
                assert "truncated, it ends before its IEND chunk" in str(error)  # noqa: PT017
            refused += 1
        else:
            assert torch.equal(image, whole)  # only a trailer was cut
    assert refused >= 0.9 * len(range(0, len(data), 11))


def test_bit_flips_raise_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = bytearray(png16(random(4, 4, 3, dtype=np.uint16)))
    for position in range(8, len(data) - 12):  # past the signature, before the empty IEND
        data[position] ^= 0x40
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"^cannot read .*a\.png: "):
            read_image(path)
        data[position] ^= 0x40
    path.write_bytes(data)
    assert read_image(path).shape == (3, 4, 4)


def test_large_picture_warns_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", random(10, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").shape == read_image(tmp_path / "a.tif").shape == (1, 10, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(InputError, match=r"a\.png: Image size \(200 pixels\) exceeds limit"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.tif: \(10, 20\) exceeds the limit of 100 pixels"):
        image_shape(tmp_path / "a.tif")


def test_shape_needs_no_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    (tmp_path / "deep.png").write_bytes(png16(DEEP))
    tifffile.imwrite(tmp_path / "a.tif", random(4, 6, 3), photometric="rgb")
    for owner, name in [(Image.Image, "load"), (tifffile.TiffPageSeries, "asarray")]:
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr("kornia_rs.io.decode_image_png_u16", lambda *_: pytest.fail("decoded"))
    for path in tmp_path.iterdir():
        assert image_shape(path) == ((3, 1, 2) if path.name == "deep.png" else (3, 4, 6))


def test_to_uint8_values() -> None:
    levels = torch.arange(256) / 255 * 2 - 1
    assert to_uint8(levels.view(1, 16, 16))[..., 0].reshape(-1).tolist() == list(range(256))
    assert to_uint8(torch.tensor([[[-3.0, -1.0, 1.0, 3.0, 0.0]]]))[0, :, 1].tolist() == [0, 0, 255, 255, 128]


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_to_uint8_channels(channels: int, shown: list[int]) -> None:
    images = torch.rand(2, 3, channels, 4, 5, dtype=torch.float64) * 2 - 1
    pixels = to_uint8(images.requires_grad_())
    assert pixels.shape == (2, 3, 4, 5, 3)
    assert pixels.dtype == np.uint8
    expected = np.rint((images.detach().numpy() + 1) * 127.5)
    assert np.array_equal(pixels, expected[:, :, shown].transpose(0, 1, 3, 4, 2))


@pytest.mark.parametrize("images", [torch.zeros(3, 4), torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(0, 2, 2)])
def test_to_uint8_refuses(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"is not|are not floating point \(\.\.\., C, H, W\)"):
        to_uint8(images)


def test_read_and_write_back(tmp_path: Path) -> None:
    pixels = random(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(to_uint8(read_image(tmp_path / "a.png")), pixels)


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
    write_image(path, image, f"uint{depth}")
    assert read_image(path).equal(image)
    assert image_info(path).dtype == f"uint{depth}"
    assert image_shape(path) == (channels, *size)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("depth", "kind"), [(8, np.uint8), (16, np.uint16)])
def test_another_reader_agrees(tmp_path, suffix, depth, kind):
    levels = random_levels(1, (5, 6), depth)
    path = tmp_path / f"x{suffix}"
    write_image(path, image_of(levels, depth), f"uint{depth}")
    read = tifffile.imread(path) if suffix == ".tif" else skimage.io.imread(path)
    assert read.dtype == kind
    assert read.tolist() == levels[0].tolist()


def test_all_16_bit_levels_survive(tmp_path):
    levels = torch.arange(2**16).view(1, 256, 256)
    write_image(tmp_path / "x.png", image_of(levels, 16), "uint16")
    assert np.asarray(Image.open(tmp_path / "x.png")).ravel().tolist() == list(range(2**16))


def test_rounding_and_clamping_by_hand(tmp_path):
    # (v + 1) * 127.5: -1.5 → 0, -0.005 → 126.8625, 0 → 127.5 to even, 0.3 → 165.75, 7 → 255
    image = torch.tensor([[[-1.5, -0.005, 0.0, 0.3, 7.0, float("inf")]]])
    write_image(tmp_path / "x.png", image)
    assert np.asarray(Image.open(tmp_path / "x.png")).tolist() == [[0, 127, 128, 166, 255, 255]]
    # (v + 1) * 32767.5
    write_image(tmp_path / "x.tif", image.double(), "uint16")
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
    deep = (".png", ".TIF", ".tiff")
    for suffix in (*deep, ".jpg", ".webp", ".bmp"):
        assert type_of_format(f"x{suffix}", "uint16") == ("uint16" if suffix in deep else "uint8")
    assert type_of_format("x.tif", "float32") == "float32"
    assert [type_of_format("x.png", each) for each in ("uint8", "int16", "float32")] == ["uint8", "uint16", "uint16"]


def test_depth_of_what_others_write(tmp_path):
    for mode in ("1", "P", "L", "RGB", "I;16"):
        Image.new(mode, (3, 2)).save(tmp_path / "x.png")
        assert image_info(tmp_path / "x.png").dtype == ("uint16" if mode == "I;16" else "uint8")


@pytest.mark.parametrize(
    ("name", "image", "depth", "message"),
    [
        ("x.gif", torch.zeros(1, 2, 2), 8, "'.gif' is not one of .png, .tif"),
        ("x.jpg", torch.zeros(1, 2, 2), 16, ".jpg has 8 bits, not uint16"),
        ("x.png", torch.zeros(1, 2, 2), 32, ".png has 8 or 16 bits, not uint32"),
        ("x.jpg", torch.zeros(4, 2, 2), 8, "4 channels, but .jpg of 8 bits supports 1, 3$"),
        ("x.webp", torch.zeros(1, 2, 2), 8, "1 channels, but .webp of 8 bits supports 3, 4$"),
        ("x.png", torch.zeros(5, 2, 2), 8, "5 channels, but .png of 8 bits supports 1, 2, 3, 4$"),
        ("x.png", torch.zeros(2, 2, 2), 16, "2 channels, but .png of 16 bits supports 1, 3, 4$"),
        ("x.png", torch.full((1, 2, 2), torch.nan), 8, "the image contains NaN"),
        ("x.png", torch.zeros(1, 2, 2, dtype=torch.uint8), 8, r"torch.uint8 \(1, 2, 2\) is not floating point"),
        ("x.png", torch.zeros(2, 2), 8, r"\(2, 2\) is not floating point"),
        ("/dev/null/x.png", torch.zeros(1, 2, 2), 16, "File exists"),
        ("folder.png", torch.zeros(1, 2, 2), 8, "Is a directory"),
    ],
)
def test_what_can_not_be_written(tmp_path, name, image, depth, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=f"cannot write .*{message}"):
        write_image(tmp_path / name, image, f"uint{depth}")
    assert os.listdir(tmp_path) == ["folder.png"]


def test_an_interrupted_file_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    write_image(path, torch.zeros(1, 2, 2))
    before = path.read_bytes()

    def interrupt(*arguments):
        (part,) = tmp_path.glob("*.part")
        assert part.stat().st_size > 50  # whole, and not yet in place
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(path, torch.ones(1, 2, 2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.png"]
