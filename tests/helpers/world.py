"""What happens to a training run, while it trains."""

import os
import resource
import shutil
import subprocess
from pathlib import Path

from pytorch_lightning import Callback

from genstab.runtime.run_folder import LOCK


def fill(folder):
    """Leave no room on the disk of a folder."""
    descriptor = os.open(Path(folder) / "filling", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (1 << 20, 1 << 12, 1):
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError:
            continue
    os.close(descriptor)


def free(folder):
    (Path(folder) / "filling").unlink()


def protect(folder):
    # Not by hand while a file is open for writing there, as a failing disk does it.
    for descriptor in Path("/proc/self/fd").iterdir():
        if descriptor.exists() and descriptor.resolve().name == LOCK:
            os.dup2(os.open(os.devnull, os.O_RDWR), int(descriptor.name))
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def delete(folder):
    for path in Path(folder).iterdir():
        shutil.rmtree(path)


LIMIT = 2**14


def limit(folder):
    """Let no file of this process be longer than `LIMIT` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def kill_wandb(folder):
    """Kill wandb's service, as a machine without memory does."""
    import wandb

    process = wandb.setup()._connection._proc._process
    process.kill()
    process.wait()


class Happen(Callback):
    """Let something happen to a folder before some training steps: `happens` is {step: function}."""

    def __init__(self, folder, happens):
        self.folder, self.happens = folder, {int(step): name for step, name in happens.items()}

    def on_train_batch_start(self, trainer, *args):
        if name := self.happens.pop(trainer.global_step, None):
            globals()[name](self.folder)
