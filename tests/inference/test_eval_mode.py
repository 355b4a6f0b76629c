import contextlib
import copy

import pytest
import torch
from torch import nn

from genstab import InputError
from genstab.inference.eval_mode import inference, submodule


def test_inference_leaves_no_trace():
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1), nn.Sequential(nn.Dropout(0.5)).eval())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state, precision = torch.get_rng_state(), torch.backends.cudnn.conv.fp32_precision
    with contextlib.suppress(ZeroDivisionError), inference(module) as generate:
        assert not any(part.training for part in module.modules())
        assert not generate(torch.ones(1, 1, 2, 2, requires_grad=True)).requires_grad
        torch.rand(3)
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        raise ZeroDivisionError  # put back all the same
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.conv.fp32_precision == precision
    assert [part.training for part in module.modules()] == [True, True, True, False, False]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_inference_is_float32_also_for_half_precision_weights_and_under_autocast():
    torch.manual_seed(0)
    module, x = nn.Conv2d(1, 4, 3).to(torch.bfloat16), torch.rand(1, 1, 8, 8)
    with inference(module) as generate:
        output = generate(x)
    assert module.weight.dtype == torch.bfloat16
    torch.testing.assert_close(output, copy.deepcopy(module).float()(x))
    plain = nn.Conv2d(1, 4, 3)
    exact = plain(x)
    with torch.autocast("cpu", torch.bfloat16), inference(plain) as generate:
        assert torch.equal(generate(x), exact)
        assert plain(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inference_in_any_precision(dtype):
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
    before = {key: value.clone() for key, value in module.state_dict().items()}
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    with inference(module, dtype) as generate:
        output = generate(x)
    assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = copy.deepcopy(module).eval().to(dtype)(x.to(dtype))
    torch.testing.assert_close(output, expected.to(output.dtype), rtol=0, atol=0)
    assert module.training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(value.dtype == before[key].dtype for key, value in module.state_dict().items())


def test_what_cannot_be_called_is_named():
    with pytest.raises(InputError, match="generator='net' is not a submodule of Sequential: 0"):
        submodule(nn.Sequential(nn.Tanh()), "net")
    with pytest.raises(InputError, match=r"the generator is a builtin.*, not a torch.nn.Module"), inference(torch.tanh):
        pass
    types = r"dtype=torch.int32 is not one of torch.float64, torch.float32, torch.bfloat"
    with pytest.raises(InputError, match=types), inference(nn.Tanh(), torch.int32):
        pass
