"""Layers and networks compiled, in every precision, deterministic, copied, without memory, and on other devices."""

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn

from genstab import AntiAlias, BlurConv2d, BlurConvTranspose2d, BlurPool2d, MaxBlurPool2d, ResNetGenerator, UNet
from genstab.layers.conv import BlurUpsample2d
from genstab.layers.filters import PADDING_MODES
from genstab.layers.pooling import BlurAvgPool2d

# Each takes two channels; in brackets what is worth a case of its own.
LAYERS = {
    "blur": lambda: BlurPool2d("bin5", 1),
    "blurpool": lambda: BlurPool2d("tri3", 2),
    "blurpool (circular)": lambda: BlurPool2d("bin4", (3, 1), "circular", mirrored=True),
    "conv (pre)": lambda: BlurConv2d(2, 3, 4, 2, 1),
    "conv (post)": lambda: BlurConv2d(2, 3, 4, 2, 1, placement="post", filter="bin4"),
    "conv (post, circular)": lambda: BlurConv2d(2, 3, 3, 2, 1, placement="post", padding_mode="circular"),
    "transposed": lambda: BlurConvTranspose2d(2, 3, 4, 2, 1),
    "max": lambda: MaxBlurPool2d(3, 2, 1),
    "max (ceil)": lambda: MaxBlurPool2d(2, ceil_mode=True),
    "average": lambda: BlurAvgPool2d(2),
    "average (ceil)": lambda: BlurAvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "nearest": lambda: BlurUpsample2d(scale_factor=2),
    "bilinear": lambda: BlurUpsample2d(scale_factor=2, mode="bilinear"),
}
NETWORKS = {
    "unet (pre)": lambda: UNet(2, 3, channels=4, levels=2, dropout=0.0, antialias=AntiAlias("tri3", "pre")),
    "unet (post)": lambda: UNet(2, 3, channels=4, levels=2, dropout=0.0, antialias=AntiAlias("bin4", "post")),
    "unet (one level)": lambda: UNet(2, 3, channels=2, levels=1, norm="none", antialias="bin5"),
    "resnet": lambda: ResNetGenerator(2, 3, channels=2, blocks=1, antialias="bin5"),
}
ALL = LAYERS | NETWORKS

# One ulp of the type at values around 1, times what the roundings along a layer add up to.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def made(name, **kwargs):
    torch.manual_seed(0)
    return ALL[name]().to(**kwargs)


def image(*size, **kwargs):
    return torch.rand(size, generator=torch.Generator().manual_seed(1)).to(**kwargs)


def results(run, layer, x):
    """The output, and the gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = run(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).to(y).view_as(y)  # a sum would hide much
    (y * weight).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]


class Bank(nn.Module):
    """Several layers beside each other: one graph instead of many."""

    def __init__(self, names):
        super().__init__()
        self.layers = nn.ModuleList(made(name) for name in names)

    def forward(self, x):
        return torch.cat([layer(x).flatten() for layer in self.layers])


# Few for any size: tracing one takes seconds, and test_export.py does it with all of them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "dynamic"),
    [
        ([*LAYERS, "unet (post)"], False),
        (["conv (post)", "transposed", "max (ceil)", "bilinear"], True),
        (["unet (one level)"], True),
    ],
)
def test_one_graph_forward_and_backward(names, dynamic):
    torch.compiler.reset()
    layer = Bank(names)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((2, 2, 11, 14), (3, 2, 9, 10))[: 1 + dynamic]:
        x = image(*size)
        torch.testing.assert_close(results(compiled, layer, x), results(layer, layer, x))


@pytest.mark.slow
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_one_graph_of_every_padding_with_even_odd_and_ideal_filters(mode):
    layers = [BlurPool2d(filter, 2, mode) for filter in ("bin4", "bin5", "ideal")]
    compiled = torch.compile(lambda x: [layer(x) for layer in layers], fullgraph=True, dynamic=True, backend="eager")
    for size in ((1, 2, 11, 14), (2, 2, 1, 3)):  # the second one smaller than most pads
        x = image(*size)
        torch.testing.assert_close(compiled(x), [layer(x) for layer in layers])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++, and there is no g++")
# torch 2.13's inductor imports what torch 2.13 deprecates
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_inductors_code_gives_the_same():
    torch.compiler.reset()
    layer = made("conv (post)")
    compiled = torch.compile(layer, fullgraph=True)
    x = image(1, 2, 7, 6)
    torch.testing.assert_close(results(compiled, layer, x), results(layer, layer, x))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_every_precision(name, dtype):
    expected = made(name, dtype=torch.float64)(image(2, 2, 9, 12, dtype=torch.float64))
    y = made(name, dtype=dtype)(image(2, 2, 9, 12, dtype=dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", ALL)
def test_autocast_forward_and_backward(name):
    layer, x = made(name), image(2, 2, 9, 12)
    expected = results(layer, layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = results(layer, layer, x)
    torch.testing.assert_close(actual[0].float(), expected[0], atol=4e-2, rtol=4e-2)
    for gradient, y in zip(actual[1:], expected[1:], strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - y).norm() < 0.2 * y.norm() + 0.05  # an instance norm over few pixels magnifies roundings


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("name", ALL)
def test_deterministic_mode_gives_the_same_bits_twice(name):
    layer, x = made(name), image(2, 2, 11, 14)
    first, second = results(layer, layer, x), results(layer, layer, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ALL)
def test_copies_and_pickles_are_the_same_function(name):
    layer, x = made(name), image(1, 2, 8, 9)
    layer.eval()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert torch.equal(other(x), layer(x))
        assert repr(other) == repr(layer)
    other = copy.deepcopy(layer)
    for tensor in (*other.parameters(), *other.buffers()):
        nn.init.zeros_(tensor)
    assert layer(x).abs().sum() > 0


@pytest.mark.parametrize("name", ALL)
def test_shapes_without_memory(name):
    x = image(2, 2, 11, 14)
    y = made(name, device="meta")(x.to("meta"))
    assert y.device.type == "meta"
    assert (y.shape, y.dtype) == (made(name)(x).shape, x.dtype)
    with torch.device("meta"):  # as large models are built before their weights are loaded
        layer = ALL[name]()
    assert layer(x.to("meta")).shape == y.shape


DEVICES = [
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ALL)
def test_the_same_on_another_device(name, device):
    layer, x = made(name), image(2, 2, 11, 14)
    other = made(name, device=device)
    expected = results(layer, layer, x)
    actual = results(other, other, x.to(device))
    torch.testing.assert_close([y.cpu() for y in actual], expected, atol=1e-3, rtol=1e-3)  # TF32, other sums
    assert all(y.device.type == device for y in actual)
    for dtype in (torch.float16, torch.bfloat16):
        y = made(name, device=device, dtype=dtype)(x.to(device, dtype))
        torch.testing.assert_close(y.cpu().float(), expected[0], atol=5e-2, rtol=5e-2)
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(other(x.to(device)).cpu().float(), expected[0], atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ALL)
def test_compiled_on_another_device(name, device):
    torch.compiler.reset()
    layer, x = made(name, device=device), image(2, 2, 11, 14, device=device)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, layer, x), results(layer, layer, x), atol=1e-3, rtol=1e-3)
