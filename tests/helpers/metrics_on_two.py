"""Update metrics on two processes with uneven shares: `metrics_on_two.py OUT`."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from genstab import FeatureDistance, ShiftConsistency
from genstab.metrics.kernel_distance import KernelDistance
from genstab.metrics.patch_frechet import PatchFrechet
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
    metrics[2].update(features, of_shifted)
    metrics[3].update(logits, others)
    for metric in metrics[4:]:
        metric.update(output, target)


def every():
    return (
        FeatureDistance(),
        ShiftConsistency(),
        PatchFrechet(3),
        KernelDistance(3),
        SlicedWasserstein(),
        SpectrumError(),
    )


def values(metrics):
    found = [metric.compute() for metric in metrics]
    return [value.item() for each in found for value in (each if isinstance(each, tuple) else (each,))]


def process(rank, store, out):
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metrics = every()
    for shares in SHARES:
        measure(*shares[rank], metrics)
    Path(f"{out}.{rank}").write_text(json.dumps(values(metrics)))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(process, (f"{folder}/store", sys.argv[1]), nprocs=2, start_method="fork")
