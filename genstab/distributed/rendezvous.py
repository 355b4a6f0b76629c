"""Processes that torchrun, SLURM or submitit started: the first makes the config of a run, the others get it."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

from lightning_fabric.plugins.environments.lightning import find_free_network_port
from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import PrefixStore, Store, TCPStore

from genstab.errors import InputError

T = TypeVar("T")

# Seconds that the processes wait for each other at the start, and later for a sign of life from the first one.
PATIENCE = 300.0
# Seconds that the first process waits at its end for the others, to which it hosts the store.
FAREWELL = 10.0
POLL = 0.25  # seconds between two questions to the store


class Rendezvous:
    """Where the processes started by torchrun, SLURM or submitit for one training run meet, before they have a config.

    All were started with the same command line. If each composed its own config, each would have its own run folder, by
    its own clock, and its own sweep. So only the first process does, and sends the config of every job that is ready to
    train to the others. Every method raises an `InputError` when another process does not come, ends or hangs.
    """

    def __init__(self, launcher: str, environment: ClusterEnvironment) -> None:
        self.launcher, self.jobs = launcher, 0
        self.rank, self.size = environment.global_rank(), environment.world_size()
        self.store: Store | None = None
        if self.size > 1:
            self.address, self.port = environment.main_address, environment.main_port
            self.store = self._join()
            if self.rank == 0:
                threading.Thread(target=self._beat, daemon=True).start()

    def _join(self) -> Store:
        # torchrun hosts a store itself. Otherwise the first process does, and torch's process group shares it later.
        hosts = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        patience = timedelta(seconds=PATIENCE)
        try:
            self._reach(hosts)
            store = TCPStore(self.address, self.port, None, hosts, patience, wait_for_workers=False, multi_tenant=True)
            prefixed = PrefixStore(f"genstab/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            prefixed.add("joined", 1)
        except (OSError, RuntimeError) as error:  # torch's errors of the network are of the latter
            what = "cannot listen" if hosts else f"cannot reach the first process within {PATIENCE:.0f} s"
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{self.launcher}: {what} at {self.address}:{self.port} (MASTER_ADDR, MASTER_PORT): {reason}"
            ) from error
        return prefixed

    def _reach(self, hosts: bool) -> None:
        """Wait until the address is known and somebody listens there; torch waits too, but prints its stack."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                if hosts:
                    socket.getaddrinfo(self.address, self.port)
                else:
                    socket.create_connection((self.address, self.port), timeout=PATIENCE).close()
                return
            except OSError:
                if time.monotonic() >= until:
                    raise
            time.sleep(POLL)

    def _beat(self) -> None:
        """Show the others that the first process lives, even where torchrun, and not this process, hosts the store."""
        while self.store is not None:
            with suppress(RuntimeError):
                self.store.add("beats", 1)
            time.sleep(PATIENCE / 10)

    def check_size(self, devices: int, nodes: int) -> None:
        """Raise an `InputError` unless a trainer expects as many processes as were started."""
        if devices * nodes != self.size:
            raise InputError(
                f"{self.launcher} started {self.size} process{'es' * (self.size > 1)}, but trainer.devices={devices} "
                f"and trainer.num_nodes={nodes} make {devices * nodes}: with trainer=ddp or trainer=ddp_cpu, devices "
                "are the processes of a node"
            )

    def send_config(self, config: str) -> None:
        """Send the config of a job to the other processes."""
        if self.store is None:
            return
        if not self._holds(lambda store: store.add("joined", 0) >= self.size, PATIENCE):
            came = self._ask(lambda store: store.add("joined", 0))
            raise InputError(
                f"{self.launcher} announced {self.size} processes, but only {came} came within {PATIENCE:.0f} s: "
                "was the command started by srun, on every node?"
            )
        port = find_free_network_port() if self.jobs else None
        self._send({"config": config, "port": port})
        _meet_at(port)

    def received_configs(self) -> Iterator[str]:
        """Yield the configs that the first process sends, until it ends; exit if it failed and reported why."""
        while "config" in (message := self._receive()):
            _meet_at(message["port"])
            yield message["config"]
        if message["failed"]:
            raise SystemExit(1)

    @contextmanager
    def sign_off_on_exit(self) -> Iterator[None]:
        """Tell the first process when this one leaves the context."""
        try:
            yield
        finally:
            with suppress(InputError):
                self._ask(lambda store: store.add("left", 1))

    @contextmanager
    def end_others_on_exit(self) -> Iterator[None]:
        """Let the other processes end when this one, the first, leaves the context."""
        failed = True
        try:
            yield
            failed = False
        except SystemExit as error:
            failed = bool(error.code)
            raise
        finally:
            if self.store is not None:
                self._send({"failed": failed})
                with suppress(InputError):
                    self._holds(lambda store: store.add("left", 0) >= self.size - 1, FAREWELL)
                self.store = None

    def report_failure(self) -> None:
        """Tell the others that the first process reports why this job failed."""
        if self.store is not None:
            self.store.set(f"reported{self.jobs}", "")

    def first_reports(self, seconds: float) -> bool:
        """Return whether the first process reports, within so many seconds, why this job failed."""
        key = f"reported{self.jobs}"
        with suppress(InputError):
            return self._holds(lambda store: store.check([key]), seconds)
        return False

    def _send(self, message: dict) -> None:
        assert self.store is not None
        self.store.set(f"job{self.jobs}", json.dumps(message))
        self.jobs += 1

    def _receive(self) -> dict:
        """Wait as long as the first process lives: it may have data to download and to check."""
        key, beats = f"job{self.jobs}", None
        self.jobs += 1
        while not self._holds(lambda store: store.check([key]), PATIENCE):
            before, beats = beats, self._ask(lambda store: store.add("beats", 0))
            if beats == before:
                raise InputError(f"{self.launcher}: the first process hangs")
        return json.loads(self._ask(lambda store: store.get(key)))

    def _holds(self, condition: Callable[[Store], bool], seconds: float) -> bool:
        """Return whether a condition on the store becomes true within so many seconds."""
        until = time.monotonic() + seconds
        while not (holds := self._ask(condition)) and time.monotonic() < until:
            time.sleep(POLL)
        return holds

    def _ask(self, question: Callable[[Store], T]) -> T:
        """Return the store's answer, from a thread: torch waits without limit for a process that is stopped."""
        store, answers = self.store, []
        assert store is not None

        def ask() -> None:
            with suppress(OSError, RuntimeError):
                # torch would print its stack if nobody listens any more
                socket.create_connection((self.address, self.port), timeout=PATIENCE).close()
                answers.append(question(store))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if not answers:
            raise InputError(f"{self.launcher}: the first process {'hangs' if thread.is_alive() else 'is gone'}")
        return answers[0]


def join_rendezvous() -> Rendezvous | None:
    """Meet the processes that torchrun, SLURM or submitit started with this one; None if it was started alone."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        # on this machine: describe the tasks as torchrun does, which Lightning understands
        job, size, rank = (os.environ[f"SUBMITIT_LOCAL_{name}"] for name in ("JOB_ID", "NTASKS", "GLOBALID"))
        os.environ |= {"TORCHELASTIC_RUN_ID": job, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": "0"}
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(15000 + int(job) % 10000)  # as Lightning makes it of a SLURM job's number
        return Rendezvous("submitit", TorchElasticEnvironment())
    if TorchElasticEnvironment.detect():
        return Rendezvous("torchrun", TorchElasticEnvironment())
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", 1))
        # Lightning wants it, but srun sets it only where --ntasks-per-node was given.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(tasks // nodes))
        return Rendezvous("SLURM", SLURMEnvironment())
    return None


def _meet_at(port: int | None) -> None:
    """Let the next process group meet at this port: the store of the last one still holds that one's addresses."""
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(False)
