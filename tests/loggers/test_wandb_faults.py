"""A W&B that is unreachable, slow, refuses the key or fails half-way: the training goes on, and the rest is for later.

Each run is real; the server is one of our own, see `tests.helpers.wandb_server`.
"""

import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import wandb

from genstab.loggers.lifecycle import close, how_to_view, outlive
from genstab.loggers.wandb import wandb_logger
from genstab.loggers.wandb_tables import log_tables
from genstab.runtime.last_checkpoint import continue_logs
from tests.helpers.commands import ROOT, finish, start
from tests.helpers.killed import TINY
from tests.helpers.wandb_file import read_history
from tests.helpers.wandb_server import Server
from tests.helpers.world import kill_wandb

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nobody")]
SLACK = 12  # seconds, for a busy machine


@pytest.fixture
def server(monkeypatch):
    """A server that is well, of a user who is logged in there."""
    server = Server()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    if not server.closing.is_set():
        server.close()


def logged(logger, *steps):
    for step in steps:
        logger.log_metrics({"val/psnr": float(step)}, step=step)


def quietly(work):
    """Return what `work` returns, its warnings, and its seconds."""
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    return result, [str(each.message) for each in caught], time.monotonic() - began


def values(folder):
    wandb.teardown()  # waits for the whole file, which `finish` does not on a busy machine
    (file,) = Path(folder).glob("*.wandb")
    return [row["val/psnr"] for row in read_history(file) if "val/psnr" in row]


def upload_to(server, command, monkeypatch):
    """Call what the user is told to, when the server is well again: what it had of the run it still has."""
    later = Server()
    later.rows = server.rows
    monkeypatch.setenv("WANDB_BASE_URL", later.url)
    words = shlex.split(command)
    assert words[:2] == ["wandb", "sync"]
    program = [str(Path(sys.executable).with_name("wandb")), *words[1:]]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    later.close()
    assert done.returncode == 0, done.stdout + done.stderr


def came(server, run):
    """Return the numbers that came to the server, in the order of the rows there."""
    return [row["val/psnr"] for _, row in sorted(server.rows.get(run, {}).items()) if "val/psnr" in row]


@pytest.mark.parametrize("fault", ["silent", 401, "closed"])
def test_a_server_that_fails_at_the_start_makes_the_run_offline(tmp_path, server, fault):
    if fault == "closed":
        server.close()
    server.mode = fault
    logger = wandb_logger(tmp_path, mode="online", init_timeout=1)
    run, said, seconds = quietly(lambda: logger.experiment)
    assert run.offline
    (line,) = said
    folder = Path(run.dir).parent
    assert line.startswith(f"W&B cannot log online: {server.url}: ")
    assert line.endswith(f"This run is logged offline; upload it later with `wandb sync {folder}`")
    assert seconds < 1 + SLACK
    logged(logger, 1, 2)
    close(logger)
    assert values(folder) == [1, 2]


@pytest.mark.parametrize("fault", ["silent", 401])
def test_a_server_that_fails_half_way_holds_up_only_the_end_and_that_not_for_ever(tmp_path, server, monkeypatch, fault):
    logger = wandb_logger(tmp_path, mode="online", finish_timeout=1)
    outlive(logger)
    logged(logger, 1, 2)
    assert not logger.experiment.offline
    server.mode = fault
    _, said, seconds = quietly(lambda: logged(logger, *range(3, 30)))
    assert (said, logger.unwritten.files) == ([], {})
    assert seconds < SLACK
    view = how_to_view(logger)
    _, said, seconds = quietly(lambda: close(logger))
    assert seconds < 1 + SLACK
    url, command = view.partition("  #")[0].splitlines()
    assert url == logger.experiment.url
    folder = Path(logger.experiment.dir).parent
    assert command == f"wandb sync --include-online {folder}"
    if fault != 401:  # of which wandb itself says that some data will not be synced
        (line,) = said
        problem = "its upload did not end within 1 s"
        assert line == f"the W&B run did not end cleanly: {problem}; upload what it has with `{command}`"
    assert values(folder) == list(range(1, 30))
    upload_to(server, command, monkeypatch)
    assert came(server, logger.version) == list(range(1, 30))


def test_a_server_that_takes_no_tables_costs_one_warning(tmp_path, server):
    logger = wandb_logger(tmp_path, mode="online", finish_timeout=1)
    outlive(logger)
    logged(logger, 1)
    server.mode = 401
    circular = {"shifts": [[0, 1]], "images": ["a"], "decibels": [[20.0]]}
    _, said, _ = quietly(lambda: log_tables(logger, {"shift_psnr": {"circular": circular}}, step=1))
    (line,) = said
    assert "could not be written" in line
    assert "credentials" in line
    logged(logger, 2)
    quietly(lambda: close(logger))
    assert values(Path(logger.experiment.dir).parent) == [1, 2]


def test_a_service_that_is_killed_costs_one_warning_and_the_next_run_is_well(tmp_path):
    logger = wandb_logger(tmp_path / "killed", mode="offline")
    outlive(logger)
    logged(logger, 1)
    kill_wandb(tmp_path)
    _, said, seconds = quietly(lambda: logged(logger, *range(2, 9)))
    assert seconds < SLACK
    folder = str(Path(logger.experiment.dir).parent)
    (line,) = said
    assert line.startswith(f"log {folder} could not be written (")
    assert list(logger.unwritten.files) == [folder]
    _, said, _ = quietly(lambda: close(logger))
    (line,) = said
    assert line.startswith("the W&B run did not end cleanly: ")
    assert line.endswith(f"upload what it has with `wandb sync {folder}`")
    after = wandb_logger(tmp_path / "next", mode="offline")
    assert quietly(lambda: logged(after, 1, 2))[1] == []
    close(after)
    assert values(Path(after.experiment.dir).parent) == [1, 2]


def test_a_service_that_cannot_start_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.sdk.lib.service.service_process.get_core_path", lambda: str(tmp_path / "missing"))
    logger = wandb_logger(tmp_path / "run", mode="offline")
    outlive(logger)
    _, said, _ = quietly(lambda: logged(logger, 1, 2))
    (line,) = said
    assert line.startswith("W&B cannot log at all: ")
    assert line.endswith("The training continues without it")
    assert how_to_view(logger) is None
    assert quietly(lambda: close(logger))[1] == []


def test_a_run_that_goes_on_is_the_same_run_there(tmp_path, server):
    """As `ckpt_path` does it, by the id that the checkpoint holds."""
    first = wandb_logger(tmp_path, mode="online")
    logged(first, 1, 2)
    close(first)
    second = wandb_logger(tmp_path, mode="online")
    continue_logs([second], first.version, batches=3, again=False)
    logged(second, 3, 4)
    close(second)
    assert second.version == first.version
    assert came(server, first.version) == [1, 2, 3, 4]


KILL = "+callbacks.happen={_target_: tests.helpers.world.Happen, folder: /, happens: {12: kill_wandb}}"


@pytest.mark.parametrize("fault", ["server", "service"])
def test_a_training_goes_on(tmp_path, server, monkeypatch, fault):
    """It ends with code 0, and with one warning of what was not written, and one of the end if that failed, too."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # its telemetry waits for the server after the end, too
    server.then = 401 if fault == "server" else None
    options = ["logger.mode=online", "logger.finish_timeout=2", *[KILL] * (fault == "service")]
    base = [option for option in TINY if option not in ("logger=csv", "ckpt_path=last")]
    folder = tmp_path / "run"
    code, printed = finish(start(ROOT / "train.py", *base, f"hydra.run.dir={folder}", *options))
    assert code == 0, printed
    assert "Traceback" not in printed
    assert (folder / "summary.json").is_file()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    ends = int(fault == "service")  # of a server that refuses, wandb itself says what was not uploaded
    assert printed.count("UserWarning: log ") == 1
    assert printed.count("UserWarning: the W&B run did not end cleanly: ") == ends
    assert printed.count("UserWarning") == 1 + ends
    assert "\nnot written: wandb/run-" in printed
    assert f"\nwandb sync --include-online {folder}/wandb/run-" in printed
