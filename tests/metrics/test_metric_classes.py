"""What holds for every metric: batches, copies, checkpoints and a module of half precision change no value."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from genstab import FeatureDistance, ShiftConsistency, ShiftPSNR, SlicedWasserstein, SpectrumError
from genstab.metrics.precision import ImageMean

ONE, OTHER = torch.rand(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))[:, :, :3].unbind(0)
CASES = [
    (ImageMean, (torch.tensor([0.1, 0.6, 0.2]),)),
    *((ShiftPSNR, (ONE, OTHER), reduction) for reduction in ("mean", "worst", "pooled")),
    (SpectrumError, (ONE, OTHER)),
    (SlicedWasserstein, (ONE, OTHER)),
    (FeatureDistance, (ONE, OTHER, (0, 1), (16, 16))),
    (ShiftConsistency, (ONE[:, 0, 0], OTHER[:, 0, 0])),
]


@pytest.mark.parametrize("case", CASES)
def test_batches_copies_and_checkpoints_change_no_value(case):
    kind, arguments, *reduction = case
    options = {"reduction": reduction[0]} if reduction else {}

    def update(metric, start, end):
        metric.update(*(each[start:end] if isinstance(each, Tensor) else each for each in arguments))

    whole, parts, loaded = (kind(**options) for _ in range(3))
    update(whole, 0, 3)
    for start, end in ((2, 3), (0, 0), (0, 2)):  # one of them is empty
        update(parts, start, end)
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-6, atol=0)
    for metric in (whole, loaded):
        metric.persistent(True)
    loaded.load_state_dict(whole.state_dict())
    others = (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), whole.clone(), loaded)
    for metric in (whole, *others):
        update(metric, 1, 2)
        assert metric.compute() == whole.compute()
    whole.reset()
    update(whole, 0, 0)
    assert whole.compute().isnan()


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
