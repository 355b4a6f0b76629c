"""How a model is called and what it returns: further inputs, the layout of its images, which of several outputs."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genstab.errors import InputError, check_choice

Call = Callable[[Tensor], Tensor]
LAYOUTS = ("nchw", "nhwc")
_REQUIRED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ModelError(InputError):
    """A model, which may be anybody's code, failed on some images; `reason` is what its own error says."""

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


def reason_of(error: BaseException) -> str:
    """Return what an error of somebody's model says, in one line, with the kind of error unless that is usual."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    said = lines[-1 if "Traceback" in str(error) else 0]  # TorchScript shows where before it says what
    if isinstance(error, RuntimeError | ValueError | AssertionError) and said:
        return said.removeprefix("RuntimeError: ")
    return f"{type(error).__name__}: {said}".removesuffix(": ")


@dataclass(frozen=True)
class Conventions:
    """How to call a model that is not simply a function from images (N, C, H, W) to images or logits.

    Args:
        output: index or key of the output, if there are several.
        layout: `nhwc` if images are (N, H, W, C) for the model; None: `nchw`, or as a program's file says.
        inputs: constants for further inputs by their names: numbers, or (nested) lists of them.

    Raises:
        InputError: the layout is unknown, or a constant is neither a number nor a list of numbers.
    """

    output: int | str | None = None
    layout: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layout is not None:
            check_choice("model.layout", self.layout, LAYOUTS)
        for name, value in self.inputs.items():
            try:
                torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"model.inputs.{name}={value!r} is not a number or a list of numbers") from error


def follow_conventions(module: nn.Module, conventions: Conventions) -> nn.Module:
    """Let a module take images (N, C, H, W) alone and return one tensor, by hooks; its layers keep their names.

    A number is given to the module as it is, a list as a tensor; a list of one number is repeated for each image, (N,).

    Raises:
        InputError: the module takes no such inputs, or needs others too; in `forward`, it has no such output.

    >>> class Net(nn.Module):
    ...     def forward(self, images, strength):
    ...         return {"image": images * strength}
    >>> follow_conventions(Net(), Conventions("image", inputs={"strength": 2}))(torch.ones(1, 1, 1, 2))
    tensor([[[[2., 2.]]]])
    """
    _check_inputs(module, conventions.inputs)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (images,) = args
        kwargs = {**{name: _constant(value, images) for name, value in conventions.inputs.items()}, **kwargs}
        return (images.permute(0, 2, 3, 1) if conventions.layout == "nhwc" else images,), kwargs

    def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if conventions.output is not None:
            output = pick(output, conventions.output, type(module).__name__)
        if conventions.layout == "nhwc" and isinstance(output, Tensor) and output.ndim == 4:
            output = output.permute(0, 3, 1, 2)
        return output

    if conventions != Conventions():
        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)
    return module


def _check_inputs(module: nn.Module, given: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # of a compiled module
        return
    others = [each for each in parameters.values() if each.kind in _REQUIRED][1:]
    is_open = any(each.kind == inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    taken = [each.name for each in others]
    name = type(module).__name__
    for key in given:
        if key not in taken and not is_open:
            raise InputError(f"model.inputs.{key}: {name} takes {', '.join(taken) or 'nothing'} beside its images")
    for each in others:
        if each.default is inspect.Parameter.empty and each.name not in given:
            raise InputError(f"{name} takes {each.name} beside its images: set model.inputs.{each.name}=VALUE")


def _constant(value: Any, images: Tensor) -> Any:
    if not isinstance(value, list | tuple):
        return value
    tensor = torch.as_tensor(value, device=images.device)
    tensor = tensor.to(images.dtype) if tensor.is_floating_point() else tensor
    return tensor.expand(len(images)) if tensor.shape == (1,) else tensor


def pick(output: Any, key: int | str, name: str) -> Any:
    """Return one of several outputs of a model by its index or key.

    Raises:
        InputError: there is no such output.
    """
    choices = outputs_of(output)
    if not choices:
        raise InputError(f"model.output={key}: {name} returns one {type(output).__name__}: leave it out")
    if key in choices:
        return choices[key]
    if isinstance(key, int) and -len(choices) <= key < len(choices):
        return [*choices.values()][key]
    raise InputError(f"model.output={key} is none of the outputs of {name}: {described(output)}")


def outputs_of(output: Any) -> dict[int | str, Any]:
    """Return the outputs in a tuple, list, dict or data object of a model, by index or key; empty if it is neither."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return {} if isinstance(output, Tensor) else dict(getattr(output, "__dict__", {}))


def described(output: Any) -> str:
    """Describe several outputs in one line, with their shapes."""
    return ", ".join(
        f"{key} {tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__}"
        for key, each in outputs_of(output).items()
    )


def one_tensor(output: Any, images: Tensor, name: str = "the generator") -> Tensor:
    """Return the output of a model if it is one tensor of images or logits.

    Grey images (N, H, W) get their channel, and logits (N, K, 1, 1) of larger images become (N, K).

    Raises:
        InputError: it returns several outputs, a map of classes, or something else.
    """
    if not isinstance(output, Tensor):
        cure = f": {described(output)}; model.output=KEY chooses one" if outputs_of(output) else ""
        raise InputError(f"{name} returns a {type(output).__name__}, not a tensor of images{cure}")
    if output.ndim == 3 and len(output) == len(images):
        if not output.is_floating_point():
            raise InputError(
                f"{name} returns a map of classes {tuple(output.shape)} of {output.dtype}: let it return their logits "
                "(N, K, H, W), or images"
            )
        if output.shape[1:] == images.shape[2:]:
            return output[:, None]
    if output.ndim == 4 and output.shape[2:] == (1, 1) != images.shape[2:]:
        return output.flatten(1)
    if output.ndim not in (2, 4):
        raise InputError(f"{name} returns {tuple(output.shape)}, not images (N, C, H, W) or logits (N, K)")
    return output
