"""Validate a checkpoint on some processes: `validate_on_two.py DEVICES BATCH_SIZE CHECKPOINT IMAGES OUT`."""

import json
import sys
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from genstab import ShiftStability
from genstab.watch import CollapseWatch
from tests.conftest import Pairs, tiny_pix2pix


class Named(Pairs):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "name": f"{index}.png"}


def main(devices, batch_size, checkpoint, images, out):
    model = tiny_pix2pix()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    stability = ShiftStability([(0, 1), (3, -2)], ("circular", "crop", "fractional"), margin=2, images=None)
    trainer = Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp" if int(devices) > 1 else "auto",
        callbacks=[stability, CollapseWatch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.validate(model, DataLoader(Named(int(images)), int(batch_size)), verbose=False)
    results = {
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items()},
        "names": stability.names,
        "tables": {protocol: table.tolist() for protocol, table in stability.tables.items()},
        "pooled": {protocol: pooled.tolist() for protocol, pooled in stability.pooled.items()},
    }
    Path(f"{out}.{trainer.global_rank}").write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo's threads may not outlive the interpreter: a race that aborts


if __name__ == "__main__":
    main(*sys.argv[1:])
