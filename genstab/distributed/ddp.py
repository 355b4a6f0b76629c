"""DDP for a module of several networks: the gradients of each network are averaged separately."""

import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.overrides.distributed import prepare_for_backward
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy

# private: Lightning has no public way to leave out its observer of processes, see `Launcher`
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor
from torch.distributed import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from genstab.distributed.sync_batchnorm import SyncBatchNorms
from genstab.errors import InputError


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, without its observer, which kills the first process when another one ended: it could report nothing.

    On CPUs it is not needed: gloo raises an error in every process, and `report_lost_process` ends them.
    """

    def launch(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Start the other processes, unless something else did, and call `function`."""
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()  # which sets LOCAL_RANK: Lightning then starts and observes nothing
        return super().launch(function, *args, **kwargs)

    def lost_process(self, seconds: float) -> str | None:
        """Return which of the other processes failed and how, once one did; None if none did within so many seconds."""
        until = time.monotonic() + seconds
        while True:
            for rank, process in enumerate(self.procs, 1):
                if code := process.poll():
                    how = f"ended with code {code}" if code > 0 else f"was killed ({signal.Signals(-code).name})"
                    memory = ", perhaps because the memory was full" if code == -signal.SIGKILL else ""
                    return f"process {rank} of {self.num_processes} (counted from 0) {how}{memory}"
            if time.monotonic() >= until:
                return None
            time.sleep(0.1)


class NetworksDDP(DDPStrategy):
    """DDP for a `LightningModule` with manual optimization whose backward passes reach one network each.

    Lightning's DDP wraps the whole module, so that every backward pass has to search for parameters without a gradient
    (`find_unused_parameters`) and sends theirs too. Here each child of the module with trainable parameters is wrapped
    separately, and a backward pass sends the gradients of those networks whose parameters require them at that time.
    `sync_batchnorm` works on CPUs too.

    Args:
        kwargs: those of Lightning's `DDPStrategy` and torch's `DistributedDataParallel`.

    Raises:
        InputError: at the start of a fit, if the module has parameters outside its children or automatic optimization.

    >>> NetworksDDP(gradient_as_bucket_view=True).networks
    []
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.networks: list[DistributedDataParallel] = []

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if self.root_device.type == "cpu" and self.cluster_environment is not None:
            self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup(self, trainer: Any) -> None:
        """Set up, with batch norm that is synchronized on CPUs too."""
        if isinstance(self._layer_sync, TorchSyncBatchNorm) and self.root_device.type == "cpu":
            self._layer_sync = SyncBatchNorms()
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Wrap each network; the module stays as it is."""
        module = self.lightning_module
        assert module is not None
        loose = [name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad]
        if loose or module.automatic_optimization:
            what = f"parameters of its own ({', '.join(loose)})" if loose else "automatic optimization"
            raise InputError(f"NetworksDDP: {type(module).__name__} has {what}: use Lightning's DDPStrategy")
        for child in module.children():
            if any(parameter.requires_grad for parameter in child.parameters()):
                self.networks.append(network := self._setup_model(child))
                if self.root_device.type == "cpu":
                    if self.world_size > 2:  # a sum of two has one order only
                        network.register_comm_hook(None, _mean_in_double)
                elif self._ddp_comm_hook is not None:
                    wrap = self._ddp_comm_wrapper or (lambda hook: hook)
                    network.register_comm_hook(self._ddp_comm_state, wrap(self._ddp_comm_hook))

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Expect the gradients of the networks that are not frozen now."""
        for network in self.networks:
            if any(parameter.requires_grad for parameter in network.module.parameters()):
                prepare_for_backward(network, closure_loss)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Do nothing: Lightning needs this for a static graph only."""

    def teardown(self) -> None:
        """Drop the wrapped networks, before the process group is destroyed."""
        self.networks.clear()
        super().teardown()


def _mean_in_double(_: None, bucket: GradBucket) -> Future[Tensor]:
    """Average gradients in float64, so that the order of the processes in the sum does not change the result.

    That order depends on where an element lies in the bucket, and the buckets are rebuilt after the first step of a
    program: three processes would not resume bit for bit. This sends twice the bytes.
    """
    gradients = bucket.buffer()
    sums = gradients.double()
    future = torch.distributed.all_reduce(sums, async_op=True).get_future()
    return future.then(lambda _: gradients.copy_(sums / torch.distributed.get_world_size()))
