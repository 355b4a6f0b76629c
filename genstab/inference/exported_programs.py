"""Exported models as modules: TorchScript, `torch.export` and ONNX files.

Such a file is a program: load only files that you trust. Pickled objects and compiled libraries in an exported program
are refused without running them.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from genstab.errors import InputError
from genstab.inference.conventions import Conventions, ModelError, one_tensor, pick

TORCHSCRIPT, EXPORTED, ONNX = "a TorchScript file", "an exported program", "an ONNX file"
# Members of an exported program's archive: compiled libraries, and pickled objects.
_UNSAFE = ("/data/aotinductor/", "/opaque_obj_", "/custom_obj_")
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_CPU = torch.device("cpu")
_Run = Callable[[Tensor], Any]
_Shape = Sequence[int | None]
_ONNX_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_IMAGE_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(uint8)")


class Program(nn.Module):
    """A program as a module, which takes batches of any size even if the program's batch size is fixed.

    It has no parameters and no submodules, and its precision and mode cannot be changed. `.to(device)` loads the
    program again on that device.

    Args:
        name: name of the program in messages.
        load: returns the program as a function from images to images on a device.
        shape: (N, C, H, W) that the program takes; None for any. A smaller batch than N is filled with copies of its
            last image.
        output: index or key of the output, if there are several.
        parameter_count: number of parameters, if the file tells.

    `sha256` is the digest of its file, for `genstab.inference.predict_record.model_digest`.

    Raises:
        InputError: in `forward`, if the program cannot take the images.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[torch.device], _Run],
        shape: _Shape = (None, None, None, None),
        parameter_count: int | None = None,
        output: int | str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.load, self.shape, self.parameter_count = name, load, tuple(shape), parameter_count
        self.output = output
        self.run, self.device = load(_CPU), _CPU
        self.sha256 = ""

    def forward(self, images: Tensor) -> Tensor:
        """Run the program on (N, C, H, W), for any N."""
        if images.ndim != 4:
            raise InputError(f"{self.name} takes a batch of images (N, C, H, W), not {tuple(images.shape)}")
        batch, *size = self.shape
        if any(length not in (None, given) for length, given in zip(size, images.shape[1:], strict=True)):
            raise ModelError(f"{self.name} takes images of {_pixels(size)}, not {_pixels(images.shape[1:])}")
        outputs = []
        for chunk in images.split(batch or len(images)):
            missing = batch - len(chunk) if batch else 0
            output = self.run(torch.cat([chunk, chunk[-1:].expand(missing, -1, -1, -1)]) if missing else chunk)
            if self.output is not None:
                output = pick(output, self.output, self.name)
            output = one_tensor(output, chunk, self.name)
            outputs.append(output[: len(chunk)])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    # torch has no public hook for `.to`, `.cuda` and the like, which all call this.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Program":
        device = fn(torch.empty(0)).device
        if device != self.device:
            self.run, self.device = self.load(device), device
        return self


def load_program(path: Path, kind: str, conventions: Conventions | None = None) -> Program:
    """Return the program in a file of kind `TORCHSCRIPT`, `EXPORTED` or `ONNX`, in eval mode, on the CPU."""
    read = {TORCHSCRIPT: _torchscript, EXPORTED: _exported, ONNX: _onnx}[kind]
    program = read(path, conventions or Conventions()).eval()
    with path.open("rb") as file:
        program.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return program


def _torchscript(path: Path, conventions: Conventions) -> Program:
    def read(device: torch.device) -> nn.Module:
        with _readable(path, TORCHSCRIPT), catch_warnings():
            simplefilter("ignore", DeprecationWarning)  # torch 2.13 recommends torch.export
            module = torch.jit.load(str(path), map_location=device)
        # A frozen module has no modes, and its weights are constants.
        return module.eval().float() if hasattr(module, "training") else module

    on_cpu = read(_CPU)
    layout = conventions.layout or "nchw"
    constants = {name: torch.as_tensor(value) for name, value in conventions.inputs.items()}

    def load(device: torch.device) -> _Run:
        module = on_cpu if device == _CPU else read(device)

        def run(images: Tensor) -> Tensor:
            given = {name: value.to(images.device) for name, value in constants.items()}
            try:
                return _from_layout(module(_to_layout(images.float(), layout), **given), layout)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")
                raise _cannot_take(path, images, reason) from error

        return run

    count = sum(parameter.numel() for parameter in on_cpu.parameters())
    return Program(path.name, load, parameter_count=count or None, output=conventions.output)


def _exported(path: Path, conventions: Conventions) -> Program:
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if any(part in f"/{member}" for part in _UNSAFE):
                raise InputError(f"{path} holds {member}, which is compiled or pickled: refused, nothing in it was run")
    with _readable(path, EXPORTED), open(path, "rb") as file:
        program = torch.export.load(file)
    taken = {
        node.name: node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    }
    shapes = {name: list(getattr(value, "shape", ())) for name, value in taken.items()}
    images_name = _images_among(path, shapes, conventions.inputs)
    dtype, declared = taken[images_name].dtype, shapes[images_name]
    lengths = [length if isinstance(length, int) else None for length in declared]
    layout = conventions.layout or layout_of(lengths)
    constants = {
        name: _constant_of(path, name, value, taken[name].dtype, shapes[name])
        for name, value in conventions.inputs.items()
    }

    def load(device: torch.device) -> _Run:
        module = move_to_device_pass(program, device).module()

        def run(images: Tensor) -> Tensor:
            given = {name: value.to(images.device) for name, value in constants.items()}
            given[images_name] = _to_layout(images.to(dtype), layout)
            try:
                return _from_layout(module(*(given[name] for name in taken)), layout)
            except AssertionError as error:
                if not str(error).startswith("Guard failed"):
                    raise
                raise _cannot_take(path, images, str(error)) from error

        return run

    count = sum(parameter.numel() for parameter in program.parameters())
    return Program(path.name, load, _nchw(lengths, layout), count, conventions.output)


def _onnx(path: Path, conventions: Conventions) -> Program:
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError:
        raise InputError(f"{path} is an ONNX file and needs onnxruntime: pip install 'genstab[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised as well, and sizes are found by trying

    def session_on(device: torch.device) -> Any:
        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}.get(device.type, device.type)
        present = onnxruntime.get_available_providers()
        if provider not in present:
            raise InputError(f"{path.name} cannot run on {device}: this onnxruntime has {', '.join(present)}")
        choice = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
        with _readable(path, ONNX):
            return onnxruntime.InferenceSession(str(path), options, providers=[choice])

    on_cpu = session_on(_CPU)
    inputs = {each.name: each for each in on_cpu.get_inputs()}
    outputs = [each.name for each in on_cpu.get_outputs()]
    images_name = _images_among(path, {name: each.shape for name, each in inputs.items()}, conventions.inputs)
    images_type = inputs[images_name].type
    if images_type not in _IMAGE_TYPES:
        raise InputError(f"{path} takes images of {images_type}, not of floating point or uint8 numbers")
    # A dynamic length is a name, None, or not positive.
    lengths = [n if isinstance(n, int) and n > 0 else None for n in inputs[images_name].shape]
    layout = conventions.layout or layout_of(lengths)
    constants = {
        name: _onnx_constant(path, inputs[name], value, inputs[images_name].shape[0])
        for name, value in conventions.inputs.items()
    }
    if len(outputs) > 1 and conventions.output is None:
        shown = ", ".join(f"{each.name} {each.shape}" for each in on_cpu.get_outputs())
        raise InputError(f"{path} has {len(outputs)} outputs: {shown}; model.output={outputs[0]} chooses one")

    def load(device: torch.device) -> _Run:
        session = on_cpu if device == _CPU else session_on(device)

        def run(images: Tensor) -> Any:
            array = _to_layout(images.detach(), layout).to("cpu").numpy().astype(_ONNX_TYPES[images_type])
            given = {name: constant(len(images)) for name, constant in constants.items()}
            try:
                values = session.run(None, {images_name: array, **given})
            except Exception as error:  # onnxruntime's exceptions have no other common class
                raise _cannot_take(path, images, " ".join(str(error).split())) from error
            found = {
                name: _from_layout(torch.from_numpy(value).to(images.device), layout)
                for name, value in zip(outputs, values, strict=True)
            }
            return found if conventions.output is not None and len(found) > 1 else found[outputs[0]]

        return run

    return Program(path.name, load, _nchw(lengths, layout), output=conventions.output if len(outputs) > 1 else None)


def _constant_of(path: Path, name: str, value: Any, dtype: torch.dtype, shape: Sequence[Any]) -> Tensor:
    """Return a constant input of an exported program, expanded to the declared shape where that is fixed."""
    tensor = torch.as_tensor(value, dtype=dtype)
    if not all(isinstance(length, int) for length in shape):
        return tensor
    try:
        return tensor.expand(shape)
    except RuntimeError:
        had = list(tensor.shape)
        what = f"model.inputs.{name} of shape {had} does not fit {path.name}: it takes {list(shape)}"
        raise InputError(what) from None


def _onnx_constant(path: Path, declared: Any, value: Any, batch: Any) -> Callable[[int], np.ndarray]:
    """Return a function from the number of images to a constant input of the declared type and shape."""
    array = np.asarray(value, _ONNX_TYPES.get(declared.type, np.float32))
    fixed = [length if isinstance(length, int) and length > 0 else None for length in declared.shape]
    given = [1] * (len(fixed) - array.ndim) + list(array.shape)
    shape = [size if length is None else length for size, length in zip(given, fixed, strict=False)]
    try:
        if len(given) > len(fixed):
            raise ValueError
        np.broadcast_to(array, shape)
    except ValueError:
        had = list(array.shape)
        what = f"model.inputs.{declared.name} of shape {had} does not fit {path.name}: it takes {declared.shape}"
        raise InputError(what) from None
    each_image = bool(shape) and fixed[0] is None and declared.shape[0] == batch and shape[0] == 1

    def constant(images: int) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(array, [images, *shape[1:]] if each_image else shape))

    return constant


def _images_among(path: Path, shapes: Mapping[str, Sequence[Any]], given: Mapping[str, Any]) -> str:
    """Return the name of the input for the images: the one that is left when constants are given for the others."""
    taken = ", ".join(f"{name} {list(map(str, shape))}" for name, shape in shapes.items()).replace("'", "")
    for name in given:
        if name not in shapes:
            raise InputError(f"model.inputs.{name} is no input of {path}: it takes {taken}")
    left = [name for name in shapes if name not in given]
    images = [name for name in left if len(shapes[name]) == 4]
    if len(left) > 1 and images:
        others = " ".join(f"model.inputs.{name}=VALUE" for name in left if name != images[0])
        raise InputError(f"{path} takes {len(shapes)} inputs, {taken}: set {others}")
    if not images:
        raise InputError(f"{path} takes {taken or 'nothing'}: not one batch of images (N, C, H, W)")
    return images[0]


def layout_of(shape: _Shape) -> str:
    """Return the layout that the lengths of a program's input imply: channels are 1 to 4.

    >>> layout_of((None, 224, 224, 3)), layout_of((None, 3, None, None)), layout_of((None, None, None, None))
    ('nhwc', 'nchw', 'nchw')
    """
    few = (1, 2, 3, 4)
    return "nhwc" if shape[3] in few and shape[1] not in few else "nchw"


def _to_layout(images: Tensor, layout: str) -> Tensor:
    return images.permute(0, 2, 3, 1) if layout == "nhwc" else images


def _from_layout(output: Any, layout: str) -> Any:
    is_image = layout == "nhwc" and isinstance(output, Tensor) and output.ndim == 4
    return output.permute(0, 3, 1, 2) if is_image else output


def _nchw(shape: _Shape, layout: str) -> _Shape:
    return [shape[0], shape[3], shape[1], shape[2]] if layout == "nhwc" else shape


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn any error of a reader into an `InputError` of one line, and let no pickle run code."""
    logger, allowed = logging.getLogger("torch.export"), os.environ.get(_WEIGHTS_ONLY)
    silent, logger.disabled = logger.disabled, True  # it would print the traceback
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(f"{path} cannot be read as {kind}: {lines[0].strip()}") from error
    finally:
        logger.disabled = silent
        del os.environ[_WEIGHTS_ONLY]
        if allowed is not None:
            os.environ[_WEIGHTS_ONLY] = allowed


def _cannot_take(path: Path, images: Tensor, reason: str) -> ModelError:
    return ModelError(f"{path.name} cannot take images of {_pixels(images.shape[1:])}: {reason}")


def _pixels(size: _Shape) -> str:
    channels, height, width = ("any" if length is None else str(length) for length in size)
    return f"{channels} channel{'s' * (channels != '1')} and {height}×{width} pixels"
