"""The states of the global random generators of a process, as plain values and tensors."""

import random
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's global generators, and of the CUDA device where it is one.

    They can be saved by `torch.save` and read with `weights_only=True`.
    """
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # what libraries draw from
    states = {
        "torch": torch.get_rng_state(),
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Any], device: torch.device | str = "cpu") -> None:
    """Restore what `random_states` returned; the CUDA state on `device`, if both have one."""
    torch.set_rng_state(states["torch"].cpu())
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if "cuda" in states and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
