"""From image files to batches of pairs: folders, shards, synthetic façades, augmentation, order."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genstab.data.datamodules import FacadesData as FacadesData
    from genstab.data.datamodules import PairedData as PairedData
    from genstab.data.datamodules import SyntheticData as SyntheticData
    from genstab.data.folder import ClassData as ClassData
    from genstab.data.folder import FolderData as FolderData
    from genstab.data.shards.datamodule import ShardData as ShardData

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

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _PUBLIC:
            raise AttributeError(f"module 'genstab.data' has no attribute {name!r}")
        return getattr(import_module(_PUBLIC[name]), name)
