"""Synchronised batch norm on some processes: `norm_on_some.py PROCESSES OUT`."""

import sys

import torch
from torch import nn

from genstab.distributed.sync_batchnorm import SyncBatchNorms

SHARES = (3, 1, 2)  # images of each process


def run(network, images, steps=2):
    """Two forward passes before each backward one; return outputs, gradients and buffers."""
    images = images.clone().requires_grad_()
    for _ in range(steps):
        output = network(images)
        again = network(images.flip(3) * 2 + 1)
    (output.sin() + again.cos() ** 2).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return [output.detach(), again.detach(), images.grad], gradients, list(network.buffers())


def network(momentum=0.1, affine=True):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=momentum, affine=affine)
    return nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU()).double()


CASES = ({}, {"momentum": None}, {"affine": False})


def images(processes):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sum(SHARES[:processes]), 2, 5, 4, generator=generator, dtype=torch.float64) + 100


def main(rank, processes, out):
    torch.distributed.init_process_group("gloo", f"file://{out}.store", rank=rank, world_size=processes)
    mine = images(processes).split(SHARES[:processes])[rank]
    results = [run(SyncBatchNorms().apply(network(**case)), mine) for case in CASES]
    torch.save(results, f"{out}.{rank}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    processes, out = int(sys.argv[1]), sys.argv[2]
    torch.multiprocessing.start_processes(main, (processes, out), processes, start_method="fork")
