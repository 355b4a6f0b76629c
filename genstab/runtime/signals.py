"""Ctrl-C, SIGTERM and SLURM's SIGUSR1: noted on arrival, obeyed at the next point where training can be resumed."""

import os
import signal
import subprocess
from contextlib import suppress
from types import FrameType
from typing import Any

# A signal's exit code is 128 plus its number: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1.
SIGNALLED = 128


class Stopped(SystemExit):
    """The end of a training run after a signal; the exit code of the program is 128 plus the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(SIGNALLED + signum)
        self.signum = signum


class StopSignals:
    """Note the first signal in `received`, so that the training can stop at a point from which it can be resumed.

    A second Ctrl-C ends the program at once. SIGUSR1 is handled in SLURM jobs only, where it means that the time is up,
    and SIGUSR2 in jobs that submitit started.
    """

    def __init__(self) -> None:
        self.received, self.process = 0, os.getpid()
        self.at_once = False  # when there is nothing left to save
        self.before: dict[int, Any] = {}

    def start(self) -> None:
        """Install the handlers."""
        self.received, self.at_once, self.process = 0, False, os.getpid()
        wanted = [signal.SIGINT, signal.SIGTERM]
        if slurm_job() and hasattr(signal, "SIGUSR1"):
            wanted.append(signal.SIGUSR1)
        if by_submitit():
            wanted.append(requeue_signal())
        with suppress(ValueError):  # Python allows it in the main thread only
            self.before = {signum: signal.signal(signum, self._note) for signum in wanted}

    def stop(self) -> None:
        """Restore the handlers."""
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked worker of a data loader
            if signum != signal.SIGINT:  # Ctrl-C reaches all processes; the main one reacts
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        if self.at_once or (self.received and signum == signal.SIGINT):
            raise Stopped(signum)
        # a preempted job gets SIGTERM first, and then submitit's own signal, which requeues it
        queues = by_submitit() and signum == requeue_signal()
        self.received = signum if queues else self.received or signum


def by_submitit() -> bool:
    """Return whether submitit started this process, as a task of a job on a cluster or on this machine."""
    return "SUBMITIT_EXECUTOR" in os.environ


def requeue_signal() -> signal.Signals:
    """Return the signal by which submitit learns that a job's time is up or that it is preempted."""
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")


def slurm_job() -> str | None:
    """Return the id of this SLURM job, as `scontrol` takes it; None outside of a job."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> str:
    """Requeue this SLURM job; return one line that says whether that worked."""
    job = slurm_job() or ""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM job {job} was not requeued: {error}"
    if done.returncode:
        return f"SLURM job {job} was not requeued: {' '.join((done.stderr or done.stdout).split())}"
    return f"SLURM job {job} is requeued"
