"""Shards as files: what `genstab shard` writes, what is read of them, and what is said of bad ones."""

import gzip
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from genstab import InputError
from genstab.cli import main as cli
from genstab.data.datamodules import PairedData
from genstab.data.pairs import PairedImages, Wanted, find_pairs
from genstab.data.shards.cache import ShardCache, basename, is_local
from genstab.data.shards.datamodule import ShardData
from genstab.data.shards.dataset import ShardPairs
from genstab.data.shards.format import INDEX, Shard, ShardFile, key_of, parse_index
from genstab.data.shards.write import write_shards
from tests.helpers.random_pairs import NAMES, pairs_in

webdataset = pytest.importorskip("webdataset", reason="needs the extra: pip install 'genstab[shards]'")


def index(folder):
    return json.loads((folder / INDEX).read_text())["splits"]


def splits(folder):
    return parse_index((folder / INDEX).read_bytes(), INDEX, lambda name: f"{folder}/{name}")


def entry(path, pairs):
    """An entry of an index that fits a file."""
    return Shard(str(path), pairs, path.stat().st_size, "")


def equal(item, other):
    return item["name"] == other["name"] and all(torch.equal(item[key], other[key]) for key in ("source", "target"))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("direction", "size"), [("AtoB", None), ("BtoA", (20, 24))])
def test_shards_give_what_the_folders_give(tmp_path, double, direction, size):
    root = pairs_in(tmp_path / "pairs", double=double)
    written = write_shards(root, tmp_path / "shards", size=0.01)
    assert written.pairs == {"train": 8, "val": 2}
    assert written.shards["train"] > 2
    for split, found in splits(tmp_path / "shards").items():
        expected = {item["name"]: item for item in PairedImages(find_pairs(root, split), direction, size)}
        items = list(ShardPairs(found.shards, ShardCache(), direction=direction, size=size))
        names = [item["name"] for item in items]
        assert sorted(names) == sorted(expected)
        assert (names == list(expected)) == (split == "val")  # those for training are mixed
        assert all(equal(item, expected[item["name"]]) for item in items)
        assert (found.size, found.least, found.channels) == ((26, 26), (26, 26), (3, 3))


def test_the_same_folders_give_the_same_bytes_and_another_seed_another_order(tmp_path):
    root = pairs_in(tmp_path / "pairs")
    for name, seed in (("one", 1), ("two", 1), ("three", 2), ("four", None)):
        write_shards(root, tmp_path / name, seed=seed)
    content = {
        name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two", "three")
    }
    assert content["one"] == content["two"]
    assert content["one"]["train-000000.tar"] != content["three"]["train-000000.tar"]
    assert content["one"]["val-000000.tar"] == content["three"]["val-000000.tar"]
    by_name = tmp_path / "four" / "train-000000.tar"
    by_name = ShardFile(by_name, entry(by_name, 8))
    assert [name for name, _, _ in by_name.pairs] == [pair.name for pair in find_pairs(root, "train")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that webdataset leaves open
def test_a_shard_is_as_large_as_asked_for_and_webdataset_reads_the_files_as_they_were(tmp_path):
    root = pairs_in(tmp_path / "pairs")
    write_shards(root, tmp_path / "shards", size=0.012)
    shards = index(tmp_path / "shards")["train"]["shards"]
    assert all(shard["bytes"] == (tmp_path / "shards" / shard["name"]).stat().st_size for shard in shards)
    assert all(shard["bytes"] <= 0.012e6 + 10240 for shard in shards)  # tar ends on a multiple of 10 kB
    assert sum(shard["pairs"] for shard in shards) == 8
    urls = [str(tmp_path / "shards" / shard["name"]) for shard in shards]
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False)}
    assert sorted(found) == sorted(map(key_of, NAMES))
    for name in NAMES:
        suffix = "PNG" if name == "7" else "png"
        for side in "ab":
            path = root / f"train{side.upper()}" / f"{name}.{suffix}"
            assert found[key_of(name)][f"{side}.png"] == path.read_bytes()
    write_shards(root, tmp_path / "many", size=1e-6)
    assert {shard["pairs"] for shard in index(tmp_path / "many")["train"]["shards"]} == {1}


def add(tar, name, data=b"x"):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_tarfile_reads_them(tmp_path, kind):
    names = ["a/1", "é", "b", "x" * 80 if kind == tarfile.USTAR_FORMAT else "ü" * 150, "last"]
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            add(tar, f"{name}.a.PNG", bytes([number]) * (500 + number))
            add(tar, f"{name}.json", b"{}")
            add(tar, f"{name}.b.jpg", b"b" * number)
    file = ShardFile(tmp_path / "a.tar", entry(tmp_path / "a.tar", 5))
    assert [name for name, _, _ in file.pairs] == names
    with tarfile.open(tmp_path / "a.tar") as tar:
        for _, *members in file.pairs:
            for member in members:
                assert file.read(member) == tar.extractfile(member.name).read()


def bad(path, kind):
    """Spoil a shard; return what is said of it by an index that knows its new size."""
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    if kind == "cut between files":
        path.write_bytes(content[:third])
        return " holds 1 pairs, its index says 8"
    if kind == "cut in a header":
        path.write_bytes(content[: third + 100])
        return " holds 1 pairs, its index says 8"
    if kind == "flipped":
        path.write_bytes(b"\xff" + content[1:])
        return "bad checksum"
    if kind == "flipped later":
        path.write_bytes(content[:third] + b"\xff" + content[third + 1 :])
        return " holds 1 pairs, its index says 8"
    if kind == "compressed":
        path.write_bytes(gzip.compress(content))
        return "(invalid header|bad checksum)"
    if kind == "empty":
        path.write_bytes(b"")
        return "empty file"
    names = {
        "one side": ["1.a.png", "1.b.png", "2.a.png"],
        "both layouts": ["1.a.png", "1.ab.png", "1.b.png"],
        "others": ["1.png", "1.jpg"],
        "too few": ["1.a.png", "1.b.png"],
    }[kind]
    with tarfile.open(path, "w") as tar:
        for name in names:
            add(tar, name)
    return {
        "one side": r"a pair is KEY\.a\.png and KEY\.b\.png, or KEY\.ab\.png alone; found 2\.a\.png",
        "both layouts": r".*found 1\.a\.png, 1\.ab\.png, 1\.b\.png",
        "others": " holds 0 pairs, its index says 8",
        "too few": " holds 1 pairs, its index says 8",
    }[kind]


KINDS = [
    "cut between files", "cut in a header", "flipped", "flipped later", "compressed", "empty", "one side",
    "both layouts", "others", "too few",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_bad_shards_are_named_in_one_line(tmp_path, kind):
    write_shards(pairs_in(tmp_path / "pairs"), tmp_path / "shards")
    path = tmp_path / "shards" / "train-000000.tar"
    before = entry(path, 8)
    said = bad(path, kind)
    with pytest.raises(InputError, match=rf"train-000000\.tar(: |)({said})") as error:
        ShardFile(path, entry(path, 8))
    assert "\n" not in str(error.value)
    if not kind.startswith("flipped"):
        size = path.stat().st_size
        with pytest.raises(InputError, match=rf"train-000000\.tar has {size} bytes, its index says {before.bytes}: it"):
            ShardCache().open(before)


def test_a_shard_that_is_cut_off_while_it_is_open_is_named(tmp_path):
    write_shards(pairs_in(tmp_path / "pairs"), tmp_path / "shards")
    path = tmp_path / "shards" / "train-000000.tar"
    file = ShardFile(path, entry(path, 8))
    path.write_bytes(path.read_bytes()[: file.pairs[-1][1].offset + 10])
    with pytest.raises(InputError, match=r"train-000000\.tar is cut off in .*\.a\.png"):
        file.read(file.pairs[-1][1])


def test_bad_pairs_are_named_and_skipped_as_in_folders(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for number in range(4):
            for side in "ab":
                file = io.BytesIO()
                Image.new("L" if (number, side) == (2, "b") else "RGB", (9, 8)).save(file, "png")
                add(tar, f"{number}.{side}.png", file.getvalue()[: 40 if (number, side) == (1, "a") else None])
    (tmp_path / "train-1.tar").write_bytes(b"no tar" * 1000)
    shards = [entry(tmp_path / f"train-{number}.tar", 4) for number in range(2)]
    data = ShardPairs(shards, ShardCache())
    with pytest.raises(InputError, match=r"cannot read .*train-0\.tar/1\.a\.png: truncated"):
        data[1]
    with pytest.raises(InputError, match=r"cannot read .*train-1\.tar: invalid header"):
        data[6]
    data = ShardPairs(shards, ShardCache(), wanted=Wanted(3, 3), on_error="skip")
    names = [data[index]["name"] for index in range(8)]
    assert names == ["0", "3", "3", "3", "0", "0", "0", "0"]
    one, two = data[1]["skipped"].split("\n")
    assert "1.a.png: truncated" in one
    assert "2.b.png has 1 channel, but side B needs 3" in two
    assert data[5]["skipped"] == f"cannot read {shards[1].url}: invalid header"
    with pytest.raises(InputError, match=r"none of the 4 pairs can be read; .*train-1\.tar: invalid header"):
        ShardPairs(shards[1:], ShardCache(), on_error="skip")[0]


ONE_SHARD = (
    '{{"kind": "genstab-shards-1", "splits": {{"train": {{"shards": [{{"name": "0.tar", "pairs": {}, "bytes": {}, '
    '"sha256": ""}}], "size": null, "least": {}, "channels": [3, 3]}}}}}}'
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ('{"kind": "wids"}', "its kind is 'wids', not 'genstab-shards-1'"),
        ('{"kind": "genstab-shards-1", "splits": []}', "'list' object has no attribute 'items'"),
        (
            '{"kind": "genstab-shards-1", "splits": {"train": {"shards": [{"name": "../x.tar"}]}}}',
            r"'\.\./x\.tar' is no",
        ),
        ('{"kind": "genstab-shards-1", "splits": {"train": {"shards": []}}}', "'least'"),
        (ONE_SHARD.format(-1, 9999, "[8, 8]"), "-1 is not a whole number of at least 1"),
        (ONE_SHARD.format("1e999", 9999, "[8, 8]"), "None is not a whole number"),
        (ONE_SHARD.format(10, 9999, "[8, 8]"), r"0\.tar cannot hold 10 pairs in 9999 bytes"),
        (ONE_SHARD.format(1, 9999, '[8, "8"]'), "'8' is not a whole number"),
        (ONE_SHARD.format(1, 9999, "[8]"), "not enough values"),
        ("[" * 100_000, "nested more than 64 deep"),
    ],
)
def test_another_index_is_refused(text, said):
    with pytest.raises(InputError, match=rf"^x/index\.json is not an index of shards: .*{said}") as error:
        parse_index(text.encode(), "x/index.json", str)
    assert "\n" not in str(error.value)


def test_where_shards_are():
    assert all(map(is_local, ("/a/b.tar", "a b.tar", "C:/a.tar")))
    assert not any(map(is_local, ("gs://a/b.tar", "http://host/a.tar", "pipe:cat a.tar")))
    assert basename("pipe:gsutil cat gs://b/val-01.tar | cat") == "val-01.tar"


def shard(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["genstab", "shard", *map(str, options)])
    cli.main()


def test_the_command(tmp_path, monkeypatch, capsys):
    pairs_in(tmp_path / "p: a, b")
    shard(monkeypatch, f"input={tmp_path / 'p: a, b'}", "output=s: [1]", "size=0.01")
    assert capsys.readouterr().out == "s: [1]: 8 pairs for train in 8 shards, 2 pairs for val in 2 shards\n"
    assert {path.name for path in Path().iterdir() if not path.name.startswith("p:")} == {"s: [1]"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["input=nowhere"], "input=nowhere does not exist"),
        (["input=."], r"input=\. has no pairs for split=train"),
        (["input=pairs", "output=pairs"], "output=pairs holds trainA/, trainB/, valA/, valB/: name a new folder"),
        (["input=pairs", "output=/dev/null"], "output=/dev/null is a file: name a new folder"),
        (["input=pairs", "output=/dev/null/x"], "output=/dev/null/x cannot be written: .*File exists: '/dev/null'"),
        (["input=pairs", "size=0"], "size=0 is not a positive number of megabytes"),
        (["input=pairs", "size=large"], "size='large' is not a number"),
        (["input=pairs", "seed=x"], "seed='x' is not an integer"),
        (["input=pairs", "check=off"], "check='off' is not one of fast, full"),
        (["input=pairs", "on_error=stop"], "on_error='stop' is not one of raise, skip"),
        (["input=pairs", "max_megapixels=1e-4"], r"cannot read pairs/trainA/1\.png: \d+ bytes exceed the limit of 800"),
        (["input=bad"], r"cannot read bad/trainA/1\.png: truncated"),
        (["input=grey"], r"grey/trainA/2\.png: A and B have \(3, 3\) channels, the pairs before have \(1, 1\)"),
        ([], "input is missing: add input=DIR"),
    ],
)
def test_what_the_command_cannot_do_is_one_line_and_leaves_nothing(monkeypatch, options, said):
    for name in ("pairs", "bad", "grey"):
        pairs_in(Path(name), ["1", "2"], ["3"])
    content = Path("bad/trainA/1.png").read_bytes()
    Path("bad/trainA/1.png").write_bytes(content[:-20])
    for side in "AB":
        Image.new("L", (26, 26)).save(f"grey/train{side}/1.png")
    if not any(option.startswith("output") for option in options):
        options = [*options, "output=out"]
    if not any(option.startswith("seed") for option in options):
        options = [*options, "seed=null"]
    with pytest.raises(SystemExit, match=f"^genstab: .*{said}") as error:
        shard(monkeypatch, *options)
    assert "\n" not in str(error.value)
    assert {path.name for path in Path().iterdir()} == {"pairs", "bad", "grey"}


def test_without_a_validation_split_shards_hold_out_what_training_does(tmp_path, capsys, monkeypatch):
    root = pairs_in(tmp_path / "pairs", val=())
    for side in "AB":
        (root / f"train{side}" / "ulm").mkdir()
        (root / f"train{side}" / "1.png").rename(root / f"train{side}" / "ulm" / "1.png")
    shard(monkeypatch, f"input={root}", "output=out", "val_share=0.25")
    held = "2 of the 8 training pairs are held out for it (val_share=0.25, val_seed=0)"
    assert capsys.readouterr().out.startswith(f"{root} has no folder for validation: {held}\n")
    data = PairedData(str(root), val_share=0.25, crop_size=24, load_size=28)
    data.setup("fit")
    names = [item["name"] for item in ShardPairs(splits(Path("out"))["val"].shards, ShardCache())]
    assert names == [item["name"] for item in data.val_set]
    names += [item["name"] for item in ShardPairs(splits(Path("out"))["train"].shards, ShardCache())]
    assert sorted(names) == sorted(["ulm/1", *NAMES[1:]])
    assert write_shards(root, tmp_path / "alone", val_share=0).pairs == {"train": 8}


def test_bad_pairs_are_left_out_and_named(tmp_path, monkeypatch, capsys):
    root = pairs_in(tmp_path / "pairs")
    (root / "trainA" / "10.png").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(root / "trainB" / "7.PNG")  # is resized when it is read
    (root / "trainA" / "-.png").rename(root / "trainA" / "-.heic")
    with pytest.raises(SystemExit, match=r"^genstab: 2 pairs were left out$"):
        shard(monkeypatch, f"input={root}", "output=out", "on_error=skip")
    printed = capsys.readouterr()
    assert printed.out == "out: 6 pairs for train in 1 shard, 2 pairs for val in 1 shard; 2 left out\n"
    assert sorted(line.split()[2:5] for line in printed.err.splitlines()) == [
        ["cannot", "read", f"{root}/trainA/-.heic:"],
        ["cannot", "read", f"{root}/trainA/10.png:"],
    ]
    assert not index(Path("out"))["train"]["same_size"]
    assert sum(each["pairs"] for each in index(Path("out"))["train"]["shards"]) == 6


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    for needs_it in (lambda: ShardData("http://host/shards").splits, lambda: write_shards(tmp_path, tmp_path / "out")):
        with pytest.raises(InputError, match=r"^shards need the package webdataset: pip install 'genstab\[shards\]'$"):
            needs_it()
