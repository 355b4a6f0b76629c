"""Call a model as for a measurement, and leave no trace of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genstab.errors import InputError


def submodule(module: nn.Module, name: str | None) -> nn.Module:
    """Return the submodule called `name`, or the module itself for None.

    Raises:
        InputError: there is no such submodule.

    >>> submodule(nn.Sequential(nn.Tanh()), "0")
    Tanh()
    """
    try:
        return module if name is None else module.get_submodule(name)
    except AttributeError:
        names = ", ".join(child for child, _ in module.named_children())
        raise InputError(f"generator={name!r} is not a submodule of {type(module).__name__}: {names}") from None


@contextmanager
def inference(module: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield `module` as a function of one image batch: eval mode, float32 (no autocast, no TF32), no gradients.

    The mode of every submodule and the random state are put back afterwards. A module whose weights are not float32 is
    called with float32 copies of them.

    Raises:
        InputError: it is no module, or what it returns is no tensor.

    >>> dropout = nn.Dropout(0.5)
    >>> with inference(dropout) as generator:
    ...     generator(torch.ones(3)).tolist(), dropout.training
    ([1.0, 1.0, 1.0], False)
    >>> dropout.training
    True
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"the generator is a {type(module).__name__}, not a torch.nn.Module")
    modes = [(part, part.training) for part in module.modules()]
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    copies = {
        name: tensor.float()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.is_floating_point() and tensor.dtype != torch.float32
    }

    def call(images: Tensor) -> Tensor:
        output = functional_call(module, copies, (images.float(),)) if copies else module(images.float())
        if not isinstance(output, Tensor):
            raise InputError(f"the generator returns a {type(output).__name__}, not a tensor of images")
        return output.float()

    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        _ieee_float32(),
    ):
        try:
            module.eval()
            yield call
        finally:
            for part, training in modes:
                part.training = training


@contextmanager
def _ieee_float32() -> Iterator[None]:
    """Turn off TF32, whose 10 bits of mantissa would limit how equivariant a generator can look."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]  # not in its stub
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
