"""Validate a checkpoint on some processes: `validate_on_two.py DEVICES BATCH_SIZE CHECKPOINT IMAGES OUT`."""

import json
import sys
from pathlib import Path

import torch
from pytorch_lightning import Trainer

from genstab import ShiftStability
from tests.conftest import pairs_loader, tiny_pix2pix


def main(devices, batch_size, checkpoint, images, out):
    model = tiny_pix2pix()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    trainer = Trainer(
        accelerator="cpu",
        devices=int(devices),
        strategy="ddp" if int(devices) > 1 else "auto",
        callbacks=[ShiftStability([(0, 1), (3, -2)], margin=2, images=None)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.validate(model, pairs_loader(int(images), int(batch_size)), verbose=False)
    if trainer.is_global_zero:
        Path(out).write_text(json.dumps({key: value.item() for key, value in trainer.callback_metrics.items()}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo's threads may not outlive the interpreter: a race that aborts


if __name__ == "__main__":
    main(*sys.argv[1:])
