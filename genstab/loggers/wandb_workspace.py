"""A W&B workspace that compares runs: stability with quality beside it. Needs the extra `workspace`."""

from typing import TYPE_CHECKING, Any

from genstab.errors import InputError
from genstab.loggers.wandb import STEP, logged_in
from genstab.loggers.wandb_tables import tables
from genstab.metrics.registry import Metric, best_ends, metrics

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "genstab: stability and quality"
ANSWER_TIMEOUT = 10  # seconds
COMPARED = ("val/shift_psnr", "val/shift_psnr_crop")  # with quality, in scatter plots
PICTURES = ("samples", "shift", "shift_map", "shift_film")
GROUPS = ("antialias.filter", "antialias.placement")


def workspace(entity: str, project: str = "genstab") -> "Workspace":
    """Return the definition of a workspace of an entity (a W&B user or team); nothing is sent anywhere.

    Shift PSNR over the training with quality below it, one against the other over the runs, pictures, tables, and the
    options that differ. Runs are grouped, and so coloured, by `antialias.filter` and `antialias.placement`, the most
    stable first.

    Raises:
        InputError: wandb-workspaces is not installed, or a name is empty or has a slash.
    """
    for name, value in (("entity", entity), ("project", project)):
        if not isinstance(value, str) or not value.strip() or "/" in value:
            raise InputError(f"{name}={value!r} is not the name of a W&B {name}")
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "wandb_workspaces":
            raise
        raise InputError("a W&B workspace needs wandb-workspaces: pip install 'genstab[workspace]'") from error

    every, best = metrics(), best_ends()
    # what the targets have stands beside what the outputs have
    drawn = [m for m in every.values() if m.in_training and not m.key.endswith("_target")]
    stability, quality = ([m for m in drawn if m.group == group] for group in ("shift PSNR", "quality"))

    def summary(key: str) -> str:
        return f"{key}.last" if key in best else key  # of those the summary holds the best value too

    def lines(metric: Metric) -> Any:
        keys: list[Any] = [key for key in (metric.key, f"{metric.key}_target") if key in every]
        hint = {"max": " (higher is better)", "min": " (lower is better)"}.get(metric.better, "")
        title = f"{metric.title}{' of outputs and targets' if len(keys) > 1 else hint}"
        return wr.LinePlot(title=title, x=STEP, y=keys, smoothing_type="none")

    def scatter(x: Metric, y: Metric) -> Any:
        keys = [wr.SummaryMetric(summary(metric.key)) for metric in (x, y)]
        return wr.ScatterPlot(title=f"{x.name} and {y.name}", x=keys[0], y=keys[1])

    def media(key: str) -> Any:
        return wr.MediaBrowser(title=key, media_keys=[key], num_columns=1)

    sections = {
        "Stability": [lines(metric) for metric in stability],
        "Quality": [lines(metric) for metric in quality],
        "Quality against stability": [scatter(x, every[y]) for y in COMPARED for x in quality if x.brief],
        "Pictures": [media(key) for key in PICTURES],
        "Tables": [wr.WeavePanelSummaryTable(table_name=key) for key in tables({})],
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
            pinned_columns=[
                *(f"config:{key}" for key in GROUPS),
                *(f"summary:{summary(m.key)}" for m in (*stability, *quality) if m.brief),
            ],
        ),
    )


def publish(entity: str, project: str = "genstab") -> str:
    """Save the workspace of a project at W&B, print its URL and return it: `genstab workspace`.

    Raises:
        InputError: as for `workspace`, and where nobody is logged in, the server does not answer, or it refuses.
    """
    import wandb

    definition = workspace(entity, project)
    try:
        if not logged_in():
            raise InputError("nobody is logged in to W&B: run `wandb login` first")
        wandb.Api(timeout=ANSWER_TIMEOUT)  # asks the server who this is
        url = definition.save().url
    except InputError:
        raise
    except Exception as error:  # what its service raises is no public class, and no wandb.Error
        raise InputError(f"W&B did not save the workspace: {' '.join(str(error).split())}") from error
    print(url)
    return url
