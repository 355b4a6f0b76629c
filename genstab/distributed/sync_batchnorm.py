"""Batch norm over the images of all processes on CPUs, where torch's own does not work."""

from typing import Any

import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn


class _SumOfAll(torch.autograd.Function):
    """The sum over all processes, forward and backward; that of `torch.distributed.nn` is deprecated."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _SumOfAll.forward(ctx, grad)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics in training are those of all processes' images, on CPUs.

    Gradients are those of the sum of the processes' losses, of which DDP takes the mean over processes. In eval mode,
    and with one process, it is plain batch norm.

    Shape: (N, C, H, W) → (N, C, H, W); N may differ from process to process.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        if not (self.training and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        images = input.to(torch.promote_types(input.dtype, torch.float32))
        # in float64, where the square of a mean can be added and taken off again
        var, mean = (each.double() for each in torch.var_mean(images, (0, 2, 3), correction=0))
        sums = torch.stack([torch.ones_like(mean), mean, var + mean**2]) * (images.numel() // images.shape[1])
        count, *sums = _SumOfAll.apply(sums)
        mean, squares = (each / count for each in sums)
        var = (squares - mean**2).clamp(min=0)
        scale = (var + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        mean_, scale_ = (each.to(images.dtype).view(1, -1, 1, 1) for each in (mean, scale))
        output = (images - mean_) * scale_ + (0 if self.bias is None else self.bias.view(1, -1, 1, 1))
        running_mean, running_var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if running_mean is not None and running_var is not None and batches is not None:  # track_running_stats
            batches.add_(1)
            momentum = 1 / batches.item() if self.momentum is None else self.momentum
            running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).detach().to(running_var.dtype), momentum)
        return output.to(input.dtype)


class SyncBatchNorms(LayerSync):
    """What Lightning's `sync_batchnorm=True` does on GPUs, for the `nn.BatchNorm2d` of a module on CPUs."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise every batch norm; parameters and buffers stay the same tensors."""
        return _changed(model, nn.BatchNorm2d, SyncBatchNorm2d)

    def revert(self, model: nn.Module) -> nn.Module:
        """Make them plain again."""
        return _changed(model, SyncBatchNorm2d, nn.BatchNorm2d)


def _changed(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> nn.Module:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new  # both have the same state: only the forward differs
    return model
