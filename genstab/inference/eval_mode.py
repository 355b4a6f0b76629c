"""Call a model as for a measurement, and leave no trace of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genstab.errors import InputError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
def inference(module: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield `module` as a function of one image batch: eval mode, one precision (no autocast, no TF32), no gradients.

    The mode of every submodule and the random state are put back afterwards. Images are copied, cast to `dtype`, and a
    module whose weights are of another one is called with copies of them in it. What comes out is float32, or float64
    where that is the `dtype`.

    Raises:
        InputError: it is no module, or what it returns is no tensor; another `dtype` than float64, float32, bfloat16
            or float16, or float64 on MPS, which has none.

    >>> dropout = nn.Dropout(0.5)
    >>> with inference(dropout) as generator:
    ...     generator(torch.ones(3)).tolist(), dropout.training
    ([1.0, 1.0, 1.0], False)
    >>> dropout.training
    True
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
        output = functional_call(module, copies, (images,)) if copies else module(images)
        if not isinstance(output, Tensor):
            raise InputError(f"the generator returns a {type(output).__name__}, not a tensor of images")
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


@contextmanager
def value_range(module: nn.Module, least: float, greatest: float) -> Iterator[None]:
    """Let a module whose images go from `least` to `greatest` take and give images in [−1, 1]; by hooks, for a while.

    What a module gives that is no batch of images, such as logits, is left as it is.

    >>> brighter = nn.Threshold(0.5, 0.5)  # of images in [0, 1]: nothing is darker than grey
    >>> with value_range(brighter, 0, 1):
    ...     brighter(torch.tensor([[[[-1.0, 0.5]]]])).tolist()
    [[[[0.0, 0.5]]]]
    """
    middle, half = (least + greatest) / 2, (greatest - least) / 2
    hooks = [
        module.register_forward_pre_hook(lambda _, images: (images[0] * half + middle, *images[1:])),
        module.register_forward_hook(
            lambda _, images, output: (
                (output - middle) / half if isinstance(output, Tensor) and output.ndim == 4 else output
            )
        ),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
