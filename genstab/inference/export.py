"""Export a model as an ONNX, TorchScript or `torch.export` file, and check the file against the model."""

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_choice, check_counts
from genstab.inference.conventions import ModelError, reason_of
from genstab.inference.eval_mode import inference
from genstab.inference.exported_programs import EXPORTED, ONNX, TORCHSCRIPT, Program, load_program
from genstab.inference.weights import shape_text
from genstab.runtime.files import write_whole, writing

FORMATS = {"onnx": ONNX, "torchscript": TORCHSCRIPT, "pt2": EXPORTED}
SUFFIXES = {".onnx": "onnx", ".pt": "torchscript", ".pt2": "pt2"}
MOST = 1e-3  # difference between file and model, of the largest value; what float32 makes is about 1e-6


def export(
    model: nn.Module,
    output: str | Path,
    format: str | None = None,
    size: tuple[int, int] = (288, 320),
    channels: int | None = None,
    dynamic: bool = True,
) -> str:
    """Write a model to a file that runs without genstab, unless it differs from the model; return a summary.

    The file is one program for every batch size, height and width. It is written once its outputs equal those of the
    model in eval mode at `size`, with a batch of two, and at a second size, with one image.

    Args:
        model: takes (N, C, H, W), returns one tensor; on the CPU. It is left in eval mode.
        output: the file.
        format: `onnx` (needs `genstab[onnx]`), `torchscript` (traced) or `pt2` (`torch.export`); None takes it from the
            suffix: `.onnx`, `.pt` or `.pt2`.
        size: height and width of the images that the model is recorded with. A `genstab.UNet` as pt2 needs more than
            2^levels pixels here and later.
        channels: channels of the images; None takes those of the model's first convolution.
        dynamic: False for a model of one size: the file then takes images of `size` alone, and is checked twice there.

    Raises:
        InputError: an unknown format or suffix, the model cannot be exported or cannot take the images, or the file
            differs from it.
    """
    output = Path(output).expanduser()
    if format is None and output.suffix not in SUFFIXES:
        raise InputError(f"output={output} does not tell the format: name it {', '.join(SUFFIXES)}, or set format")
    format = SUFFIXES[output.suffix] if format is None else format
    check_choice("format", format, FORMATS)
    if SUFFIXES.get(output.suffix, format) != format:
        raise InputError(f"output={output} has the suffix of {SUFFIXES[output.suffix]}, but format={format}")
    check_counts(height=size[0], width=size[1])
    if isinstance(model, Program):
        raise InputError(f"{model.name} is an exported program already: export the network that it was made of")
    if format == "onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise InputError("format=onnx needs onnx, onnxscript and onnxruntime: pip install 'genstab[onnx]'")
    if output.is_dir():
        raise InputError(f"output={output} is a folder: name a file in it")
    if channels is None:
        channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if channels is None:
        raise InputError(f"channels: {type(model).__name__} has no convolution that tells them: set channels=3")
    sizes = [size, (size[0] + size[1], 2 * size[0]) if dynamic else size]  # both divisible by what divides `size`
    noise = torch.Generator().manual_seed(0)
    images = [torch.rand((2 - i, channels, *each), generator=noise) * 2 - 1 for i, each in enumerate(sizes)]
    expected = []
    with inference(model) as generator:
        for each in images:
            try:
                expected.append(generator(each))
            except ModelError as error:
                cure = "dynamic=false exports for size alone" if expected else "size=[H,W] and channels=C set them"
                raise InputError(f"{error} ({cure})") from error
    with TemporaryDirectory() as folder:
        path = Path(folder, f"model{output.suffix}")
        model.eval()  # not `inference`: torch.export reads a setting of cuDNN that it changes
        with _refused(f"the model cannot be exported as {format}"), torch.no_grad(), _quiet():
            _record(model, images[0], path, format, dynamic)
        with _refused(f"the {format} file fails, so {output} was not written"):
            program = load_program(path, FORMATS[format])
            greatest = max(_difference(right, program(each)) for right, each in zip(expected, images, strict=True))
        with writing("output", output), path.open("rb") as file:
            write_whole(output, lambda target: shutil.copyfileobj(file, target))
    seen = " and ".join(f"{height}×{width}" for height, width in dict.fromkeys(sizes))
    takes = "images of any size" if dynamic else f"images of {seen}"
    return f"{output}: {FORMATS[format]} for {takes}; differs from the model by {greatest:.0e} at most, at {seen}"


def _record(model: nn.Module, images: Tensor, path: Path, format: str, dynamic: bool) -> None:
    """Write the file. The first axis of the images is dynamic, and with `dynamic` height and width, too."""
    names = {0: "batch", 2: "height", 3: "width"} if dynamic else {0: "batch"}
    if format == "torchscript":
        torch.jit.save(torch.jit.trace(model, images, check_trace=False), str(path))
    elif format == "onnx":
        torch.onnx.export(
            model,
            (images,),
            path,
            input_names=["images"],
            output_names=["outputs"],
            dynamo=True,
            dynamic_shapes=(names,),
            external_data=False,
            verbose=False,
        )
    else:
        axes = dict.fromkeys(names, torch.export.Dim.DYNAMIC)
        torch.export.save(torch.export.export(model, (images,), dynamic_shapes=(axes,)), path)


def _difference(expected: Tensor, actual: Tensor) -> float:
    """Return the largest difference; raise an `InputError` if it is more than rounding."""
    if actual.shape != expected.shape:
        shapes = f"{tuple(actual.shape)} instead of {tuple(expected.shape)}"
        raise InputError(f"the exported file returns {shapes}: it was not written")
    apart = (actual.float() - expected).abs().max().item()
    if not apart <= MOST * max(1.0, expected.abs().max().item()):
        raise InputError(
            f"the exported file differs from the model by {apart:.2g} at {shape_text(expected)}: it was not written "
            "(a size was recorded as a constant, or the model is random)"
        )
    return apart


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turn any error of torch or of the model into an `InputError` of one line."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any kind: it runs code of others
        raise InputError(f"{what}: {reason_of(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's tracers and exporters say: the file is checked against the model anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
