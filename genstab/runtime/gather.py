"""Values of all processes in one list."""

from typing import Any

import torch


def all_gathered(value: Any) -> list[Any]:
    """Return the values of all processes in the order of their ranks; every process must call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
