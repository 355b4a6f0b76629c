"""`genstab train` on a cluster: what SLURM is asked for, its tasks train as one, and go on when they are requeued."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from genstab import InputError
from genstab.cli import main as cli
from genstab.cli.arguments import check_launcher
from genstab.cli.config_errors import refusal
from tests.cli.test_config import TINY_SYNTHETIC
from tests.distributed.test_processes import folders
from tests.helpers import fake_slurm
from tests.helpers.commands import ROOT, Popen, finish, start
from tests.helpers.killed import TINY, differing, left, run, stop_signals
from tests.runtime.test_resume import several

pytestmark = pytest.mark.slow
pytest.importorskip("submitit", reason="needs the extra: pip install 'genstab[slurm]'")
QUIET = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
OPTIONS = [option for option in TINY if not option.startswith("ckpt_path")]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of a SLURM that is none."""
    for key, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the tasks
    return tmp_path / "slurm"


def killer(step, place):
    """Return the option by which a job's time is up at one place of a step."""
    wanted = f"_target_: tests.helpers.killed.Killer, step: {step}, place: {place}, signum: {int(signal.SIGUSR2)}"
    return f"+callbacks.killer={{{wanted}}}"


def train(monkeypatch, *options):
    """Run the command in this process; its jobs are others, forked ones."""
    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(sys, "argv", ["genstab", "train", "-m", *options])
    cli.main()


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            ["hydra/launcher=slurm", "trainer=ddp", "trainer.devices=4", "trainer.num_nodes=3"],
            {"nodes": "3", "ntasks-per-node": "4", "gpus-per-node": "4", "cpus-per-task": "8", "time": "1440"},
        ),
        (["hydra/launcher=slurm"], {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "1"}),
        (
            [
                "hydra/launcher=slurm_cpu", "trainer=ddp_cpu", "hydra.launcher.partition=long",
                "hydra.launcher.timeout_min=60", "antialias=none,tri3",
            ],
            {"nodes": "1", "ntasks-per-node": "2", "partition": "long", "time": "60", "array": "0-1%2"},
        ),
    ],
)  # fmt: skip
def test_what_slurm_is_asked_for(slurm, monkeypatch, options, lines):
    (slurm / "only note").touch()
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)
    message = r"genstab: Job \d+.* has not produced any output \(state: NODE_FAIL\)"
    with pytest.raises(SystemExit, match=message) as error:
        train(monkeypatch, *QUIET, *OPTIONS, *options)
    assert "\n" not in str(error.value)
    (script,) = slurm.glob("*.sh")
    found = fake_slurm.options(script.read_text())
    lines |= {"signal": "USR2@120", "job-name": "train", "open-mode": "append"}
    assert {key: found.get(key) for key in lines} == lines
    assert "requeue" in found  # without a value
    assert ("gpus-per-node" in found) == ("gpus-per-node" in lines)
    assert script.read_text().splitlines()[-1].startswith("srun ")


def weights_and_numbers(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    summary = json.loads((folder / "summary.json").read_text())
    numbers = {key: value for key, value in summary.items() if "/" in key or key == "steps"}
    return {"numbers": numbers, **{key: checkpoint[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}}


@pytest.mark.ddp
def test_tasks_of_slurm_on_two_nodes_train_as_one_and_go_on_bit_for_bit_when_requeued(tmp_path, slurm, monkeypatch):
    options = ["trainer.max_epochs=2", "data.batch_size=1"]
    several(*options, f"hydra.run.dir={tmp_path / 'whole'}")
    sweep = tmp_path / "sweep"
    train(
        monkeypatch, *QUIET, *OPTIONS, "hydra/launcher=slurm_cpu", "trainer=ddp_cpu", "trainer.devices=1",
        "trainer.num_nodes=2", f"hydra.sweep.dir={sweep}", "logger=wandb", killer(13, "update"), *options,
    )  # fmt: skip
    assert len(list(slurm.glob("requeue * done"))) == 1
    assert folders(sweep, "*") == [".submitit", "0", "multirun.yaml"]
    assert len({path.name for path in sweep.glob("0/wandb/offline-run-*/*.wandb")}) == 1  # run-ID.wandb, in two parts
    assert json.loads((sweep / "0" / "summary.json").read_text())["processes"] == 2
    logs = "".join(path.read_text() for path in sweep.glob(".submitit/*/*_log.out"))
    assert logs.count(f"Resuming from {sweep}/0/checkpoints/last.ckpt") == 1
    assert differing(weights_and_numbers(sweep / "0"), weights_and_numbers(tmp_path / "whole")) == []


@pytest.mark.ddp
def test_jobs_of_a_sweep_on_this_machine_train_on_two_tasks_each(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "trainer=ddp_cpu", "logger=wandb"]
    train(monkeypatch, *QUIET, *TINY_SYNTHETIC, *options, "antialias=none,tri3", f"hydra.sweep.dir={tmp_path}/sweep")
    for job, filter in (("0", "none"), ("1", "tri3")):
        summary = json.loads((tmp_path / "sweep" / job / "summary.json").read_text())
        assert (summary["processes"], summary["config"]["antialias"]["filter"]) == (2, filter)
        assert len(folders(tmp_path / "sweep" / job, "wandb/offline-run-*")) == 1


def test_a_task_on_this_machine_goes_on_bit_for_bit_when_its_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run(tmp_path / "whole")
    options = ["hydra/launcher=submitit_local", killer(10, "update"), f"hydra.sweep.dir={tmp_path}/sweep"]
    train(monkeypatch, *QUIET, *OPTIONS, *options)
    (log,) = tmp_path.glob("sweep/.submitit/*/*_log.out")
    assert log.read_text().count("Requeued job ") >= 1
    assert "Resuming from " in log.read_text()
    assert differing(left(tmp_path / "sweep" / "0"), left(tmp_path / "whole")) == []


def test_a_job_that_cannot_be_done_is_one_line_and_so_is_one_with_too_few_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    local = [*QUIET, *OPTIONS, "hydra/launcher=submitit_local"]
    with pytest.raises(SystemExit, match=r"^genstab: data\.size=28 is smaller than crop_size=\(64, 64\)$"):
        train(monkeypatch, *local, "data.crop_size=64", "trainer=ddp_cpu", "hydra.launcher.tasks_per_node=2")
    with pytest.raises(SystemExit, match=r"^genstab: submitit started 1 process, but trainer.devices=2 and .*make 2"):
        train(monkeypatch, *local, "trainer=ddp_cpu")


def test_submitits_signal_counts_after_sigterm_too_and_only_in_its_jobs(monkeypatch):
    for signum in (signal.SIGUSR2, signal.SIGTERM):
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        with stop_signals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signum)
            assert signals.received == signal.SIGUSR2
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    before = signal.getsignal(signal.SIGUSR2)
    with stop_signals():
        assert signal.getsignal(signal.SIGUSR2) == before


def test_a_launcher_without_its_sweep_its_numbers_its_plugin_or_slurm_is_one_line(monkeypatch):
    with pytest.raises(InputError, match=r"hydra/launcher=slurm works only with -m, even for a single"):
        check_launcher(["hydra/launcher=slurm", "trainer=ddp"])
    check_launcher(["hydra/launcher=slurm", "hydra.mode=MULTIRUN"])
    check_launcher(["hydra/launcher=basic"])
    for size in ("trainer.devices=auto", "trainer.devices=-1", "trainer.num_nodes=1,2"):
        with pytest.raises(InputError, match=rf"^{size}: hydra/launcher=slurm needs a number, the same for all jobs$"):
            check_launcher(["-m", "hydra/launcher=slurm", "trainer.devices=4", size])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r'^genstab: Could not detect "srun", are you indeed on a slurm cluster\?$'):
        train(monkeypatch, *QUIET, "hydra/launcher=slurm")
    hidden = "from genstab.cli import arguments, main; arguments.signature_of = lambda target: None; main.main()"
    for launcher in ("slurm", "submitit_local"):
        printed = finish(start("-c", hidden, "train", "-m", f"hydra/launcher={launcher}"))
        needs = f"genstab: hydra/launcher={launcher} needs a plugin of Hydra: pip install 'genstab[slurm]'\n"
        assert printed == (1, needs)


def test_what_submitit_says_of_a_lost_job_is_one_line_with_the_end_of_its_log():
    core = pytest.importorskip("submitit.core.utils")
    log = "-" * 40 + "\nsome\nlines\nslurmstepd: out of memory\n"
    error = core.UncompletedJobError(f"Job 7 (task: 0)\nhas not produced any output\nError stream produced:\n{log}")
    said = "Job 7 (task: 0) has not produced any output Error stream produced:: slurmstepd: out of memory"
    assert refusal(error) == said
    assert refusal(RuntimeError("another one")) is None
