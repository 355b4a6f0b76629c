"""`metrics.csv` that is whole at any time: rows that the disk does not take are kept until it does."""

import csv
import io
import os
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from genstab.runtime.files import write_whole


class WholeCSVLogger(CSVLogger):
    """Lightning's CSV logger, whose file has whole rows only, and all that there were once the disk takes them again.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logger = WholeCSVLogger(folder, name="csv", version="")
    ...     for step, row in enumerate([{"a": 1}, {"a": 2, "b": 3}]):
    ...         logger.log_metrics(row, step)
    ...         logger.save()
    ...     Path(folder, "csv", "metrics.csv").read_text().split()
    ['a,b,step', '1,,0', '2,3,1']
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> "WholeRows":
        """The writer of the file, made at first use."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = WholeRows(self.log_dir)
        return self._experiment  # type: ignore[return-value]  # just made


class WholeRows(ExperimentWriter):
    """Write rows to `metrics.csv` in its folder.

    Lightning deletes the file of an earlier run before it has a row of its own, opens it anew for a column that it has
    not had, so that a full disk would lose all rows, and leaves half a row of what else it could not write.
    """

    def _check_log_dir_exists(self) -> None:
        """Leave an earlier file there until the first rows take its place."""

    def save(self) -> None:
        """Write the rows since the last time; those that cannot be written are kept for the next one."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        before = list(self.metrics_keys)  # none: the file, if there is one, is not ours
        try:
            if self._record_new_keys() or not path.is_file():
                self._write_all(path, keep=bool(before) and path.is_file())
            else:
                self._append(path)
        except OSError:
            self.metrics_keys = before
            raise
        self.metrics = []

    def _write_all(self, path: Path, keep: bool) -> None:
        rows: list[dict] = []
        if keep:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        text = self._lines(rows + self.metrics, header=True)
        write_whole(path, lambda file: file.write(text))

    def _append(self, path: Path) -> None:
        whole = path.stat().st_size
        try:
            with path.open("ab") as file:
                file.write(self._lines(self.metrics))
        except OSError:
            os.truncate(path, whole)
            raise

    def _lines(self, rows: list[dict], header: bool = False) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
