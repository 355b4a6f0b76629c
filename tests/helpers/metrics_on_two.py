"""Update metrics on two processes with uneven shares: `metrics_on_two.py OUT`."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from genstab import FeatureDistance, ShiftConsistency
from genstab.metrics.sliced_wasserstein import SlicedWasserstein
from genstab.metrics.spectrum import SpectrumError

# Images that each process has in each round; it may have none.
SHARES = (((0, 5), (5, 7)), ((7, 8), (8, 8)))


def batches():
    """Feature maps of images and of shifted images, 8 of them, logits, outputs and targets."""
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 4, 5), (3, 4, 5), (3,), (3,), (1, 16, 20), (1, 16, 20)
    return [torch.randn(8, *shape, generator=generator) for shape in shapes]


def measure(start, stop, metrics):
    features, of_shifted, logits, others, output, target = (batch[start:stop] for batch in batches())
    metrics[0].update(features, of_shifted, (1, -2), (8, 9))
    metrics[1].update(logits, others)
    for metric in metrics[2:]:
        metric.update(output, target)


def process(rank, store, out):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics = (FeatureDistance(), ShiftConsistency(), SlicedWasserstein(), SpectrumError())
    for shares in SHARES:
        measure(*shares[rank], metrics)
    values = [metric.compute().item() for metric in metrics]
    Path(f"{out}.{rank}").write_text(json.dumps(values))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(process, (f"{folder}/store", sys.argv[1]), nprocs=2, start_method="fork")
