"""Batch norm over the images of all processes on CPUs, where torch's own does not work."""

from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ALL_BUT_CHANNELS = (0, 2, 3)


class _Normalise(torch.autograd.Function):
    """Normalise by mean and variance over all processes; one all-reduce forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(input.dtype, torch.float32)
        var, mean = torch.var_mean(input.to(dtype), ALL_BUT_CHANNELS, correction=0)
        mean, var = mean.double(), var.double()  # in which the square of a mean can be added and taken off again
        sums = torch.stack([torch.ones_like(mean), mean, var + mean**2]) * (input.numel() // input.shape[1])
        torch.distributed.all_reduce(sums)
        count, mean = sums[0, 0], sums[1] / sums[0]
        var = (sums[2] / sums[0] - mean**2).clamp(min=0)
        ctx.save_for_backward(input, weight, mean.to(dtype), (var + eps).rsqrt().to(dtype), count)
        mean, var = mean.to(dtype), var.to(dtype)
        output = F.batch_norm(input, mean, var, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, var, count)
        return output, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, scale, count = ctx.saved_tensors
        shape = (1, -1, 1, 1)
        normalised = (input - mean.view(shape)) * scale.view(shape)
        own = torch.stack([(grad * normalised).sum(ALL_BUT_CHANNELS), grad.sum(ALL_BUT_CHANNELS)])
        means = own.to(torch.float64, copy=True)
        torch.distributed.all_reduce(means)
        of_product, of_grad = (means / count).to(own.dtype)
        change = grad - of_grad.view(shape) - normalised * of_product.view(shape)
        change = change * (scale if weight is None else scale * weight).view(shape)
        by_weight, by_bias = (None, None) if weight is None else (own[0], own[1])
        return change.to(input.dtype), by_weight, by_bias, None


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
        output, mean, var, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        running_mean, running_var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if running_mean is not None and running_var is not None and batches is not None:  # track_running_stats
            batches.add_(1)
            momentum = 1 / batches.item() if self.momentum is None else self.momentum
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        return output


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
