"""Ctrl-C, SIGTERM and SLURM's SIGUSR1: noted when they come, obeyed where the training can be continued."""

import os
import signal
import subprocess
from types import FrameType
from typing import Any

# How a program that a signal ended answers, for any shell: 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1.
SIGNALLED = 128


class Stopped(SystemExit):
    """The end of a training that a signal asked for; the program ends with 128 plus the signal's number.

    >>> Stopped(signal.SIGTERM).code
    143
    """

    def __init__(self, signum: int) -> None:
        super().__init__(SIGNALLED + signum)
        self.signum = signum


class StopSignals:
    """Note the first signal in `received`, and let the training come to a point where it can be continued.

    A second Ctrl-C ends the program at once. SIGUSR1 counts in a SLURM job only, where it means that the time is up, as
    SIGUSR2 does in a job that submitit started.

    >>> with StopSignals() as signals:
    ...     os.kill(os.getpid(), signal.SIGTERM)
    ...     signals.received == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.received, self.process = 0, os.getpid()
        self.at_once = False  # set where there is no such point to come to
        self.before: dict[int, Any] = {}

    def start(self) -> None:
        """Take over the signals; in the main thread only, as Python wants it."""
        self.received, self.at_once, self.process = 0, False, os.getpid()
        wanted = [signal.SIGINT, signal.SIGTERM]
        if slurm_job() and hasattr(signal, "SIGUSR1"):
            wanted.append(signal.SIGUSR1)
        if by_submitit():
            wanted.append(requeue_signal())
        try:
            self.before = {signum: signal.signal(signum, self._note) for signum in wanted}
        except ValueError:  # another thread
            self.before = {}

    def stop(self) -> None:
        """Give the signals back."""
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    def __enter__(self) -> "StopSignals":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # a loader's worker, which was forked with this handler
            if signum != signal.SIGINT:  # Ctrl-C reaches everybody, and ours is to say what happens
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        if self.at_once or (self.received and signum == signal.SIGINT):
            raise Stopped(signum)
        # Where another job wants the place, SIGTERM comes first, and then submitit's own, by which it queues again.
        queues = by_submitit() and signum == requeue_signal()
        self.received = signum if queues else self.received or signum


def by_submitit() -> bool:
    """Tell whether submitit started this process, as a task of a job on a cluster or on this machine.

    >>> by_submitit()
    False
    """
    return "SUBMITIT_EXECUTOR" in os.environ


def requeue_signal() -> signal.Signals:
    """Return the signal by which submitit hears that a job's time is up, or that it has to make room.

    >>> requeue_signal() == signal.SIGUSR2
    True
    """
    return getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")


def slurm_job() -> str | None:
    """Return what `scontrol` calls this SLURM job, or None outside of one.

    >>> isinstance(slurm_job(), str | None)
    True
    """
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> str:
    """Put this SLURM job into the queue again; return one line that says whether that worked."""
    job = slurm_job() or ""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM job {job} was not requeued: {error}"
    if done.returncode:
        return f"SLURM job {job} was not requeued: {' '.join((done.stderr or done.stdout).split())}"
    return f"SLURM job {job} is requeued"
