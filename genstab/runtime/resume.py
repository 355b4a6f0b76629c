"""Which checkpoint a training resumes from, and whether the two fit together."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule

from genstab.errors import InputError
from genstab.runtime.checkpoint_file import read_checkpoint
from genstab.runtime.files import SUMMARY, read_json
from genstab.runtime.last_checkpoint import RESUME

CHECKPOINT = Path("checkpoints/last.ckpt")
LAST = "last"
# Options that may change: paths, how long it takes, what is measured and logged. Any other makes it another training.
# The batch size counts together with the number of processes.
FREE = (
    "callbacks", "ckpt_path", "data._target_", "data.batch_size", "data.cache", "data.cache_gb", "data.check",
    "data.num_workers", "data.on_error", "data.root", "data.url", "data.val_batch_size", "data.val_images", "logger",
    "model.compile", "on_nan", "output_dir", "run_name", "run_prefix", "trainer",
)  # fmt: skip
FIXED = ("trainer.precision",)
MOST = 8  # differences that an error lists
# What a checkpoint must hold, and its entry `RESUME`.
KEYS = {
    "state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict,
    "pytorch-lightning_version": str, RESUME: dict,
}  # fmt: skip
PROGRESS = {
    "epoch", "batch", "batches", "steps", "loaders", "images", "images_per_step", "pending", "metrics", "random",
    "optimizers", "wandb",
}  # fmt: skip


def find_checkpoint(wanted: str, folder: str | Path, fixed: bool) -> Path | None:
    """Return the file that `ckpt_path` means for a run in `folder`; None: there is none yet, start from scratch.

    Args:
        wanted: a checkpoint, the folder of a run, or `last`: that of `folder`. If there is none and the user named the
            folder (`fixed`), the training starts there, so that the same command starts and resumes it. If the folder
            is a new OUTPUTS/DATE/TIME, `last` is the newest checkpoint of the runs in OUTPUTS.
        folder: of this run.
        fixed: whether the user named it.

    Raises:
        InputError: there is no such file, or no run to resume.

    >>> find_checkpoint("last", "runs/a", fixed=True) is None
    True
    """
    own = Path(folder) / CHECKPOINT
    if wanted == LAST:
        if own.is_file():
            return own
        if fixed:
            return None
        outputs = Path(folder).resolve().parents[1]
        found = sorted(outputs.glob(f"*/*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise InputError(f"ckpt_path=last: no run in {outputs} has {CHECKPOINT}")
        return found[-1]
    path = Path(wanted)
    if path.is_dir():
        path /= CHECKPOINT
    if not path.is_file():
        raise InputError(f"ckpt_path={wanted} does not exist" + (f": no {path}" if str(path) != wanted else ""))
    return path


def dated(path: Path) -> str:
    """Return a file with the date of its last change, by which `ckpt_path=last` chooses.

    >>> dated(Path(__file__)).startswith(f"{__file__} of 20")
    True
    """
    return f"{path} of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(path.stat().st_mtime))}"


def read_resumable(path: Path) -> dict[str, Any]:
    """Read a checkpoint to resume from.

    Raises:
        InputError: it is damaged, cut off, or not one of `LastCheckpoint`.
    """
    checkpoint = read_checkpoint(path)
    missing = KEYS if not isinstance(checkpoint, dict) else [key for key in KEYS if key not in checkpoint]
    if missing:
        raise InputError(f"{path} is no checkpoint to go on from: it has no {', '.join(missing)}")
    if wrong := _odd(checkpoint):
        raise InputError(f"{path} is no checkpoint to go on from: it has an odd {', '.join(wrong)}")
    return checkpoint


def _odd(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values are not what Lightning and `LastCheckpoint` write there."""
    wrong = [key for key, kind in KEYS.items() if not isinstance(checkpoint[key], kind)]
    if wrong:
        return wrong
    fine = {
        "loops": "fit_loop" in checkpoint["loops"],
        "optimizer_states": all(isinstance(each, dict) for each in checkpoint["optimizer_states"]),
        "pytorch-lightning_version": re.match(r"\d+\.\d+", checkpoint["pytorch-lightning_version"]),
        RESUME: checkpoint[RESUME].keys() >= PROGRESS,
    }
    return [key for key, good in fine.items() if not good]


def is_over(progress: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Return whether the training that `config` describes has no batches left.

    >>> is_over({"epoch": 3, "steps": 24}, {"trainer": {"max_epochs": 3, "max_steps": -1}})
    True
    """
    epochs, steps = (config.get("trainer", {}).get(key) for key in ("max_epochs", "max_steps"))
    return 0 <= (-1 if epochs is None else epochs) <= progress["epoch"] or 0 <= (steps or -1) <= progress["steps"]


def summary_of(folder: str | Path, progress: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the summary in a run folder if it was written at this progress of the training, else None."""
    path = Path(folder) / SUMMARY
    summary = read_json(path) if path.is_file() else {}
    return summary if summary.get("steps") == progress["steps"] else None


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the options whose change makes it another training, as `key then → now`.

    An option that only one of the two configurations has, as after an update of genstab, is not a change.

    >>> changes({"seed": 1, "logger": {"name": "a"}}, {"seed": 2, "logger": {"name": "b"}})
    ['seed 1 → 2']
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    for flat in (old, new):
        if (offset := flat.pop("data.twin_reach", None)) is not None:  # its name in version 0.1
            flat["data.overlap_offset"] = offset
    keys = (key for key in sorted(old.keys() & new.keys()) if not _within(key, FREE) or key in FIXED)
    return [f"{key} {old[key]} → {new[key]}" for key in keys if old[key] != new[key]]


def check_fit(
    path: Path,
    checkpoint: Mapping[str, Any],
    model: LightningModule,
    images: int,
    images_per_step: int,
    config: Mapping[str, Any],
) -> None:
    """Compare a checkpoint with the training that resumes from it.

    Args:
        path: of the checkpoint, for the message.
        checkpoint: its contents.
        model: to be trained.
        images: number of training images.
        images_per_step: the batch size times the number of processes.
        config: the run's configuration, as plain types.

    Raises:
        InputError: one line with all differences, as `key then → now`.
    """
    progress = checkpoint[RESUME]
    differences = changes(checkpoint.get("config", {}), config) + _shapes(checkpoint["state_dict"], model.state_dict())
    counts = {"training images": images, "images per step (batch size × processes)": images_per_step}
    for (name, now), then in zip(counts.items(), (progress["images"], progress["images_per_step"]), strict=True):
        if then is not None and then != now:
            differences.append(f"{name} {then} → {now}")
    epochs = config.get("trainer", {}).get("max_epochs", -1)
    if epochs not in (None, -1) and progress["epoch"] + (progress["batch"] > 0) > epochs:
        differences.append(f"trainer.max_epochs={epochs}: it is already in epoch {progress['epoch'] + 1}")
    if differences:
        more = f"; and {len(differences) - MOST} more" if len(differences) > MOST else ""
        raise InputError(f"{path} does not fit this training: {'; '.join(differences[:MOST])}{more}")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _within(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _shapes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = [f"no {key} in the checkpoint" for key in now.keys() - before.keys()]
    found += [f"{key} is in the checkpoint only" for key in before.keys() - now.keys()]
    for key in before.keys() & now.keys():
        if before[key].shape != now[key].shape:
            found.append(f"{key} {tuple(before[key].shape)} → {tuple(now[key].shape)}")
    return sorted(found)
