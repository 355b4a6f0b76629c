"""Write, log and print the results of a measurement."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from rich.console import Console

from genstab.evaluation.generators import Measured
from genstab.evaluation.verdict import verdict
from genstab.loggers.lifecycle import how_to_view
from genstab.loggers.media import log_image, log_video
from genstab.loggers.wandb_tables import log_tables
from genstab.report.page import write_page
from genstab.report.runs import read_runs
from genstab.report.table import results_table
from genstab.runtime.files import SUMMARY, write_json
from genstab.runtime.masking import masked
from genstab.runtime.provenance import provenance

PAGE = "report.html"


def publish(
    found: Measured,
    folder: Path,
    config: Mapping[str, Any],
    seconds: float,
    loggers: Iterable[Logger] = (),
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `summary.json` and `report.html`, log the results under the keys of a training run, and print them.

    Loggers get them at step 0. `origin` is the `provenance` as of the start of the program.
    """
    metrics = {key: value for key, value in found.summary.items() if key.startswith("val/")}
    summary = {
        **found.summary,
        "verdict": verdict(found.summary),
        "notes": found.notes,
        "seconds": round(seconds, 2),
        **(provenance() if origin is None else origin),
        "config": dict(config),
    }
    write_json(folder / SUMMARY, masked(summary))
    for logger in loggers:
        logger.log_metrics(metrics, step=0)
        log_tables(logger, found.measurements, 0)
        for key, picture in found.pictures.items():
            log_image(logger, key, picture, 0)
        log_video(logger, "shift_film", folder / "shift.gif", 0)
        logger.save()
    write_page(read_runs([folder]), folder / PAGE)
    console = Console()
    console.print(results_table(metrics, f"{summary['images']} images in {seconds:.0f} s"))
    for line in (*summary["verdict"], *(f"Note: {note}" for note in found.notes)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    print(f"Page: {folder / PAGE}\nFolder: {folder}")
    for logger in loggers:
        if hint := how_to_view(logger):
            print(hint)
    return summary
