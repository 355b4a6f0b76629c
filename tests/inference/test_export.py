"""`torch.export` and ONNX: one program for every batch size, height and width."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import genstab
from genstab import (
    AntiAlias,
    BlurConv2d,
    BlurConvTranspose2d,
    BlurPool2d,
    BlurUnpool2d,
    InputError,
    MaxBlurPool2d,
    ResNetGenerator,
    UNet,
    antialias,
)
from genstab.layers.conv import BlurUpsample2d
from genstab.layers.filters import PADDING_MODES, PLACEMENTS
from genstab.layers.padding import pad2d
from genstab.layers.pooling import BlurAvgPool2d, ceil_padding
from tests.layers.test_blur import NUMPY_MODES
from tests.layers.test_surgery import autoencoder

pytestmark = pytest.mark.slow
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

DYNAMIC = torch.export.Dim.DYNAMIC
EXAMPLE = (2, 2, 17, 22)
SIZES = [(1, 13, 30), (3, 24, 16), (2, 9, 11)]  # batch, height, width: odd and even, multiples and not


class Bank(nn.Module):
    """Several layers beside each other: one export instead of many, which take half a second each."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def with_lively_weights(network):
    """Weights and statistics that make an output of unit size, so that a difference shows."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
    return network.eval()


def exported(network, example=EXAMPLE):
    axes = {0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}
    return torch.export.export(network, (torch.rand(example),), dynamic_shapes=(axes,))


def onnx_function(program):
    """What onnxruntime makes of an exported program: a function from a tensor to a list of tensors."""
    model = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]


def assert_programs_agree(layers, example=EXAMPLE, sizes=SIZES, onnx_sizes=()):
    bank = with_lively_weights(Bank(layers))
    program = exported(bank, example)
    runs = [(onnx_function(program), [*sizes, *onnx_sizes]), (program.module(), sizes)]
    for run, some in runs:
        for batch, height, width in some:
            x = torch.randn(batch, example[1], height, width)
            with torch.no_grad():
                expected, actual = bank(x), run(x)
            for layer, y, z in zip(bank.layers, expected, actual, strict=True):
                assert z.shape == y.shape, (x.shape, layer)
                assert (z - y).abs().max() < 1e-4, (x.shape, layer)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_blurpool(mode):
    filters = ["rect2", "tri3", "bin6", "kaiser"] if mode == "reflect" else ["bin5"]  # by their lengths
    layers = [BlurPool2d(filter, 2, mode) for filter in filters]
    layers += [BlurPool2d("bin5", (3, 1), mode), BlurPool2d("bin4", 2, mode, mirrored=True)]
    assert_programs_agree(layers, onnx_sizes=[(1, 2, 3)])  # smaller than the pads of most filters


def test_ideal_blurpool():
    assert_programs_agree([BlurPool2d("ideal", (3, 2), mode) for mode in ("reflect", "circular")])


def test_layers_with_filters_of_every_kind():
    layers = [BlurConv2d(2, 3, 4, 2, 1, filter="none")]
    for filter in ("bin4", "bin5", "ideal"):  # even, odd and of no length
        layers += [BlurConv2d(2, 3, 4, 2, 1, filter=filter, placement="pre" if filter == "ideal" else "post")]
        layers += [BlurConvTranspose2d(2, 3, 4, 2, 1, filter=filter)]
    layers += [BlurConv2d(2, 3, 4, 2, 1, filter="bin4"), MaxBlurPool2d(2, filter="bin5")]
    layers += [BlurUpsample2d(scale_factor=2, filter="bin4")]
    assert_programs_agree(layers)


def test_layers_with_other_settings():
    layers = [
        BlurConv2d(2, 3, kernel, stride, padding, padding_mode=mode, placement=placement)
        for placement in PLACEMENTS
        for kernel, stride, padding, mode in ((4, 2, 1, "circular"), (3, (1, 2), 1, "zeros"), (3, 3, 0, "reflect"))
    ]
    layers += [
        BlurConvTranspose2d(2, 3, 3, 2, 1, output_padding=1, blur_padding_mode="replicate"),
        BlurUpsample2d(scale_factor=2, mode="bilinear", padding_mode="zeros"),
        BlurUpsample2d(scale_factor=(1, 3), mode="bilinear", align_corners=True),
        BlurUpsample2d(scale_factor=(3, 1), mode="nearest"),
        BlurAvgPool2d(2, filter="bin4"),
    ]
    assert_programs_agree(layers)


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_pooling_with_windows_that_hang_over(mode):
    settings = {"ceil_mode": True, "padding_mode": mode}
    pools = [
        pool(*window, **settings)
        for pool in (MaxBlurPool2d, BlurAvgPool2d)
        for window in ((2, 2, 0), (3, 2, 1), ((3, 2), (2, 3), 1))
    ]
    pools += [
        BlurAvgPool2d(3, 2, 1, count_include_pad=False, **settings),
        BlurAvgPool2d(3, 2, 1, divisor_override=5, **settings),
        BlurAvgPool2d(3, 2, 1, divisor_override=5, padding_mode=mode),
    ]
    # How far depends on the size: 0 or 1 at stride 2, up to 2 at stride 3.
    assert_programs_agree(pools, sizes=[*SIZES, (1, 14, 13), (1, 15, 12)])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_unet_of_any_size(placement):
    filters = {"post": ("bin4",), "pre": ("none", "ideal")}[placement]
    networks = [UNet(2, 3, channels=2, levels=1, antialias=AntiAlias(filter, placement)) for filter in filters]
    networks += [UNet(2, 3, channels=2, levels=1, antialias=AntiAlias("tri3", placement), head=2)]
    assert_programs_agree(networks, onnx_sizes=[(1, 4, 3), (1, 2, 2)])


def test_the_whole_pix2pix_unet_with_eight_levels():
    network = UNet(2, 3, channels=1, levels=8, antialias="bin5")
    # The innermost map of the example has 1 × 1 pixel: ONNX takes any other size all the same.
    assert_programs_agree([network], (2, 2, 256, 256), [(1, 256, 250)], [(1, 270, 530), (2, 64, 64)])


def test_resnet_generator():
    antialias = AntiAlias("tri3", "post")
    assert_programs_agree([ResNetGenerator(2, 1, channels=2, blocks=1, norm="instance", antialias=antialias)])


def test_networks_after_surgery():
    unet = antialias(UNet(2, 3, channels=2, levels=2), "bin5", "post")
    assert_programs_agree([unet, nn.Sequential(nn.Conv2d(2, 3, 1), antialias(autoencoder(), "tri3", "pre"))])


def test_an_exported_unet_pads_and_gathers_as_little_as_it_can():
    # Gathering pixels by their index costs several times a pad: only the reflection up to a multiple needs it.
    program = exported(UNet(2, 3, channels=4, levels=3, antialias="tri3").eval())
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("aten.index_select.default") == 2
    assert targets.count("aten.pad.default") >= 6


def everything():
    """Every way of padding, pooling and sampling: few layers each, since the older exporter takes its time."""
    polyphase = AntiAlias("tri3", "pre", "circular", True)
    layers = [UNet(2, 1, 2, 1, antialias=each, head=2 * (each == "bin4")) for each in ("bin4", polyphase)]
    layers += [ResNetGenerator(2, 1, channels=1, blocks=1), BlurUnpool2d("bin5", 3, "zeros")]
    settings = {"ceil_mode": True, "padding_mode": "circular", "filter": "ideal"}
    layers += [MaxBlurPool2d(3, 2, 1, **settings), BlurAvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)]
    return [*layers, nn.Sequential(nn.Conv2d(2, 3, 1), antialias(autoencoder(), "tri3", "post"))]


OURS = Path(genstab.__file__).parent


def test_traced_networks_fit_other_sizes():
    """`torch.jit.trace` and the exporter of ONNX that builds on it: the same outputs at sizes that it has not seen."""
    bank, example = with_lively_weights(Bank(everything())), torch.randn(2, 2, 16, 20)
    file, axes = io.BytesIO(), {"x": {0: "n", 2: "h", 3: "w"}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.onnx.export(bank, (example,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
        traced = torch.jit.trace(bank, example)
    ours = {
        f"{each.filename}:{each.lineno} {each.message}" for each in caught if Path(each.filename).is_relative_to(OURS)
    }
    assert not ours  # torch warns of its own layers
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for size in ((1, 2, 24, 14), (3, 2, 12, 36)):
        x = torch.randn(size)
        with torch.no_grad():
            expected = bank(x)
            runs = traced(x), [torch.from_numpy(y) for y in session.run(None, {"x": x.numpy()})]
        flat = [part for y in expected for part in (y if isinstance(y, tuple) else (y,))]
        for actual in runs:
            actual = [part for y in actual for part in (y if isinstance(y, tuple) else (y,))]
            for layer, y, z in zip(range(len(flat)), flat, actual, strict=True):
                assert z.shape == y.shape, layer
                assert (z - y).abs().max() < 1e-4, layer


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_cannot_be_traced_or_scripted_says_so():
    traced = torch.jit.trace(BlurPool2d("bin7"), torch.zeros(1, 1, 8, 8))
    with pytest.raises(RuntimeError, match="Padding size should be less than the corresponding input dimension"):
        traced(torch.zeros(1, 1, 2, 9))
    for network in (antialias(nn.Sequential(nn.MaxPool2d(2))), ResNetGenerator(channels=1, blocks=1)):
        with pytest.raises(InputError, match=r"torch\.jit\.script cannot compile \w+: use torch\.jit\.trace"):
            torch.jit.script(network)


class Pad(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode

    def forward(self, x):
        return pad2d(x, (4, 3, 2, 5), self.mode)


def test_padding_of_any_size():
    program = exported(Bank([Pad(mode) for mode in PADDING_MODES]).eval())
    onnx_program = onnx_function(program)
    for size in ((1, 1), (2, 5), (7, 3), (20, 20)):
        x = torch.randn(1, 2, *size)
        for run in (program.module(), onnx_program):
            for mode, y in zip(PADDING_MODES, run(x), strict=True):
                expected = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 5), (4, 3)), NUMPY_MODES[mode])
                assert np.array_equal(y.numpy(), expected), (mode, size)


def test_ceil_padding_is_torchs():
    for size in range(1, 12):
        for kernel in (1, 2, 3, 4):
            for stride in (1, 2, 3, 4):
                for padding in range(kernel // 2 + 1):
                    if size + 2 * padding < kernel:
                        continue
                    pooled = nn.functional.max_pool1d(torch.zeros(1, size), kernel, stride, padding, ceil_mode=True)
                    last = size + 2 * padding - kernel
                    expected = max(0, (pooled.shape[-1] - 1) * stride - last)
                    assert ceil_padding(size, kernel, stride, padding) == expected


def test_with_named_axes_and_a_smallest_size():
    network = with_lively_weights(UNet(2, 3, channels=4, levels=2, antialias="tri3"))
    axes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=6), 3: torch.export.Dim("width", min=6)}
    program = torch.export.export(network, (torch.rand(EXAMPLE),), dynamic_shapes=(axes,))
    x = torch.randn(1, 2, 9, 6)
    torch.testing.assert_close(program.module()(x), network(x))
    with pytest.raises(AssertionError, match=r"Guard failed: .*size\(\)\[2\] >= 6"):
        program.module()(torch.randn(1, 2, 5, 6))


def test_polyphase_follows_label_maps_of_every_size():
    # Ties, which noise has none of: rectangles of even sides, the same in every component.
    network = with_lively_weights(UNet(2, 2, 4, 1, antialias=AntiAlias("tri3", "pre", "circular", True)))
    program = exported(network, (2, 2, 24, 40))
    for run in (onnx_function(program), program.module()):
        for size in ((16, 16), (32, 48), (64, 64), (160, 136)):
            x = -torch.ones(2, 2, *size)
            x[0, :, 4:8, 2:8], x[1, :, 3:5, 9:13], x[1, :, 11:13, 3:5] = 1, 1, 1
            with torch.no_grad():  # other phases give another output
                expected, found = network(x), run(x)
            assert (expected - torch.cat(list(found)).view_as(expected)).abs().max() < 1e-4, size
