"""The norm of gradients, and clipping."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

ALGORITHMS = ("norm", "value")


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together, at least in float32: in float16 it overflows at 65504.

    >>> parameter = torch.zeros(2, dtype=torch.float16)
    >>> parameter.grad = torch.tensor([30000.0, 60000.0], dtype=torch.float16)
    >>> gradient_norm([parameter]).round()
    tensor(67082.)
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    return torch.nn.utils.get_total_norm([each.float() if each.element_size() < 4 else each for each in gradients])


def clip_gradients(parameters: Sequence[Tensor], most: float, algorithm: str = "norm") -> None:
    """Clip gradients in place: `norm` scales all of them if their norm is above `most`, `value` clamps each number."""
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, most)
    else:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, gradient_norm(parameters))
