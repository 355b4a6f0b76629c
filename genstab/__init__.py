"""Image-to-image models that stay stable when their input moves."""

from genstab.callbacks import ShiftStability as ShiftStability
from genstab.checkpoints import load_generator as load_generator
from genstab.errors import InputError as InputError
from genstab.filters import AntiAlias as AntiAlias
from genstab.filters import BlurPool2d as BlurPool2d
from genstab.metrics import ShiftPSNR as ShiftPSNR
from genstab.metrics import shift_psnr as shift_psnr
from genstab.patchgan import PatchGAN as PatchGAN
from genstab.pix2pix import Pix2Pix as Pix2Pix
from genstab.resnet import ResNetGenerator as ResNetGenerator
from genstab.unet import UNet as UNet

__version__ = "0.1.0"
