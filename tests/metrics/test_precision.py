"""A metric in a module of half precision sums as one outside of it."""

import pytest
import torch
from torch import nn

from genstab import FeatureDistance, ShiftConsistency, ShiftPSNR, SlicedWasserstein, SpectrumError
from genstab.metrics.precision import ImageMean

ONE, OTHER = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))[:, :, :3].unbind(0)
CASES = [
    (ImageMean, (torch.tensor([0.1, 0.6]),)),
    *((ShiftPSNR, (ONE, OTHER), reduction) for reduction in ("mean", "worst", "pooled")),
    (SpectrumError, (ONE, OTHER)),
    (SlicedWasserstein, (ONE, OTHER)),
    (FeatureDistance, (ONE, OTHER, (0, 1), (16, 16))),
    (ShiftConsistency, (ONE[:, 0, 0], OTHER[:, 0, 0])),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_a_cast_changes_no_sum(case, dtype):
    kind, arguments, *reduction = case
    options = {"reduction": reduction[0]} if reduction else {}
    alone, held = kind(**options), nn.ModuleDict({"metric": kind(**options)}).to(dtype).to("cpu", dtype)["metric"]
    alone.update(*arguments)
    for _ in range(1 if kind is SlicedWasserstein else 300):  # sums in bfloat16 stop at 256 ones
        held.update(*arguments)
    torch.testing.assert_close(held.compute(), alone.compute(), rtol=1e-4, atol=0)
    held.reset()
    held.update(*arguments)
    torch.testing.assert_close(held.compute(), alone.compute(), rtol=1e-6, atol=0)
