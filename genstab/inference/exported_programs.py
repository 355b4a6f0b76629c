"""Exported models as modules: TorchScript, `torch.export` and ONNX files.

Such a file is a program: load only files that you trust. Pickled objects and compiled libraries in an exported program
are refused without running them.
"""

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from genstab.errors import InputError

TORCHSCRIPT, EXPORTED, ONNX = "a TorchScript file", "an exported program", "an ONNX file"
# Members of an exported program's archive: compiled libraries, and pickled objects.
_UNSAFE = ("/data/aotinductor/", "/opaque_obj_", "/custom_obj_")
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_CPU = torch.device("cpu")
_Run = Callable[[Tensor], Tensor]
_Shape = Sequence[int | None]
_ONNX_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}


class Program(nn.Module):
    """A program as a module, which takes batches of any size even if the program's batch size is fixed.

    It has no parameters and no submodules, and its precision and mode cannot be changed. `.to(device)` loads the
    program again on that device.

    Args:
        name: name of the program in messages.
        load: returns the program as a function from images to images on a device.
        shape: (N, C, H, W) that the program takes; None for any. A smaller batch than N is filled with copies of its
            last image.
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
    ) -> None:
        super().__init__()
        self.name, self.load, self.shape, self.parameter_count = name, load, tuple(shape), parameter_count
        self.run, self.device = load(_CPU), _CPU
        self.sha256 = ""

    def forward(self, images: Tensor) -> Tensor:
        """Run the program on (N, C, H, W), for any N."""
        if images.ndim != 4:
            raise InputError(f"{self.name} takes a batch of images (N, C, H, W), not {tuple(images.shape)}")
        batch, *size = self.shape
        if any(length not in (None, given) for length, given in zip(size, images.shape[1:], strict=True)):
            raise InputError(f"{self.name} takes images of {_pixels(size)}, not {_pixels(images.shape[1:])}")
        outputs = []
        for chunk in images.split(batch or len(images)):
            missing = batch - len(chunk) if batch else 0
            output = self.run(torch.cat([chunk, chunk[-1:].expand(missing, -1, -1, -1)]) if missing else chunk)
            if not isinstance(output, Tensor):
                raise InputError(f"{self.name} returns a {type(output).__name__}, not a tensor of images")
            outputs.append(output[: len(chunk)])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    # torch has no public hook for `.to`, `.cuda` and the like, which all call this.
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Program":
        device = fn(torch.empty(0)).device
        if device != self.device:
            self.run, self.device = self.load(device), device
        return self


def load_program(path: Path, kind: str) -> Program:
    """Return the program in a file of kind `TORCHSCRIPT`, `EXPORTED` or `ONNX`, in eval mode, on the CPU."""
    program = {TORCHSCRIPT: _torchscript, EXPORTED: _exported, ONNX: _onnx}[kind](path).eval()
    with path.open("rb") as file:
        program.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return program


def _torchscript(path: Path) -> Program:
    def read(device: torch.device) -> nn.Module:
        with _readable(path, TORCHSCRIPT), catch_warnings():
            simplefilter("ignore", DeprecationWarning)  # torch 2.13 recommends torch.export
            module = torch.jit.load(str(path), map_location=device)
        # A frozen module has no modes, and its weights are constants.
        return module.eval().float() if hasattr(module, "training") else module

    on_cpu = read(_CPU)

    def load(device: torch.device) -> _Run:
        module = on_cpu if device == _CPU else read(device)

        def run(images: Tensor) -> Tensor:
            try:
                return module(images.float())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")
                raise _cannot_take(path, images, reason) from error

        return run

    count = sum(parameter.numel() for parameter in on_cpu.parameters())
    return Program(path.name, load, parameter_count=count or None)


def _exported(path: Path) -> Program:
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if any(part in f"/{member}" for part in _UNSAFE):
                raise InputError(f"{path} holds {member}, which is compiled or pickled: refused, nothing in it was run")
    with _readable(path, EXPORTED), open(path, "rb") as file:
        program = torch.export.load(file)
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(names) != 1 or len(inputs) != 1 or getattr(inputs[0], "ndim", 0) != 4:
        raise InputError(f"{path} takes {len(names)} inputs, not one batch of images (N, C, H, W)")

    def load(device: torch.device) -> _Run:
        module = move_to_device_pass(program, device).module()

        def run(images: Tensor) -> Tensor:
            try:
                return module(images.to(inputs[0].dtype))
            except AssertionError as error:
                if not str(error).startswith("Guard failed"):
                    raise
                raise _cannot_take(path, images, str(error)) from error

        return run

    shape = [length if isinstance(length, int) else None for length in inputs[0].shape]
    return Program(path.name, load, shape, sum(parameter.numel() for parameter in program.parameters()))


def _onnx(path: Path) -> Program:
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError:
        raise InputError(f"{path} is an ONNX file and needs onnxruntime: pip install 'genstab[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only

    def session_on(device: torch.device) -> Any:
        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}.get(device.type, device.type)
        present = onnxruntime.get_available_providers()
        if provider not in present:
            raise InputError(f"{path.name} cannot run on {device}: this onnxruntime has {', '.join(present)}")
        choice = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
        with _readable(path, ONNX):
            return onnxruntime.InferenceSession(str(path), options, providers=[choice])

    on_cpu = session_on(_CPU)
    inputs, outputs = on_cpu.get_inputs(), on_cpu.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _ONNX_TYPES:
        found = f"{len(inputs)} inputs and {len(outputs)} outputs"
        first = f", the first input {inputs[0].type} of {inputs[0].shape}" if inputs else ""
        raise InputError(f"{path} has {found}{first}, not one batch of images (N, C, H, W) in and one out")
    name, dtype = inputs[0].name, _ONNX_TYPES[inputs[0].type]

    def load(device: torch.device) -> _Run:
        session = on_cpu if device == _CPU else session_on(device)

        def run(images: Tensor) -> Tensor:
            try:
                (output,) = session.run(None, {name: images.detach().to("cpu", dtype).numpy()})
            except Exception as error:  # onnxruntime's exceptions have no other common class
                raise _cannot_take(path, images, " ".join(str(error).split())) from error
            return torch.from_numpy(output).to(images.device)

        return run

    # A dynamic length is a name, None, or not positive.
    shape = [length if isinstance(length, int) and length > 0 else None for length in inputs[0].shape]
    return Program(path.name, load, shape)


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


def _cannot_take(path: Path, images: Tensor, reason: str) -> InputError:
    return InputError(f"{path.name} cannot take images of {_pixels(images.shape[1:])}: {reason}")


def _pixels(size: _Shape) -> str:
    channels, height, width = ("any" if length is None else str(length) for length in size)
    return f"{channels} channel{'s' * (channels != '1')} and {height}×{width} pixels"
