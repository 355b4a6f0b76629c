"""What a result depends on besides its configuration: versions, machine and git commit."""

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
CHECKOUT = Path(__file__).parents[2]
GIT_TIMEOUT = 5.0  # seconds, on a slow or dead disk


def provenance(devices: "Iterable[torch.device]" = ()) -> dict[str, Any]:
    """Return `versions`, `machine` (with the names of the given devices) and `git`, as plain types."""
    return {"versions": versions(), "machine": machine(devices), "git": git_states()}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def machine(devices: "Iterable[torch.device]" = ()) -> dict[str, Any]:
    """Return the platform, the names of the devices, CUDA's and cuDNN's versions and the number of torch's threads.

    On a CPU the number of threads changes the last bits of a sum.
    """
    import torch

    names = {"cuda": torch.cuda.get_device_name, "cpu": lambda _: processor()}
    return {
        "platform": platform.platform(),
        "devices": [names[each.type](each) if each.type in names else each.type for each in devices],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def version_text() -> str:
    """Return what `genstab --version` prints: versions, the machine and the commit."""
    lines = [f"{name} {number}" for name, number in versions().items()]
    lines.append(f"{platform.platform()}, {processor()}, {os.cpu_count()} processors")
    state = git_states()["genstab"]
    if state and state["commit"]:
        lines.append(f"commit {state['commit']}{' with changes' if state['dirty'] else ''}")
    return "\n".join(lines)


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git_states() -> dict[str, dict[str, Any] | None]:
    """Return `git_state` of the checkout that genstab runs from and of the working folder."""
    try:
        here = git_state(Path.cwd())
    except OSError:  # the working folder was removed
        here = None
    # a wheel in a virtual environment may lie inside a repository that is not its own
    return {"genstab": git_state(CHECKOUT) if (CHECKOUT / ".git").exists() else None, "working_folder": here}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the `commit` of the repository that a folder lies in, and whether tracked files differ from it (`dirty`).

    None without a repository, without git, or where git refuses or takes longer than `GIT_TIMEOUT` seconds. Nothing is
    written, and no program that the repository's configuration names is run.
    """
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), "status", "--porcelain=v2", "--branch"]
    # inside a git hook, GIT_DIR and the like name another repository
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            [*command, "--untracked-files=no"], env=environment, capture_output=True, check=True, timeout=GIT_TIMEOUT
        )
    except (OSError, subprocess.SubprocessError):
        return None
    header, *lines = done.stdout.decode(errors="replace").splitlines() or [""]
    commit = header.removeprefix("# branch.oid ")
    dirty = any(not line.startswith("#") for line in lines)
    return {"commit": None if commit in ("", "(initial)") else commit, "dirty": dirty}
