"""Train on the processes of torchrun: `torchrun … train_on_some.py OUT CASES`, the cases in JSON; see `train`."""

import json
import os
import sys

import torch
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader, DistributedSampler

from genstab import AntiAlias, PatchGAN, Pix2Pix, UNet
from genstab.data.datamodules import PairData
from genstab.distributed.ddp import NetworksDDP
from genstab.runtime.loop_state import takes_step
from tests.conftest import Pairs
from tests.training.test_pix2pix import QUIET


class Losses(Callback):
    """Keep what every step logged."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if takes_step(trainer, batch_idx):
            self.steps.append({key: value.item() for key, value in trainer.callback_metrics.items()})


class SomePairs(PairData):
    def __init__(self, images, batch_size, offset=0):
        options = {"crop_size": 32 - offset, "load_size": None, "flip": False, "overlap_offset": offset}
        super().__init__(**options, batch_size=batch_size, num_workers=0)
        self.train_set = Pairs(images)
        self.val_dataloader = None

    def on_after_batch_transfer(self, batch, dataloader_idx):
        torch.manual_seed(self.trainer.global_step)  # the same places of crops on all processes
        return super().on_after_batch_transfer(batch, dataloader_idx)


def train(
    images, batch_size, norm, precision, processes=1, steps=8, own_loader=False, offset=0, accumulate=1, clip=None
):
    """Train without dropout, crops and flips; return weights, buffers and what each step logged."""
    os.environ["PL_GLOBAL_SEED"] = "3"  # of the data's order
    torch.manual_seed(0)
    generator = UNet(1, 3, channels=4, levels=3, norm=norm, dropout=0, antialias=AntiAlias("tri3"))
    options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    discriminator = PatchGAN(1, 3, channels=4, norm=norm)
    model = Pix2Pix(generator, discriminator, equivariance_weight=30.0 * bool(offset), **options)
    losses = Losses()
    options = (
        {"devices": processes, "strategy": NetworksDDP(gradient_as_bucket_view=True), "sync_batchnorm": True}
        if processes > 1
        else {}
    )
    trainer = Trainer(max_steps=steps, max_epochs=-1, precision=precision, callbacks=[losses], **QUIET, **options)
    if own_loader:
        sampler = DistributedSampler(Pairs(images), processes, trainer.global_rank, seed=3)
        trainer.fit(model, DataLoader(Pairs(images), batch_size, sampler=sampler))
    else:
        trainer.fit(model, SomePairs(images, batch_size, offset))
    del os.environ["PL_GLOBAL_SEED"]
    assert all(type(module).__name__ != "SyncBatchNorm2d" for module in model.modules())
    return {"weights": dict(model.named_parameters()), "buffers": dict(model.named_buffers()), "losses": losses.steps}


if __name__ == "__main__":
    out, cases = sys.argv[1:]
    results = [train(**case, processes=int(os.environ["WORLD_SIZE"])) for case in json.loads(cases)]
    torch.save(results, f"{out}.{os.environ['RANK']}")
    torch.distributed.destroy_process_group()
