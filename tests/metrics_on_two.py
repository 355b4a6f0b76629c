"""Update metrics on two processes with uneven shares: `metrics_on_two.py OUT`."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from genstab import FeatureDistance, ShiftConsistency

# Images that each process has in each round; it may have none.
SHARES = (((0, 5), (5, 7)), ((7, 8), (8, 8)))


def batches():
    """Feature maps of images and of shifted images, 8 of them, and logits."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, *shape, generator=generator) for shape in ((3, 4, 5), (3, 4, 5), (3,), (3,))]


def measure(start, stop, metrics):
    features, of_shifted, logits, others = (batch[start:stop] for batch in batches())
    metrics[0].update(features, of_shifted, (1, -2), (8, 9))
    metrics[1].update(logits, others)


def process(rank, store, out):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics = (FeatureDistance(), ShiftConsistency())
    for shares in SHARES:
        measure(*shares[rank], metrics)
    values = [metric.compute().item() for metric in metrics]
    Path(f"{out}.{rank}").write_text(json.dumps(values))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (f"{folder}/store", sys.argv[1]), nprocs=2)
