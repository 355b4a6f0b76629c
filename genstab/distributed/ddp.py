"""Several processes for a module with several networks: each network's gradients are averaged by themselves."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.overrides.distributed import _register_ddp_comm_hook, prepare_for_backward
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor
from torch.distributed import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from genstab.distributed.sync_batchnorm import SyncBatchNorms
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


class NetworksDDP(DDPStrategy):
    """DDP for a `LightningModule` with manual optimisation whose backward passes reach one network each.

    Lightning's DDP takes the module as one network. Every backward pass then has to look for the parameters that it
    does not reach (`find_unused_parameters`), and sends their gradients as well. Here each child of the module with
    parameters to train is a network of its own, and a backward pass sends the gradients of those networks whose
    parameters require some at that time, while it still computes others. `sync_batchnorm` works on CPUs too.

    Args:
        kwargs: those of Lightning's `DDPStrategy` and torch's `DistributedDataParallel`.

    Raises:
        InputError: at the start of a fit, if the module has parameters outside its children or optimises automatically.

    >>> NetworksDDP(gradient_as_bucket_view=True).networks
    []
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.networks: list[DistributedDataParallel] = []

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup(self, trainer: Any) -> None:
        """Set up as Lightning's, with batch norm that is synchronised on CPUs too."""
        if isinstance(self._layer_sync, TorchSyncBatchNorm) and self.root_device.type == "cpu":
            self._layer_sync = SyncBatchNorms()
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Prepare each network by itself; the module stays as it is."""
        module = self.lightning_module
        assert module is not None
        loose = [name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad]
        if loose or module.automatic_optimization:
            what = f"parameters of its own ({', '.join(loose)})" if loose else "automatic optimisation"
            raise InputError(f"NetworksDDP: {type(module).__name__} has {what}: use Lightning's DDPStrategy")
        for child in module.children():
            if any(parameter.requires_grad for parameter in child.parameters()):
                self.networks.append(network := self._setup_model(child))
                if self.root_device.type == "cpu":
                    if self.world_size > 2:  # a sum of two has one order only
                        network.register_comm_hook(None, _mean_in_double)
                else:
                    hook = self._ddp_comm_state, self._ddp_comm_hook, self._ddp_comm_wrapper
                    _register_ddp_comm_hook(network, *hook)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Expect the gradients of the networks that are not frozen now."""
        for network in self.networks:
            if any(parameter.requires_grad for parameter in network.module.parameters()):
                prepare_for_backward(network, closure_loss)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Do nothing: Lightning's would only serve a static graph."""

    def teardown(self) -> None:
        """Let go of the networks' hooks, before the processes part."""
        self.networks.clear()
        super().teardown()


def _mean_in_double(_: None, bucket: GradBucket) -> Future[Tensor]:
    """Average gradients such that the order in which the processes are added does not show.

    It depends on an element's place in the bucket, and that on whether it is the first step since the program began:
    three processes would not go on from a checkpoint bit for bit. It costs twice the bytes.
    """
    gradients = bucket.buffer()
    sums = gradients.double()
    future = torch.distributed.all_reduce(sums, async_op=True).get_future()
    return future.then(lambda _: gradients.copy_(sums / torch.distributed.get_world_size()))
