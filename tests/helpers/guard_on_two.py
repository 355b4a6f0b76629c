"""Train on two processes, one of which meets a bad image: `guard_on_two.py ON_NAN OUT`."""

import json
import sys
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader

from genstab.training.callbacks.finite_guard import FiniteGuard, NotFiniteError
from tests.conftest import Pairs, tiny_pix2pix

BAD = 5  # of the second process: each has every other image, in order


class Broken(Pairs):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "source": item["source"] * (torch.nan if index == BAD else 1), "name": f"{index}.png"}


def main(on_nan, out):
    model, guard = tiny_pix2pix(), FiniteGuard(on_nan)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(find_unused_parameters=True),
        max_epochs=1,
        callbacks=[guard],
        log_every_n_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    share = range(trainer.global_rank, 16, 2)
    said = ""
    try:
        trainer.fit(model, DataLoader(Broken(16), 1, sampler=share))
    except NotFiniteError as error:
        said = str(error)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).double()
    found = {"said": said, "left_out": guard.left_out, "weights": weights.sum().item(), "steps": trainer.global_step}
    Path(f"{out}.{trainer.global_rank}").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
