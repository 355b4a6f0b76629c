"""A disk that is full, failing, read-only or gone: the training goes on with one warning, or never begins."""

import csv
import errno
import json
import os
import re
import resource
import subprocess
import warnings

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from genstab import InputError
from genstab.loggers.csv_log import WholeCSVLogger
from genstab.loggers.lifecycle import outlive
from genstab.runtime import files as whole_files
from genstab.runtime.files import WholeCheckpoints, check_folder
from tests.helpers import world
from tests.helpers.commands import ROOT, finish, start
from tests.helpers.killed import EVERY, STEPS, TINY, differing, left, run
from tests.helpers.wandb_file import finish as end_wandb
from tests.helpers.wandb_file import read_history

pytestmark = pytest.mark.slow
BASE = [option for option in TINY if option not in ("callbacks.pictures=null", "logger=csv")]
SMALL = ["callbacks.pictures.reach=1", "callbacks.pictures.frames=2", "callbacks.pictures.images=2"]
WRITTEN = {"shift.gif", "slide_output.webp", "samples.png", "shift_map.png", "measurements.json", "summary.json"}
WRITTEN |= {"checkpoints/last.ckpt", "checkpoints/best.ckpt"}


def mount(folder, size, *command):
    """Mount a file system of its own; skip where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("a disk of its own wants the right to mount")


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MiB."""
    mount(tmp_path / "disk", "4m")
    yield tmp_path / "disk"
    end_wandb()
    subprocess.run(["umount", "--lazy", tmp_path / "disk"], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the run to which nothing happened."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder, *SMALL, "logger=csv", base=BASE)
    return folder


def happening(folder, **happens):
    """Return the options of a training run in which functions of `tests.helpers.world` are called before some steps."""
    steps = ", ".join(f"{step.removeprefix('at')}: {name}" for step, name in happens.items())
    return [
        *SMALL,
        f"+callbacks.happen={{_target_: tests.helpers.world.Happen, folder: {folder}, happens: {{{steps}}}}}",
    ]


def train(folder, *options):
    """Train; return the error, None if there is none, and the warnings of what could not be written."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run(folder, *options, base=BASE)
            problem = None
        except InputError as error:
            problem = str(error)
    said = [str(each.message) for each in caught]
    return problem, [text for text in said if "could not be written" in text or "W&B" in text]


# TensorBoard's writer dies in a thread of its own before its next call raises the error that is warned of.
WRITER_DIES = pytest.mark.filterwarnings("ignore:Exception in thread:pytest.PytestUnhandledThreadExceptionWarning")
LOGGERS = ["csv", pytest.param("tensorboard", marks=WRITER_DIES), "wandb"]


def kinds(said):
    return sorted(text.split()[0] for text in said)


def rows(folder):
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_disk_that_is_full_to_the_end(disk, whole, capsys, logger):
    if logger == "tensorboard":
        pytest.importorskip("tensorboard")
    folder = disk / "run"
    problem, said = train(folder, f"logger={logger}", *happening(disk, at10="fill"))
    last = folder / "checkpoints" / "last.ckpt"
    assert problem == (
        f"the final weights could not be saved: {last}: No space left on device; the earlier ones are intact: "
        f"make room on the disk and resume with ckpt_path={last}"
    )
    named = kinds(said)
    assert [kind for kind in named if kind != "log"] == ["checkpoint", "file", "picture"]
    assert named.count("log") == (logger != "csv")  # its few rows may find room in the file's last page
    printed = capsys.readouterr().out
    missing = set(re.findall(r"^not written: (.*): No space left on device$", printed, re.MULTILINE))
    assert missing >= WRITTEN
    assert f"{STEPS} batches in" in printed  # it went on to its end
    assert torch.load(last, weights_only=True)["resume"]["batches"] == 9
    assert not list(folder.rglob("*.part"))
    if logger == "csv":
        world.free(disk)
        assert train(folder, "logger=csv", *SMALL) == (None, [])
        assert differing(left(folder), left(whole)) == []


@pytest.mark.parametrize("size", [10, 10**4, 10**6, 10**7])
def test_a_checkpoint_larger_than_the_disk(disk, size):
    """Of which torch's writer says only that it failed."""
    checkpoints = WholeCheckpoints()
    (disk / "a.ckpt").write_bytes(b"old")
    world.fill(disk)
    with pytest.warns(UserWarning, match=r"a\.ckpt could not be written \(No space left on device\); an earlier one"):
        checkpoints.save_checkpoint({"weights": torch.zeros(size)}, disk / "a.ckpt")
    assert {path.name for path in disk.iterdir()} == {"a.ckpt", "filling"}
    assert (disk / "a.ckpt").read_bytes() == b"old"


def test_a_disk_that_has_room_again(disk, whole, capsys):
    problem, said = train(disk / "run", "logger=csv", *happening(disk, at10="fill", at18="free"))
    assert problem is None
    assert kinds(said) in (["checkpoint"], ["checkpoint", "log"])
    assert "not written" not in capsys.readouterr().out
    assert json.loads((disk / "run" / "summary.json").read_text())["unwritten"] == []
    assert rows(disk / "run") == rows(whole)
    assert differing(left(disk / "run"), left(whole)) == []


LATER = {19, 21, 23}  # steps of the log after that


@WRITER_DIES
def test_tensorboard_goes_on_when_there_is_room_again(disk):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    problem, said = train(disk / "run", "logger=tensorboard", *happening(disk, at3="fill", at18="free"))
    assert problem is None
    assert kinds(said) == ["checkpoint", "log"]
    unwritten = json.loads((disk / "run" / "summary.json").read_text())["unwritten"]
    assert unwritten == ["tensorboard: No space left on device"]
    events = EventAccumulator(str(disk / "run" / "tensorboard")).Reload()
    assert {event.step for event in events.Scalars("train/loss_g")} >= LATER
    assert not [path for path in (disk / "run" / "tensorboard").iterdir() if path.stat().st_size == 0]


def test_wandb_goes_on_when_there_is_room_again(disk):
    problem, said = train(disk / "run", "logger=wandb", *happening(disk, at3="fill", at18="free"))
    assert problem is None
    assert kinds(said) == ["checkpoint", "log"]
    (line,) = json.loads((disk / "run" / "summary.json").read_text())["unwritten"]
    assert re.fullmatch(r"wandb/offline-run-\S+: No space left on device", line)
    end_wandb()
    (file,) = (disk / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert {row["trainer/global_step"] for row in read_history(file) if "train/loss_g" in row} >= LATER


FAULTS = [errno.EIO, errno.EDQUOT]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda number: errno.errorcode[number])
def test_a_disk_that_fails(tmp_path, monkeypatch, capsys, fault):
    """Every file fails where its bytes have to come to the disk."""
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"

    def failing(descriptor):
        if last.exists():
            raise OSError(fault, os.strerror(fault))

    fake = type("os", (), {**vars(os), "fsync": staticmethod(failing)})
    monkeypatch.setattr(whole_files, "os", fake)
    problem, said = train(tmp_path / "run", "logger=csv", *SMALL)
    assert problem.startswith("the final weights could not be saved")
    assert os.strerror(fault) in problem
    assert kinds(said) == ["checkpoint", "file", "log", "picture"]
    assert capsys.readouterr().out.count("\nnot written: ") >= len(WRITTEN)
    assert torch.load(last, weights_only=True)["resume"]["batches"] == EVERY


def test_files_that_may_not_grow(tmp_path):
    """A limit as of a quota; no right to mount is needed. The first checkpoint fits, the pictures do, too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    world.LIMIT = 2**14  # less than a checkpoint
    try:
        problem, said = train(tmp_path / "run", "logger=csv", *happening(tmp_path, at10="limit"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert problem.startswith(f"the final weights could not be saved: {last}: File too large; ")
    assert kinds(said).count("checkpoint") == 1
    assert torch.load(last, weights_only=True)["resume"]["batches"] == 9
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "checkpoints/last.ckpt: File too large" in summary["unwritten"]


def test_a_folder_that_becomes_read_only(disk, capsys):
    folder = disk / "run"
    problem, said = train(folder, "logger=csv", *happening(disk, at10="protect"))
    assert problem.startswith(f"the final weights could not be saved: {folder}/checkpoints/last.ckpt: Read-only file")
    assert kinds(said) == ["checkpoint", "file", "log", "picture"]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["resume"]["batches"] == 9
    assert "not written: summary.json: Read-only file system" in capsys.readouterr().out


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_folder_that_is_deleted_comes_back(tmp_path, whole, logger):
    if logger == "tensorboard":
        pytest.importorskip("tensorboard")
    (tmp_path / "runs").mkdir()
    problem, said = train(tmp_path / "runs" / "run", f"logger={logger}", *happening(tmp_path / "runs", at10="delete"))
    end_wandb()
    assert problem is None
    assert kinds(said) == ([] if logger != "tensorboard" else ["log"])
    found, expected = (left_of(folder) for folder in (tmp_path / "runs" / "run", whole))
    assert differing(found, expected) == []


def left_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_what_is_not_there_from_the_start_ends_it_before_any_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^output_dir=.*/file/run cannot be written: Not a directory$"):
        run(tmp_path / "file" / "run", base=BASE)
    with pytest.raises(InputError, match=r"^output_dir=.*/file cannot be written: File exists$"):
        run(tmp_path / "file", base=BASE)


def test_a_read_only_folder_ends_it_before_any_training(disk):
    world.protect(disk)
    with pytest.raises(InputError, match=r"^output_dir=.* cannot be written: Read-only file system$"):
        run(disk / "run", base=BASE)


def test_another_users_folder_ends_it_before_any_training(tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    if os.geteuid():
        with pytest.raises(InputError, match="cannot be written: Permission denied"):
            check_folder(tmp_path / "run")
        return
    child = os.fork()  # the superuser may write anywhere
    if child == 0:
        os.setuid(65534)
        try:
            check_folder(tmp_path / "run")
        except InputError as error:
            os._exit(str(error) != f"output_dir={tmp_path / 'run'} cannot be written: Permission denied")
        os._exit(2)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and len(parent.parts) > 2:
            parent.chmod(0o755)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_too_little_room_ends_it_before_any_training(disk):
    least = 3 * 4 * 10**6
    with pytest.raises(
        InputError, match=r"^output_dir=.*: [34]\.\d MiB are free, but a checkpoint takes at least 11\.4 MiB"
    ):
        check_folder(disk, least)
    check_folder(disk, 2**20)
    world.fill(disk)
    with pytest.raises(InputError, match=r"No space left on device|0\.0 MiB are free"):
        run(disk / "run", base=BASE)


def command(*options, **variables):
    """Run `train.py` as a user does; return the exit code and what was printed."""
    base = [option for option in BASE if option != "ckpt_path=last"]
    return finish(start(ROOT / "train.py", *options, *base, *SMALL, "logger=csv", **variables))


def test_the_command_ends_with_one_line(disk):
    world.protect(disk)
    for options in ([f"hydra.run.dir={disk / 'run'}"], ["-m", "seed=1,2", f"hydra.sweep.dir={disk / 'sweep'}"]):
        code, printed = command(*options)
        (line,) = printed.strip().splitlines()
        assert re.fullmatch(
            rf"genstab: cannot make {disk}/\S+: Read-only file system \(hydra\.\w+\.dir=DIR sets it\)", line
        )
        assert code == 1


def test_the_command_says_in_the_end_what_is_missing(disk):
    code, printed = command(f"hydra.run.dir={disk / 'run'}", *happening(disk, at20="fill")[-1:])
    assert code == 1
    assert "Traceback" not in printed
    assert "Logging error" not in printed
    assert "\nnot written: summary.json: No space left on device\n" in printed
    assert printed.strip().splitlines()[-1].startswith("genstab: the final weights could not be saved: ")


def test_an_unwritable_tmpdir_is_done_without(tmp_path):
    code, printed = command(f"hydra.run.dir={tmp_path / 'run'}", TMPDIR=str(tmp_path / "missing"))
    assert code == 0, printed
    assert "Warning" not in printed


def test_a_table_has_whole_rows_and_all_of_them(disk, monkeypatch):
    """Rows of a new column, whose header is another one, and of known ones; each time the disk is full in between."""
    logger, plain = (kind(disk / name, name="csv", version="") for kind, name in
                     ((WholeCSVLogger, "whole"), (CSVLogger, "plain")))  # fmt: skip
    outlive(logger)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(60):
            if step in (10, 30):
                world.fill(disk)
            row = {"a": step, ("b" if step < 20 else "c"): "x" * 300}
            logger.log_metrics(row, step)
            logger.save()
            if step in (9, 29):
                before = (disk / "whole" / "csv" / "metrics.csv").read_bytes()
            if step in (25, 45):
                found = (disk / "whole" / "csv" / "metrics.csv").read_bytes()
                assert found.startswith(before)
                assert found.endswith(b"\r\n")
                assert logger.unwritten.files == {
                    str(disk / "whole" / "csv" / "metrics.csv"): "No space left on device"
                }
                world.free(disk)
    assert len([each for each in caught if "could not be written" in str(each.message)]) == 1
    assert logger.unwritten.files == {}
    for step in range(60):
        plain.log_metrics({"a": step, ("b" if step < 20 else "c"): "x" * 300}, step)
    plain.save()
    assert rows(disk / "whole") == rows(disk / "plain")
