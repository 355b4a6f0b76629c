import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genstab.data.download import FACADES_COUNTS, FACADES_URL, facades, fetch, unpack
from genstab.errors import InputError

BODY = bytes(range(256)) * 40
COUNTS = {"train": 2, "val": 1}
REFUSED = "http://127.0.0.1:1/a"


class Server(ThreadingHTTPServer):
    """Serves `body` at /file and notes what it was asked for."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file"
        self.body, self.etag = BODY, '"1"'
        self.ranges, self.sends_length, self.wrong_range = True, True, False
        self.cut: int | None = None  # close the connection after so many bytes
        self.asked: list[tuple[str | None, str | None]] = []  # Range and If-Range


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        server, start = self.server, 0
        wanted = self.headers.get("Range")
        server.asked.append((wanted, self.headers.get("If-Range")))
        if self.path != "/file":
            self.send_error(404)
            return
        if wanted and server.ranges and self.headers.get("If-Range") in (None, server.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.body):
                self.send_error(416)
                return
            self.send_response(206)
            first = start + 1 if server.wrong_range else start
            self.send_header("Content-Range", f"bytes {first}-{len(server.body) - 1}/{len(server.body)}")
        else:
            self.send_response(200)
        if server.sends_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(server.body[start : server.cut])


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
    fetch(server.url, path, len(BODY), hashlib.sha256(BODY).hexdigest().upper())
    assert path.read_bytes() == BODY
    assert left(path.parent) == ["a.bin"]
    assert server.asked == [(None, None)]


@pytest.mark.parametrize("etag", ['"1"', 'W/"1"', ""])
def test_cut_then_resume(server: Server, tmp_path: Path, etag: str) -> None:
    server.etag, server.cut = etag, 1000
    path = tmp_path / "a.bin"
    with pytest.raises(InputError, match=rf"cannot download {server.url} \(cut off at 1000 of {len(BODY)} bytes"):
        fetch(server.url, path)
    assert not path.exists()
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:1000]
    server.cut = None
    fetch(server.url, path)
    assert path.read_bytes() == BODY
    assert left(tmp_path) == ["a.bin"]
    assert server.asked[1] == ("bytes=1000-", '"1"' if etag == '"1"' else None)


def test_another_file_by_now(server: Server, tmp_path: Path) -> None:
    server.cut = 1000
    with pytest.raises(InputError, match="cut off"):
        fetch(server.url, tmp_path / "a.bin")
    server.cut, server.etag, server.body = None, '"2"', BODY[::-1]
    fetch(server.url, tmp_path / "a.bin")
    assert server.asked[1] == ("bytes=1000-", '"1"')
    assert (tmp_path / "a.bin").read_bytes() == BODY[::-1]


def test_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 20_000)  # longer than the file: must be emptied first
    fetch(server.url, tmp_path / "a.bin")
    assert server.asked == [("bytes=20000-", None)]
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 5])
def test_range_that_is_not_there(server: Server, tmp_path: Path, size: int) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * size)
    fetch(server.url, tmp_path / "a.bin")
    assert server.asked == [(f"bytes={size}-", None), (None, None)]
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_another_range_than_asked(server: Server, tmp_path: Path) -> None:
    server.wrong_range = True
    (tmp_path / "a.bin.part").write_bytes(BODY[:10])
    with pytest.raises(InputError, match="sent the range bytes 11-"):
        fetch(server.url, tmp_path / "a.bin")
    assert left(tmp_path) == []


def test_not_found_says_what_to_do(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fetch(server.url + "s", tmp_path / "a.bin")
    assert str(caught.value) == (
        f"cannot download {server.url}s (Not Found): fetch it on another machine and place it at "
        f"{tmp_path / 'a.bin'}, or use data=paired data.root=DIR with your own images"
    )
    assert left(tmp_path) == []


def test_refused_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(InputError, match=r"cannot download http://127\.0\.0\.1:1/a \(.*refused\): .* data\.root=DIR"):
        fetch(REFUSED, tmp_path / "a.bin")


def test_no_url(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot download nonsense \(unknown url type: 'nonsense'\)"):
        fetch("nonsense", tmp_path / "a.bin")


@pytest.mark.parametrize("sends_length", [True, False])
def test_wrong_length(server: Server, tmp_path: Path, sends_length: bool) -> None:
    server.sends_length = sends_length
    with pytest.raises(InputError, match=f"{server.url} has {len(BODY)} bytes, expected 7"):
        fetch(server.url, tmp_path / "a.bin", expected_bytes=7)
    assert left(tmp_path) == []
    fetch(server.url, tmp_path / "a.bin", expected_bytes=len(BODY))
    assert left(tmp_path) == ["a.bin"]


def test_wrong_hash(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"has the SHA-256 {hashlib.sha256(BODY).hexdigest()}, expected 00"):
        fetch(server.url, tmp_path / "a.bin", sha256="00")
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
    with pytest.raises(InputError, match=r"cannot unpack .*a: .*out exists"):
        unpack(archive, tmp_path / "out")
    assert left(tmp_path / "out") == ["mine"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (member("../x", b"evil"), r"'\.\./x' would be extracted to .* outside the destination"),
        (member("a/../../x", b"evil"), "outside the destination"),
        (member("/x", b"evil"), "'/x' is an absolute path"),
        (member("x", kind=tarfile.SYMTYPE, link="../.."), "'x' is a link or a device"),
        (member("x", kind=tarfile.SYMTYPE, link="/etc"), "'x' is a link or a device"),
        (member("x", kind=tarfile.LNKTYPE, link="../a"), "'x' is a link or a device"),
        (member("x", kind=tarfile.CHRTYPE), "'x' is a link or a device"),
        (member("x", kind=tarfile.FIFOTYPE), "'x' is a link or a device"),
    ],
)
def test_evil_archives(tmp_path: Path, bad: tuple, reason: str) -> None:
    archive = pack(tmp_path / "a.tar", member("good", b"good"), bad)
    with pytest.raises(
        InputError, match=rf"a\.tar is unsafe to unpack: {reason if reason[0] == chr(39) else '.*' + reason}"
    ):
        unpack(archive, tmp_path / "in" / "out")
    assert left(tmp_path) == ["a.tar", "in"]
    assert left(tmp_path / "in") == []  # no half folder, no x


def test_bombs(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", member("1", b"\0" * 600), member("2", b"\0" * 600))
    for limits in [{"max_bytes": 1199}, {"max_members": 1}]:
        with pytest.raises(InputError, match=r"a\.tar unpacks to more than \d+ bytes or \d+ members: refused"):
            unpack(archive, tmp_path / "out", **limits)
        assert left(tmp_path) == ["a.tar"]
    unpack(archive, tmp_path / "out", max_bytes=1200 + tarfile.RECORDSIZE, max_members=2)


def test_size_is_checked_before_unpacking(tmp_path: Path) -> None:
    info, _ = member("1")
    info.size = 1 << 40  # says the header; nothing follows
    archive = pack(tmp_path / "a.tar", (info, None))
    with pytest.raises(InputError, match=r"unpacks to more than 2147483648 bytes or 100000 members: refused"):
        unpack(archive, tmp_path / "out")


def test_bomb_after_the_end(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", member("1", b"x"), mode="w")
    with open(tmp_path / "a.tar", "ab") as file:
        file.write(b"\0" * 2_000_000)
    with pytest.raises(InputError, match="unpacks to more than 1000000 bytes"):
        unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=1_000_000)


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
    with pytest.raises(InputError, match=r"a\.tar is a corrupted archive \(.*\): remove it, fetch it again") as caught:
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
    assert len(server.asked) == 1


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
