"""A CSV logger whose file is complete after every write, also on a disk that is full for a while."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from genstab.runtime.files import FailedWrites, write_whole


class WholeCSVLogger(CSVLogger):
    """Lightning's `CSVLogger`, but `metrics.csv` holds complete rows only, and no row is lost while the disk is full.

    Lightning's logger deletes the file of an earlier run before it has a row to write, and rewrites it in place for a
    new column, so a full disk would lose all rows. This one keeps the rows in memory, appends to the file, and replaces
    it atomically when there is a new column.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logger = WholeCSVLogger(folder, name="csv", version="")
    ...     for step, row in enumerate([{"a": 1}, {"a": 2, "b": 3}]):
    ...         logger.log_metrics(row, step)
    ...         logger.save()
    ...     Path(folder, "csv", "metrics.csv").read_text().split()
    ['a,b,step', '1,,0', '2,3,1']
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unwritten = FailedWrites("log", "the training goes on, and the rows are kept until they can be written")
        self.metrics: list[dict[str, Any]] = []
        self.columns: list[str] = []
        self.saved = 0  # rows that the file holds

    @property
    @rank_zero_experiment
    def experiment(self) -> "WholeCSVLogger":
        """The logger itself; Lightning's writer would delete the file of an earlier run."""
        return self

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: `summary.json` in the run folder holds the config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Add a row, which the next `save` writes."""
        row = {key: value.item() if isinstance(value, Tensor) else value for key, value in metrics.items()}
        self.metrics.append({**row, "step": len(self.metrics) if step is None else step})

    @rank_zero_only
    def save(self) -> None:
        """Write the new rows; those that cannot be written are tried again the next time."""
        new = self.metrics[self.saved :]
        if not new:
            return
        path = Path(self.log_dir, "metrics.csv")
        columns = sorted(set(self.columns).union(*new))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        with self.unwritten.tolerate(path):
            if columns == self.columns and path.is_file() and not path.is_symlink():
                writer.writerows(new)
                _append(path, text.getvalue().encode())
            else:
                writer.writeheader()
                writer.writerows(self.metrics)
                write_whole(path, lambda file: file.write(text.getvalue().encode()))
            self.columns, self.saved = columns, len(self.metrics)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last rows."""
        self.save()


def _append(path: Path, lines: bytes) -> None:
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(lines)
    except OSError:
        os.truncate(path, size)  # no half row stays
        raise
