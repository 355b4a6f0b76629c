"""Programs in files as modules: TorchScript, `torch.export` and ONNX.

A program is code: load only those of people you trust. What can be refused without running it, pickled objects and
compiled libraries inside of an exported program, is refused.
"""

import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from genstab.errors import InputError

TORCHSCRIPT, EXPORTED, ONNX = "a TorchScript file", "an exported program", "an ONNX file"
ANY_BATCH = (1, None)
ANY_SIZE = (None, None, None)
# Members of an exported program's archive: libraries, and objects that only pickle could bring back.
_UNSAFE = ("/data/aotinductor/", "/opaque_obj_", "/custom_obj_")
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_CPU = torch.device("cpu")
_Run = Callable[[Tensor], Tensor]


class Program(nn.Module):
    """A program as a module on images: chunks where its batch size is fixed, and a clear word on sizes it can't take.

    It runs in the precision that it was made in, has neither parameters nor submodules, and is always in the mode that
    it was made in. `.to(device)` loads it again there.

    Args:
        name: what to call it in messages.
        run: the function from images to images, on the CPU.
        load: gives it for another device.
        batch: the least and the most images at once, None for no limit. A smaller batch is filled with its last
            image, and the results of those are cut off.
        size: channels, rows and columns; None where any number will do.
        parameter_count: how many numbers it learned; None where the file does not tell.

    >>> def load(device):
    ...     return lambda images: images + len(images)
    >>> Program("a program", load("cpu"), load, batch=(2, 2))(torch.zeros(3, 1, 1, 1)).flatten()
    tensor([2., 2., 2.])
    """

    def __init__(
        self,
        name: str,
        run: _Run,
        load: Callable[[torch.device], _Run],
        batch: tuple[int, int | None] = ANY_BATCH,
        size: Sequence[int | None] = ANY_SIZE,
        parameter_count: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.run, self.load, self.device = name, run, load, _CPU
        self.batch, self.size, self.parameter_count = batch, tuple(size), parameter_count

    def forward(self, images: Tensor) -> Tensor:
        """Run the program on (N, C, H, W), for any N."""
        if images.ndim != 4:
            raise InputError(f"{self.name} takes a batch of images (N, C, H, W), not {tuple(images.shape)}")
        if any(wanted not in (None, found) for wanted, found in zip(self.size, images.shape[1:], strict=True)):
            raise InputError(f"{self.name} takes images of {_pixels(self.size)}, not {_pixels(images.shape[1:])}")
        least, most = self.batch
        outputs = []
        for chunk in images.split(most or len(images)):
            missing = max(0, least - len(chunk))
            output = self.run(torch.cat([chunk, chunk[-1:].expand(missing, -1, -1, -1)]) if missing else chunk)
            if not isinstance(output, Tensor):
                raise InputError(f"{self.name} returns a {type(output).__name__}, not a tensor of images")
            outputs.append(output[: len(chunk)])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def train(self, mode: bool = True) -> "Program":
        """Change nothing but the flag: a program has no modes."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Program":
        # What `.to`, `.cuda` and the like come down to. A change of precision has nothing to act upon.
        device = fn(torch.empty(0)).device
        if device != self.device:
            self.run, self.device = self.load(device), device
        return self


def load_program(path: Path, kind: str) -> Program:
    """Return the program in a file of kind `TORCHSCRIPT`, `EXPORTED` or `ONNX`, in eval mode, on the CPU.

    Raises:
        InputError: the file can't be read, does not take one batch of images, or onnxruntime is missing.
    """
    return {TORCHSCRIPT: _torchscript, EXPORTED: _exported, ONNX: _onnx}[kind](path).eval()


def _torchscript(path: Path) -> Program:
    def read(device: torch.device) -> nn.Module:
        with _readable(path, TORCHSCRIPT), catch_warnings():
            simplefilter("ignore", DeprecationWarning)  # torch 2.13 would rather have an exported program
            module = torch.jit.load(str(path), map_location=device)
        # A frozen one has no modes, and its weights are constants.
        return module.eval().float() if hasattr(module, "training") else module

    def run(module: nn.Module) -> _Run:
        def call(images: Tensor) -> Tensor:  # the module itself would become a submodule
            try:
                return module(images.float())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # the reason is the last of many lines
                reason = str(error).strip().splitlines()[-1].removeprefix("RuntimeError: ")
                raise InputError(f"{path.name} cannot take images of {_pixels(images.shape[1:])}: {reason}") from error

        return call

    module = read(_CPU)
    count = sum(parameter.numel() for parameter in module.parameters())
    return Program(path.name, run(module), lambda device: run(read(device)), parameter_count=count or None)


def _exported(path: Path) -> Program:
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if any(part in f"/{member}" for part in _UNSAFE):
                raise InputError(f"{path} holds {member}, compiled or pickled: refused, nothing in it was run")
    with _readable(path, EXPORTED), open(path, "rb") as file:
        program = torch.export.load(file)
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(names) != 1 or len(inputs) != 1 or getattr(inputs[0], "ndim", 0) != 4:
        raise InputError(f"{path} takes {len(names)} inputs; wanted is one batch of images (N, C, H, W)")
    count, *size = [length if isinstance(length, int) else None for length in inputs[0].shape]
    batch: tuple[int, int | None] = (count, count) if count is not None else ANY_BATCH
    if count is None and (bounds := program.range_constraints.get(inputs[0].shape[0].node.expr)) is not None:
        # Export writes 2 for a least batch of 1.
        batch = (int(bounds.lower) if bounds.lower > 2 else 1, int(bounds.upper) if bounds.upper.is_Integer else None)

    def load(device: torch.device) -> _Run:
        module = move_to_device_pass(program, device).module()

        def run(images: Tensor) -> Tensor:
            try:
                return module(images.to(inputs[0].dtype))
            except AssertionError as error:
                if not str(error).startswith("Guard failed"):
                    raise
                raise InputError(f"{path.name} cannot take images of {_pixels(images.shape[1:])}: {error}") from error

        return run

    count = sum(parameter.numel() for parameter in program.parameters())
    return Program(path.name, load(_CPU), load, batch, size, count)


def _onnx(path: Path) -> Program:
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError:
        raise InputError(f"{path} is an ONNX file and needs onnxruntime: pip install 'genstab[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only

    def session_on(device: torch.device) -> tuple:
        provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}.get(device.type, device.type)
        present = onnxruntime.get_available_providers()
        if provider not in present:
            raise InputError(f"{path.name} cannot run on {device}: onnxruntime has {', '.join(present)} here")
        choice = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
        with _readable(path, ONNX):
            session = onnxruntime.InferenceSession(str(path), options, providers=[choice])
        return session, session.get_inputs(), session.get_outputs()

    _, inputs, outputs = session_on(_CPU)
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
        found = f"{len(inputs)} inputs, {len(outputs)} outputs, the first input of {inputs[0].shape if inputs else []}"
        raise InputError(f"{path} has {found}; wanted is one batch of images (N, C, H, W) in, one out")
    kinds = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
    if inputs[0].type not in kinds:
        raise InputError(f"{path} takes a {inputs[0].type}, not one of {', '.join(kinds)}")
    # A length that may vary has a name, or none, or is not positive.
    count, *size = [length if isinstance(length, int) and length > 0 else None for length in inputs[0].shape]

    def load(device: torch.device) -> _Run:
        session = session_on(device)[0]

        def run(images: Tensor) -> Tensor:
            array = images.detach().to("cpu", kinds[inputs[0].type]).numpy()
            try:
                (output,) = session.run(None, {inputs[0].name: array})
            except Exception as error:  # its exceptions have no common class but this
                reason = " ".join(str(error).split())
                raise InputError(f"{path.name} cannot take images of {_pixels(array.shape[1:])}: {reason}") from error
            return torch.from_numpy(output).to(images.device)

        return run

    return Program(path.name, load(_CPU), load, ANY_BATCH if count is None else (count, count), size)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises for a damaged file into one line, and let no pickle in it run code."""
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


def _pixels(size: Sequence[int | None]) -> str:
    channels, height, width = ("any" if length is None else str(length) for length in size)
    return f"{channels} channel{'s' * (channels != '1')} and {height}×{width} pixels"
