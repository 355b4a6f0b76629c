"""What a batch holds: pairs of one size, the source images, their names, and which count on several processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, default_collate

from genstab.data.paths import hxw
from genstab.errors import InputError


def source_of(batch: Any, key: str = "source") -> Tensor:
    """Return the source images of a batch: `batch[key]` of a dict, the first item of a sequence, or the batch itself.

    Raises:
        InputError: there is no image batch (N, C, H, W) there.

    >>> source_of({"source": torch.zeros(2, 3, 8, 8)}).shape
    torch.Size([2, 3, 8, 8])
    """
    found = batch
    if isinstance(batch, Mapping):
        if key not in batch:
            raise InputError(f"source_key={key!r} is not in the batch, which has {', '.join(map(str, batch))}")
        found = batch[key]
    elif isinstance(batch, Sequence):
        found = batch[0]
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise InputError(f"the source of a batch must be images (N, C, H, W), not {type(found).__name__}")
    return found


def all_gathered(value: Any) -> list[Any]:
    """Return what each process has for `value`, in the order of their ranks; every process must call this.

    >>> all_gathered("a")
    ['a']
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def names_of(batch: Any, positions: Tensor) -> list[str]:
    """Return what the images of a batch are called: `batch["name"]` of a dict that has one for each, else `positions`.

    >>> names_of({"name": ["a.png", "b.png"]}, torch.tensor([4, 5])), names_of(torch.zeros(2, 3), torch.tensor([4, 5]))
    (['a.png', 'b.png'], ['4', '5'])
    """
    found = batch.get("name") if isinstance(batch, Mapping) else None
    if isinstance(found, Tensor):
        found = found.tolist()
    if not isinstance(found, list | tuple) or len(found) != len(positions):
        found = positions.tolist()
    return [str(name) for name in found]


def dataset_positions(loaders: Any, seen: int, batch_length: int, world_size: int = 1, rank: int = 0) -> Tensor:
    """Return where in the dataset the images of one unshuffled validation batch lie; −1 for a repeated one.

    `DistributedSampler` gives rank r the positions r, r + P, r + 2P, … and fills the last round with repetitions, so
    that every process has equally many batches. Counting a repetition would change the metric.

    Args:
        loaders: the validation loader; of a list or a dict of them, the first counts.
        seen: how many images of it this process has seen before this batch.
        batch_length: the batch's number of images.

    Shape: → (batch_length,), integers.

    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(range(5), batch_size=2, sampler=DistributedSampler(range(5), 2, rank=1, shuffle=False))
    >>> [dataset_positions(loader, 2 * i, len(batch), 2, rank=1).tolist() for i, batch in enumerate(loader)]
    [[1, 3], [-1]]
    """
    loader = first_loader(loaders)
    positions = rank + world_size * torch.arange(seen, seen + batch_length)
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        return torch.where(positions < len(sampler.dataset), positions, -1)  # type: ignore[arg-type]  # a Sized dataset
    return positions


def first_loader(loaders: Any) -> Any:
    """Return the first of a list or a dict of loaders, or the loader itself.

    >>> first_loader([1, 2]), first_loader({"a": 3}), first_loader(4)
    (1, 3, 4)
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return loaders[0] if isinstance(loaders, Sequence) else loaders


def stacked(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack a batch; where sizes differ, which only `check=off` lets through, name two that do.

    Raises:
        InputError: pairs of two sizes.
    """
    first = items[0]["source"].shape
    for item in items[1:]:
        if (other := item["source"].shape) != first:
            names = f"{items[0]['name']!r} is {hxw(first[1:])} but {item['name']!r} is {hxw(other[1:])}"
            raise InputError(f"pairs of two sizes in one batch: {names}; set data.load_size")
    return default_collate(items)
