"""What the server of `tests.helpers.commands` imports before it forks: genstab, and what that imports when asked."""

import gc
import importlib
import pkgutil

import torch

import genstab

LATE = [
    "hydra._internal.hydra", "matplotlib.pyplot", "omegaconf._impl", "plotly.graph_objects",
    "pytorch_lightning.loggers", "rich._emoji_codes", "tensorboard", "torch._dynamo", "torch.distributed.launcher.api",
    "torch.profiler._cupti_monitor", "torch.utils.serialization", "torch.utils.tensorboard", "wandb",
    "wandb.apis.public",
]  # fmt: skip

torch.set_num_threads(1)
for found in pkgutil.walk_packages(genstab.__path__, "genstab."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
for name in LATE:
    importlib.import_module(name)
gc.collect()
gc.freeze()  # no collection of a child writes to these pages: they stay shared
