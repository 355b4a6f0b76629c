"""Processes that torchrun, SLURM or submitit started: the first makes the config of a run, the others get it."""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from queue import Empty, Queue
from threading import Thread
from typing import TypeVar

from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import PrefixStore, Store, TCPStore

from genstab.errors import InputError

T = TypeVar("T")


def in_time(ask: Callable[[], T], seconds: float) -> T:
    """Return what `ask` returns; it is called in a thread, which is left alone where it takes longer.

    Raises:
        TimeoutError: it takes longer.
        Exception: what `ask` raises.

    >>> in_time(lambda: 6 * 7, seconds=1)
    42
    """
    answers: Queue[tuple[T | None, Exception | None]] = Queue()

    def answer() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # for the other thread
            answers.put((None, error))

    Thread(target=answer, daemon=True).start()
    try:
        found, problem = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer for {seconds:.0f} s") from None
    if problem is not None:
        raise problem
    return found  # type: ignore[return-value]  # there is one


def connect(address: str, port: int, seconds: float) -> None:
    """Connect, to see that somebody listens, and go.

    Raises:
        OSError: nobody does, or not within so many seconds.
    """
    socket.create_connection((address, port), timeout=seconds).close()


def reach(address: str, port: int, seconds: float, listening: bool = True) -> None:
    """Wait until there is such an address and, if that is asked, somebody who listens there.

    Raises:
        OSError: there is not, within so many seconds.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            if listening:
                connect(address, port, seconds)
            else:
                socket.getaddrinfo(address, port)
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)
        else:
            return


# Seconds that the processes wait for each other at the start; those of one launcher come within a few.
PATIENCE = 300.0
# Seconds that the first process waits at its end for the others to hear of it.
FAREWELL = 10.0
POLL = 0.25  # seconds from one question to the next


class Team:
    """The processes that torchrun or SLURM started for one training, before they have a config.

    Each started with the same command line. If each composed its own config, each would have its own run folder, by
    its own clock, and its own sweep. So the first process alone does that, and hands the config of every job that is
    ready to train to the others.

    Args:
        launcher: what the processes were started by, as errors name it.
        environment: knows their number, their ranks, and where the first one is.

    Raises:
        InputError: the others cannot be reached.
    """

    def __init__(self, launcher: str, environment: ClusterEnvironment) -> None:
        self.launcher, self.jobs = launcher, 0
        self.rank, self.size = environment.global_rank(), environment.world_size()
        self.store: Store | None = None
        if self.size > 1:
            self.address, self.port = environment.main_address, environment.main_port
            self.store = self._join()

    def _join(self) -> Store:
        # torchrun keeps a store itself. Otherwise the first process does, and torch's process group shares it later.
        keeps = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        prefix = f"genstab/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"

        def join() -> Store:
            patience = timedelta(seconds=PATIENCE)
            made = TCPStore(self.address, self.port, None, keeps, patience, wait_for_workers=False, multi_tenant=True)
            store = PrefixStore(prefix, made)
            store.add("here", 1)
            return store

        try:
            # torch waits, too, but prints its stack meanwhile.
            reach(self.address, self.port, PATIENCE, listening=not keeps)
            return in_time(join, PATIENCE)
        except (OSError, RuntimeError) as error:  # torch's errors of the network, too
            what = "cannot listen" if keeps else f"cannot reach the first process within {PATIENCE:.0f} s"
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{self.launcher}: {what} at {self.address}:{self.port} (MASTER_ADDR, MASTER_PORT): {reason}"
            ) from error

    def check(self, devices: int, nodes: int) -> None:
        """Check that a trainer is made for as many processes as there are.

        Raises:
            InputError: it is not.
        """
        if devices * nodes != self.size:
            raise InputError(
                f"{self.launcher} started {self.size} process{'es' * (self.size > 1)}, but trainer.devices={devices} "
                f"and trainer.num_nodes={nodes} make {devices * nodes}: with trainer=ddp or trainer=ddp_cpu, devices "
                "are the processes of a node"
            )

    def publish(self, config: str) -> None:
        """Hand a job's config to the others.

        Raises:
            InputError: they did not all come.
        """
        if self.store is None:
            return
        if (came := self._wait_for("here", self.size, PATIENCE)) < self.size:
            raise InputError(
                f"{self.launcher} speaks of {self.size} processes, but only {came} came within {PATIENCE:.0f} s: "
                "was the command started by srun, on every node?"
            )
        port = free_port() if self.jobs else None
        self._say({"config": config, "port": port})
        _meet_at(port)

    def configs(self) -> Iterator[str]:
        """Yield the configs that the first process hands out, until it ends.

        Raises:
            InputError: it ended without a word, or stands still.
            SystemExit: it failed, and said why.
        """
        while "config" in (heard := self._listen()):
            _meet_at(heard["port"])
            yield heard["config"]
        if heard["failed"]:
            raise SystemExit(1)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Let the first process know when this one leaves the context."""
        try:
            yield
        finally:
            with suppress(InputError):
                self._ask(lambda store: store.add("gone", 1), FAREWELL)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Let the others end when this process leaves the context."""
        failed = True
        try:
            yield
            failed = False
        except SystemExit as error:
            failed = bool(error.code)
            raise
        finally:
            if self.store is not None:
                self._say({"failed": failed})
                self._wait_for("gone", self.size - 1, FAREWELL)

    def speak(self) -> None:
        """Let the others know that this job failed and that the first process says why."""
        if self.store is not None:
            self.store.set(f"spoke{self.jobs}", "")

    def first_speaks(self, seconds: float) -> bool:
        """Return whether the first process says, within so many seconds, that this job failed."""
        with suppress(InputError):
            return self._hear(f"spoke{self.jobs}", seconds)
        return False

    def _say(self, message: dict) -> None:
        assert self.store is not None
        self.store.set(f"job{self.jobs}", json.dumps(message))
        self.jobs += 1

    def _listen(self) -> dict:
        """Wait as long as the first process lives: it may have data to download and to check."""
        key = f"job{self.jobs}"
        self.jobs += 1
        self._hear(key)
        return json.loads(self._ask(lambda store: store.get(key), PATIENCE))

    def _hear(self, key: str, seconds: float = math.inf) -> bool:
        """Return whether the store has this key within so many seconds."""
        until = time.monotonic() + seconds
        while not (heard := self._ask(lambda store: store.check([key]), min(seconds, PATIENCE))):
            if time.monotonic() >= until:
                break
            time.sleep(POLL)
        return heard

    def _ask(self, question: Callable[[Store], T], seconds: float) -> T:
        """Return the store's answer; torch alone would wait for ever for a process that stands still.

        Raises:
            InputError: no answer within so many seconds, or nobody is there.
        """
        store = self.store
        assert store is not None

        def ask() -> T:
            connect(self.address, self.port, seconds)  # torch prints its stack where nobody listens any more
            return question(store)

        try:
            return in_time(ask, seconds)
        except TimeoutError as error:
            raise InputError(f"{self.launcher}: the first process gave no answer for {seconds:.0f} s") from error
        except (OSError, RuntimeError) as error:
            raise InputError(f"{self.launcher}: the first process ended without a word") from error

    def _wait_for(self, key: str, number: int, seconds: float) -> int:
        assert self.store is not None
        until = time.monotonic() + seconds
        while (came := self.store.add(key, 0)) < number and time.monotonic() < until:
            time.sleep(0.05)
        return came


def team() -> Team | None:
    """Return the processes started together with this one, by torchrun, SLURM or submitit; None if it came by itself.

    >>> team() is None
    True
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        _as_torchrun_would()
        return Team("submitit", TorchElasticEnvironment())
    if TorchElasticEnvironment.detect():
        return Team("torchrun", TorchElasticEnvironment())
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", 1))
        # Lightning wants it, but srun sets it only where --ntasks-per-node was given.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(tasks // nodes))
        return Team("SLURM", SLURMEnvironment())
    return None


def _as_torchrun_would() -> None:
    """Say what torchrun says, which Lightning understands, for the tasks of a job of submitit on this machine."""
    job, tasks, rank = (os.environ[f"SUBMITIT_LOCAL_{name}"] for name in ("JOB_ID", "NTASKS", "GLOBALID"))
    os.environ |= {"TORCHELASTIC_RUN_ID": job, "WORLD_SIZE": tasks, "LOCAL_WORLD_SIZE": tasks, "GROUP_RANK": "0"}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(15000 + int(job) % 10000)  # as Lightning makes it of a SLURM job's number


def free_port() -> int:
    """Return a port of this machine that nobody listens to now.

    >>> 0 < free_port() < 65536
    True
    """
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def _meet_at(port: int | None) -> None:
    """Have the next process group meet there: the addresses of an earlier one stay in the store where that met."""
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(False)
