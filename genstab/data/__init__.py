"""From image files to batches of pairs: folders, shards, synthetic façades, augmentation, order."""

from importlib import import_module

# Imported when first asked for, as the public names of `genstab` are; configs name the data modules by these.
_PUBLIC = {
    "ClassData": "genstab.data.folder",
    "FacadesData": "genstab.data.datamodules",
    "FolderData": "genstab.data.folder",
    "PairedData": "genstab.data.datamodules",
    "ShardData": "genstab.data.shards.datamodule",
    "SyntheticData": "genstab.data.datamodules",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'genstab.data' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
