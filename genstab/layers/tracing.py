"""Sizes while `torch.jit.trace` or `torch.export` records a program, where they are tensors or symbols.

A recorded program has no branch on the size of its input. Where a layer has one, it asks `recording` and takes the way
that fits every size; what depends on a size must be computed with `largest` and `smallest`.
"""

from typing import Any, NoReturn
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn

from genstab.errors import InputError


def recording() -> bool:
    """Return whether a program for images of other sizes is being recorded, by either of torch's ways."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def constant(size: Any) -> int:
    """Return a length that no image changes, such as that of a filter, as a number also while `torch.jit` traces."""
    if not isinstance(size, Tensor):
        return size
    with catch_warnings():
        simplefilter("ignore", torch.jit.TracerWarning)  # that it is recorded as a constant
        return int(size)


def largest(one: Any, other: Any) -> Any:
    """Return the larger of two sizes: integers, symbols or traced tensors."""
    if isinstance(other, Tensor):
        one, other = other, one
    if isinstance(one, Tensor):  # numbers are not made tensors, which `torch.jit` would warn of
        return torch.maximum(one, other) if isinstance(other, Tensor) else one.clamp(min=other)
    return torch.sym_max(one, other)


def smallest(one: Any, other: Any) -> Any:
    """Return the smaller of two sizes."""
    return -largest(-one, -other)


def scalar(size: Any, device: torch.device) -> Tensor:
    """Return a size as a tensor: the exporters of ONNX can divide integers by one."""
    return size.to(device) if isinstance(size, Tensor) else torch.full((), size, device=device)


class TracedModule(nn.Module):
    """Base of modules that `torch.jit.trace` takes and `torch.jit.script` does not."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Raise an `InputError`; `torch.jit.script` calls this before it compiles a network with such a module."""
        name = type(self).__name__
        raise InputError(f"torch.jit.script cannot compile {name}: use torch.jit.trace(network.eval(), images)")
