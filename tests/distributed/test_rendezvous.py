"""Processes of torchrun and SLURM: who makes the config, who gets it, and what is said when one is missing."""

import os
import socket
import threading
import time

import pytest
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from genstab import InputError
from genstab.distributed import rendezvous
from genstab.distributed.rendezvous import Rendezvous, join_rendezvous


class Environment:
    """What a launcher says, without one."""

    main_address = "127.0.0.1"

    def __init__(self, rank, size, port):
        self.rank, self.size, self.main_port = rank, size, port

    def global_rank(self):
        return self.rank

    def world_size(self):
        return self.size


@pytest.fixture
def port(monkeypatch):
    for name in ("MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "")  # put back what the second job changes
        monkeypatch.delenv(name)
    return find_free_network_port()


class Follower(threading.Thread):
    """Rank 1, 2, …, in a thread."""

    def __init__(self, rank, size, port):
        super().__init__(daemon=True)
        self.environment, self.heard, self.error = Environment(rank, size, port), [], None
        self.start()

    def run(self):
        try:
            processes = Rendezvous("SLURM", self.environment)
            with processes.sign_off_on_exit():
                for config in processes.received_configs():
                    self.heard.append(config)
        except (InputError, SystemExit) as error:
            self.error = error


def test_the_others_get_every_config_and_end_with_the_first(port):
    followers = [Follower(rank, 3, port) for rank in (1, 2)]
    first = Rendezvous("SLURM", Environment(0, 3, port))
    with first.end_others_on_exit():
        first.send_config("a: 1")
        assert "MASTER_PORT" not in os.environ  # the first job meets where the launcher says
        first.send_config("a: 2")
        assert int(os.environ["MASTER_PORT"]) != port
    for follower in followers:
        follower.join(10)
        assert follower.heard == ["a: 1", "a: 2"]
        assert follower.error is None


@pytest.mark.parametrize(("end", "code"), [(InputError("no"), 1), (SystemExit(0), None), (SystemExit("no"), 1)])
def test_the_others_end_as_the_first_did_and_leave_the_message_to_it(port, end, code):
    follower = Follower(1, 2, port)
    first = Rendezvous("SLURM", Environment(0, 2, port))
    with pytest.raises(type(end)), first.end_others_on_exit():
        raise end
    follower.join(10)
    assert follower.heard == []
    assert getattr(follower.error, "code", None) == code


def test_who_does_not_come_is_missed_in_one_line(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.3)
    monkeypatch.setattr(rendezvous, "FAREWELL", 0.1)
    first = Rendezvous("SLURM", Environment(0, 4, port))
    began = time.monotonic()
    message = r"SLURM announced 4 processes, but only 1 came within 0 s: was the command started by srun"
    with pytest.raises(InputError, match=message), first.end_others_on_exit():
        first.send_config("a: 1")
    assert time.monotonic() - began < 5


def test_a_first_process_that_cannot_be_reached_or_dies_is_named(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.3)
    with pytest.raises(InputError, match=rf"SLURM: cannot reach the first process within 0 s at 127.0.0.1:{port}"):
        Rendezvous("SLURM", Environment(1, 2, port))
    first = Rendezvous("SLURM", Environment(0, 2, port))
    follower = Follower(1, 2, port)
    while first.store.add("joined", 0) < 2:
        time.sleep(0.05)
    time.sleep(0.5)  # longer than its patience: a first process that lives may take its time
    assert follower.is_alive()
    first.store = None  # and its host with it
    follower.join(10)
    assert str(follower.error) == "SLURM: the first process is gone"


def test_a_trainer_for_another_number_of_processes_is_refused():
    alone = Rendezvous("torchrun", Environment(0, 1, 1))
    alone.check_size(1, 1)
    alone.send_config("nobody listens")
    with pytest.raises(InputError, match=r"torchrun started 1 process, but trainer.devices=2 and trainer.num_nodes=3"):
        alone.check_size(2, 3)


def test_slurm_and_torchrun_are_known_by_their_variables(monkeypatch):
    for name, value in {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "interactive"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    assert join_rendezvous() is None
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert join_rendezvous().launcher == "SLURM"
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert join_rendezvous().launcher == "torchrun"  # also inside SLURM


@pytest.mark.parametrize("rank", [0, 1])
def test_an_address_that_nobody_knows_is_named(port, monkeypatch, rank):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.3)
    environment = Environment(rank, 2, port)
    environment.main_address = "no-such-host.invalid"
    with pytest.raises(InputError, match=rf"no-such-host\.invalid:{port} \(MASTER_ADDR, MASTER_PORT\): .*[Nn]ame"):
        Rendezvous("SLURM", environment)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=rf"SLURM: cannot listen at 127\.0\.0\.1:{port} .*address already in use"):
            Rendezvous("SLURM", Environment(0, 2, port))


def test_the_others_hear_that_the_first_one_reports_for_them(port, monkeypatch):
    class Failing(Follower):
        def run(self):
            processes = Rendezvous("SLURM", self.environment)
            with processes.sign_off_on_exit():
                for config in processes.received_configs():
                    self.heard += [(config, processes.first_reports(0.2), processes.first_reports(5))]

    follower = Failing(1, 2, port)
    first = Rendezvous("SLURM", Environment(0, 2, port))
    with first.end_others_on_exit():
        first.send_config("a: 1")
        time.sleep(1)
        first.report_failure()
        first.send_config("a: 2")  # the next job of a sweep
        first.report_failure()
    follower.join(10)
    assert [(config, at_last) for config, _, at_last in follower.heard] == [("a: 1", True), ("a: 2", True)]
    assert follower.heard[0][1] is False


def test_a_first_process_that_hangs_is_not_waited_for_without_limit(port, monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.3)
    first = Rendezvous("SLURM", Environment(0, 2, port))
    follower = Follower(1, 2, port)
    host = first.store
    first.store = None  # its heart stops, but the store answers, as torchrun's does
    follower.join(10)
    assert str(follower.error) == "SLURM: the first process hangs"
    assert host is not None


def test_a_store_that_does_not_answer_is_not_waited_for_without_limit(port, monkeypatch):
    first = Rendezvous("SLURM", Environment(0, 2, port))
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.3)
    with pytest.raises(InputError, match="SLURM: the first process hangs"):
        first._ask(lambda _: time.sleep(1))
