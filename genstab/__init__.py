"""Image-to-image models that stay stable when their input moves."""

from genstab.anchored_noise import AnchoredNoise as AnchoredNoise
from genstab.before import SCRATCH as SCRATCH
from genstab.blur import BlurPool2d as BlurPool2d
from genstab.blur import BlurUnpool2d as BlurUnpool2d
from genstab.callbacks import ShiftStability as ShiftStability
from genstab.checkpoints import load_generator as load_generator
from genstab.consistency import ShiftConsistency as ShiftConsistency
from genstab.errors import InputError as InputError
from genstab.features import FeatureDistance as FeatureDistance
from genstab.filters import AntiAlias as AntiAlias
from genstab.filters import kaiser_taps as kaiser_taps
from genstab.layers import BlurConv2d as BlurConv2d
from genstab.layers import BlurConvTranspose2d as BlurConvTranspose2d
from genstab.layers import BlurUpsample2d as BlurUpsample2d
from genstab.metrics import ShiftPSNR as ShiftPSNR
from genstab.metrics import shift_psnr as shift_psnr
from genstab.models import load_model as load_model
from genstab.patchgan import PatchGAN as PatchGAN
from genstab.pix2pix import Pix2Pix as Pix2Pix
from genstab.polyphase import PolyphaseDown2d as PolyphaseDown2d
from genstab.polyphase import PolyphaseUp2d as PolyphaseUp2d
from genstab.pooling import BlurAvgPool2d as BlurAvgPool2d
from genstab.pooling import MaxBlurPool2d as MaxBlurPool2d
from genstab.resnet import ResNetGenerator as ResNetGenerator
from genstab.sliced_wasserstein import SlicedWasserstein as SlicedWasserstein
from genstab.spectrum import SpectrumError as SpectrumError
from genstab.surgery import antialias as antialias
from genstab.surgery import remove_antialias as remove_antialias
from genstab.unet import UNet as UNet

__version__ = "0.1.0"
