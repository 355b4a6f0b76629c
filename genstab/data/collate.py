"""Batches: pairs collated, and the source images and names in a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from genstab.data.paths import hxw
from genstab.errors import InputError


def source_of(batch: Any, key: str = "source") -> Tensor:
    """Return the source images of a batch: `batch[key]` of a dict, the first of a sequence, or the batch itself."""
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


def names_of(batch: Any, positions: Tensor) -> list[str]:
    """Return the names of the images of a batch: `batch["name"]` if there is one for each image, else `positions`."""
    found = batch.get("name") if isinstance(batch, Mapping) else None
    if isinstance(found, Tensor):
        found = found.tolist()
    if not isinstance(found, list | tuple) or len(found) != len(positions):
        found = positions.tolist()
    return [str(name) for name in found]


def collate_pairs(items: list[dict[str, Any]], mixed: bool = False) -> dict[str, Any]:
    """Collate pairs to a batch. If `mixed`, images of several sizes become lists, else an error names two of them."""
    first = items[0]["source"].shape
    for item in items[1:]:
        if (other := item["source"].shape) != first:
            if mixed:
                images = {key: [item.pop(key) for item in items] for key in ("source", "target")}
                return {**default_collate(items), **images}
            names = f"{items[0]['name']!r} is {hxw(first[1:])} but {item['name']!r} is {hxw(other[1:])}"
            raise InputError(f"pairs of two sizes in one batch: {names}; set data.val_batch_size=1 or data.load_size")
    return default_collate(items)
