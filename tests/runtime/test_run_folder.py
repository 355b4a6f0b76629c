"""One folder, one training run: another one gets a folder of its own, or is refused."""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from genstab import InputError
from genstab.cli import main as cli
from genstab.runtime.run_folder import MEASUREMENT, TRAINING, alone_in, check_free, fresh
from tests.helpers.killed import TINY, run

pytestmark = pytest.mark.slow
ONCE = [*(option for option in TINY if not option.startswith("ckpt_path")), "trainer.max_steps=1"]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_training_in_a_folder_is_refused_and_nothing_is_written_over(tmp_path):
    run(tmp_path / "run", base=ONCE)
    before = contents(tmp_path / "run")
    message = r"run already holds a training run \(checkpoints/last\.ckpt\): resume it with ckpt_path=last, or choose"
    for options in ([], ["seed=4"]):
        with pytest.raises(InputError, match=message):
            run(tmp_path / "run", *options, base=ONCE)
    run(tmp_path / "other", "seed=4", base=ONCE)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", f"ckpt_path={tmp_path / 'other'}", "trainer.max_steps=2", base=ONCE)
    assert contents(tmp_path / "run") == before
    run(tmp_path / "run", f"ckpt_path={tmp_path / 'run'}", "trainer.max_steps=2", base=ONCE)  # the same training run
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


def test_a_summary_without_a_checkpoint_is_not_written_over_either(tmp_path):
    run(tmp_path / "run", "callbacks.last=null", "callbacks.best=null", base=ONCE)
    with pytest.raises(InputError, match=r"run already holds a training run \(summary\.json\)"):
        run(tmp_path / "run", base=ONCE)
    run(tmp_path / "run", "ckpt_path=last", base=ONCE)  # begins: there is nothing to go on from


@contextmanager
def locked_by_another(folder):
    """Let a forked process have the folder; then kill it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with alone_in(folder, TRAINING):
            os.write(writer, b"in")
            time.sleep(60)
    assert os.read(reader, 2) == b"in"
    yield
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)


def test_two_trainings_at_the_same_time_are_kept_apart(tmp_path):
    with locked_by_another(tmp_path / "run"):
        with pytest.raises(
            InputError, match=r"another run is writing into .*run: wait for it to end, or choose another folder"
        ):
            run(tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        (tmp_path / "run" / "summary.json").touch()
        with pytest.raises(InputError, match="another run is writing into"):
            run(tmp_path / "run", "ckpt_path=null")
    with alone_in(tmp_path / "run", TRAINING):  # a killed one keeps nobody out
        pass


def test_a_folder_whose_lock_cannot_be_opened_is_refused_for_what_it_holds(tmp_path):
    (tmp_path / ".lock").mkdir()
    (tmp_path / "summary.json").touch()
    with pytest.raises(InputError, match=r"already holds summary\.json that may be of others"):
        check_free(tmp_path, TRAINING)


@pytest.mark.parametrize("kind", [TRAINING, MEASUREMENT])
@pytest.mark.parametrize("name", ["measurements.json", "samples.png", "checkpoints/best.ckpt", "csv/metrics.csv"])
def test_files_of_others_are_refused_and_a_run_of_the_other_kind(tmp_path, kind, name):
    (file := tmp_path / name).parent.mkdir(exist_ok=True)
    file.write_text('{"my": "lab data"}')
    with pytest.raises(InputError, match=f"already holds {Path(name).parts[0]} that may be of others: choose another"):
        check_free(tmp_path, kind)
    with alone_in(tmp_path, kind):
        pass
    check_free(tmp_path, kind)  # a measurement that is measured again; a training run that was killed early
    other = TRAINING if kind == MEASUREMENT else MEASUREMENT
    with pytest.raises(InputError, match=f"already holds a {kind}: choose another folder with hydra"):
        check_free(tmp_path, other)


def test_file_systems_without_locks(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", none)
    with alone_in(tmp_path / "run", TRAINING):
        assert (tmp_path / "run" / ".lock").is_file()


def test_a_folder_that_cannot_be_made_is_left_to_who_writes_there(tmp_path):
    (tmp_path / "file").touch()
    assert fresh(f"{tmp_path}/file/run") == f"{tmp_path}/file/run"


def test_a_clock_that_stands_still_gives_each_run_its_own_folder(monkeypatch):
    monkeypatch.setattr("hydra.core.utils.datetime", type("Still", (), {"now": lambda: datetime(2026, 1, 2, 3, 4, 5)}))
    options = [*ONCE, "hydra/job_logging=none", "hydra/hydra_logging=none"]
    sweep = ["-m", *(option for option in options if not option.startswith("seed")), "seed=1,2"]
    given: list[str] = []
    monkeypatch.setattr("genstab.cli.submitit.run_train", lambda config, processes: given.append(config.output_dir))
    for arguments in (options, options, sweep, sweep):
        monkeypatch.setattr(sys, "argv", ["genstab", "train", *arguments])
        cli.main()
    runs = ["outputs/2026-01-02/03-04-05", "outputs/2026-01-02/03-04-05-2"]
    runs += [f"multirun/2026-01-02/03-04-05{more}/{job}" for more in ("", "-2") for job in (0, 1)]
    assert [os.path.relpath(folder) for folder in given] == runs
