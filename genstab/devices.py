"""Which devices this machine has, checked before anything starts."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from genstab.errors import InputError


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Check a trainer's accelerator and devices against this machine, before anything starts.

    Raises:
        InputError: more devices than there are, several without a strategy, none.

    >>> check_devices({"accelerator": "cpu", "devices": 0})
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: trainer.devices=0 is not at least 1
    """
    accelerator, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    gpus = torch.cuda.device_count()
    processors = os.cpu_count() or 1
    present = 4 * processors if accelerator == "cpu" else gpus  # a few processes may share a processor
    if isinstance(devices, list):
        wanted, farthest = len(devices), max(devices, default=-1) + 1
    elif str(devices) in ("auto", "-1"):
        wanted = farthest = 1 if accelerator == "cpu" else max(1, gpus)
    elif isinstance(devices, int) or str(devices).isdigit():
        wanted = farthest = int(devices)
    else:
        return  # Lightning's other spellings, such as "0,1"
    if wanted < 1:
        raise InputError(f"trainer.devices={devices} is not at least 1")
    if wanted > 1 and trainer.get("strategy") is None:
        raise InputError(f"trainer.devices={devices} needs several processes: add trainer=ddp or trainer=ddp_cpu")
    if accelerator == "cpu" and farthest > present:
        raise InputError(f"trainer.devices={devices}: this machine has {processors} processors")
    if accelerator in ("gpu", "cuda") and farthest > present:
        raise InputError(
            f"trainer.devices={devices}: this machine has {present} CUDA devices; trainer=ddp_cpu needs none"
        )
