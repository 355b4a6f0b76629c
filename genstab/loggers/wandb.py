"""Weights & Biases without an account or a network: a run that cannot be online is logged offline instead."""

import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.errors import InputError, check_choice
from genstab.metrics.registry import best_ends

if TYPE_CHECKING:
    import wandb

# Where a run cannot start in one mode, the next one is tried.
MODES = ("online", "offline", "disabled")
# The x axis that WandbLogger logs beside every metric: Lightning's count of training batches.
STEP = "trainer/global_step"


def wandb_logger(
    save_dir: str | Path,
    project: str | None = None,
    mode: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Iterable[str] | None = None,
    init_timeout: float = 10.0,
    finish_timeout: float = 120.0,
    entity: str | None = None,
) -> WandbLogger:
    """Return a logger whose W&B run starts at first use, on rank 0 only, under `save_dir/wandb`.

    Nobody is asked to log in. If an online run cannot start (no login, no network, no answer), the run is offline, one
    warning says so, and the training continues. A server that fails later delays only the end of the run. Each job has
    its own run: one that an earlier job of the same process left open is finished first. The run's summary holds the
    best value of a metric, as `KEY.max` or `KEY.min`, beside the last one, `KEY.last`.

    Args:
        save_dir: the folder of the job; it is created if it is missing.
        project: the W&B project; None takes the environment's WANDB_PROJECT, else "genstab".
        mode: "online", "offline" or "disabled"; None takes the environment's WANDB_MODE, else what `wandb offline` or
            `wandb disabled` stored, else online for a user who is logged in and offline for one who isn't.
        name: the name of the run; None takes WANDB_NAME, else lets W&B choose one.
        group: the group of the run; None takes WANDB_RUN_GROUP.
        tags: the tags of the run; None takes WANDB_TAGS, which has commas between them.
        init_timeout: seconds to wait for the server before the run goes offline.
        finish_timeout: seconds that the end of the run waits for its upload; the rest stays in the folder of the run.
        entity: the user or team; None takes WANDB_ENTITY, else that of the account.

    Raises:
        InputError: the mode (or WANDB_MODE) is not one of the choices.

    >>> wandb_logger("outputs", mode="of")
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: mode='of' is not one of online, offline, disabled
    """
    source = "mode"
    if mode is None and (mode := os.environ.get("WANDB_MODE") or None):
        source = "WANDB_MODE"
        mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)  # their older names
    if mode is not None:
        check_choice(source, mode, MODES)
    settings = {
        "console": "off",  # no copy of the terminal: a progress bar is not a log
        "disable_code": True,  # no diff of a large working tree; the commit is still noted
        "quiet": True,  # the run's folder is still printed
        "init_timeout": init_timeout,
        "finish_timeout": finish_timeout,
        "finish_timeout_raises": True,
    }
    return FallbackWandbLogger(
        save_dir,
        mode,
        project=project or _variable("PROJECT") or "genstab",
        name=name or _variable("NAME"),
        group=group or _variable("RUN_GROUP"),
        tags=tuple(tags or filter(None, (_variable("TAGS") or "").split(","))) or None,
        entity=entity or _variable("ENTITY"),
        settings=settings,
    )


def _variable(name: str) -> str | None:
    """Return an environment variable of W&B's, which wandb itself reads only once in a program; empty it is none."""
    value = os.environ.get(f"WANDB_{name}")
    if value == "":
        del os.environ[f"WANDB_{name}"]  # wandb refuses an empty tag
    return value or None


class FallbackWandbLogger(WandbLogger):
    """A `WandbLogger` whose run is offline if it cannot be online; `options` are arguments of `wandb.init`."""

    def __init__(self, save_dir: str | Path, mode: str | None, **options: Any) -> None:
        super().__init__(save_dir=save_dir, project=options["project"])
        self.mode, self.options = mode, options
        self.run: wandb.Run | None = None
        self.run_id: str | None = None  # of the run to resume

    @property
    @rank_zero_experiment
    def experiment(self) -> "wandb.Run":
        """The run, started at first use; on the other ranks an object that does nothing."""
        if self.run is None:
            self.run = self._start()
        return self.run

    @property
    def version(self) -> str | None:
        """The id of the run; None before it has started."""
        return self.run.id if self.run else None

    def _start(self) -> "wandb.Run":
        import wandb  # takes 0.4 s, and the other ranks and loggers don't need it

        if wandb.run is not None:
            end_run(wandb.run)
        Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)
        problem = ""
        # A new run must not say that it may resume: an upload would be added to what the server has of it already.
        resume: dict[str, Any] = {"id": self.run_id, "resume": "allow"} if self.run_id else {}
        for mode in MODES[MODES.index(self.mode or _default_mode()) :]:
            try:
                if mode == "online" and not logged_in():
                    raise InputError("no API key is configured (see `wandb login`)")
                run = wandb.init(dir=self.save_dir, mode=mode, **self.options, **resume)  # type: ignore[arg-type]
                break
            except Exception as error:  # of the login, the server, wandb's service, the disk
                if mode == "disabled":
                    raise
                problem = problem or one_line(error)
        if problem:
            what, then = "at all", "The training continues without it"
            if not run.disabled:
                what = f"online: {run.settings.base_url}"
                then = f"This run is logged offline; upload it later with `{how_to_upload(run)}`"
            rank_zero_warn(f"W&B cannot log {what}: {problem}. {then}")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for key, best in best_ends().items():
            run.define_metric(key, step_metric=STEP, step_sync=True, summary=f"{best},last")
        return run


def _default_mode() -> str:
    """Return what `wandb offline` or `wandb disabled` stored, else online for a user who is logged in."""
    import wandb

    try:
        stored = wandb.setup().settings.mode
        if stored in ("offline", "disabled"):
            return stored
        return "online" if logged_in() else "offline"
    except Exception:
        return "online"  # to fail again, where the user is told why


def logged_in() -> bool:
    """Return whether W&B has an API key; never prompts, never contacts the server."""
    import wandb

    # Without a viewer, for login would ask the server for the user's name, up to ten seconds, only to print it.
    wandb.setup(wandb.Settings(mode="online", x_disable_viewer=True))
    return wandb.login(prompt=False, verify=False)


def end_run(run: "wandb.Run") -> str:
    """End a run; return what went wrong, in one line, or an empty string."""
    import wandb

    try:
        run.finish()
    except TimeoutError:
        return f"its upload did not end within {run.settings.finish_timeout:.0f} s"
    except Exception as error:
        with suppress(Exception, SystemExit):
            wandb.teardown()  # wandb's service has died; the next run starts another one
        return one_line(error)
    return ""


def how_to_upload(run: "wandb.Run") -> str:
    """Return the command that uploads what the folder of a run holds."""
    online = [] if run.offline else ["--include-online"]  # wandb skips the folders of online runs unless told not to
    return shlex.join(["wandb", "sync", *online, str(run_folder(run))])


def run_folder(run: "wandb.Run") -> Path:
    """Return the folder of a run; `run.dir` is its folder `files`."""
    return Path(run.dir).parent


def one_line(error: Exception) -> str:
    """Return the message of an error in one line, without wandb's advice."""
    return " ".join(str(error).partition("\nConsider ")[0].split()) or type(error).__name__
