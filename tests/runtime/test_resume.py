"""A training run that ended in its middle goes on as if it had not."""

import json
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from genstab import InputError
from genstab.cli import main as cli
from genstab.cli.main import CONF
from genstab.runtime import signals as stopping
from genstab.runtime.resume import changes, find_checkpoint
from tests.helpers.commands import HELPERS, ROOT, program, start
from tests.helpers.commands import finish as finish_program
from tests.helpers.killed import BATCHES, EPOCHS, EVERY, STEPS, TINY, Killed, Killer, differing, left, run, stop_signals
from tests.helpers.wandb_file import finish, read_history

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the run that nothing stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


def place(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["resume"]


def stop(folder, step, where, signum=0, *options, **base):
    """Train until something strikes; return the code that the program would end with."""
    with pytest.raises((Killed, SystemExit)) as end:
        run(folder, *options, kill=(step, where, signum), **base)
    return getattr(end.value, "code", None)


@pytest.mark.parametrize(
    ("step", "where", "batches"),  # and the batches done in the checkpoint that is then the last one
    [
        (2, "start", 0),  # before the first one: from the beginning
        (10, "update", 9),  # between discriminator and generator
        (16, "validation", 15),
        (16, "epoch", 15),
        (24, "validation", 24),  # three batches more than 21, before the validation
        (24, "after", 24),
    ],
)
def test_it_ends_with_the_same_bits(tmp_path, whole, step, where, batches):
    stop(tmp_path / "run", step, where)
    found = place(tmp_path / "run")["batches"] if batches else 0
    assert found == batches
    run(tmp_path / "run")
    assert differing(left(tmp_path / "run"), left(whole)) == []


def test_an_epoch_that_max_steps_ended_goes_on_also_if_it_is_the_last(tmp_path):
    run(tmp_path / "run", "trainer.max_steps=21")
    assert (place(tmp_path / "run")["epoch"], place(tmp_path / "run")["batch"]) == (EPOCHS - 1, 5)
    run(tmp_path / "run")
    found = left(tmp_path / "run")
    assert found["metrics"]["steps"] == STEPS
    assert (found["resume"]["epoch"], found["resume"]["batch"]) == (EPOCHS, 0)
    # validated after the last batch: rows of step 7, 15, 20 (where it ended before) and 23
    header, *rows = (row.split(",") for row in found["rows"])
    measured = [row for row in (dict(zip(header, row, strict=True)) for row in rows) if row["val/l1"]]
    assert [int(row["step"]) for row in measured] == [7, 15, 20, 23]
    assert float(measured[-1]["val/l1"]) == pytest.approx(found["metrics"]["val/l1"])


def test_a_training_that_max_time_ended_goes_on(tmp_path, whole, monkeypatch):
    def stop_at_ten(self, trainer, place):  # as Lightning's Timer does
        trainer.should_stop = trainer.should_stop or trainer.global_step == 10

    monkeypatch.setattr(Killer, "hit", stop_at_ten)
    run(tmp_path / "run", kill=(0, "end", 0))
    assert (place(tmp_path / "run")["epoch"], place(tmp_path / "run")["batch"]) == (1, 2)
    monkeypatch.undo()
    run(tmp_path / "run")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "resume", "metrics"):  # one validation more
        assert differing(left(tmp_path / "run")[part], left(whole)[part]) == []


def test_a_kill_at_every_place(tmp_path):
    printed = program(HELPERS / "killed.py", tmp_path, 7, 0)
    assert printed.count("(-9, 0) as unbroken") == 7
    assert set(re.findall(r"killed at (\w+)", printed)) == {
        "start", "update", "end", "writing", "validation", "epoch", "after",
    }  # fmt: skip


def compared(tmp_path, *options, **base):
    """Train with and without two kills, and return what differs."""
    run(tmp_path / "one", *options, **base)
    for step, where in ((10, "start"), (17, "end")):
        stop(tmp_path / "two", step, where, 0, *options, **base)
    run(tmp_path / "two", *options, **base)
    return differing(left(tmp_path / "two"), left(tmp_path / "one"))


@pytest.mark.parametrize(
    "option",
    [
        "trainer.max_steps=21",  # in an epoch
        "trainer.check_val_every_n_epoch=2 +trainer.limit_train_batches=5 trainer.max_epochs=4",
        "+trainer.val_check_interval=3 +trainer.overfit_batches=5 trainer.max_epochs=4",  # validations within an epoch
        "data.num_workers=2",
    ],
)
def test_whatever_ends_an_epoch_and_whoever_loads(tmp_path, option):
    assert compared(tmp_path, *option.split()) == []


def test_batches_that_made_no_step_yet_are_repeated(tmp_path):
    # three batches a step, the last two of an epoch make one; validations after four and eight batches
    options = ["trainer.accumulate_grad_batches=3", "+trainer.val_check_interval=4", "trainer.gradient_clip_val=0.1"]
    run(tmp_path / "one", *options)
    strikes = [  # step, place, signal; the batches in the checkpoint, and whether a validation is to come
        (1, "validation", signal.SIGTERM, 3, False),  # of four batches
        (3, "validation", signal.SIGINT, 8, True),
        (4, "start", signal.SIGTERM, 11, False),  # of twelve
        (5, "update", 0, 11, False),  # nothing saved it
        (6, "epoch", signal.SIGTERM, 16, False),
    ]
    for step, where, signum, batches, pending in strikes:
        stop(tmp_path / "two", step, where, signum, *options)
        found = place(tmp_path / "two")
        assert (found["batches"], found["pending"]) == (batches, pending)
    run(tmp_path / "two", *options)
    assert differing(left(tmp_path / "two"), left(tmp_path / "one")) == []


def test_pairs_on_disk(tmp_path):
    random = np.random.default_rng(0)
    for split, count in {"train": 15, "val": 2}.items():
        (tmp_path / "pairs" / split).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (26, 52, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pairs" / split / f"{i}.png")
    base = [option for option in TINY if not re.match(r"data\.(train|val)_images|data\.size", option)]
    assert compared(tmp_path, "data=paired", f"data.root={tmp_path / 'pairs'}", "data.load_size=28", base=base) == []


@pytest.mark.parametrize(
    ("signum", "where", "step", "batches", "pending"),  # and whether a validation is to come
    [
        (signal.SIGINT, "start", 10, 11, False),  # the batch that is under way is finished
        (signal.SIGTERM, "update", 11, 12, False),
        (signal.SIGTERM, "end", 24, 24, True),
        (signal.SIGINT, "validation", 16, 16, True),
        (signal.SIGTERM, "epoch", 8, 8, False),
    ],
)
def test_a_signal_saves_within_one_step_and_the_code_says_which(
    tmp_path, whole, capsys, signum, where, step, batches, pending
):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert stop(tmp_path / "run", step, where, signum) == 128 + signum
    assert place(tmp_path / "run")["batches"] == batches
    assert place(tmp_path / "run")["pending"] is pending
    assert f"ckpt_path=last hydra.run.dir={tmp_path / 'run'}" in capsys.readouterr().out
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    run(tmp_path / "run")
    assert differing(left(tmp_path / "run"), left(whole)) == []


def test_after_ctrl_c_in_a_sweep_its_folder_is_named(tmp_path, monkeypatch, capsys):
    killer = "+callbacks.killer={_target_: tests.helpers.killed.Killer, step: 1, place: start, signum: 2}"
    options = [option for option in TINY if not option.startswith("ckpt_path")]
    sweep = ["-m", f"hydra.sweep.dir={tmp_path}", "hydra/hydra_logging=none", "hydra/job_logging=none"]
    monkeypatch.setattr(sys, "argv", ["genstab", "train", *sweep, *options, killer])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    assert f"To resume: the same command with ckpt_path=last hydra.sweep.dir={tmp_path}\n" in capsys.readouterr().out


def test_a_second_ctrl_c_ends_at_once():
    with stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGINT
        with pytest.raises(stopping.Stopped) as end:
            os.kill(os.getpid(), signal.SIGINT)
    assert end.value.code == 130


def test_a_loaders_worker_dies_of_sigterm_and_leaves_ctrl_c_to_its_parent():
    with stop_signals():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_another_thread_trains_without_signals(tmp_path):
    thread = threading.Thread(target=lambda: stopping.StopSignals().start())
    thread.start()
    thread.join()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """One task of an array job, with an `scontrol` that notes what it was asked for."""
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin" / "scontrol"
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    job = {"JOB_ID": "7", "ARRAY_JOB_ID": "5", "ARRAY_TASK_ID": "2", "JOB_NAME": "train", "NTASKS": "1"}
    for key, value in {**job, "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    return stub


def test_slurm_requeues_the_job_which_then_goes_on(tmp_path, whole, slurm, capsys):
    assert stop(tmp_path / "run", 10, "update", signal.SIGUSR1) == 138
    assert (tmp_path / "asked").read_text() == "requeue 5_2\n"
    assert "SLURM job 5_2 is requeued" in capsys.readouterr().out
    assert place(tmp_path / "run")["batches"] == 11
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))  # Lightning's own, saved in the middle of a step
    run(tmp_path / "run")  # the same command in the same folder, as SLURM starts it again
    assert differing(left(tmp_path / "run"), left(whole)) == []


def test_a_job_that_cannot_be_requeued_says_so(slurm, monkeypatch):
    slurm.write_text("#!/bin/sh\necho Job is not allowed to >&2; exit 1\n")
    assert stopping.requeue() == "SLURM job 5_2 was not requeued: Job is not allowed to"
    monkeypatch.setenv("PATH", "")
    assert "SLURM job 5_2 was not requeued: " in stopping.requeue()


def test_it_can_go_on_in_another_folder_with_its_best(tmp_path, whole):
    stop(tmp_path / "run", 18, "start")
    best = (tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes()
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    score = 1e-9  # better than any
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    (state,) = (state for key, state in checkpoint["callbacks"].items() if "val/l1" in key)
    state["best_model_score"] = torch.tensor(score)
    state["best_k_models"] = {path: torch.tensor(score) for path in state["best_k_models"]}
    kept[last] = None
    torch.save(checkpoint, last)
    run(tmp_path / "other", f"ckpt_path={tmp_path / 'run'}")
    for part in ("state_dict", "optimizer_states", "metrics"):
        assert differing(left(tmp_path / "other")[part], left(whole)[part]) == []
    assert (tmp_path / "other" / "checkpoints" / "best.ckpt").read_bytes() == best
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert summary["best_checkpoint"] == "checkpoints/best.ckpt"
    assert all(path.read_bytes() == text for path, text in kept.items() if text is not None)


def test_it_goes_on_with_the_same_wandb_run(tmp_path):
    logger = ["logger=wandb"]
    stop(tmp_path / "run", 10, "start", 0, *logger)
    finish()
    run(tmp_path / "run", *logger)
    finish()
    first, second = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"), key=os.path.getmtime)
    assert first.name == second.name  # run-ID.wandb
    steps = [
        [row["trainer/global_step"] for row in read_history(file) if "train/loss_g" in row] for file in (first, second)
    ]
    assert steps == [[1, 3, 5, 7, 9], [9, 11, 13, 15, 17, 19, 21, 23]]  # from the checkpoint after nine batches


def test_what_is_done_is_not_done_again_and_a_longer_training_is(tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / "summary.json").stat().st_mtime_ns
    measured = json.loads((whole / "summary.json").read_text())["val/shift_psnr"]
    assert run(tmp_path / "run") == pytest.approx(measured)
    assert f"Nothing left to do: all {STEPS} batches are done" in capsys.readouterr().out
    assert (tmp_path / "run" / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"last\.ckpt does not fit this training run: antialias\.filter tri3 → bin5"):
        run(tmp_path / "run", "antialias=bin5")
    run(tmp_path / "run", "trainer.max_epochs=4")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == STEPS + BATCHES


def test_which_checkpoint_is_meant(tmp_path):
    outputs = tmp_path / "outputs"
    new = outputs / "2026-01-02" / "10-00-00"
    with pytest.raises(InputError, match=r"ckpt_path=last: no run in .*outputs has checkpoints/last\.ckpt"):
        find_checkpoint("last", new, fixed=False)
    runs = [outputs / name / "checkpoints" / "last.ckpt" for name in ("2026-01-01/23-00-00", "2026-01-02/09-00-00")]
    for age, path in enumerate(runs):  # the first is the newer one
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find_checkpoint("last", new, fixed=False) == runs[0]
    assert find_checkpoint("last", new, fixed=True) is None
    assert find_checkpoint("last", runs[1].parents[1], fixed=True) == runs[1]
    assert find_checkpoint(str(runs[1].parents[1]), new, fixed=False) == runs[1]
    for wanted in ("nowhere.ckpt", str(outputs)):
        with pytest.raises(InputError, match=f"ckpt_path={wanted} does not exist"):
            find_checkpoint(wanted, new, fixed=False)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed in its second epoch."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    stop(folder, 11, "start")
    return folder


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["model.generator.channels=4"], ["model.generator.channels 2 → 4", r"generator\.\S+ \(2,.*\) → \(4,"]),
        (["antialias=bin5"], ["antialias.filter tri3 → bin5"]),  # no weight shows it
        (["model.lr=0.1", "seed=4"], ["model.lr 0.0002 → 0.1", "seed 3 → 4"]),
        (["data.train_images=14"], ["data.train_images 15 → 14", "training images 15 → 14"]),
        (["data.batch_size=4"], [r"images per step \(batch size × processes\) 2 → 4"]),
        (["trainer.precision=bf16-mixed"], ["trainer.precision 32-true → bf16-mixed"]),
        (["+trainer.limit_train_batches=6"], ["trainer.limit_train_batches None → 6"]),
        (
            ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0"],
            ["trainer.accumulate_grad_batches 1 → 2", r"trainer.gradient_clip_val None → 1\.0"],
        ),
        (["+trainer.overfit_batches=6"], [r"trainer.overfit_batches 0\.0 → 6"]),
        (["trainer.max_epochs=1"], ["trainer.max_epochs=1: it is already in epoch 2"]),
    ],
)
def test_what_does_not_fit_is_listed_in_one_line(tmp_path, stopped, options, named):
    with pytest.raises(InputError, match=r"last\.ckpt does not fit this training run: ") as error:
        run(tmp_path / "new", f"ckpt_path={stopped}", *options)
    for each in named:
        assert re.search(each, str(error.value)), each
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()  # nothing was begun


def plain(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("train", ["output_dir=x", *overrides]), resolve=True)


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        (["antialias=polyphase"], ["antialias=none", "antialias.padding_mode=circular"], "antialias.polyphase"),
        (["antialias=none", "antialias.padding_mode=circular"], ["antialias=polyphase"], "antialias.polyphase"),
        (["model.lr=0.1"], ["~model.lr"], "model.lr"),
        ([], ["~model.generator.antialias"], "model.generator.antialias"),
        (["++data.flip=false"], ["~data.flip"], "data.flip"),  # an argument of a parent of the class
        (["+trainer.limit_train_batches=1"], ["+trainer.limit_train_batches=1.0"], "trainer.limit_train_batches"),
        ([], ["~model.lr", "~model.betas", "+model.generator.padding=3", "~data.overlap_offset"], None),
        (["data.twin_reach=8"], ["data.overlap_offset=8"], None),
    ],
)
def test_a_key_that_is_left_out_has_its_default(before, now, named):
    found = [line.partition(" ")[0] for line in changes(plain(*before), plain(*now))]
    assert found[:1] == ([named] if named else [])


def test_what_fits_is_not(tmp_path, stopped):
    options = [
        "trainer.max_epochs=2",
        "callbacks.stability=null",
        "callbacks.last.every_n_train_steps=null",
        "run_name=x",
    ]
    run(tmp_path / "new", f"ckpt_path={stopped}", "logger=tensorboard", "data.val_images=2", *options)
    assert json.loads((tmp_path / "new" / "summary.json").read_text())["steps"] == 2 * BATCHES


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "weights", "pickle"])
def test_other_files_are_refused_by_name(tmp_path, stopped, damage):
    path = tmp_path / "odd.ckpt"
    content = (stopped / "checkpoints" / "last.ckpt").read_bytes()
    if damage == "weights":
        torch.save({"state_dict": {}}, path)
    elif damage == "pickle":
        torch.save({"state_dict": print}, path)
    else:
        weight = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        largest = bytes(max(weight.values(), key=torch.numel).untyped_storage())
        flipped = content.replace(largest, bytes([largest[0] ^ 1]) + largest[1:])
        path.write_bytes({"cut": content[:-100], "empty": b"", "flipped": flipped}[damage])
    with pytest.raises(
        InputError, match=r"odd\.ckpt (cannot be read as a checkpoint|is not a checkpoint to resume from)"
    ) as e:
        run(tmp_path / "new", f"ckpt_path={path}")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("resume.epoch", -5, r"invalid resume\.epoch"),
        ("resume.batch", "x", r"invalid resume\.batch"),
        ("resume.steps", 10**18, r"9 batches in 1 epochs, 1000000000000000000 steps"),
        ("resume.logged", "a", r"invalid resume\.logged"),
        ("resume.random", 5, r"invalid resume\.random"),
        ("resume.loaders.0.seed", "a", r"invalid resume\.loaders\.0\.seed"),
        ("resume.loaders", [], "the places of 0 data loaders, this training has 1"),
        ("optimizer_states", [], "0 optimizer_states of 2 optimizers"),
        ("optimizer_states.0.param_groups", [], r"does not fit: parameters of the optimizers \[\[\], \["),
        ("lr_schedulers.1", 5, r"invalid lr_schedulers\.1"),
        ("config", 5, "invalid config"),
        ("optimizer_states.1.state.0.exp_avg", torch.tensor(torch.nan), r"exp_avg contains NaN"),
    ],
)
def test_a_checkpoint_of_other_values_is_one_line(tmp_path, stopped, place, value, message):
    checkpoint = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    *parts, last = (int(key) if key.isdecimal() else key for key in place.split("."))
    part = checkpoint
    for key in parts:
        part = part[key]
    part[last] = value
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=message):
        run(tmp_path / "new", f"ckpt_path={tmp_path / 'odd.ckpt'}")


def test_last_in_a_sweep_wants_its_folder(monkeypatch):
    arguments = ["train", "-m", "ckpt_path=last", "antialias=none,tri3", "hydra/hydra_logging=none"]
    monkeypatch.setattr(sys, "argv", ["genstab", *arguments])
    with pytest.raises(SystemExit, match=r"genstab: ckpt_path=last in a sweep .*hydra\.sweep\.dir=multirun/DATE/TIME"):
        cli.main()


def several(*options, code=0):
    """Train on several processes by the command."""
    ended, printed = finish_program(start(ROOT / "train.py", *TINY, "trainer=ddp_cpu", *options))
    assert ended == code, printed[-4000:]


@pytest.mark.ddp
def test_three_processes_go_on_with_the_same_bits(tmp_path):
    options = ["trainer.devices=3", "trainer.max_epochs=2", "data.batch_size=1", "data.train_images=23"]
    several(*options, f"hydra.run.dir={tmp_path / 'whole'}")
    killer = "+callbacks.killer={_target_: tests.helpers.killed.Killer, step: %d, place: %s, signum: %d}"
    three = [*options, f"hydra.run.dir={tmp_path / 'three'}"]
    several(*three, killer % (13, "update", signal.SIGTERM), code=143)
    assert place(tmp_path / "three")["batches"] == 14
    assert len(place(tmp_path / "three")["random"]) == 3
    several(*three)
    assert differing(left(tmp_path / "three"), left(tmp_path / "whole")) == []


def test_the_command_stops_and_goes_on(tmp_path, whole):
    options = [option for option in TINY if not option.startswith("ckpt_path")]
    killer = (
        f"{{_target_: tests.helpers.killed.Killer, step: {EVERY + 2}, place: update, signum: {int(signal.SIGINT)}}}"
    )
    code, printed = finish_program(start(ROOT / "train.py", *options, f"+callbacks.killer={killer}"))
    assert (code, printed.count("Traceback")) == (130, 0), printed
    assert "Resuming from " in program(ROOT / "train.py", *options, "ckpt_path=last")
    [done] = Path("outputs").glob("*/*/summary.json")  # the second one's
    for part in ("state_dict", "optimizer_states", "metrics"):
        assert differing(left(done.parent)[part], left(whole)[part]) == []
