"""What a result says of its origin: versions, machine, commits; whatever the state of git."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from genstab.runtime import provenance
from genstab.runtime.provenance import git_state, git_states
from tests.helpers.killed import TINY, run
from tests.helpers.wandb_file import finish, read_config, run_file


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit of one file."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "a.py").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=one")
    return folder


def test_commit_and_whether_files_differ(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "outputs").mkdir()
    (checkout / "outputs" / "new.txt").write_text("what a run leaves is no change\n")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "a.py").write_text("2\n")
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    git(checkout, "add", "a.py")
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    git(checkout, "commit", "--quiet", "--message=two")
    assert git_state(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (checkout / "a.py").unlink()
    assert git_state(checkout)["dirty"]


def test_a_detached_shallow_clone_and_one_without_a_commit(checkout, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{checkout}", "shallow")
    git(tmp_path / "shallow", "checkout", "--quiet", "--detach")
    assert git_state(tmp_path / "shallow") == {"commit": commit, "dirty": False}
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "tree"))
    assert git_state(tmp_path / "tree") == {"commit": commit, "dirty": False}
    (tmp_path / "new").mkdir()
    git(tmp_path / "new", "init", "--quiet")
    assert git_state(tmp_path / "new") == {"commit": None, "dirty": False}


def test_nothing_is_written_into_the_repository(checkout):
    time.sleep(0.01)
    os.utime(checkout / "a.py")  # the index would be brought up to date
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in checkout.rglob("*")}
    assert git_state(checkout)["dirty"] is False
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in checkout.rglob("*")} == before


def test_its_configuration_starts_no_program(checkout, tmp_path):
    (tmp_path / "watch").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "watch").chmod(0o755)
    git(checkout, "config", "core.fsmonitor", str(tmp_path / "watch"))
    subprocess.run(["git", "status"], cwd=checkout, capture_output=True, check=True)
    assert (tmp_path / "started").exists()
    (tmp_path / "started").unlink()
    assert git_state(checkout)["dirty"] is False
    assert not (tmp_path / "started").exists()


def test_the_variables_of_another_git_do_not_count(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert git_state(checkout)["dirty"] is False


def test_a_damaged_repository(checkout):
    (checkout / ".git" / "HEAD").write_text("rubbish")
    assert git_state(checkout) is None


def test_without_git(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout) is None


def test_a_git_that_does_not_answer_is_not_waited_for(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "GIT_TIMEOUT", 0.5)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    began = time.monotonic()
    assert git_state(checkout) is None
    assert time.monotonic() - began < 10


def test_which_repositories_are_named(checkout, tmp_path, monkeypatch):
    state = {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    monkeypatch.setattr(provenance, "CHECKOUT", checkout)
    assert git_states() == {"genstab": state, "working_folder": None}
    (checkout / ".venv").mkdir()
    monkeypatch.chdir(checkout / ".venv")
    monkeypatch.setattr(provenance, "CHECKOUT", checkout / ".venv")  # a wheel, in a virtual environment of a project
    assert git_states() == {"genstab": None, "working_folder": state}


def test_a_working_folder_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert git_states()["working_folder"] is None


def test_a_training_says_where_it_comes_from(checkout, monkeypatch, tmp_path):
    monkeypatch.chdir(checkout)
    base = [option for option in TINY if option not in ("logger=csv", "ckpt_path=last")]
    run(tmp_path / "run", "logger.mode=offline", "trainer.max_epochs=1", base=base)
    finish()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["git"]["working_folder"] == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    assert summary["machine"]["threads"] == torch.get_num_threads()
    assert summary["machine"]["cuda"] == torch.version.cuda
    assert len(summary["machine"]["devices"]) == 1
    assert summary["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    config = read_config(run_file(tmp_path / "run"))
    for key in ("versions", "machine", "git"):
        assert config[key] == summary[key]
    assert config["seed"] == 3
