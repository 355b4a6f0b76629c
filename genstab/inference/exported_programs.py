"""Exported models as modules: TorchScript, `torch.export` and ONNX files.

Such a file is a program: load only files that you trust. Pickled objects and compiled libraries in an exported program
are refused without running them.
"""

import hashlib
import logging
import mmap
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from genstab.errors import InputError
from genstab.inference.conventions import Conventions, ModelError, one_tensor, pick, reason_of
from genstab.runtime.process_state import process_state_restored

TORCHSCRIPT, EXPORTED, ONNX = "a TorchScript file", "an exported program", "an ONNX file"
# Members of an exported program's archive: compiled libraries, and pickled objects.
_UNSAFE = ("/data/aotinductor/", "/opaque_obj_", "/custom_obj_")
_CPU = torch.device("cpu")
_Run = Callable[[Tensor], Any]
_Shape = Sequence[int | None]
_ONNX_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
    "tensor(int32)": torch.int32,
    "tensor(int64)": torch.int64,
    "tensor(bool)": torch.bool,
}
_IMAGE_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)", "tensor(uint8)")


class Program(nn.Module):
    """A program as a module, which takes batches of any size even if the program's batch size is fixed.

    It has no parameters and no submodules, and its precision and mode cannot be changed. `.to(device)` loads the
    program again on that device.

    Args:
        name: name of the program in messages.
        load: returns the program as a function from images to its output on a device.
        shape: of the images that the program takes, in its layout; None for any length. A smaller batch than N is
            filled with copies of its last image.
        parameter_count: number of parameters, if the file tells.
        output: index or key of the output, if there are several.
        layout: `nchw` or `nhwc`.

    `sha256` is the digest of its files, for `genstab.inference.predict_record.model_digest`.

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
        layout: str = "nchw",
    ) -> None:
        super().__init__()
        self.name, self.load, self.parameter_count = name, load, parameter_count
        self.output, self.layout = output, layout
        self.shape = tuple(shape[axis] for axis in ((0, 3, 1, 2) if layout == "nhwc" else (0, 1, 2, 3)))
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
            filled = torch.cat([chunk, chunk[-1:].expand(missing, -1, -1, -1)]) if missing else chunk
            outputs.append(self._output(filled)[: len(chunk)])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _output(self, images: Tensor) -> Tensor:
        try:
            output = self.run(images.permute(0, 2, 3, 1) if self.layout == "nhwc" else images)
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # those of onnxruntime have no other common class
            what = f"{self.name} cannot take images of {_pixels(images.shape[1:])}"
            raise ModelError(f"{what}: {reason_of(error)}") from error
        if self.output is not None:
            output = pick(output, self.output, self.name)
        if self.layout == "nhwc" and isinstance(output, Tensor) and output.ndim == 4:
            output = output.permute(0, 3, 1, 2)
        return one_tensor(output, images, self.name)

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
    digests = [_digest(each) for each in (path, *(external_data(path) if kind == ONNX else ()))]
    program.sha256 = " ".join(digests)
    return program


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def external_data(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights, as those of models above 2 GB do."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # an entry of the message StringStringEntryProto: its key, then the length and the bytes of its value
        names = {
            match[2][: match[1][0]] for match in re.finditer(rb"\n\x08location\x12(.)(.{0,127})", content, re.DOTALL)
        }
    found = sorted(path.parent / os.fsdecode(name) for name in names)
    return [each for each in found if each.is_file()]


def _torchscript(path: Path, conventions: Conventions) -> Program:
    def read(device: torch.device) -> nn.Module:
        with _readable(path, TORCHSCRIPT), catch_warnings():
            simplefilter("ignore", DeprecationWarning)  # torch 2.13 recommends torch.export
            module = torch.jit.load(str(path), map_location=device)
        # A frozen module has no modes, and its weights are constants.
        return module.eval().float() if hasattr(module, "training") else module

    on_cpu = read(_CPU)

    def load(device: torch.device) -> _Run:
        module = on_cpu if device == _CPU else read(device)
        constants = {name: torch.as_tensor(value, device=device) for name, value in conventions.inputs.items()}
        return lambda images: module(images.float(), **constants)

    count = sum(parameter.numel() for parameter in on_cpu.parameters()) or None
    layout = conventions.layout or "nchw"
    return Program(path.name, load, parameter_count=count, output=conventions.output, layout=layout)


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
    shapes = {
        name: [length if isinstance(length, int) else str(length) for length in getattr(value, "shape", ())]
        for name, value in taken.items()
    }
    images_name = _images_among(path, shapes, conventions.inputs)
    types = {name: getattr(value, "dtype", None) for name, value in taken.items()}
    constants = _constants(path, conventions, types, shapes, images_name)

    def load(device: torch.device) -> _Run:
        module = move_to_device_pass(program, device).module()

        def run(images: Tensor) -> Any:
            given = constants(len(images)) | {images_name: images.to(types[images_name])}
            return module(*(given[name].to(device) for name in taken))

        return run

    count = sum(parameter.numel() for parameter in program.parameters())
    lengths = _fixed(shapes[images_name])
    return Program(path.name, load, lengths, count, conventions.output, conventions.layout or layout_of(lengths))


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
    shapes = {name: each.shape for name, each in inputs.items()}
    images_name = _images_among(path, shapes, conventions.inputs)
    if inputs[images_name].type not in _IMAGE_TYPES:
        raise InputError(f"{path} takes images of {inputs[images_name].type}, not of floating point or uint8 numbers")
    types = {name: _ONNX_TYPES.get(each.type, torch.float32) for name, each in inputs.items()}
    constants = _constants(path, conventions, types, shapes, images_name)
    outputs = [each.name for each in on_cpu.get_outputs()]
    if len(outputs) > 1 and conventions.output is None:
        shown = ", ".join(f"{each.name} {each.shape}" for each in on_cpu.get_outputs())
        raise InputError(f"{path} has {len(outputs)} outputs: {shown}; model.output={outputs[0]} chooses one")

    def load(device: torch.device) -> _Run:
        session = on_cpu if device == _CPU else session_on(device)

        def run(images: Tensor) -> Any:
            given = constants(len(images)) | {images_name: images.detach().cpu().to(types[images_name])}
            values = session.run(None, {name: each.contiguous().numpy() for name, each in given.items()})
            found = [torch.from_numpy(value).to(images.device) for value in values]
            return dict(zip(outputs, found, strict=True)) if len(found) > 1 else found[0]

        return run

    lengths = _fixed(shapes[images_name])
    layout = conventions.layout or layout_of(lengths)
    return Program(path.name, load, lengths, None, conventions.output if len(outputs) > 1 else None, layout)


def _constants(
    path: Path,
    conventions: Conventions,
    types: Mapping[str, torch.dtype | None],
    shapes: Mapping[str, Sequence[Any]],
    images_name: str,
) -> Callable[[int], dict[str, Tensor]]:
    """Return a function from the number of images to the constant inputs, of their declared types and shapes.

    Where the first length is the number of images by its name, one number is repeated for each image.
    """
    constants, repeated = {}, set()
    for name, value in conventions.inputs.items():
        tensor, shape = torch.as_tensor(value, dtype=types[name]), shapes[name]
        given = [1] * (len(shape) - tensor.ndim) + list(tensor.shape)
        wanted = [each or length for each, length in zip(_fixed(shape), given, strict=False)]
        try:
            constants[name] = tensor.expand(wanted)
        except RuntimeError:
            what = f"model.inputs.{name} of shape {list(tensor.shape)} does not fit {path.name}"
            raise InputError(f"{what}: it takes {list(shape)}") from None
        if shape and not _fixed(shape)[0] and shape[0] == shapes[images_name][0] and wanted[0] == 1:
            repeated.add(name)
    return lambda images: {
        name: each.expand(images, *each.shape[1:]) if name in repeated else each for name, each in constants.items()
    }


def _fixed(shape: Sequence[Any]) -> list[int | None]:
    """Return the lengths of a declared shape; a dynamic one, None, is declared as a name, None, or not positive."""
    return [length if isinstance(length, int) and length > 0 else None for length in shape]


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


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn any error of a reader into an `InputError` of one line, and let no pickle run code."""
    logger = logging.getLogger("torch.export")
    silent, logger.disabled = logger.disabled, True  # it would print the traceback
    with process_state_restored():
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            yield
        except Exception as error:
            raise InputError(f"{path} cannot be read as {kind}: {reason_of(error)}") from error
        finally:
            logger.disabled = silent


def _pixels(size: _Shape) -> str:
    channels, height, width = ("any" if length is None else str(length) for length in size)
    return f"{channels} channel{'s' * (channels != '1')} and {height}×{width} pixels"
