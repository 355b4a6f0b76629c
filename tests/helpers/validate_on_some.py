"""Validate a checkpoint on the processes of torchrun: `torchrun … validate_on_some.py CHECKPOINT OUT CASES`.

The cases are pairs (images, batch size) in JSON.
"""

import json
import os
import sys
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from genstab import ShiftStability
from genstab.training.callbacks.collapse import CollapseWatch
from tests.conftest import Pairs, tiny_pix2pix
from tests.training.test_pix2pix import QUIET


class Named(Pairs):
    def __getitem__(self, index):
        return {**super().__getitem__(index), "name": f"{index}.png"}


def validate(checkpoint, images, batch_size, processes=1):
    """Return every metric, and what the callback holds for each shift and image."""
    model = tiny_pix2pix()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    stability = ShiftStability([(0, 1), (3, -2)], ("circular", "crop", "fractional"), margin=2, images=None)
    options = {"devices": processes, "strategy": "ddp"} if processes > 1 else {}
    trainer = Trainer(callbacks=[stability, CollapseWatch()], **QUIET, **options)
    trainer.validate(model, DataLoader(Named(images), batch_size), verbose=False)
    return {
        "metrics": {key: value.item() for key, value in trainer.callback_metrics.items()},
        "names": stability.names,
        "tables": {protocol: table.tolist() for protocol, table in stability.tables.items()},
        "pooled": {protocol: pooled.tolist() for protocol, pooled in stability.pooled.items()},
    }


if __name__ == "__main__":
    checkpoint, out, cases = sys.argv[1:]
    results = [validate(checkpoint, *case, int(os.environ["WORLD_SIZE"])) for case in json.loads(cases)]
    Path(f"{out}.{os.environ['RANK']}").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()  # gloo's threads may not outlive the interpreter: a race that aborts
