"""Training on shards: the order, workers and processes, going on, fetching into a bounded folder, faults."""

import json
import os
import re
import shutil
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from pytorch_lightning import Trainer

from genstab import InputError
from genstab.cli import main as cli
from genstab.data.shards import cache as shard_files
from genstab.data.shards.cache import OWN, ShardCache
from genstab.data.shards.datamodule import ShardData
from genstab.data.shards.format import INDEX, Shard
from genstab.data.shards.sampler import ShardSampler, mixed
from genstab.data.shards.write import write_shards
from genstab.training.callbacks.finite_guard import FiniteGuard, NotFiniteError
from tests.cli.test_config import composed
from tests.conftest import tiny_pix2pix
from tests.helpers.commands import ROOT, program
from tests.helpers.killed import TINY, run
from tests.helpers.random_pairs import pairs_in
from tests.runtime.test_resume import compared
from tests.training.test_pix2pix import QUIET

pytestmark = pytest.mark.slow
pytest.importorskip("webdataset", reason="needs the extra: pip install 'genstab[shards]'")
TRAIN, VAL = [str(number) for number in range(15)], ["0", "1", "2"]
BASE = [option for option in TINY if not re.match(r"data\.(train|val)_images|data\.size", option)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """15 pairs in eight shards, three for validation in two."""
    root = tmp_path_factory.mktemp("shards")
    write_shards(pairs_in(root / "pairs", TRAIN, VAL), root / "shards", size=0.0125)
    assert len(list((root / "shards").glob("train-*.tar"))) == 8
    return root / "shards"


def on(root, **options):
    """Return the data on some shards, ready."""
    defaults = {"crop_size": 24, "load_size": 28, "batch_size": 2, "num_workers": 0, "window": 3}
    data = ShardData(root if isinstance(root, list) else str(root), **{**defaults, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def batches(data, epoch=0):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def same(found, expected):
    return len(found) == len(expected) and all(
        batch["name"] == other["name"] and all(torch.equal(batch[key], other[key]) for key in ("source", "target"))
        for batch, other in zip(found, expected, strict=True)
    )


# ------------------------------------------------------------------ the order


@pytest.mark.parametrize(("lengths", "window"), [([5] * 40, 8), ([1, 9, 4, 4, 1, 30, 2], 2), ([3] * 9, 1), ([4, 2], 8)])
def test_an_epoch_needs_as_many_shards_at_a_time_as_its_window(lengths, window):
    orders = []
    for seed in range(4):
        order = mixed(lengths, window, torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(sum(lengths)))
        of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[order].tolist()
        begun = {shard: of.index(shard) for shard in set(of)}
        ended = {shard: len(of) - of[::-1].index(shard) for shard in set(of)}
        at_hand = [sum(begun[shard] <= step < ended[shard] for shard in begun) for step in range(len(of))]
        assert max(at_hand) <= max(window, 1)
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) > 1


def test_pairs_of_a_shard_are_far_apart():
    lengths = [50] * 40
    order = mixed(lengths, 10, torch.Generator().manual_seed(0))
    of = (order // 50).tolist()
    mixed_with = [len(set(of[start : start + 50])) for start in range(500, 1500, 50)]
    assert min(mixed_with) > 7  # of ten; a pass through one shard after the other would have one


def test_the_next_shard_is_asked_for_at_the_first_position_in_a_shard():
    asked, met = [], []
    order = ShardSampler([4] * 12, 3, 2, processes=2, rank=1, seed=5, fetch_ahead=asked.append)
    order.set_epoch(2)
    positions = []
    for position in order:
        positions.append(position)
        if position // 4 not in met:
            met.append(position // 4)
        assert asked[: len(met)] == asked  # one for each shard met, never earlier
    assert asked == met[1:]
    assert positions == mixed([4] * 12, 3, torch.Generator().manual_seed(7))[1::2].tolist()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_step_of_one_and_go_on_where_they_stood(shards, processes):
    data = on(shards, batch_size=2 * processes)
    one = [set(batch["name"]) for batch in batches(data, 3)]
    data = on(shards)
    parts = []
    for rank in range(processes):
        data.trainer = type("Some", (), {"world_size": processes, "global_rank": rank, "training": False})
        whole = batches(data, 3)
        parts.append(whole)
        for seen in range(len(whole)):
            loader = data.train_dataloader()
            loader.load_state_dict({**loader.state_dict(), "batch": seen})
            loader.sampler.set_epoch(3)
            assert same(list(loader), whole[seen:])
    assert len({len(part) for part in parts}) == 1  # nobody waits for the others
    assert [set().union(*(batch["name"] for batch in step)) for step in zip(*parts, strict=True)] == one


def test_neither_workers_nor_the_way_to_the_shards_change_a_batch(shards, server, tmp_path):
    expected = [batches(on(shards), epoch) for epoch in (0, 1)]
    names = [[name for batch in epoch for name in batch["name"]] for epoch in expected]
    assert sorted(names[0]) == sorted(names[1]) == sorted(TRAIN)
    assert names[0] != names[1]
    data = on(server.url, cache=str(tmp_path / "cache"), num_workers=2)
    loader = data.train_dataloader()
    for epoch in (0, 1):  # with workers that stay
        loader.sampler.set_epoch(epoch)
        assert same(list(loader), expected[epoch])
    command = f"pipe:cat {shards}/%s"
    assert same(batches(on(command, cache=str(tmp_path / "other"), num_workers=1), 1), expected[1])
    assert [batch["name"] for batch in on(server.url, cache=str(tmp_path / "cache")).val_dataloader()] == [VAL]


# ------------------------------------------------------------------ whole training runs


def test_a_training_that_was_killed_goes_on_bit_for_bit(tmp_path, shards):
    own = ["data=shards", f"data.root={shards}", "data.window=3", "data.load_size=28"]
    assert compared(tmp_path, *own, base=BASE) == []
    with pytest.raises(InputError, match=r"does not fit this training run: data\.window 3 → 4$"):
        run(tmp_path / "one", *own, "data.window=4", base=BASE)


def test_it_does_not_go_on_with_other_shards_or_the_files_themselves(tmp_path, shards):
    pairs = shards.parent / "pairs"
    write_shards(pairs, tmp_path / "larger")
    own = ["data.load_size=28", "trainer.max_steps=11", "trainer.max_epochs=-1"]
    options = ["data=shards", f"data.root={shards}", *own]
    base = [option for option in BASE if not option.startswith("trainer.max_epochs")]
    run(tmp_path / "run", *options, base=base)
    others = {f"data.root={tmp_path / 'larger'}": r"1 shards \w{8}, window 8", f"data.root={pairs}": "files"}
    for root, kind in others.items():
        data = "data=paired" if kind == "files" else "data=shards"
        said = rf"the order of the training data differs from the checkpoint's: 8 shards \w{{8}}, window 8 → {kind}$"
        with pytest.raises(InputError, match=said):
            run(tmp_path / "run", data, root, "data.load_size=28", "trainer.max_epochs=3", base=base)
    run(tmp_path / "run", *options[:3], "trainer.max_epochs=3", base=base)


@pytest.mark.ddp
def test_two_processes_with_uneven_shares_train_and_measure_what_one_does(tmp_path, shards, server):
    """Over HTTP, with one folder for what they fetch."""
    options = ["data=shards", f"data.root={server.url}", f"data.cache={tmp_path}/cache", "data.load_size=28"]
    options += ["data.num_workers=1", "data.window=2"]
    base = [option for option in BASE if not option.startswith(("trainer=", "data.num_workers", "ckpt_path"))]
    program(ROOT / "train.py", *base, *options, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["processes"], summary["steps"]) == (2, 12)  # three epochs of 15 pairs, four at a time
    assert set(server.asked.values()) == {1, 2}  # each shard once; the index by both
    config = composed(tmp_path / "one", *base, *options)
    model = instantiate(config.model)
    model.load_state_dict(torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    trainer = Trainer(callbacks=[instantiate(config.callbacks.stability)], **QUIET)
    trainer.validate(model, datamodule=instantiate(config.data), verbose=False)
    for key, value in trainer.callback_metrics.items():
        assert summary[key] == pytest.approx(value.item(), rel=1e-6), key


def test_a_model_is_measured_on_them(tmp_path, shards, monkeypatch):
    words = [
        "measure", "model._target_=genstab.UNet", "model.channels=2", "model.levels=3", "data=shards",
        f"data.root={shards}", "data.load_size=null", "data.crop_size=24", "shifts=[[0,1]]", "margin=2", "map=null",
        "features=null", "corruptions=null", "logger=csv", "hydra.run.dir=out", "hydra/job_logging=none",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["genstab", *words])
    cli.main()
    assert json.loads(Path("out/summary.json").read_text())["images"] == 3


# ------------------------------------------------------------------ fetched


class Server(ThreadingHTTPServer):
    """Serves a folder; counts, and can fail."""

    daemon_threads = True
    fault = None

    def __init__(self, folder):
        self.asked, self.folder = {}, folder
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.over = threading.Event()


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked[name] = self.server.asked.get(name, 0) + 1
        fault = self.server.fault if name.endswith(".tar") else None
        if fault is None:
            return super().do_GET()
        content = Path(self.server.folder, name).read_bytes()
        if fault == "refuses":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "stalls":
            self.wfile.write(content[:1000])
            self.wfile.flush()
            self.server.over.wait(20)
        elif fault == "cuts":
            self.wfile.write(content[:1000])
        elif fault == "flips":
            self.wfile.write(content[:-1] + b"x")
        elif fault == "cuts once":
            self.server.fault = None
            self.wfile.write(content[:1000])
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(shards):
    """A server of the shards."""
    with Server(shards) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield served
        served.over.set()
        served.shutdown()


@pytest.fixture
def _hasty(monkeypatch):
    monkeypatch.setattr(shard_files, "TIMEOUT", 0.5)
    monkeypatch.setattr("genstab.data.shards.cache.time.sleep", lambda seconds: None)


def test_what_is_fetched_takes_no_more_than_it_may_and_only_what_is_needed_is_fetched(shards, server, tmp_path):
    largest = max(path.stat().st_size for path in shards.glob("*.tar"))
    cache = tmp_path / "cache"
    data = on(server.url, cache=str(cache), cache_gb=4.5e-9 * largest, window=2)
    expected, found, most = on(shards, window=2), [], 0
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        found.append([])
        for batch in loader:
            found[-1].append(batch)
            if data.ahead:  # or how often a shard is fetched would depend on which thread is faster
                data.ahead.join()
            most = max(most, sum(path.stat().st_size for path in cache.glob(f"{OWN}/*.tar")))
        assert same(found[-1], batches(expected, epoch))
    assert 3 * largest < most <= 4.5 * largest
    asked = {name: count for name, count in server.asked.items() if name.startswith("train")}
    assert len(asked) == 8
    assert max(asked.values()) <= 3  # once an epoch at most


def test_the_next_shard_is_fetched_while_one_is_read(server, tmp_path):
    data = on(server.url, cache=str(tmp_path), window=1)
    iterator = iter(data.train_dataloader())
    next(iterator)
    until = time.monotonic() + 10
    while len([name for name in server.asked if name.startswith("train")]) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert len([name for name in server.asked if name.startswith("train")]) >= 2
    data.ahead.join()


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize(
    ("fault", "on_error", "said"),
    [
        ("refuses", "raise", "the server has no such file or denies access; tried 4 times"),
        ("cuts", "skip", r"the connection was lost; tried 4 times"),
        ("flips", "raise", r"its SHA-256 is \w{64}, the index says \w{64}; tried 4 times"),
        ("stalls", "raise", "no data for 0 s; tried 4 times"),
    ],
)
def test_what_cannot_be_fetched_ends_it_with_one_line(server, tmp_path, fault, said, on_error):
    data = on(server.url, cache=str(tmp_path / "cache"), on_error=on_error)
    server.fault = fault
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^cannot fetch {server.url}/train-\d+\.tar: {said}$"):
        batches(data)
    assert time.monotonic() - began < 10
    if data.ahead:
        data.ahead.join()
    assert not [path for path in (tmp_path / "cache" / OWN).iterdir() if path.suffix in (".tar", ".part")]


@pytest.mark.usefixtures("_hasty")
def test_a_connection_that_breaks_is_tried_again(shards, server, tmp_path):
    data = on(server.url, cache=str(tmp_path))
    server.fault = "cuts once"
    assert same(batches(data), batches(on(shards)))


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("http://127.0.0.1:1/x", r"^cannot fetch http://127\.0\.0\.1:1/x/index\.json: the connection was refused$"),
        ("pipe:exit 3 %s", r"^cannot fetch pipe:exit 3 index\.json: its command failed with exit code 3$"),
        ("s3://bucket/x", r"^cannot fetch s3://bucket/x/index\.json: .*no gopen handler defined$"),
        ("ais://bucket/x", r"^cannot fetch ais://bucket/x/index\.json: the program 'ais' is not installed$"),
        ("nowhere", r"^cannot read nowhere/index\.json: No such file or directory$"),
    ],
)
def test_where_there_are_none(root, said):
    with pytest.raises(InputError, match=said):
        on(root)


def test_what_does_not_fit_is_refused_before_anything_is_fetched(shards, server, tmp_path):
    options = {"cache": str(tmp_path / "cache")}
    cases = [
        (
            {"cache_gb": 1e-5},
            r"data\.cache_gb=1e-05 is too small for train: two windows of 3 shards take 0\.00012 GB; ",
        ),
        (
            {"source_channels": 1},
            r"^the smallest pair for train has 3 channels, but side A needs 1: set data\.source_channels=3",
        ),
        (
            {"load_size": None, "crop_size": 30},
            r"^the smallest pair for train is 26×26, smaller than the crop of 30×30",
        ),
        ({"window": 0}, "window=0 is not an integer of at least 1"),
        ({"cache_gb": 0}, "cache_gb=0 is not a positive number"),
    ]
    for own, said in cases:
        with pytest.raises(InputError, match=said):
            on(server.url, **options, **own)
    assert set(server.asked) == {INDEX}
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(InputError, match=rf"^data\.cache={blocked} cannot keep \S+: Not a directory$"):
        batches(on(server.url, cache=str(blocked)))


# ------------------------------------------------------------------ faults of shards that are here


def spoiled(shards, folder):
    """Copy the shards; cut one off, lose another."""
    shutil.copytree(shards, folder)
    (folder / "train-000001.tar").write_bytes((folder / "train-000001.tar").read_bytes()[:3000])
    (folder / "train-000004.tar").unlink()
    return folder


@pytest.mark.parametrize("check", ["fast", "full"])
def test_a_bad_shard_is_named_before_training_or_skipped(shards, tmp_path, check):
    folder = spoiled(shards, tmp_path / "bad")
    with pytest.raises(InputError, match=r"train-000001\.tar has 3000 bytes, its index says \d+: it is cut off, or an"):
        on(folder, check=check)
    with pytest.warns(UserWarning, match=r"leaves out a pair: .*train-00000[14]\.tar"):
        data = on(folder, check=check, on_error="skip")
    assert len(data.skipped) == 2
    assert f"{folder}/train-000004.tar is missing" in data.skipped
    assert len(data.train_set) == 15  # and order: others take their places
    names = [name for batch in batches(data) for name in batch["name"]]
    assert len(names) == 15
    assert set(names) < set(TRAIN)


def test_with_check_off_it_is_named_when_met(shards, tmp_path):
    data = on(spoiled(shards, tmp_path / "bad"), check="off")
    with pytest.raises(InputError, match=r"train-00000(1\.tar has 3000 bytes|4\.tar is missing)"):
        batches(data)


def test_what_is_left_out_is_in_the_summary(tmp_path, shards):
    folder = spoiled(shards, tmp_path / "bad")
    own = ["data=shards", f"data.root={folder}", "data.load_size=28", "data.on_error=skip", "trainer.max_epochs=1"]
    with pytest.warns(UserWarning, match=r"data\.on_error=skip leaves out a pair"):
        run(tmp_path / "run", *own, base=[option for option in BASE if option not in ("trainer.max_epochs=3",)])
    skipped = json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"]
    assert [re.search(r"train-00000\d", line)[0] for line in skipped] == ["train-000001", "train-000004"]


def test_check_full_decodes_every_image_wherever_it_is(tmp_path, shards, server):
    on(server.url, cache=str(tmp_path / "cache"), check="full")
    assert len([name for name in server.asked if name.endswith(".tar")]) == 10
    root = pairs_in(tmp_path / "pairs", TRAIN[:3], VAL)
    content = (root / "trainA" / "2.png").read_bytes()
    (root / "trainA" / "2.png").write_bytes(content[:60] + b"\0" * 9 + content[69:])  # the header is whole
    write_shards(root, tmp_path / "shards", check="fast")
    with pytest.raises(InputError, match=r"cannot read .*train-000000\.tar/2\.a\.png: "):
        on(tmp_path / "shards", check="full")
    assert len(on(tmp_path / "shards", check="fast").train_set) == 3


def test_pairs_of_several_sizes_and_channels(tmp_path):
    root = pairs_in(tmp_path / "pairs", TRAIN[:3], VAL)
    for side in "AB":
        Image.new("RGB", (40, 30)).save(root / f"train{side}" / "1.png")
    write_shards(root, tmp_path / "shards")
    assert {tuple(batch["source"].shape[2:]) for batch in batches(on(tmp_path / "shards"))} == {(28, 28)}
    native = on(tmp_path / "shards", load_size=None, batch_size=3)
    ((batch,), native.trainer) = (batches(native), SimpleNamespace(training=True))
    assert sorted(tuple(image.shape) for image in batch["source"]) == [(3, 26, 26), (3, 26, 26), (3, 30, 40)]
    assert native.on_after_batch_transfer(batch, 0)["source"].shape == (3, 3, 24, 24)
    Image.new("L", (80, 60)).save(root / "trainA" / "1.png")
    write_shards(root, tmp_path / "more", convert=True)
    with pytest.raises(InputError, match=r"images for train have several numbers of channels: set data.convert=true"):
        on(tmp_path / "more")
    with pytest.raises(InputError, match=r"pairs for train have an A and a B of two sizes: set data.load_size"):
        on(tmp_path / "more", convert=True, load_size=None)
    assert {tuple(batch["source"].shape[1:]) for batch in batches(on(tmp_path / "more", convert=True))} == {(3, 28, 28)}
    with pytest.raises(InputError, match=r"data.val_share holds out no pairs of shards: genstab shard val_share="):
        on(tmp_path / "more", val_share=0.2)


def test_names_reach_the_guard(shards):
    """A training run whose loss is NaN names the pairs."""
    data = on(shards, load_size=None)
    model = tiny_pix2pix()
    model.generator = torch.nn.Conv2d(3, 3, 1)
    model.discriminator = torch.nn.Conv2d(6, 1, 1)
    model.discriminator.forward = lambda source, image: torch.nn.Conv2d.forward(
        model.discriminator, torch.cat((source, image), 1)
    )
    torch.nn.init.constant_(model.generator.weight, torch.nan)
    options = {**QUIET, "callbacks": [FiniteGuard()], "max_steps": 1, "log_every_n_steps": 1}
    with pytest.raises(NotFiniteError) as error:
        Trainer(**options).fit(model, train_dataloaders=data.train_dataloader())
    names = next(iter(on(shards, load_size=None).train_dataloader()))["name"]
    assert f"at step 0 ({', '.join(names)})" in str(error.value)


def test_only_shards_of_the_cache_make_room_and_they_stay_readable_to_whoever_has_them_open(shards, server, tmp_path):
    folder = tmp_path / "cache"
    (folder / OWN).mkdir(parents=True)
    others = [folder / "mine.tar", folder / "mine.part", folder / OWN / "mine.tar", folder / OWN / "mine.part"]
    for path in others:  # large ones, and the least recently used
        path.write_bytes(bytes(10**6))
        os.utime(path, (0, 0))
    content = json.loads((shards / INDEX).read_text())["splits"]["train"]["shards"]
    found = [
        Shard(f"{server.url}/{each['name']}", each["pairs"], each["bytes"], each["sha256"]) for each in content[:2]
    ]
    cache = ShardCache(folder, max_bytes=found[0].bytes + 10)
    file = cache.open(found[0])
    before = file.read(file.pairs[0][1])
    cache.open(found[1])
    assert [path.name[-16:] for path in folder.glob(f"{OWN}/*-*.tar")] == ["train-000001.tar"]
    assert all(path.stat().st_size == 10**6 for path in others)
    assert file.read(file.pairs[0][1]) == before
