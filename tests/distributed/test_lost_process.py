"""Processes that die, hang or never come, loaders' workers and ranks: one line, a code, in time, and it can go on."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning import Callback
from torch.utils.data import Dataset

from genstab import InputError
from genstab.data.datamodules import SyntheticData
from genstab.distributed.lost_process import LostProcessError, known
from genstab.runtime import signals as stopping
from tests.helpers.commands import ROOT, finish, holders, start
from tests.helpers.killed import TINY, differing, left, run

# Uneven shares: the last batch of two has one image on each process, or none on one of three.
IMAGES = {2: 11, 3: 14}
LAUNCHERS = ("lightning", "torchrun", "slurm")


class Started:
    """A training run on several processes, started as a user would; what each printed, and what is left of it."""

    def __init__(self, launcher, folder, *options, processes=2, **variables):
        self.folder = folder
        command = [ROOT / "train.py"]
        ranks = [{}]
        if launcher == "torchrun":
            command[:0] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if launcher == "slurm":
            same = {"NTASKS": processes, "NNODES": 1, "NODEID": 0, "JOB_NAME": "train"}
            port = str(find_free_network_port())
            ranks = [
                {**{f"SLURM_{key}": str(value) for key, value in {**same, "PROCID": rank, "LOCALID": rank}.items()},
                 "MASTER_PORT": port}
                for rank in range(processes)
            ]  # fmt: skip
        base = [option for option in TINY if not option.startswith(("data.train_images", "trainer=", "ckpt_path"))]
        several = [f"data.train_images={IMAGES[processes]}", "trainer=ddp_cpu", f"trainer.devices={processes}"]
        several.append("callbacks.last.every_n_train_steps=2")  # three batches an epoch
        sweep = "-m" in options
        command += ["-m"] * sweep + [*base, *several, f"hydra.{'sweep' if sweep else 'run'}.dir={folder}"]
        command += [option for option in options if option != "-m"]
        self.began = time.monotonic()
        self.processes = [start(*command, **variables, **rank) for rank in ranks]

    def end(self, timeout=120):
        """Wait for the end; return the exit codes, and what was printed by all."""
        printed = [process.communicate(timeout=timeout)[0] for process in self.processes]
        self.seconds = time.monotonic() - self.began
        return [process.returncode for process in self.processes], "".join(printed)

    def living(self):
        """Return the processes that belong to it, whoever started them."""
        return [living for process in self.processes for living in holders(process)]

    def all_gone(self, within):
        """Return whether nothing of it lives after so many seconds."""
        until = time.monotonic() + within
        while self.living() and time.monotonic() < until:
            time.sleep(0.1)
        return not self.living()


def said(printed):
    return [line for line in printed.splitlines() if line.startswith("genstab: ")]


def killer(step, place, rank, signum=signal.SIGKILL):
    target = f"_target_: tests.helpers.killed.Killer, step: {step}, place: {place}, signum: {int(signum)}, rank: {rank}"
    return f"+callbacks.killer={{{target}}}"


def hint(folder):
    how = f"the same command resumes from it with ckpt_path=last hydra.run.dir={folder}"
    return f"the last checkpoint is {folder}/checkpoints/last.ckpt, and {how}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a training run on two processes leaves that nobody struck."""
    folder = tmp_path_factory.mktemp("runs") / "2"
    codes, printed = Started("lightning", folder).end()
    assert codes == [0], printed
    return left(folder)


KILLED = "another process of this training run ended; "
BY_NAME = "process {} of {} (counted from 0) was killed (SIGKILL), perhaps because the memory was full; "


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "processes", "rank", "step", "place", "batches"),  # and the batches in the checkpoint that is left
    [
        ("lightning", 3, 2, 6, "validation", 6),
        ("lightning", 2, 0, 7, "start", 6),
        ("torchrun", 2, 1, 5, "update", 4),  # in the last batch, of one image less
        ("slurm", 2, 0, 5, "start", 4),
    ],
)
def test_a_process_is_killed(tmp_path, whole, launcher, processes, rank, step, place, batches):
    folder = tmp_path / "run"
    struck = Started(launcher, folder, killer(step, place, rank), processes=processes)
    codes, printed = struck.end()
    assert struck.all_gone(within=10)
    named = launcher == "lightning" and rank
    (line,) = said(printed)
    assert line == f"genstab: {BY_NAME.format(rank, processes) if named else KILLED}{hint(folder)}"
    assert "Traceback" not in printed.partition("torch/distributed/elastic")[0]  # torchrun's own
    expected = {
        "lightning": [1] if rank else [-9],
        "torchrun": [1],
        "slurm": [-9 if i == rank else 1 for i in range(processes)],
    }
    assert codes == expected[launcher]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["resume"]["batches"] == batches
    if processes == 2:
        codes, printed = Started(launcher, folder, "ckpt_path=last").end()
        assert set(codes) == {0}, printed
        assert differing(left(folder), whole) == []


@pytest.mark.ddp
@pytest.mark.slow
def test_a_process_that_stands_still_is_waited_for_no_longer_than_said(tmp_path):
    wait = "trainer.strategy.timeout.seconds=6"
    stopped = Started("lightning", tmp_path / "run", killer(5, "update", 1, signal.SIGSTOP), wait)
    codes, printed = stopped.end()
    assert codes == [1]
    what = "another process of this training run did not answer within the trainer.strategy.timeout; "
    assert said(printed) == [f"genstab: {what}{hint(tmp_path / 'run')}"]
    assert stopped.all_gone(within=10)  # the one that stood, too


@pytest.mark.ddp
@pytest.mark.slow
def test_sigterm_to_torchrun_saves(tmp_path):
    folder = tmp_path / "run"
    running = Started("torchrun", folder, killer(7, "start", 1, signal.SIGSTOP))  # so that it comes in time
    while len(running.living()) < 3 or not any(_stands(process) for process in running.living()):
        time.sleep(0.1)
    stood = next(process for process in running.living() if _stands(process))
    running.processes[0].terminate()
    time.sleep(1)
    os.kill(stood, signal.SIGCONT)
    began = time.monotonic()
    codes, printed = running.end()
    assert time.monotonic() - began < 20  # torchrun kills after 30
    assert codes == [1]  # torchrun's, after each process's 143
    assert "Stopped after 8 batches." in printed
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["resume"]["batches"] == 8
    assert running.all_gone(within=10)


def _stands(process):
    """Return whether a process is stopped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


@pytest.mark.ddp
@pytest.mark.slow
def test_a_sweep_goes_on_after_a_lost_process(tmp_path):
    sweep = ["-m", "seed=3,4", "trainer.max_epochs=2"]
    codes, printed = Started("lightning", tmp_path / "sweep", *sweep, killer(5, "update", 1)).end()
    assert codes == [1]
    lines = said(printed)
    assert len(lines) == 2
    for job, line in enumerate(lines):
        assert f"{BY_NAME.format(1, 2)}the last checkpoint is {tmp_path}/sweep/{job}/checkpoints/last.ckpt, " in line
        assert line.endswith(f"with ckpt_path=last hydra.sweep.dir={tmp_path}/sweep")


class Spoil(Callback):
    """Let one process meet an image that is not finite."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == 3 and trainer.global_rank == 1:
            batch["source"].fill_(torch.nan)


@pytest.mark.ddp
@pytest.mark.slow
def test_an_update_that_is_bad_on_one_process_is_left_out_on_both(tmp_path):
    options = ["on_nan=skip", "+callbacks.spoil={_target_: tests.distributed.test_lost_process.Spoil}"]
    codes, printed = Started("lightning", tmp_path / "run", *options).end()
    assert codes == [0], printed
    (left_out,) = json.loads((tmp_path / "run" / "summary.json").read_text())["updates_left_out"]
    assert left_out["step"] == 3


# ---------------------------------------------------------------------- the loader's workers

WORKERS = [*TINY, "data.num_workers=2"]


def strike_worker(folder, signum):
    target = f"_target_: tests.helpers.killed.Killer, step: 10, place: start, signum: {int(signum)}, worker: true"
    with pytest.raises(LostProcessError) as error:
        run(folder, f"+callbacks.killer={{{target}}}", base=WORKERS)
    return str(error.value)


@pytest.mark.slow
def test_a_worker_is_killed_and_the_training_goes_on_with_the_same_bits(tmp_path):
    run(tmp_path / "whole", base=WORKERS)
    memory = "perhaps because the memory was full: lower data.num_workers or data.batch_size; "
    for name in ("one", "two"):  # twice in a program: Lightning undoes what torch did to notice it
        began = time.monotonic()
        message = strike_worker(tmp_path / name, signal.SIGKILL).replace(" (Killed)", "")  # where torch knows
        assert time.monotonic() - began < 30
        assert message == f"a worker of the data loader died, {memory}{hint(tmp_path / name)}"
    run(tmp_path / "two", base=WORKERS)
    assert differing(left(tmp_path / "two"), left(tmp_path / "whole")) == []


class Bad(SyntheticData):
    """Training images of which one cannot be had, by an error, or whose workers stop before the first."""

    def __init__(self, how, **kwargs):
        super().__init__(**kwargs)
        self.train_set = BadSet(self.train_set, how)


class BadSet(Dataset):
    def __init__(self, good, how):
        self.good, self.how = good, how

    def __len__(self):
        return len(self.good)

    def __getitem__(self, index):
        if self.how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if index == len(self) - 1:
            raise KeyError("no such image")
        return self.good[index]


@pytest.mark.slow
def test_an_error_in_a_worker_keeps_its_traceback_and_says_how_to_go_on(tmp_path):
    options = [
        "data._target_=tests.distributed.test_lost_process.Bad",
        "+data.how=raise",
        "callbacks.last.every_n_train_steps=1",
    ]
    with pytest.raises(KeyError, match=r"Caught KeyError in DataLoader worker process") as error:
        run(tmp_path / "run", *options, base=WORKERS)
    assert error.value.__notes__ == [f"genstab: {hint(tmp_path / 'run')}"]


BY_HAND = """
from genstab.cli.main import train
from genstab.data import datamodules
from torch.utils.data import _utils

datamodules.TIMEOUT = 2
_utils.MP_STATUS_CHECK_INTERVAL = 0.5  # for which torch waits for the end of each worker
train()
"""
# A /dev/shm of its own, too small for a batch.
SMALL = """
import ctypes, subprocess

if ctypes.CDLL(None).unshare(0x20000):  # mounts of its own
    raise SystemExit("only root can make /dev/shm small")
for mount in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", "size=100k", "tmpfs", "/dev/shm"]):
    subprocess.run(["mount", *mount], check=True)
"""


def alone(program, *options):
    """Train by a program; return its code and what it said."""
    return finish(start("-c", program, *WORKERS, "data.num_workers=1", *options))


@pytest.mark.slow
def test_a_worker_that_stands_still_is_waited_for_no_longer_than_said(tmp_path):
    options = [
        "data._target_=tests.distributed.test_lost_process.Bad",
        "+data.how=stop",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    code, printed = alone(BY_HAND, *options)
    what = "the workers of the data loader returned nothing for 2 s: is the disk responding?; "
    assert said(printed) == [f"genstab: {what}there is no checkpoint yet"]
    assert (code, "Traceback" in printed) == (1, False)


@pytest.mark.slow
def test_shared_memory_that_is_full_is_named(tmp_path):
    code, printed = alone(SMALL + BY_HAND, "data.size=128", "data.crop_size=128", f"hydra.run.dir={tmp_path / 'run'}")
    if "only root" in printed:
        pytest.skip("only root can make /dev/shm small")
    (line,) = said(printed)
    assert line.startswith(
        "genstab: the shared memory of this machine or container (/dev/shm) is full: enlarge it (docker"
    )
    assert line.endswith("; there is no checkpoint yet")
    assert (code, "Traceback" in printed) == (1, False)


# ---------------------------------------------------------------------- where the processes meet


@pytest.mark.slow
def test_the_command_says_in_one_line_that_the_port_is_taken(tmp_path):
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        started = Started("lightning", tmp_path / "run", MASTER_PORT=port)
        codes, printed = started.end()
    assert codes == [1]
    assert "Traceback" not in printed
    (line,) = said(printed)
    assert line.startswith("genstab: the port at which the processes meet (MASTER_PORT) is taken: unset it or choose")


@pytest.mark.parametrize(
    ("error", "text", "missing"),
    [
        ("[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv", "did not answer", True),
        ("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3495", "process .* ended", True),
        ("NCCL communicator was aborted on rank 0", "process .* ended", True),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", "/dev/shm", False),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "loader died", False),
        ("unable to allocate shared memory(shm) for file </torch_7_1>: No space left", "/dev/shm", False),
        ("out of resource: shared memory, Required: 131072, Hardware limit: 101376", None, False),
    ],
)
def test_what_torch_says_is_known(error, text, missing):
    found, team = known(RuntimeError(error))
    assert team is missing
    assert found is None if text is None else re.search(text, found)


def test_a_worker_that_died_before_it_handed_over_its_memory_is_known():
    def resource_sharer():
        raise ConnectionResetError(104, "Connection reset by peer")

    code = resource_sharer.__code__.replace(co_filename="lib/multiprocessing/resource_sharer.py")
    with pytest.raises(ConnectionResetError) as error:
        type(resource_sharer)(code, {})()
    assert known(error.value)[0].startswith("a worker of the data loader died")
    assert known(ConnectionResetError(104, "Connection reset by peer")) == (None, False)  # of anything else


def test_what_ended_for_another_reason_is_not_taken_for_a_lost_process():
    cause = RuntimeError("gloo: Connection closed by peer")
    assert known(stopping.Stopped(signal.SIGTERM)) == (None, False)
    for error in (stopping.Stopped(signal.SIGTERM), ValueError("x")):
        error.__context__ = cause
        assert known(error)[1] is True
    error = KeyError("x")
    assert known(error) == (None, False)
    own = InputError("a.png is truncated")
    own.__cause__ = cause
    assert known(own) == (None, False)
    late = torch.distributed.DistStoreError("Timed out after 5 seconds waiting for clients. 1/2 clients joined.")
    assert known(late) == ("only 1/2 processes of this training run came within the trainer.strategy.timeout", True)
