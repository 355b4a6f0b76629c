"""What a result depends on beside its configuration: versions, the machine, the commits that it ran from."""

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `genstab --version` takes no seconds to import it
    import torch

PACKAGES = ("genstab", "torch", "pytorch-lightning", "torchmetrics", "kornia", "hydra-core", "wandb", "numpy")
CODE = Path(__file__).parents[1]
GIT_TIMEOUT = 5.0
"""Seconds that git may take for an answer, on a slow or dead disk."""


def provenance(devices: "Iterable[torch.device]" = ()) -> dict[str, Any]:
    """Return `versions`, `machine` and `git`, as plain types; for the devices of this node that do the work.

    >>> sorted(provenance())
    ['git', 'machine', 'versions']
    """
    return {"versions": versions(), "machine": machine(devices), "git": git_states()}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on.

    >>> sorted(versions())[:3]
    ['genstab', 'hydra-core', 'kornia']
    """
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine(devices: "Iterable[torch.device]" = ()) -> dict[str, Any]:
    """Return the platform, the names of the devices, CUDA's and cuDNN's versions and the number of torch's threads.

    On a CPU the number of threads changes the last bits of a sum.

    >>> import torch
    >>> machine([torch.device("cpu")])["threads"] == torch.get_num_threads()
    True
    """
    import torch

    return {
        "platform": platform.platform(),
        "devices": [_name(device) for device in devices],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _name(device: "torch.device") -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return processor()


def processor() -> str:
    """Return the name of the processor.

    >>> processor() != ""
    True
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git_states() -> dict[str, dict[str, Any] | None]:
    """Return the state of the checkout that genstab runs from, and of the working folder's if that is another one.

    None where there is no repository: genstab from a wheel, a working folder outside of any.

    >>> list(git_states())
    ['genstab', 'working_folder']
    """
    code = repository(CODE)
    try:
        here = repository(Path.cwd())
    except OSError:  # somebody removed it
        here = None
    # a wheel may be installed below a repository that is not its own
    own = git_state(code, CODE / "__init__.py") if code else None
    return {"genstab": own, "working_folder": git_state(here) if here and not (own and here == code) else None}


def repository(folder: Path) -> Path | None:
    """Return the folder of the repository in which `folder` lies, None where there is none.

    >>> repository(Path("/")) is None
    True
    """
    folder = folder.resolve()
    return next((each for each in (folder, *folder.parents) if os.path.exists(each / ".git")), None)


def git_state(folder: Path, tracked: Path | None = None) -> dict[str, Any] | None:
    """Return the commit of a repository, and whether tracked files differ from it; or what kept git from telling.

    Nothing in the repository is written and no program is run that its configuration names for watching files. What
    git does not answer within `GIT_TIMEOUT` seconds is a `problem`, as are an owner whom git does not trust, a damaged
    repository and an absent git.

    Args:
        folder: of the repository.
        tracked: a file; None is returned if the repository does not track it.

    >>> git_state(Path("/nowhere"))
    {'commit': None, 'dirty': None, 'problem': "cannot change to '/nowhere': No such file or directory"}
    """
    # Those of a surrounding git, as in a hook, would point it to another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=GIT_TIMEOUT,
        ).stdout.decode(errors="replace")  # fmt: skip

    try:
        if tracked and not git("ls-files", "--", str(tracked.resolve())):
            return None
        lines = git("status", "--porcelain=v2", "--branch", "--untracked-files=no").splitlines()
    except FileNotFoundError:
        return _unknown("git is not installed")
    except subprocess.TimeoutExpired:
        return _unknown(f"git did not answer within {GIT_TIMEOUT:g} s")
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or [f"git ended with {error.returncode}"]
        return _unknown(said[0].removeprefix("fatal: "))
    except OSError as error:
        return _unknown(f"git cannot be run: {error.strerror}")
    commit = next((line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")), "")
    dirty = any(not line.startswith("#") for line in lines)
    return {"commit": None if commit in ("", "(initial)") else commit, "dirty": dirty}


def _unknown(problem: str) -> dict[str, Any]:
    return {"commit": None, "dirty": None, "problem": problem}
