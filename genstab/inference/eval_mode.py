"""Call a model in eval mode and restore its state afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genstab.errors import InputError
from genstab.inference.conventions import ModelError, one_tensor, reason_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def submodule(module: nn.Module, name: str | None) -> nn.Module:
    """Return the submodule `name`, or the module itself for None."""
    try:
        return module if name is None else module.get_submodule(name)
    except AttributeError:
        names = ", ".join(child for child, _ in module.named_children())
        raise InputError(f"generator={name!r} is not a submodule of {type(module).__name__}: {names}") from None


@contextmanager
def inference(module: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield `module` as a function of a batch of images: in eval mode, without gradients, autocast or TF32.

    The mode of every submodule and the random state are restored on exit. Images are copied and cast to `dtype`, and so
    are weights of another type. The output is cast to float32, or to float64 if that is the `dtype`.

    Raises:
        ModelError: the module raised any exception, the message of which it has.
        InputError: `module` is not a module or does not return a tensor; `dtype` is not float64, float32, bfloat16 or
            float16, or is float64 on MPS, which does not support it.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"the generator is a {type(module).__name__}, not a torch.nn.Module")
    tensor = next(chain(module.parameters(), module.buffers()), None)
    device = tensor.device if tensor is not None else torch.device("cpu")
    allowed = DTYPES[1:] if device.type == "mps" else DTYPES
    if dtype not in allowed:
        raise InputError(f"dtype={dtype} is not one of {', '.join(map(str, allowed))}")
    modes = [(part, part.training) for part in module.modules()]
    copies = {
        name: tensor.to(dtype)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.is_floating_point() and tensor.dtype != dtype
    }

    def call(images: Tensor) -> Tensor:
        images = images.to(dtype, copy=True)  # the model may change them in place
        shape = tuple(images.shape)
        try:
            output = functional_call(module, copies, (images,)) if copies else module(images)
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            if "can't allocate memory" in str(error):  # torch has no class for it on CPUs
                raise
            said = reason_of(error)
            raise ModelError(f"the generator cannot take images of shape {shape}: {said}", said) from error
        output = one_tensor(output, images)
        return output.to(torch.float64 if dtype == torch.float64 else torch.float32)

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
    """Disable TF32: its 10 bits of mantissa limit the equivariance that can be measured."""
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]  # not in its stub
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
