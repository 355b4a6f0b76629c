"""What a run that goes on from another one's checkpoint takes over: the best so far, the W&B run, the table of logs."""

import csv
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from genstab.whole_files import write_whole


def take_over(state: dict[str, Any], beside: Path, here: Path, copy: bool) -> None:
    """Let a `ModelCheckpoint`'s state name the files of this run's folder, copied from beside the checkpoint."""

    def moved(path: str) -> str:
        if not path:
            return path
        source, target = beside / Path(path).name, here / Path(path).name
        if copy and source.is_file() and source.resolve() != target.resolve():
            with source.open("rb") as file:
                write_whole(target, lambda new: shutil.copyfileobj(file, new))
        return str(target)

    state["dirpath"] = str(here)
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[key] = moved(state[key])


@rank_zero_only
def continue_logs(loggers: Iterable[Logger], wandb_id: str | None, batches: int, again: bool) -> None:
    """Let the loggers go on with the logs of the run that is continued; before anything is logged.

    W&B gets the id of the run. `metrics.csv`, where it lies in this run's folder, keeps the rows of the first `batches`
    batches, where Lightning would delete it; the others will be written again, and with `again` those of the validation
    after them, too. TensorBoard adds a file to its folder.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and wandb_id:
            logger._id = logger._wandb_init["id"] = wandb_id
        elif isinstance(logger, CSVLogger):
            _continue_table(logger, batches, again)


def _continue_table(logger: CSVLogger, batches: int, again: bool) -> None:
    path = Path(logger.log_dir) / "metrics.csv"
    rows: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                row = {key: value for key, value in line.items() if value}
                step = int(row["step"]) if (row.get("step") or "").isdecimal() else batches
                repeated = again and step == batches - 1 and any(key.startswith("val/") for key in row)
                rows += [row] if step < batches and not repeated else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the folder is not empty
        writer = logger.experiment
    writer.metrics = rows + writer.metrics
