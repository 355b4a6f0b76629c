"""How the files were read that a generator was trained on, so that later ones are read alike."""

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from torch import nn

from genstab.data.pairs import check_share
from genstab.data.reading import INTERPOLATIONS, SIDES, parse_range
from genstab.errors import InputError

KEYS = ("value_range", "source_labels", "source_interpolation", "val_share", "val_seed")


def trained_on(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the data of a checkpoint were read with, where that is not the default; empty for other files.

    Raises:
        InputError: it holds something else.
    """
    found = checkpoint.get("data") or {}
    if not isinstance(found, Mapping):
        raise InputError(f"the checkpoint's data={found!r} is not a mapping of options")
    known = {key: found[key] for key in KEYS if key in found}
    labels, interpolation = known.get("source_labels"), known.get("source_interpolation", INTERPOLATIONS[0])
    if not (labels is None or isinstance(labels, int)) or interpolation not in INTERPOLATIONS:
        raise InputError(f"the checkpoint's data={known!r} are not options of reading files")
    check_share(known.get("val_share", 0), known.get("val_seed", 0))
    if (ranges := known.get("value_range")) is not None:
        if not isinstance(ranges, Mapping):
            raise InputError(f"the checkpoint's value_range={ranges!r} is not a range of source and target")
        known["value_range"] = {side: parse_range("value_range", ranges.get(side)) for side in SIDES}
    return known


def read_alike(model: nn.Module, data: MutableMapping[str, Any], given: Collection[str] = ()) -> None:
    """Set options of a config's `data` to those that a generator was trained with, but for those that were `given`.

    A `value_range=auto` that was given means the range that the training found.
    """
    trained, paired = getattr(model, "trained_on", {}), "direction" in data
    for key in trained.keys() & data.keys():
        if key not in given or data[key] == "auto":
            data[key] = trained[key] if key != "value_range" or paired else trained[key]["source"]
    if trained.get("source_labels") and paired and "source_labels" not in given:
        data["source_labels"] = data["source_channels"] = trained["source_labels"]
