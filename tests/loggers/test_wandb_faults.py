"""A W&B that is unreachable, slow, refuses the key or fails half-way: the training goes on, and the rest is for later.

Each run is real; the server is one of our own, see `tests.helpers.wandb_server`.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from genstab.loggers.media import STEP, close, how_to_view, outlive, wandb_logger, wandb_service
from genstab.loggers.media import media as loggers
from genstab.loggers.media import wandb as wandb_log
from genstab.loggers.wandb import ends_well
from tests.helpers.commands import ROOT, finish, start
from tests.helpers.killed import TINY
from tests.helpers.wandb_file import read_config, read_history
from tests.helpers.wandb_server import Server

pytestmark = pytest.mark.usefixtures("nobody")
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
    (file,) = Path(folder).glob("*.wandb")
    return [row["val/psnr"] for row in read_history(file) if "val/psnr" in row]


def service():
    return wandb.setup()._connection._proc._process


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


@pytest.mark.parametrize("fault", ["silent", 401, 403, 500, "closed"])
def test_a_server_that_fails_at_the_start_makes_the_run_offline(tmp_path, server, fault):
    if fault == "closed":
        server.close()
    server.mode = fault
    logger = wandb_logger(tmp_path, mode="online", init_timeout=2)
    run, said, seconds = quietly(lambda: logger.experiment)
    assert run.offline
    (line,) = said
    folder = Path(run.dir).parent
    assert line.startswith(f"W&B cannot log online: {server.url}: ")
    assert line.endswith(f"This run is logged offline; upload it later with `wandb sync {folder}`")
    assert seconds < 2 + SLACK
    logged(logger, 1, 2)
    close(logger)
    assert values(folder) == [1, 2]


@pytest.mark.parametrize("fault", ["silent", 401, 500, "closed"])
def test_a_server_that_fails_half_way_holds_up_only_the_end_and_that_not_for_ever(tmp_path, server, monkeypatch, fault):
    logger = wandb_logger(tmp_path, mode="online", finish_timeout=2)
    outlive(logger)
    logged(logger, 1, 2)
    assert not logger.experiment.offline
    if fault == "closed":
        server.close()
    server.mode = fault
    _, said, seconds = quietly(lambda: logged(logger, *range(3, 30)))
    assert (said, logger.unwritten.files) == ([], {})
    assert seconds < SLACK
    view = how_to_view(logger)
    _, said, seconds = quietly(lambda: close(logger))
    assert seconds < 2 + SLACK
    url, command = view.partition("  #")[0].splitlines()
    assert url == logger.experiment.url
    assert command == f"wandb sync --include-online {logger.folders[0]}"
    if fault != 401:  # of which wandb itself says that some data will not be synced
        (line,) = said
        problem = "its upload did not end within 2 s"
        assert line == f"the W&B run did not end cleanly: {problem}; upload what it has with `{command}`"
    assert values(logger.folders[0]) == list(range(1, 30))
    upload_to(server, command, monkeypatch)
    assert came(server, logger.version) == list(range(1, 30))


def test_a_server_that_takes_no_tables_is_asked_once(tmp_path, server, monkeypatch):
    asked, log_table = [], WandbLogger.log_table

    def asking(logger, key, *arguments, **options):
        asked.append(key)
        log_table(logger, key, *arguments, **options)

    monkeypatch.setattr(WandbLogger, "log_table", asking)
    logger = wandb_logger(tmp_path, mode="online", finish_timeout=1)
    outlive(logger)
    logged(logger, 1)
    server.mode = 401
    _, said, _ = quietly(lambda: [logger.log_table(key, ["a"], [[1]], step=1) for key in ("one", "two")])
    assert asked == ["one"]
    (line,) = said
    assert re.fullmatch(r"log \S+: tables could not be written \(.*credentials.*\); measurements\.json has them", line)
    logged(logger, 2)
    quietly(lambda: close(logger))
    assert values(logger.folders[0]) == [1, 2]


@pytest.mark.slow
def test_a_service_that_is_killed_is_followed_by_an_offline_run(tmp_path, server, monkeypatch):
    logger = wandb_logger(tmp_path, mode="online", config={"seed": 1})
    outlive(logger)
    logger.log_hyperparams({"lr": 0.5})
    logged(logger, 1, 2)
    deadline = time.monotonic() + 60
    while 2.0 not in came(server, logger.version) and time.monotonic() < deadline:
        time.sleep(0.1)
    name = logger.version
    service().kill()
    service().wait()
    _, said, seconds = quietly(lambda: logged(logger, *range(3, 9)))
    assert seconds < SLACK
    (line,) = said
    assert line.startswith("wandb's service died (")
    command = f"wandb sync --include-online {logger.folders[0]} {logger.folders[1]}"
    assert ": the run goes on offline; what was logged in the last 15 s may be lost, " in line
    assert line.endswith(f"upload the rest later with `{command}`")
    assert logger.experiment.offline
    assert logger.version == name
    assert how_to_view(logger).splitlines()[0] == command
    _, said, _ = quietly(lambda: close(logger))
    assert said == []
    found = values(logger.folders[1])
    assert found == list(range(found[0], 9))
    assert found[0] <= 4
    (file,) = logger.folders[1].glob("*.wandb")
    config = read_config(file)
    assert (config["seed"], config["lr"]) == (1, 0.5)
    upload_to(server, command, monkeypatch)
    assert came(server, name) == [1, 2, *found]  # each once


def test_after_a_second_death_it_goes_on_without(tmp_path):
    logger = wandb_logger(tmp_path, mode="offline")
    outlive(logger)
    logged(logger, 1)
    said = []
    for _ in range(2):
        service().kill()
        service().wait()
        said += quietly(lambda: logged(logger, *range(2, 6)))[1]
    first, second = said
    assert "the run goes on offline" in first
    assert "the training goes on without W&B" in second
    logged(logger, 7)
    _, said, _ = quietly(lambda: close(logger))
    assert said == []


def test_a_service_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    for module in (loggers, wandb_log, wandb_service):
        monkeypatch.setattr(module, "PATIENCE", 1.0)
    logger = wandb_logger(tmp_path, mode="offline", finish_timeout=1)
    outlive(logger)
    logged(logger, 1)
    os.kill(service().pid, signal.SIGSTOP)
    large = {f"{number}": "x" * 1000 for number in range(1000)}

    def much():
        for _ in range(20):
            logger.log_metrics(large, step=2)

    _, said, seconds = quietly(much)
    assert seconds < 1 + SLACK
    (line,) = said
    assert line.startswith("wandb's service died (")
    os.kill(service().pid, signal.SIGSTOP)
    _, said, seconds = quietly(lambda: close(logger))
    assert seconds < 2 + SLACK
    (line,) = said
    assert line.startswith("the W&B run did not end cleanly: its service died (")


def test_a_service_that_cannot_start_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.sdk.lib.service.service_process.get_core_path", lambda: str(tmp_path / "missing"))
    logger = wandb_logger(tmp_path / "run", mode="offline")
    outlive(logger)
    _, said, _ = quietly(lambda: logged(logger, 1, 2))
    (line,) = said
    assert line.startswith("W&B cannot log at all: ")
    assert line.endswith("The training goes on without it")
    assert how_to_view(logger) is None
    assert quietly(lambda: close(logger))[1] == []


def test_a_file_without_its_end_is_recognised(tmp_path):
    logger = wandb_logger(tmp_path, mode="offline")
    for step in range(30):  # several blocks of the file
        logger.log_metrics({f"{number}": "x" * 1000 for number in range(10)}, step=step)
    close(logger)
    (file,) = logger.folders[0].glob("*.wandb")
    whole = file.read_bytes()
    assert len(whole) > 3 * wandb_service.BLOCK
    assert ends_well(file)
    for length in (*range(len(whole) - 40, len(whole)), wandb_service.BLOCK, 2 * wandb_service.BLOCK, 7, 0):
        file.write_bytes(whole[:length])
        assert not ends_well(file), length
    file.unlink()
    assert not ends_well(file)


def trained(tmp_path, *options):
    """Train by the command; return the exit code and what was printed."""
    base = [option for option in TINY if option not in ("logger=csv", "ckpt_path=last")]
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    return finish(start(ROOT / "train.py", *base, "logger.mode=online", folder, *options))


def check_trained(tmp_path, code, printed):
    assert code == 0, printed
    assert "Traceback" not in printed
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["silent", 401])
def test_a_training_without_a_server(tmp_path, server, mode):
    server.mode = mode
    code, printed = trained(tmp_path, "logger.init_timeout=2")
    check_trained(tmp_path, code, printed)
    assert printed.count("UserWarning") == printed.count("W&B cannot log online: ") == 1
    assert f"\nwandb sync {tmp_path}/run/wandb/offline-run-" in printed


@pytest.mark.slow
@pytest.mark.parametrize("then", ["silent", 401])
def test_a_training_whose_server_fails_after_a_while(tmp_path, server, then):
    server.then = then
    began = time.monotonic()
    code, printed = trained(tmp_path, "logger.finish_timeout=2")
    assert time.monotonic() - began < 2 + 20 + 4 * SLACK  # 20: for the first table, see `outlived`
    check_trained(tmp_path, code, printed)
    # one of the tables, and one at the end, but for 401, of which wandb itself says that some data will not be synced
    assert printed.count("UserWarning") == 1 + (then != 401)
    assert printed.count("measurements.json has them") == 1
    assert "\nnot written: wandb/run-" in printed
    assert f"\nwandb sync --include-online {tmp_path}/run/wandb/run-" in printed


@pytest.mark.slow
def test_a_training_whose_service_is_killed(tmp_path, server):
    kill = "+callbacks.happen={_target_: tests.helpers.world.Happen, folder: /, happens: {12: kill_wandb}}"
    code, printed = trained(tmp_path, kill)
    check_trained(tmp_path, code, printed)
    assert printed.count("UserWarning") == printed.count("wandb's service died (") == 1
    assert f"\nwandb sync --include-online {tmp_path}/run/wandb/run-" in printed
    offline = next((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert {row[STEP] for row in read_history(offline) if "train/loss_g" in row} >= {15, 17, 19, 21, 23}
