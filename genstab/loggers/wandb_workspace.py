"""A W&B workspace that compares runs: stability with quality beside it. Needs the extra `workspace`."""

import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING

from genstab.errors import InputError
from genstab.loggers.wandb import STEP, SUMMARY
from genstab.loggers.wandb_tables import TABLES

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "genstab: stability and quality"
ANSWER_TIMEOUT = 10  # seconds
# (title, keys) of the line plots over the training.
STABILITY = (
    ("Shift PSNR, dB (higher is more stable)", ["val/shift_psnr"]),
    ("Shift PSNR when the camera moves, dB", ["val/shift_psnr_crop"]),
    ("Worst shift PSNR, dB", ["val/shift_psnr_worst"]),
)
QUALITY = (
    ("L1 to the targets (lower is better)", ["val/l1"]),
    ("SSIM", ["val/ssim"]),
    ("Total variation of outputs and targets (far below: blurry)", ["val/tv", "val/tv_target"]),
)
# (title, quality, stability) of the scatter plots over the runs.
TRADE_OFFS = (
    ("L1 and shift PSNR", "val/l1", "val/shift_psnr"),
    ("L1 and shift PSNR, crop", "val/l1", "val/shift_psnr_crop"),
    ("Total variation and shift PSNR", "val/tv", "val/shift_psnr"),
)
PICTURES = ("samples", "shift", "shift_map", "shift_film")
COLUMNS = tuple(key for _, keys in (*STABILITY, *QUALITY) for key in keys)
GROUPS = ("antialias.filter", "antialias.placement")


def workspace(entity: str, project: str = "genstab") -> "Workspace":
    """Return the definition of a workspace; nothing is sent anywhere.

    Shift PSNR over the training with quality below it, one against the other over the runs, pictures, tables, and the
    options that differ. Runs are grouped, and so coloured, by `antialias.filter` and `antialias.placement`, the most
    stable first.

    Args:
        entity: the W&B user or team.
        project: the W&B project.

    Raises:
        InputError: wandb-workspaces is not installed, or a name is empty or has a slash.

    >>> [section.name for section in workspace("me").sections][:3]
    ['Stability', 'Quality', 'Quality against stability']
    """
    for name, value in (("entity", entity), ("project", project)):
        if not isinstance(value, str) or not value.strip() or "/" in value:
            raise InputError(f"{name}={value!r} is not the name of a W&B {name}")
    ws, wr, expr = (_library(name) for name in ("workspaces", "reports.v2", "expr"))

    def summary(key: str) -> str:
        return f"{key}.last" if key in SUMMARY else key  # of those the summary holds the best value too

    def lines(title: str, keys: list[str]) -> object:
        return wr.LinePlot(title=title, x=STEP, y=keys, smoothing_type="none")

    def scatter(title: str, x: str, y: str) -> object:
        return wr.ScatterPlot(title=title, x=wr.SummaryMetric(summary(x)), y=wr.SummaryMetric(summary(y)))

    def media(key: str) -> object:
        return wr.MediaBrowser(title=key, media_keys=[key], num_columns=1)

    sections = {
        "Stability": [lines(*plot) for plot in STABILITY],
        "Quality": [lines(*plot) for plot in QUALITY],
        "Quality against stability": [scatter(*plot) for plot in TRADE_OFFS],
        "Pictures": [media(key) for key in PICTURES],
        "Tables": [wr.WeavePanelSummaryTable(table_name=key) for key, *_ in TABLES],
        "Options that differ": [wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=10))],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=20),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(key) for key in GROUPS],
            order=[expr.Ordering(expr.Summary(summary("val/shift_psnr")), ascending=False)],
            pinned_columns=[*(f"config:{key}" for key in GROUPS), *(f"summary:{summary(key)}" for key in COLUMNS)],
        ),
    )


def save(definition: "Workspace") -> str:
    """Save a workspace at W&B and return its URL; nobody is ever asked to log in.

    Raises:
        InputError: nobody is logged in, the server does not answer, or it refuses.
    """
    import wandb

    try:
        # No viewer: login would ask the server for the user's name, only to print it.
        wandb.setup(wandb.Settings(mode="online", x_disable_viewer=True, silent=True))
        if not wandb.login(prompt=False, verify=False):
            raise InputError("nobody is logged in to W&B: run `wandb login` first")
        wandb.Api(timeout=ANSWER_TIMEOUT)  # asks the server who this is
        return definition.save().url
    except InputError:
        raise
    except Exception as error:  # what its service raises is no public class, and no wandb.Error
        raise InputError(f"W&B did not save the workspace: {' '.join(str(error).split())}") from error


def publish(entity: str, project: str = "genstab") -> str:
    """Make the workspace of a project, save it, print its URL and return it: `genstab workspace`.

    Raises:
        InputError: as for `workspace` and `save`.
    """
    url = save(workspace(entity, project))
    print(url)
    return url


def _library(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            # wandb-workspaces 0.4 declares its models in pydantic's old way.
            warnings.filterwarnings("ignore", "Pydantic V1 style", DeprecationWarning)
            return importlib.import_module(f"wandb_workspaces.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        raise InputError("a W&B workspace needs wandb-workspaces: pip install 'genstab[workspace]'") from error
