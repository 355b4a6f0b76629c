"""Starts the processes of a training on one machine, of which each can see whether the others live."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from genstab.errors import InputError

# Tells the processes that the first one starts which it is: where it is gone, their parent is another.
PARENT = "GENSTAB_PARENT"


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, without its observer: that kills the first process where another one ended, before it can say so.

    Raises:
        InputError: there is no port, or MASTER_ADDR is no address.
    """

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, unless something else did, and call `function`."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._check_meeting()
            os.environ[PARENT] = str(os.getpid())
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def _check_meeting(self) -> None:
        """Say at once what torch would try again and again, with the others waiting for it."""
        address = self.cluster_environment.main_address
        try:
            port = self.cluster_environment.main_port
            socket.getaddrinfo(address, port)
            if self.cluster_environment.node_rank() == 0:
                with socket.socket() as listener:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(("", port))
        except (OSError, OverflowError, ValueError) as error:
            where = f"{address}:{os.environ.get('MASTER_PORT', 'any free port')}"
            raise InputError(
                f"the processes cannot meet at {where} ({error}): without MASTER_ADDR and MASTER_PORT it is a free "
                "port of this machine"
            ) from error

    def failed(self) -> dict[int, int]:
        """Return the exit code of each process that failed, by its rank; negative where a signal killed it."""
        codes = {rank: process.poll() for rank, process in enumerate(self.procs, 1)}
        return {rank: code for rank, code in codes.items() if code}

    def end(self, seconds: float) -> None:
        """Kill the other processes that still live after so many seconds, stopped ones too."""
        until = time.monotonic() + seconds
        for process in self.procs:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
