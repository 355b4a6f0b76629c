import hashlib
import io
import re
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genstab.data import download
from genstab.data.download import FACADES_COUNTS, FACADES_URL, facades, fetch, unpack
from genstab.errors import InputError

BODY = bytes(range(256)) * 40
COUNTS = {"train": 2, "val": 1}
REFUSED = "http://127.0.0.1:1/a"


class Server(ThreadingHTTPServer):
    """Serves `body` at /file."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.body = BODY
        self.asked = 0
        self.cut: int | None = None  # close the connection after so many bytes


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.path != "/file":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: self.server.cut])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetch(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    fetch(server.url, path)
    assert path.read_bytes() == BODY
    assert left(path.parent) == ["a.bin"]
    fetch(path.as_uri(), tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{server}s", "Not Found"),
        (REFUSED, r".*refused"),
    ],
)
def test_what_cannot_be_downloaded_says_what_to_do(server: Server, tmp_path: Path, url: str, reason: str) -> None:
    url = url.format(server=server.url)
    with pytest.raises(InputError) as caught:
        fetch(url, tmp_path / "a.bin")
    then = f"fetch it on another machine and place it at {tmp_path / 'a.bin'}, or use data=paired data.root=DIR with"
    assert re.fullmatch(rf"cannot download {url} \({reason}\): {then} your own images", str(caught.value))
    assert left(tmp_path) == []


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(InputError, match=r"\(timed out\): fetch it on"),
    ):
        fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/a", tmp_path / "a.bin")
    assert left(tmp_path) == []


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, io.BytesIO(data)


def pack(path: Path, *members: tuple, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            tar.addfile(info, data)
    return path


def pictures(counts: dict[str, int], top: str = "facades/") -> list[tuple]:
    folders = [member(f"{top}{split}", kind=tarfile.DIRTYPE) for split in counts]
    return folders + [member(f"{top}{split}/{i}.jpg", b"jpg") for split, n in counts.items() for i in range(n)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_unpack(tmp_path: Path, mode: str) -> None:
    archive = pack(tmp_path / "a", member("x/y/1.txt", b"one"), member("2.txt", b"two"), mode=mode)
    unpack(archive, tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out" / "x" / "y" / "1.txt").read_bytes() == b"one"
    assert left(tmp_path / "new" / "out") == ["2.txt", "x"]
    assert left(tmp_path / "new") == ["out"]


def test_one_top_folder_is_unwrapped(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty folder may stand there
    unpack(pack(tmp_path / "a", member("top/1.txt", b"one"), member("top/sub/2.txt")), tmp_path / "out")
    assert left(tmp_path / "out") == ["1.txt", "sub"]


def test_unpack_overwrites_nothing(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a", member("1.txt"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match=r"cannot unpack .*a into .*out: Directory not empty"):
        unpack(archive, tmp_path / "out")
    assert left(tmp_path / "out") == ["mine"]


@pytest.mark.parametrize(
    "bad",
    [
        member("../x", b"evil"),
        member("x", kind=tarfile.SYMTYPE, link="../.."),
        member("x", kind=tarfile.LNKTYPE, link="../a"),
        member("x", kind=tarfile.FIFOTYPE),
    ],
)
def test_evil_archives(tmp_path: Path, bad: tuple) -> None:
    archive = pack(tmp_path / "a.tar", member("good", b"good"), bad)
    with pytest.raises(InputError, match=r"a\.tar is unsafe to unpack: "):
        unpack(archive, tmp_path / "in" / "out")
    assert left(tmp_path) == ["a.tar", "in"]
    assert left(tmp_path / "in") == []  # no half folder, no x


def test_an_absolute_path_stays_in_the_folder(tmp_path: Path) -> None:
    unpack(pack(tmp_path / "a.tar", member("/x", b"evil"), member("y", b"good")), tmp_path / "out")
    assert left(tmp_path / "out") == ["x", "y"]


def test_bombs(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", member("1", b"\0" * 600), member("2", b"\0" * 600))
    for limits in [{"max_bytes": 1199}, {"max_members": 1}]:
        with pytest.raises(InputError, match=r"a\.tar unpacks to more than \d+ bytes or \d+ members: refused"):
            unpack(archive, tmp_path / "out", **limits)
        assert left(tmp_path) == ["a.tar"]
    unpack(archive, tmp_path / "out", max_bytes=1200, max_members=2)


def test_size_is_checked_before_unpacking(tmp_path: Path) -> None:
    info, _ = member("1")
    info.size = 1 << 40  # says the header; nothing follows
    archive = pack(tmp_path / "a.tar", (info, None))
    with pytest.raises(InputError, match=r"unpacks to more than 2147483648 bytes or 100000 members: refused"):
        unpack(archive, tmp_path / "out")


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped_checksum(data: bytes) -> bytes:
    return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]


@pytest.mark.parametrize("damage", [truncated, flipped_checksum, lambda _: b"", lambda _: b"<html>no archive</html>"])
@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_corrupted_archive(tmp_path: Path, mode: str, damage: Callable[[bytes], bytes]) -> None:
    noise = hashlib.shake_256(b"").digest(5000)
    archive = pack(tmp_path / "a.tar", member("1", noise), member("2", noise), mode=mode)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(InputError, match=r"a\.tar is a corrupted archive \(.*\): download it again") as caught:
        unpack(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert left(tmp_path) == ["a.tar"]


def test_absent_archive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot unpack .*a\.tar into .*out: No such file"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_facades_from_the_network(server: Server, tmp_path: Path) -> None:
    server.body = pack(tmp_path / "served", *pictures(COUNTS)).read_bytes()
    folder = facades(tmp_path / "data", server.url, COUNTS)
    assert folder == tmp_path / "data" / "facades"
    assert left(folder) == ["train", "val"]
    assert left(folder / "train") == ["0.jpg", "1.jpg"]
    assert facades(tmp_path / "data", server.url, COUNTS) == folder
    assert server.asked == 1


def test_a_cut_download_is_not_taken_for_the_archive(server: Server, tmp_path: Path) -> None:
    server.body = pack(tmp_path / "served", *pictures(COUNTS)).read_bytes()
    server.cut = len(server.body) - 20
    with pytest.raises(InputError, match=r"facades\.tar\.gz is a corrupted archive .*: download it again"):
        facades(tmp_path / "data", server.url, COUNTS)
    assert left(tmp_path / "data") == []
    server.cut = None
    facades(tmp_path / "data", server.url, COUNTS)


def test_facades_placed_by_hand(tmp_path: Path) -> None:
    pack(tmp_path / "facades.tar.gz", *pictures(COUNTS))
    assert left(facades(str(tmp_path), REFUSED, COUNTS)) == [
        "train",
        "val",
    ]  # the port refuses: no network was used
    (tmp_path / "facades.tar.gz").unlink()
    facades(tmp_path, REFUSED, COUNTS)


def test_facades_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"place it at {tmp_path}/facades\.tar\.gz, or use data=paired data\.root=DIR"
    ):
        facades(tmp_path, REFUSED)
    assert left(tmp_path) == []


def test_facades_that_are_none(tmp_path: Path) -> None:
    pack(tmp_path / "facades.tar.gz", *pictures({"train": 1, "val": 1}))
    with pytest.raises(InputError, match=r"facades\.tar\.gz is not the façades archive, it holds 1 of 2 in train: "):
        facades(tmp_path, REFUSED, COUNTS)
    assert left(tmp_path) == ["facades.tar.gz"]


def test_incomplete_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "facades" / "train").mkdir(parents=True)
    (tmp_path / "facades" / "train" / "1.jpg").touch()
    with pytest.raises(InputError, match=r"facades is incomplete, it holds 1 of 2 in train, 0 of 1 in val: remove it"):
        facades(tmp_path, REFUSED, COUNTS)
    assert left(tmp_path / "facades" / "train") == ["1.jpg"]


def test_the_real_archive_is_named() -> None:
    assert FACADES_URL.endswith("/pix2pix/datasets/facades.tar.gz")
    assert FACADES_COUNTS == {"train": 400, "val": 100, "test": 106}
