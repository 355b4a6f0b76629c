"""The same seed, the same numbers: in every process, with any number of loader workers, and on CUDA if asked for."""

import ast
import itertools
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from genstab import AntiAlias, PatchGAN, Pix2Pix, ResNetGenerator, UNet
from genstab.layers.filters import FILTERS, PADDING_MODES, PLACEMENTS
from genstab.layers.padding import pad2d
from genstab.networks.blocks import NORMS
from genstab.training.losses import GAN_LOSSES
from tests.helpers.commands import program
from tests.helpers.killed import TINY, differing, left, run
from tests.test_structure import MODULES, PACKAGE

pytestmark = pytest.mark.slow
# What torch cannot repeat on CUDA and refuses in deterministic mode, as the documentation of
# `torch.use_deterministic_algorithms` names it, and the operators behind it. `bincount` and `cumsum` may be used on
# integers, `embedding_bag` with another mode and `median` without indices.
REFUSED = {
    "nn.AvgPool3d": "avg_pool3d_backward",
    "nn.AdaptiveAvgPool2d": "_adaptive_avg_pool2d_backward",
    "nn.AdaptiveAvgPool3d": "_adaptive_avg_pool3d_backward",
    "nn.AdaptiveMaxPool2d": "adaptive_max_pool2d_backward",
    "nn.FractionalMaxPool2d": "fractional_max_pool2d_backward",
    "nn.FractionalMaxPool3d": "fractional_max_pool3d_backward",
    "nn.MaxPool3d": "max_pool3d_with_indices_backward",
    "nn.MaxUnpool1d": "max_unpool2d",
    "nn.MaxUnpool2d": "max_unpool2d",
    "nn.MaxUnpool3d": "max_unpool3d",
    "nn.functional.interpolate": (
        "upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward",
        "upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward",
    ),
    "nn.ReflectionPad1d": "reflection_pad1d_backward",
    "nn.ReflectionPad2d": "reflection_pad2d_backward",
    "nn.ReflectionPad3d": "reflection_pad3d_backward",
    "nn.NLLLoss": ("nll_loss_forward", "nll_loss2d_forward"),
    "nn.CTCLoss": "_ctc_loss_backward",
    "nn.EmbeddingBag": "_embedding_bag_dense_backward",
    "Tensor.put_": "put_",
    "histc": "histc",
    "bincount": "bincount",
    "median": "median",
    "nn.functional.grid_sample": ("grid_sampler_2d_backward", "grid_sampler_3d_backward"),
    "cumsum": "cumsum",
    "Tensor.scatter_reduce": "scatter_reduce",
    "Tensor.resize_": "resize_",
}  # fmt: skip
NAMES = {name for names in REFUSED.values() for name in ((names,) if isinstance(names, str) else names)}


class Operators(TorchDispatchMode):
    """Note the operators that run, those of the backward pass as well."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        counting = name in ("bincount", "cumsum") and not args[0].is_floating_point()
        if not (counting and len(args) < 2 + (name == "cumsum")):
            self.seen.add(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def deterministic():
    """Deterministic mode."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_what_torch_refuses_is_all_known():
    text = torch.use_deterministic_algorithms.__doc__
    text = text.partition("operations will throw a")[2].partition("In addition")[0]
    named = set(re.findall(r"\* :(?:class|func):`torch\.([\w.]+)`", text))
    assert "nn.ReflectionPad2d" in named
    assert named <= set(REFUSED)


def update(model, size=32, **options):
    source, target = (torch.rand(2, 3, size, size, **options) * 2 - 1 for _ in range(2))
    return model.update({"source": source, "target": target}, *model.adams())


def options():
    """Every option of a network, the others being the default."""
    for filter, placement, mode in itertools.product(FILTERS, PLACEMENTS, PADDING_MODES):
        yield UNet, {"antialias": AntiAlias(filter, placement, mode)}, "batch", "bce"
    for filter, placement in itertools.product(FILTERS, PLACEMENTS):
        yield UNet, {"antialias": AntiAlias(filter, placement, "circular", True)}, "batch", "bce"
        yield ResNetGenerator, {"antialias": AntiAlias(filter, placement)}, "instance", "bce"
    for norm, loss in itertools.product(NORMS, GAN_LOSSES):
        yield UNet, {"norm": norm}, norm, loss


def networks(generator, arguments, norm):
    size = {"levels": 4} if generator is UNet else {"blocks": 1}  # so that a map has fewer pixels than a border
    return generator(3, 3, channels=2, **size, **arguments), PatchGAN(3, 3, channels=2, norm=norm)


def test_no_training_step_of_any_option_has_what_cuda_cannot_repeat(deterministic):
    with Operators() as operators:
        for generator, arguments, norm, loss in options():
            update(Pix2Pix(*networks(generator, arguments, norm), gan_loss=loss))
            assert not operators.seen & NAMES, (generator, arguments, norm)
    assert {"convolution_backward", "index_select", "flip", "native_group_norm_backward"} <= operators.seen


def test_nor_has_a_whole_training_with_validation_and_pictures(deterministic, tmp_path):
    for side in ("trainA", "trainB", "valA", "valB"):
        (tmp_path / "data" / side).mkdir(parents=True)
        for i in range(3):
            Image.effect_noise((40, 36), 90 + i).convert("RGB").save(tmp_path / "data" / side / f"{i}.png")
    small = [option for option in TINY if not option.startswith(("data.", "callbacks.pictures", "ckpt_path"))]
    data = ["data=paired", f"data.root={tmp_path / 'data'}", "data.load_size=44", "data.crop_size=32"]
    pictures = ["callbacks.pictures.reach=1", "callbacks.pictures.frames=2", "callbacks.pictures.shift=[0,1]"]
    shifts = ["callbacks.stability.protocols=[circular,crop,fractional]", "data.num_workers=0"]
    with Operators() as operators:
        run(tmp_path / "run", *data, *pictures, *shifts, "trainer.deterministic=true", base=small)
    assert not operators.seen & NAMES
    assert (tmp_path / "run" / "shift.gif").is_file()
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # by Lightning, before anything runs on a device


def test_what_is_traced_would_show_it():
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    with Operators() as operators:
        pad2d(x, (1, 1, 1, 1)).sum().backward()
        torch.rand(3).cumsum(0)
    assert operators.seen & NAMES == {"reflection_pad2d_backward", "cumsum"}


@pytest.mark.parametrize("padding", [(1, 2, 3, 0), (0, 0, 0, 0), (6, 0, 0, 4)])
def test_reflection_has_the_same_values_and_gradients_in_deterministic_mode(deterministic, padding):
    results = []
    for mode in (False, True):
        torch.use_deterministic_algorithms(mode)
        x = torch.arange(70.0, dtype=torch.float64).view(2, 1, 5, 7).requires_grad_()
        y = pad2d(x, padding)
        (y * torch.arange(y.numel()).view_as(y) ** 2).sum().backward()
        results.append((y, x.grad))
        first, last, top, bottom = padding
        expected = np.pad(x.detach().numpy(), ((0, 0), (0, 0), (top, bottom), (first, last)), "reflect")
        assert np.array_equal(y.detach().numpy(), expected)
    assert torch.equal(results[0][1], results[1][1])  # of integers, whose sums are exact


def test_reflection_keeps_the_order_in_memory(deterministic):
    x = torch.rand(2, 3, 5, 7).to(memory_format=torch.channels_last)
    assert pad2d(x, (1, 2, 2, 1)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_training_steps_on_cuda_are_the_same_at_each_run(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        for generator, arguments, norm, loss in options():
            weights = []
            for _ in range(2):
                torch.manual_seed(0)
                model = Pix2Pix(*networks(generator, arguments, norm), gan_loss=loss).cuda()
                for _ in range(3):
                    update(model, device="cuda")
                weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
            assert torch.equal(*weights), (generator, arguments, norm, loss)
    finally:
        torch.use_deterministic_algorithms(False)


def trained(folder, *options, threads=1):
    """Train in a process of its own as a user would; return all that it leaves."""
    before = os.environ["OMP_NUM_THREADS"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        options = [option for option in (*TINY, *options) if option != "ckpt_path=last"]
        program("-m", "genstab.cli", "train", *options, f"hydra.run.dir={folder}")
    finally:
        os.environ["OMP_NUM_THREADS"] = before
    return left(folder)


def test_two_processes_do_the_same_bit_for_bit(tmp_path):
    one = trained(tmp_path / "a", "trainer.deterministic=true")
    # who reads the images does not matter; the option itself does, where a backward pass adds in another order
    assert differing(trained(tmp_path / "b", "trainer.deterministic=true", "data.num_workers=2"), one) == []
    # on a CPU everything repeats without the option as well
    short = ("trainer.max_epochs=1", "trainer.max_steps=2")  # threads wait for each other where others work too
    two = trained(tmp_path / "c", *short, threads=2)
    assert differing(trained(tmp_path / "d", *short, threads=2), two) == []


def test_another_seed_gives_other_numbers(tmp_path):
    run(tmp_path / "a", "trainer.max_steps=1")
    run(tmp_path / "b", "trainer.max_steps=1", "seed=4")
    names = differing(left(tmp_path / "a"), left(tmp_path / "b"))
    assert any("generator" in name for name in names)
    assert "/metrics/val/shift_psnr" in names


# Functions that draw from a generator of the whole process.
GLOBAL = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
          "multinomial", "poisson"}  # fmt: skip


def draws(tree):
    """Yield what draws random numbers without a seed or a generator of its own, as far as the text tells."""
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module, name = ast.unparse(node.func.value), node.func.attr
            words = {keyword.arg for keyword in node.keywords}
            if name in ("default_rng", "Random") and node.args:  # with a seed
                continue
            if module == "torch" and name in GLOBAL and "generator" not in words:
                yield node.lineno, ast.unparse(node.func)
            elif module in ("np.random", "numpy.random"):
                if name not in ("get_state", "set_state"):
                    yield node.lineno, ast.unparse(node.func)
            elif module in imported & {"random", "secrets", "uuid"} and name not in ("getstate", "setstate"):
                yield node.lineno, ast.unparse(node.func)


def test_nothing_draws_without_a_seed():
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in MODULES}
    found = {path: sorted(name for _, name in draws(tree)) for path, tree in trees.items()}
    found = {path: calls for path, calls in found.items() if calls}
    assert found == {
        # the benchmark's images, whose values do not matter
        "bench/layers.py": ["torch.randn", "torch.randn_like"],
        "bench/step.py": ["torch.rand"],
        # in a training run, as kornia's crops, from the state that it seeds, saves and restores
        "data/overlapping_crops.py": ["torch.randint", "torch.randint"],
        # names of unfinished files, which nobody must guess
        "runtime/files.py": ["secrets.token_hex"],
    }
    assert list(
        draws(ast.parse("import random; np.random.default_rng(); random.random(); torch.rand(3, generator=g)"))
    ) == [
        (1, "np.random.default_rng"),
        (1, "random.random"),
    ]
