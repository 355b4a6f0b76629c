"""What runs left in their folders, read back to be compared."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genstab.data.paths import natural
from genstab.errors import InputError
from genstab.report.check_json import check_measurements, check_summary
from genstab.runtime.files import MEASUREMENTS, SLIDE_OUTPUT, SLIDE_SOURCE, SUMMARY, read_json

# How far below a folder that is no run itself its runs may lie: multirun/DATE/TIME/0.
DEPTH = 3
READ_BY_REPORT = (SUMMARY, MEASUREMENTS, SLIDE_SOURCE, SLIDE_OUTPUT)


@dataclass(frozen=True)
class Run:
    """A run: its name, its folder, `summary.json` and, where there are some, `measurements.json`; no NaN in either."""

    name: str
    folder: Path
    summary: Mapping[str, Any]
    measurements: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """The run's configuration, empty where the summary has none."""
        return self.summary.get("config") or {}

    def option(self, key: str) -> Any:
        """Return an option by its dotted key; None where there is none."""
        found: Any = self.config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return found


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Read the runs of some folders, each once; raise an `InputError` if one is neither a run nor holds one.

    A folder with a `summary.json` is a run; another one stands for the runs up to three levels below it, in natural
    order. Runs are named by `run_name` of their config, else by their folder; where two have one name, the end of
    their path is added.
    """
    folders: dict[Path, Path] = {}
    for path in map(Path, paths):
        for folder in _runs_of(path):
            folders.setdefault(folder.resolve(), folder)
    if not folders:
        raise InputError(f"no run to compare: give a folder with a {SUMMARY}, or one that has such folders in it")
    runs = [_read(folder) for folder in folders.values()]
    names = _names({run.folder: run.name for run in runs})
    return [replace(run, name=names[run.folder]) for run in runs]


def _read(folder: Path) -> Run:
    run = Run(folder.resolve().name, folder, _checked(folder / SUMMARY, check_summary))
    name, measured = run.option("run_name"), folder / MEASUREMENTS
    return replace(
        run,
        name=name if isinstance(name, str) and name.strip() else run.name,
        measurements=_checked(measured, check_measurements) if measured.is_file() else {},
    )


def _checked(path: Path, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    content = read_json(path)
    try:
        check(content)
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return content


def _runs_of(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not path.is_dir():
        raise InputError(f"{path} is a file, not the folder of a run")
    if not (found := _below(path, DEPTH)):
        raise InputError(
            f"{path} is not a run folder: neither it nor a folder up to {DEPTH} levels below it has a {SUMMARY}"
        )
    return sorted(found, key=_in_order)


def _below(path: Path, depth: int) -> list[Path]:
    if (path / SUMMARY).is_file():
        return [path]
    return [run for folder in path.iterdir() if depth and folder.is_dir() for run in _below(folder, depth - 1)]


def _in_order(folder: Path) -> tuple[list[str | int], str]:
    return natural(folder.as_posix())


def unfinished(paths: Iterable[str | Path]) -> list[Path]:
    """Return the folders of jobs below some folders that left no summary: they failed, were stopped, or still run."""
    below = (
        folder for path in paths for depth in range(DEPTH) for folder in Path(path).glob("*/" * depth + "*/.hydra")
    )
    return sorted({folder.parent for folder in below if not (folder.parent / SUMMARY).is_file()}, key=_in_order)


def _names(wanted: Mapping[Path, str]) -> dict[Path, str]:
    """Make names unique by the shortest end of the path that tells those of one name apart."""
    names = dict(wanted)
    for name, times in Counter(wanted.values()).items():
        same = {folder: folder.resolve().parts for folder in wanted if wanted[folder] == name}
        length = 1
        while len({parts[-length:] for parts in same.values()}) < times:
            length += 1
        for folder, parts in same.items() if times > 1 else ():
            end = "/".join(parts[-length:])
            names[folder] = end if end.endswith(f"/{name}") else f"{name} ({end})"
    return names
