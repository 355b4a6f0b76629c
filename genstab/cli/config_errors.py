"""Errors of a config, and of what is made of it, in one line."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genstab.cli.signatures import signature_of
from genstab.errors import DISK, InputError, reason


def quieten() -> None:
    """Leave out Lightning's hints about hardware and products that the user did not ask for."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # our own error names the file
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "You requested to overfit but enabled train dataloader shuffling")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a resumed run


@contextmanager
def input_errors() -> Iterator[None]:
    """Raise an `InputError` for an error of a job that the user, a disk or too little memory is to blame for."""
    import torch  # here, since only jobs need them
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    try:
        yield
    except Exception as error:
        causes = list(chain(error))
        for outer, cause in zip([error, *causes], causes, strict=False):
            if isinstance(cause, InputError):
                raise _with_key(cause, outer) from error.__cause__
            misspelt = isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause)
            late = isinstance(cause, ValueError) and "val_check_interval" in str(cause)  # known once the data are read
            if misspelt or late or isinstance(cause, MisconfigurationException | MissingMandatoryValue):
                wanted = r"Please increase the `(limit_\w+)` argument\. Try at least `\1=(.*)`"
                said = re.sub(wanted, r"set trainer.\1, or trainer.overfit_batches, to at least \2", one_line(cause))
                raise InputError(said) from error
            if isinstance(cause, OSError) and cause.errno in DISK:
                last = extract_tb(cause.__traceback__)[-1]
                where = cause.filename or f"{last.name} of {Path(last.filename).name}"
                raise InputError(f"{where}: {reason(cause)}") from error
        root = causes[-1]
        if isinstance(error, InstantiationException) and isinstance(root, TypeError | ValueError | ImportError):
            key = re.search(r"full_key: (\S+)", str(error))
            target = re.search(r"Error locating target ('[^']*')", str(error))
            place = (key[1] if key else "an option") + (f"._target_={target[1]}" if target else "")
            raise InputError(f"{place}: {one_line(root)}") from error
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            said = (str(error).strip().splitlines() or ["no more"])[0]
            raise InputError(f"out of memory: smaller batches or images need less ({said})") from error
        raise


def _with_key(error: InputError, outer: BaseException) -> InputError:
    """Write the whole key before an argument that a constructor named, if the config called it: `data.crop_size=0`."""
    key = re.search(r"full_key: (\S+)", str(outer)) if isinstance(outer, InstantiationException) else None
    if key is None or not re.match(r"[a-z]\w*=", str(error)):  # WANDB_MODE is no argument
        return error
    # What users set: model.generator.antialias is the group of that name, and some arguments are of the Trainer.
    group = key[1].removeprefix("model.generator.") if key[1].endswith(".antialias") else key[1]
    if re.match("gradient_clip|accumulate_grad", str(error)):
        group = "trainer"
    return InputError(f"{group}.{error}")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, …"""
    while error is not None:
        yield error
        error = error.__cause__


def one_line(error: BaseException, defaults: Callable[[], Any] | None = None) -> str:
    """Return the message of an error of Hydra in one line, without lists of paths, with the keys that may be meant.

    `defaults` returns the config to look for them, where the error does not have it.
    """
    message = re.split("Config search path:|full_key:|Key '|See https://hydra", str(error))[0]
    said = re.sub(r'^\w+ raised while resolving interpolation: "?(.*?)"?$', r"\1", " ".join(message.split()))
    if found := re.search(r"(Could not find '.*/(.*)') (Available options in '.*': (.*))", said):
        return f"{found[1]}{_perhaps(get_close_matches(found[2], found[4].split(), n=1))} {found[3]}"
    if defaults and (found := re.fullmatch(r"(Could not delete from config\. '(.*)' does not exist)\.", said)):
        keys = [f"~{key}" for key in _keys(OmegaConf.to_container(defaults()))]
        return f"{found[1]}{_perhaps(get_close_matches(f'~{found[2]}', keys, n=1, cutoff=0.75))}"
    if not said.startswith("Could not override"):
        return said
    said = re.sub(r" (To append to your (?:config|default list) use .*)", r" (\1; --help lists all keys)", said)
    if isinstance(cause := error.__cause__, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        wrong = said.split("'")[1]
        # private: a node of OmegaConf has no public way to the config that it belongs to
        known = list(_keys(OmegaConf.to_container(cause.parent_node._get_root())))
        if "trainer" in known and (signature := signature_of("pytorch_lightning.Trainer")):
            known += [f"trainer.{key}" for key in signature.types if f"trainer.{key}" not in known]
        same = [key for key in known if key.endswith(f".{wrong.rpartition('.')[2]}")][:2]
        if meant := same or get_close_matches(wrong, known, n=1, cutoff=0.8):
            return said.replace("'.", f"'{_perhaps(meant)}", 1)
    return said


def _perhaps(meant: list[str]) -> str:
    return f": did you mean {' or '.join(meant)}?" if meant else ""


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for key, value in config.items() if isinstance(config, dict) else ():
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def refusal(error: BaseException) -> str | None:
    """Return the message of an error of submitit in one line, with the end of the job's log; None for other errors."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next
    if not any(each.startswith("submitit.") for each in (module, type(error).__module__)):
        return None
    said, *log = re.split(r"\n-{9,}\n?", str(error))
    end = [line for line in log[0].splitlines() if line.strip()][-1:] if log else []
    return " ".join(": ".join([said, *end]).split())
