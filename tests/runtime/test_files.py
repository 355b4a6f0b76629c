"""Files that a run leaves: whole or absent, in JSON that everything can read."""

import errno
import json
import math
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Trainer

from genstab import InputError
from genstab.runtime import files as whole_files
from genstab.runtime.files import WholeCheckpoints, check_folder, read_json, write_json, write_whole
from genstab.runtime.last_checkpoint import LastCheckpoint
from tests.conftest import pairs_loader, tiny_pix2pix
from tests.training.test_pix2pix import QUIET


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        if moment == "write":
            raise OSError(errno.ENOSPC, "No space left on device")

    def crash(*args):
        raise OSError(errno.EIO, "Input/output error")

    if moment != "write":
        monkeypatch.setattr(whole_files.os, moment, crash)
    with pytest.raises(OSError, match=r"No space|Input/output"):
        write_whole(path, write)
    assert [found.name for found in tmp_path.iterdir()] == ["a.ckpt"]
    assert path.read_bytes() == b"old"


def test_what_a_killed_writer_left_is_removed_and_what_one_at_work_writes_is_not(tmp_path):
    path = tmp_path / "a.ckpt"
    child = os.fork()
    if child == 0:
        write_whole(path, lambda file: (file.write(b"x" * 10**6), file.flush(), os.kill(os.getpid(), 9)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    (left,) = tmp_path.iterdir()
    assert whole_files._PART.fullmatch(left.name)
    (tmp_path / "mine.part").touch()  # not one of these

    def write(file):
        child = os.fork()
        if child == 0:
            check_folder(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
        file.write(b"new")

    write_whole(path, write)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.ckpt", "mine.part"]
    assert path.read_bytes() == b"new"


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch):
    """Neither through one at the file's name, nor one that somebody put where the unfinished file will be."""
    for name in ("precious", "other"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "a.json").symlink_to(tmp_path / "precious")
    (tmp_path / ".0000000000000000.part").symlink_to(tmp_path / "other")
    monkeypatch.setattr(whole_files.secrets, "token_hex", lambda count: "00" * count)
    with pytest.raises(FileExistsError):
        write_json(tmp_path / "a.json", {})
    assert (tmp_path / ".0000000000000000.part").is_symlink()
    monkeypatch.undo()
    write_json(tmp_path / "a.json", {})
    assert not (tmp_path / "a.json").is_symlink()
    assert [(tmp_path / name).read_bytes() for name in ("precious", "other")] == [b"old", b"old"]


def full_disk(monkeypatch, *, after):
    """Let saving fail from the given time on."""
    save, calls = torch.save, []

    def saved(*args):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args)

    monkeypatch.setattr(whole_files.torch, "save", saved)


def test_a_full_disk_is_one_warning_and_the_old_checkpoint_is_kept(tmp_path, monkeypatch):
    keeper = WholeCheckpoints()
    path = tmp_path / "checkpoints" / "last.ckpt"
    full_disk(monkeypatch, after=1)
    keeper.save_checkpoint({"step": 1}, path)
    assert not keeper.unwritten.files
    with pytest.warns(UserWarning, match=r"last\.ckpt could not be written .*No space left.*an earlier one is kept"):
        keeper.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    monkeypatch.undo()
    keeper.save_checkpoint({"step": 3}, path)
    assert not keeper.unwritten.files
    assert torch.load(path, weights_only=True) == {"step": 3}


@pytest.mark.parametrize("world", [True, False])
def test_what_torch_makes_of_a_full_disk_is_told_from_a_defect(tmp_path, monkeypatch, world):
    def save(*args):
        try:
            raise OSError(errno.ENOSPC, "No space left on device") if world else TypeError("a defect")
        except Exception:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(whole_files.torch, "save", save)
    keeper = WholeCheckpoints()
    with pytest.warns(UserWarning, match="No space left") if world else pytest.raises(RuntimeError, match="pos 704"):
        keeper.save_checkpoint({}, tmp_path / "a.ckpt")
    assert list(keeper.unwritten.files.values()) == ["No space left on device"] * world


@pytest.mark.filterwarnings("ignore:checkpoint .* could not be written:UserWarning")
def test_a_training_goes_on_but_says_in_the_end_that_its_weights_are_not_saved(tmp_path, monkeypatch):
    full_disk(monkeypatch, after=1)
    options = {key: value for key, value in QUIET.items() if key != "enable_checkpointing"}
    trainer = Trainer(max_epochs=3, callbacks=[LastCheckpoint(tmp_path)], **options)
    with pytest.raises(
        InputError,
        match=r"final weights could not be saved: .*last\.ckpt: No space left on .*; the earlier",
    ):
        trainer.fit(tiny_pix2pix(), pairs_loader(2, 2))
    assert trainer.global_step == 3
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


NUMBERS = st.none() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    NUMBERS | st.booleans() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_whatever_is_written_reads_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, content)
    assert read_json(path) == content
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"map": [[1.5, math.nan], [-math.inf, 2]], "name": "["})
    assert json.loads((tmp_path / "a.json").read_text()) == {"map": [[1.5, None], [None, 2]], "name": "["}


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_json_that_is_none_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=r"cannot read .*a\.json"):
        read_json(tmp_path / "a.json")
