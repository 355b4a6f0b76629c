"""Train one tiny run again and again in forked children, and kill them: `killed.py FOLDER KILLS SEED`."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Callback

from genstab.cli.main import CONF
from genstab.cli.train import run_train
from genstab.distributed import lost_process
from genstab.runtime import files as whole_files
from genstab.runtime.signals import StopSignals

EPOCHS, BATCHES = 3, 8
STEPS = EPOCHS * BATCHES
EVERY = 3  # batches from one checkpoint to the next
# An odd number of images, crops and flips at random, dropout and a checkpoint within the epoch.
TINY = [
    "model.generator.channels=2", "model.generator.levels=3", "model.discriminator.channels=2", "data.train_images=15",
    "data.val_images=3", "data.size=28", "data.crop_size=24", "data.batch_size=2", "data.val_batch_size=2",
    "data.num_workers=0", "callbacks.stability.shifts=[[0,1]]", "callbacks.stability.margin=2",
    "callbacks.pictures=null", "callbacks.progress=null", "+trainer.enable_progress_bar=false", "logger=csv",
    "trainer=cpu", f"trainer.max_epochs={EPOCHS}", "trainer.log_every_n_steps=2", "seed=3",
    f"callbacks.last.every_n_train_steps={EVERY}", "ckpt_path=last",
]  # fmt: skip
# What of a checkpoint has to be equal, bit for bit.
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "resume", "global_step", "callbacks")


class Killed(BaseException):
    """The end of a process, for tests within one: nothing catches it and nothing is written."""


class Killer(Callback):
    """Strike at a place of one training step: with a signal to the own process, or `Killed` for 0.

    With a `rank`, only one of several processes; with `worker`, not itself, but a worker of its loader.
    """

    def __init__(self, step, place, signum=signal.SIGKILL, rank=None, worker=False):
        self.step, self.place, self.signum, self.rank, self.worker = step, place, signum, rank, worker
        lost_process.GRACE = 5.0  # the first process reports at once, or is the one that was killed

    def hit(self, trainer, place):
        if (place, trainer.global_step) != (self.place, self.step) or self.rank not in (None, trainer.global_rank):
            return
        self.place = None
        if self.worker:
            # a loader's workers are daemons; a program that another test forked may be left, too
            worker = next(child for child in multiprocessing.active_children() if child.daemon)
            os.kill(worker.pid, self.signum)
            return
        if self.signum == 0:
            raise Killed
        os.kill(os.getpid(), self.signum)

    def on_fit_start(self, trainer, pl_module):
        update, fsync = pl_module.update, os.fsync

        def halfway(batch, optimizer_d, optimizer_g, backward, weights):
            losses = []

            def struck(loss):
                losses.append(loss)
                if len(losses) == 2:  # the discriminator is updated and the generator is not
                    self.hit(trainer, "update")
                backward(loss)

            return update(batch, optimizer_d, optimizer_g, struck, weights)

        def struck(descriptor):
            self.hit(trainer, "writing")
            fsync(descriptor)

        pl_module.update = halfway
        if self.place == "writing":
            whole_files.os = type("os", (), {**vars(os), "fsync": staticmethod(struck)})

    def on_train_batch_start(self, trainer, *args):
        self.hit(trainer, "start")

    def on_train_batch_end(self, trainer, *args):
        self.hit(trainer, "end")

    def on_validation_batch_end(self, trainer, *args):
        if not trainer.sanity_checking:
            self.hit(trainer, "validation")

    def on_train_epoch_end(self, trainer, pl_module):
        self.hit(trainer, "epoch")

    def on_train_end(self, trainer, pl_module):
        self.hit(trainer, "after")


def run(folder, *options, kill=None, base=TINY):
    """Train in `folder`, or go on there."""
    if kill is not None:
        step, place, signum = kill
        options = [
            *options,
            f"+callbacks.killer={{_target_: tests.helpers.killed.Killer, step: {step}, place: {place}}}",
        ]
        options = [*options, f"+callbacks.killer.signum={int(signum)}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"output_dir={folder}", *base, *options])
    return run_train(config)


def train(folder, kill=None):
    """Train in a forked child, which has the imports already; return how it ended, as a shell would say it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            run(folder, kill=kill)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left(folder):
    """Return what has to be equal: the last checkpoint, the final metrics and all rows of the log."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    summary = json.loads((folder / "summary.json").read_text())
    metrics = {key: value for key, value in summary.items() if "/" in key or key == "steps"}
    rows = (folder / "csv" / "metrics.csv").read_text().splitlines()
    return {"metrics": metrics, "rows": rows, **{part: checkpoint[part] for part in PARTS}}


def flat(value, name=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from flat(inner, f"{name}/{key}")
    else:
        yield name, value


def differing(found, expected):
    """Return the names of what differs, bit for bit, but for folders and a score that Lightning leaves out."""
    a, b = dict(flat(found)), dict(flat(expected))
    names = [name for name in a.keys() & b.keys() if not _same(a[name], b[name])] + sorted(a.keys() ^ b.keys())
    return [name for name in names if not name.endswith(("path", "dirpath", "current_score", ".ckpt"))]


def _same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def places(draw, kills):
    """Return steps and places to kill at: within steps, at checkpoints, in validations, at the ends of epochs."""
    ends = [BATCHES * (epoch + 1) for epoch in range(EPOCHS)]
    checkpoints = sorted({*range(EVERY, STEPS, EVERY), *ends})
    steps = {"start": range(STEPS), "update": range(STEPS), "end": range(1, STEPS + 1)}
    steps |= {"writing": checkpoints, "validation": ends, "epoch": ends, "after": [STEPS]}
    # every place at least once, the rest within steps
    chosen = [*steps, *draw.choices(["start", "update", "end", "writing"], k=kills - len(steps))]
    return [(draw.choice(steps[place]), place) for place in chosen]


def main(folder, kills, seed):
    torch.set_num_threads(1)
    folder, began = Path(folder), time.perf_counter()
    assert train(folder / "whole") == 0, (folder / "whole.log").read_text()
    expected = left(folder / "whole")
    wrong = []
    for number, (step, place) in enumerate(places(random.Random(int(seed)), int(kills))):
        one = folder / f"run{number}"
        codes = train(one, (step, place, signal.SIGKILL)), train(one)
        log = Path(f"{one}.log").read_text()
        names = differing(left(one), expected) if codes == (-signal.SIGKILL, 0) else [log[-2000:]]
        print(f"killed at {place:10} of step {step:2}: {codes} {names or 'as unbroken'}", flush=True)
        wrong += names
    print(f"{kills} kills in {time.perf_counter() - began:.0f} s")
    assert not wrong


if __name__ == "__main__":
    main(*sys.argv[1:])


@contextmanager
def stop_signals():
    """Note signals as a training run does."""
    signals = StopSignals()
    signals.start()
    try:
        yield signals
    finally:
        signals.stop()
