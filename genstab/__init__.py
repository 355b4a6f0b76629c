"""Image-to-image models that stay stable when their input moves."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from genstab.errors import InputError as InputError
    from genstab.inference.load_model import load_generator as load_generator
    from genstab.inference.load_model import load_model as load_model
    from genstab.layers import surgery as surgery
    from genstab.layers.anchored_noise import AnchoredNoise as AnchoredNoise
    from genstab.layers.blur import BlurPool2d as BlurPool2d
    from genstab.layers.blur import BlurUnpool2d as BlurUnpool2d
    from genstab.layers.conv import BlurConv2d as BlurConv2d
    from genstab.layers.conv import BlurConvTranspose2d as BlurConvTranspose2d
    from genstab.layers.conv import BlurUpsample2d as BlurUpsample2d
    from genstab.layers.filters import AntiAlias as AntiAlias
    from genstab.layers.filters import kaiser_taps as kaiser_taps
    from genstab.layers.polyphase import PolyphaseDown2d as PolyphaseDown2d
    from genstab.layers.polyphase import PolyphaseUp2d as PolyphaseUp2d
    from genstab.layers.pooling import BlurAvgPool2d as BlurAvgPool2d
    from genstab.layers.pooling import MaxBlurPool2d as MaxBlurPool2d
    from genstab.layers.surgery import antialias as antialias
    from genstab.layers.surgery import remove_antialias as remove_antialias
    from genstab.metrics.consistency import ShiftConsistency as ShiftConsistency
    from genstab.metrics.feature_distance import FeatureDistance as FeatureDistance
    from genstab.metrics.shift_psnr import ShiftPSNR as ShiftPSNR
    from genstab.metrics.shift_psnr import shift_psnr as shift_psnr
    from genstab.metrics.sliced_wasserstein import SlicedWasserstein as SlicedWasserstein
    from genstab.metrics.spectrum import SpectrumError as SpectrumError
    from genstab.networks.patchgan import PatchGAN as PatchGAN
    from genstab.networks.patchgan import PixelGAN as PixelGAN
    from genstab.networks.resnet import ResNetGenerator as ResNetGenerator
    from genstab.networks.unet import UNet as UNet
    from genstab.training.callbacks.shift_stability import ShiftStability as ShiftStability
    from genstab.training.pix2pix import Pix2Pix as Pix2Pix

# Where each public name is, imported when it is first asked for (PEP 562): `import genstab` alone imports no torch.
_PLACES = {
    "errors": ["InputError"],
    "inference.load_model": ["load_generator", "load_model"],
    "layers.anchored_noise": ["AnchoredNoise"],
    "layers.blur": ["BlurPool2d", "BlurUnpool2d"],
    "layers.conv": ["BlurConv2d", "BlurConvTranspose2d", "BlurUpsample2d"],
    "layers.filters": ["AntiAlias", "kaiser_taps"],
    "layers.polyphase": ["PolyphaseDown2d", "PolyphaseUp2d"],
    "layers.pooling": ["BlurAvgPool2d", "MaxBlurPool2d"],
    "layers.surgery": ["antialias", "remove_antialias"],
    "metrics.consistency": ["ShiftConsistency"],
    "metrics.feature_distance": ["FeatureDistance"],
    "metrics.shift_psnr": ["ShiftPSNR", "shift_psnr"],
    "metrics.sliced_wasserstein": ["SlicedWasserstein"],
    "metrics.spectrum": ["SpectrumError"],
    "networks.patchgan": ["PatchGAN", "PixelGAN"],
    "networks.resnet": ["ResNetGenerator"],
    "networks.unet": ["UNet"],
    "training.callbacks.shift_stability": ["ShiftStability"],
    "training.pix2pix": ["Pix2Pix"],
}
_PUBLIC = {name: f"genstab.{module}" for module, names in _PLACES.items() for name in names}
# A public module, and those of version 0.1 that stand in the `_target_` of its configs.
_MODULES = {
    "surgery": "genstab.layers.surgery",
    "csv_log": "genstab.loggers.csv_log",
    "estimate": "genstab.training.callbacks.time_left",
    "folder": "genstab.data.folder",
    "guards": "genstab.training.callbacks.finite_guard",
    "last_checkpoint": "genstab.runtime.last_checkpoint",
    "pictures": "genstab.training.callbacks.pictures",
    "shard_data": "genstab.data.shards.datamodule",
    "strategy": "genstab.distributed.ddp",
    "watch": "genstab.training.callbacks.collapse",
}

__all__ = ["__version__", *_PUBLIC, "surgery"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name, or a module of version 0.1, when it is first asked for."""
        if name in _PUBLIC:
            value = getattr(import_module(_PUBLIC[name]), name)
        elif name in _MODULES:
            value = import_module(_MODULES[name])
        else:
            raise AttributeError(f"module 'genstab' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
