"""Which checkpoint a training run resumes from, and whether the two fit together."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, NonNegativeInt, ValidationError
from pytorch_lightning import LightningModule

from genstab.errors import InputError
from genstab.runtime.checkpoint_file import read_checkpoint, tensors
from genstab.runtime.last_checkpoint import RESUME

CHECKPOINT = Path("checkpoints/last.ckpt")
LAST = "last"
BEGINNING = ("init_from", "init_from_d", "init_from_prefix")  # what another training begins from
# Options that may change: paths, duration, what is measured and logged. Any other makes it another training run.
# The batch size counts together with the number of processes.
FREE = (
    "callbacks", "ckpt_path", "data._target_", "data.batch_size", "data.cache", "data.cache_gb", "data.check",
    "data.max_megapixels", "data.num_workers", "data.on_error", "data.root", "data.url", "data.val_batch_size",
    "data.val_images", "discriminator_prefix", "generator_prefix", *BEGINNING, "logger", "model.compile", "on_nan",
    "output_dir", "run_name", "run_prefix", "trainer",
)  # fmt: skip
LIMITS = ("trainer.limit_train_batches", "trainer.overfit_batches")
FIXED = (
    "trainer.accumulate_grad_batches", "trainer.gradient_clip_algorithm", "trainer.gradient_clip_val",
    "trainer.precision", *LIMITS,
)  # fmt: skip  # which batches there are, and what is computed of them
MOST = 8  # differences that an error lists
Array = InstanceOf[torch.Tensor]


class _Part(BaseModel):
    """What a checkpoint must hold, of the types that Lightning and `LastCheckpoint` write; it may hold more."""

    model_config = ConfigDict(strict=True)


class _Random(_Part):
    torch: Array
    python: tuple[int, Array, float | None]
    numpy: tuple[str, Array, int, int, float]


class _Loader(_Part):
    seed: int = 0
    batch: NonNegativeInt = 0


class _Progress(_Part):
    epoch: NonNegativeInt
    batch: NonNegativeInt
    batches: NonNegativeInt
    logged: NonNegativeInt = 0
    steps: NonNegativeInt
    loaders: list[_Loader]
    images: NonNegativeInt | None
    images_per_step: NonNegativeInt
    pending: bool
    metrics: dict[str, Array]
    random: list[_Random]
    optimizers: list[str]
    wandb: str | None


class _Group(_Part):
    params: list[int]


class _Optimizer(_Part):
    state: dict[Any, Any]
    param_groups: list[_Group]


class _Loops(_Part):
    fit_loop: dict[str, Any]


class _Checkpoint(_Part):
    state_dict: dict[str, Any]
    optimizer_states: list[_Optimizer]
    lr_schedulers: list[dict[str, Any]]
    loops: _Loops
    callbacks: dict[str, Any]
    version: str = Field(alias="pytorch-lightning_version", pattern=r"^\d+\.\d+")
    config: dict[str, Any] = {}
    init_from: dict[str, Any] | None = None
    resume: _Progress


def find_checkpoint(wanted: str, folder: str | Path, fixed: bool, begins: bool = False) -> Path | None:
    """Return the file that `ckpt_path` means for a run in `folder`; None: there is none yet, start from scratch.

    It is a checkpoint, the folder of a run, or `last`: that of `folder`. If there is none and the user named the folder
    (`fixed`), the training starts there, so that the same command starts and resumes it. If the folder is a new
    OUTPUTS/DATE/TIME, `last` is the newest checkpoint of the runs in OUTPUTS; there must be one, unless the training
    `begins` from weights.
    """
    own = Path(folder) / CHECKPOINT
    if wanted == LAST:
        if own.is_file():
            return own
        if fixed:
            return None
        outputs = Path(folder).resolve().parents[1]
        found = max(outputs.glob(f"*/*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime, default=None)
        if not (found or begins):
            raise InputError(f"ckpt_path=last: no run in {outputs} has {CHECKPOINT}")
        return found
    path = Path(wanted)
    if path.is_dir():
        path /= CHECKPOINT
    if not path.is_file():
        raise InputError(f"ckpt_path={wanted} does not exist" + (f": no {path}" if str(path) != wanted else ""))
    return path


def read_resumable(path: Path) -> dict[str, Any]:
    """Read a checkpoint to resume from.

    Raises:
        InputError: it is damaged, cut off, or not one of `LastCheckpoint`.
    """
    checkpoint = read_checkpoint(path)
    try:
        _Checkpoint.model_validate(checkpoint)
        _check_counts(checkpoint)
    except ValidationError as error:
        problems = [(each["type"], ".".join(map(str, each["loc"]))) for each in error.errors(include_url=False)]
        missing = dict.fromkeys(place for kind, place in problems if kind == "missing" and "." not in place)
        what = f"it has no {', '.join(missing)}" if missing else f"invalid {problems[0][1] or 'content'}"
        raise InputError(f"{path} is not a checkpoint to resume from: {what}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a checkpoint to resume from: {error}") from error
    return checkpoint


def _check_counts(checkpoint: Mapping[str, Any]) -> None:
    progress, optimizers = checkpoint[RESUME], len(checkpoint["optimizer_states"])
    if len(progress["optimizers"]) != optimizers:
        raise ValueError(f"{optimizers} optimizer_states of {len(progress['optimizers'])} optimizers")
    if progress["epoch"] > progress["batches"] or progress["steps"] > progress["batches"] * max(1, optimizers):
        raise ValueError(f"{progress['batches']} batches in {progress['epoch']} epochs, {progress['steps']} steps")
    for part in ("state_dict", "optimizer_states"):
        for key, value in tensors(checkpoint[part]):
            if value.is_floating_point() and value.isnan().any():
                raise ValueError(f"{part}.{key} contains NaN")


def is_over(progress: Mapping[str, Any], trainer: Mapping[str, Any]) -> bool:
    """Return whether a training run has no batches left with the options `trainer`."""
    epochs, steps = (trainer.get(key) for key in ("max_epochs", "max_steps"))
    return 0 <= (-1 if epochs is None else epochs) <= progress["epoch"] or 0 <= (steps or -1) <= progress["steps"]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the options whose change makes it another training run, as `key then → now`.

    An argument of a class or function (`_target_`) that one of the two configurations leaves out has its default there.
    Any other key that only one of them has, as after an update of genstab, is not a change.
    """
    return list(_differences(_renamed(before), _renamed(now), ""))


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    data = config.get("data")
    if not isinstance(data, Mapping) or data.get("twin_reach") is None:
        return dict(config)
    rest = {key: value for key, value in data.items() if key != "twin_reach"}  # its name in version 0.1
    return {**config, "data": {**rest, "overlap_offset": data["twin_reach"]}}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    # Nothing is imported that only a checkpoint names.
    target = new.get("_target_")
    defaults = _defaults(target) if target == old.get("_target_", target) else {}
    for name in sorted(old.keys() | new.keys()):
        key = f"{prefix}.{name}".lstrip(".")
        if name not in defaults and not (name in old and name in new):
            continue
        then, value = (_plain(each[name] if name in each else defaults[name]) for each in (old, new))
        if isinstance(then, Mapping) and isinstance(value, Mapping):
            yield from _differences(then, value, key)
            continue
        # a limit of 1 is one batch, one of 1.0 all of them
        same = then == value and not (key in LIMITS and then and type(then) is not type(value))
        if not same and (key in FIXED or not f"{key}.".startswith(tuple(f"{group}." for group in FREE))):
            yield f"{key} {then} → {value}"


def _defaults(target: Any) -> dict[str, Any]:
    """Return the defaults of the arguments of a class or function, also of those that it hands to its parents."""
    if not isinstance(target, str):
        return {}
    try:
        found = resolve_name(target)
        kinds = found.__mro__ if isinstance(found, type) else ()
        defaults: dict[str, Any] = {}
        for function in [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)] or [found]:
            parameters = signature(function).parameters.values()
            given = {each.name: each.default for each in parameters if each.default is not each.empty}
            defaults = {**given, **defaults}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters):
                break
    except (ImportError, AttributeError, TypeError, ValueError):  # not there any more, or built in
        return {}
    return defaults


def _plain(value: Any) -> Any:
    """Return a default as a config would have it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def check_begun(path: Path, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the weights that the training run of a checkpoint began from.

    Raises:
        InputError: `config` has others; with none, it resumes whatever that training began from.
    """
    before = {key: checkpoint.get("config", {}).get(key) for key in BEGINNING}
    for key, then in before.items():
        now = config.get(key)
        if now is not None and now != then:
            raise InputError(
                f"{path} is of a training run with {key}={'null' if then is None else then}, not {now}: leave out "
                "init_from to resume it, or begin another one in a folder of its own with hydra.run.dir=DIR"
            )
    return before


def check_fit(
    path: Path,
    checkpoint: Mapping[str, Any],
    model: LightningModule,
    images: int,
    images_per_step: int,
    config: Mapping[str, Any],
    max_epochs: int | None,
) -> None:
    """Raise an `InputError` that lists, as `key then → now`, why a training run cannot resume from a checkpoint."""
    progress, differences = checkpoint[RESUME], changes(checkpoint.get("config", {}), config)
    states = checkpoint["state_dict"], model.state_dict()
    before, now = ({key: tuple(getattr(each, "shape", ())) for key, each in state.items()} for state in states)
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            differences.append(f"{key} {before.get(key, 'absent')} → {now.get(key, 'absent')}")
    counts = {
        "training images": (progress["images"], images),
        "images per step (batch size × processes)": (progress["images_per_step"], images_per_step),
    }
    differences += [f"{name} {then} → {count}" for name, (then, count) in counts.items() if then not in (None, count)]
    if max_epochs not in (None, -1) and progress["epoch"] + (progress["batch"] > 0) > max_epochs:
        differences.append(f"trainer.max_epochs={max_epochs}: it is already in epoch {progress['epoch'] + 1}")
    if differences:
        more = f"; and {len(differences) - MOST} more" if len(differences) > MOST else ""
        raise InputError(f"{path} does not fit this training run: {'; '.join(differences[:MOST])}{more}")
