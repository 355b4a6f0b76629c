"""Files that claim or unpack to more than a machine can hold: refused, quickly and in little memory."""

import io
import json
import lzma
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from genstab.data.download import unpack
from genstab.data.image_io import image_shape, read_image
from genstab.errors import InputError
from tests.data.test_image_io import chunk, png16
from tests.helpers.commands import program

pytestmark = pytest.mark.slow
GIGABYTE = 1 << 30
READ = """
import json, resource, sys, time, warnings
from pathlib import Path
from genstab.errors import InputError
from genstab.data.image_io import image_shape, read_image
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
warnings.simplefilter("error")
for path in sys.argv[1:]:
    before, began = peak(), time.perf_counter()
    said = []
    for function in (image_shape, read_image):
        try:
            function(path)
            said.append("read")
        except InputError as error:
            said.append(str(error))
    print(json.dumps([Path(path).name, *said, peak() - before, time.perf_counter() - began]), flush=True)
"""


def zeros(size: int) -> bytes:
    """Return what zlib unpacks to so many zeros: one block again and again, which takes no time."""
    packer = zlib.compressobj(1)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", size % 65521, 1)
    return block[:2] + block[2:] * (size >> 24) + b"\3\0" + checksum


def png(size: int, depth: int = 8, data: bytes = b"", extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data or zlib.compress(b"\0")) + chunk(b"IEND", b"")


def tiff(path: Path, strip: bytes, size: int = 16, samples: int = 1, compression: int = 8) -> None:
    """Write by hand one strip that says what it likes of itself."""
    tags = [
        (256, 4, 1, size), (257, 4, 1, size), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, samples), (278, 4, 1, size), (279, 4, 1, len(strip)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(strip))
    path.write_bytes(head + strip + struct.pack("<H", len(tags)) + entries + bytes(4))


def patched(path: Path, mode: str, at: int, data: bytes) -> None:
    Image.new("RGB", (8, 8)).save(path, mode)
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bombs")
    gigabyte = zeros(GIGABYTE)
    assert zlib.decompress(zeros(1 << 25)) == bytes(1 << 25)
    (folder / "claims.png").write_bytes(png(60_000))
    (folder / "claims16.png").write_bytes(png(60_000, 16))
    (folder / "longer.png").write_bytes(png(8, 8, gigabyte))
    (folder / "longer16.png").write_bytes(png(8, 16, gigabyte))
    (folder / "text.png").write_bytes(png(8, 8, zlib.compress(bytes(25 * 8)), chunk(b"zTXt", b"a\0\0" + gigabyte)))
    (folder / "profile.png").write_bytes(png(8, 8, zlib.compress(bytes(25 * 8)), chunk(b"iCCP", b"a\0\0" + gigabyte)))
    (folder / "exif.png").write_bytes(png16(np.zeros((2, 2, 3), np.uint16), before=chunk(b"eXIf", bytes(300_000_000))))
    tiff(folder / "claims.tif", zlib.compress(b"\0"), size=60_000)
    tiff(folder / "channels.tif", zlib.compress(b"\0"), size=13_000, samples=60_000)
    tiff(folder / "strip.tif", gigabyte)
    tiff(folder / "lzma.tif", lzma.compress(bytes((1 << 28) + 1), preset=0), compression=34925)
    tifffile.imwrite(folder / "tile.tif", np.zeros((16, 16), np.uint8), tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(folder / "tile.tif", mode="r+") as file:
        for tag in (322, 323):
            file.pages.first.tags[tag].overwrite(65_520)
    patched(folder / "claims.jpg", "JPEG", 0, b"")
    content = bytearray((folder / "claims.jpg").read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    (folder / "claims.jpg").write_bytes(content)
    patched(folder / "claims.bmp", "BMP", 18, struct.pack("<ii", 100_000, 100_000))
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", 16_383)[:3] * 2
    Image.new("RGB", (8, 8)).save(folder / "claims.webp")
    body = b"WEBP" + extended + (folder / "claims.webp").read_bytes()[12:]
    (folder / "claims.webp").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with open(folder / "sparse.png", "wb") as file:
        file.write(png(8, 16))
        file.truncate(40 * GIGABYTE)
    os.mkfifo(folder / "pipe.png")
    return folder


def test_image_bombs_are_refused_quickly_and_in_little_memory(bombs: Path) -> None:
    paths = sorted(map(str, bombs.iterdir()))
    rows = [json.loads(line) for line in program("-c", READ, *paths).splitlines()]
    assert len(rows) == len(paths)
    # nothing in their headers is wrong: what is too much shows where it is read, or is never looked at
    late = {"strip.tif", "lzma.tif", "longer.png", "longer16.png", "exif.png"}
    for name, shape, pixels, megabytes, seconds in rows:
        assert seconds < 10, name
        assert megabytes < 600, name
        assert name in late or shape.startswith("cannot read"), name
        assert (name in ("longer.png", "longer16.png", "exif.png") and pixels == "read") or pixels.startswith(
            "cannot read"
        ), name
        assert "\n" not in shape + pixels


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("claims.png", r"Image size \(3600000000 pixels\) exceeds limit"),
        ("claims16.png", r"Image size \(3600000000 pixels\) exceeds limit"),
        ("text.png", "Decompressed data too large"),
        ("claims.tif", r"\(60000, 60000\) exceeds the limit of 178956970 pixels"),
        ("channels.tif", "exceeds the limit of 178956970 pixels"),
        ("tile.tif", "exceeds the limit of 178956970 pixels"),
        ("strip.tif", "it decompresses to more than the 256 bytes of its header"),
        ("claims.jpg", r"Image size \(4290250000 pixels\) exceeds limit"),
        ("claims.webp", "exceeds limit"),
        ("claims.bmp", "exceeds limit"),
        ("sparse.png", "42949672960 bytes exceed the limit of 1431655760"),
        ("pipe.png", "it is not a file but a device or a pipe"),
    ],
)
def test_image_bombs_are_named_with_the_reason(bombs: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"^cannot read .*{name}: .*{reason}"):
        (read_image if name == "strip.tif" else image_shape)(bombs / name)


def test_a_device_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"a\.png: it is not a file but a device or a pipe"):
        read_image(tmp_path / "a.png")


def test_pages_that_point_at_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(path, zlib.compress(bytes(256)))
    data = path.read_bytes()
    path.write_bytes(data[:-4] + data[4:8])  # the next page is this page
    try:
        assert read_image(path).shape == (1, 16, 16)
    except InputError as error:
        assert "a.tif" in str(error)  # noqa: PT017


def test_a_large_strip_within_its_header_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="zlib", rowsperstrip=700)  # 490 kB could be 500 MB
    assert np.array_equal(((read_image(tmp_path / "a.tif")[0] + 1) * 127.5).round().numpy(), pixels)


def pax(size: int, content: bytes) -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def test_headers_upon_headers_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(pax(10, b"9 a=bcd\n\n") * 5000)
    with pytest.raises(InputError, match=r"a\.tar is a corrupted archive"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_sparse_member_counts_as_what_it_becomes(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a",
            "GNU.sparse.size": str(4 * GIGABYTE), "GNU.sparse.map": "0,1",
        }  # fmt: skip
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    (tmp_path / "a.tar").write_bytes(data.getvalue())
    with pytest.raises(InputError, match="unpacks to more than 2147483648 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
