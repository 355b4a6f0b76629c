"""Image-to-image models that stay stable when their input moves."""

from genstab.errors import InputError as InputError
from genstab.inference.checkpoints import load_generator as load_generator
from genstab.inference.load_model import load_model as load_model
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
from genstab.networks.resnet import ResNetGenerator as ResNetGenerator
from genstab.networks.unet import UNet as UNet
from genstab.runtime.before import SCRATCH as SCRATCH
from genstab.training.callbacks.shift_stability import ShiftStability as ShiftStability
from genstab.training.pix2pix import Pix2Pix as Pix2Pix

__version__ = "0.1.0"
