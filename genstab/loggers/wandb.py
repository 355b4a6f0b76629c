"""Weights & Biases without an account or a network: a run that nothing stops, and that goes offline where it must."""

import os
import shlex
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from genstab.errors import InputError
from genstab.metrics.registry import best_ends

if TYPE_CHECKING:
    import wandb

# Seconds that it may hold up the training beyond what a server is given.
PATIENCE = 30.0
# Seconds within which the end of a run must have come to its file.
FAREWELL = 5.0
BLOCK, PIECE = 32768, struct.Struct("<IHB")
WHOLE, FIRST, LAST = 1, 2, 4


def service_failures() -> tuple[type[Exception], ...]:
    """Return the errors with which wandb says that its server or its service cannot do it."""
    import wandb
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return wandb.Error, OSError, MailboxClosedError, HandleAbandonedError


def died(error: Exception) -> bool:
    """Return whether wandb's service is to blame, a process of its own on this machine, and not a disk or a server.

    >>> died(ConnectionResetError()), died(OSError(28, "No space left on device"))
    (True, False)
    """
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return isinstance(error, ConnectionError | MailboxClosedError | HandleAbandonedError)


def refused(error: Exception) -> bool:
    """Return whether the server did not do, or answer, what wandb wanted to know at once, as it does for tables.

    >>> refused(OSError())
    False
    """
    import wandb

    return isinstance(error, wandb.Error)


def end_service() -> None:
    """Forget wandb's service, which died: the next run starts another, and the program's end does not wait for it."""
    import wandb

    _kill_service()
    with suppress(Exception, SystemExit):  # whatever it died of
        wandb.teardown()
    wandb.run = None


def _kill_service() -> None:
    from wandb.sdk import wandb_setup

    with suppress(AttributeError):  # there is none, or it is somebody else's
        wandb_setup.singleton()._connection._proc._process.kill()  # type: ignore[union-attr]


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Kill wandb's service if it holds up the program for longer than that: what waits for it then hears that it died.

    >>> with patience(60):
    ...     pass
    """
    timer = threading.Timer(seconds, _kill_service)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end_run(run: "wandb.Run", timeout: float) -> str:
    """End a run; return what is wrong with it, in one line, "" if nothing is.

    Args:
        run: as `wandb.init` returned it.
        timeout: seconds that it waits for its upload.
    """
    if run.disabled:
        run.finish()
        return ""
    file, problems = Path(run.settings.sync_file), []
    try:
        with patience(timeout + PATIENCE):
            run.finish()
    except TimeoutError:
        problems = [f"its upload did not end within {timeout:.0f} s"]
    except Exception as error:
        end_service()
        return f"its service died ({said(error)})"
    # Of a full disk wandb says nothing. On a busy machine the end comes a little late.
    until = time.monotonic() + FAREWELL
    while not (whole := ends_well(file)) and time.monotonic() < until:
        time.sleep(0.1)
    return " and ".join(problems if whole else [*problems, f"{file} is not whole"])


def ends_well(file: Path) -> bool:
    """Return whether the file of a run ends with the record of its end, as that of every whole run does.

    The file is a log as LevelDB has it: blocks of 32 KiB, in which each piece of a record has its checksum, its length
    and which piece it is.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

    try:
        with file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            start = log.seek(max(0, size // BLOCK - 1) * BLOCK)
            data = log.read()
    except OSError:
        return False
    position, record, last = 0 if start else 7, b"", b""  # 7: the magic bytes of the file
    while position + PIECE.size <= len(data):
        if BLOCK - position % BLOCK < PIECE.size:  # the rest of a block is padding
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = PIECE.unpack_from(data, position)
        piece = data[position + PIECE.size : position + PIECE.size + length]
        position += PIECE.size + length
        record = piece if kind in (WHOLE, FIRST) else record + piece
        if kind in (WHOLE, LAST):
            last = record  # where it is cut off, the parser says so
    try:
        return Record.FromString(last).HasField("exit")
    except Exception:  # protobuf's, of what is damaged
        return False


def said(error: Exception) -> str:
    """Return in one line what an error of wandb's says.

    >>> said(OSError("no\\nanswer\\nConsider waiting"))
    'no answer'
    """
    return " ".join(str(error).partition("\nConsider ")[0].split()) or type(error).__name__


if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled"]
MODES: tuple[str, ...] = get_args(Mode)
# The x axis that WandbLogger logs beside every metric: Lightning's count of training batches.
STEP = "trainer/global_step"


def wandb_logger(
    save_dir: str | Path,
    project: str = "genstab",
    mode: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, str] | None = None,
    init_timeout: float = 10.0,
    finish_timeout: float = 120.0,
) -> WandbLogger:
    """Return a logger whose W&B run starts at first use, on rank 0 only, under `save_dir/wandb`.

    Nobody is ever asked to log in. Where an online run cannot start (no login, no network, no answer), the
    run is offline, one warning says so, and the training goes on. A run left open by an earlier job of the
    same process is finished when this one starts: one job, one run. A server that goes away later holds up nothing
    but the end, and that for `finish_timeout`. wandb's service, a process on this machine, is killed where it does not
    answer for another 30 s; where it dies, the run goes on offline.

    Args:
        save_dir: the folder of the job; it is made where it is missing.
        project: the W&B project.
        mode: "online", "offline" or "disabled"; None takes the environment's WANDB_MODE, else what
            `wandb offline` or `wandb disabled` set, else online for a user who is logged in and offline for
            one who isn't.
        name: the name of the run; None lets W&B find one.
        group: the group of the run.
        tags: the tags of the run.
        config: shown as the configuration of the run; `log_hyperparams` adds to it.
        summary: "max" or "min" for each metric whose best value the summary of the run shall hold: as
            `KEY.max` or `KEY.min`, beside the last value, which is then `KEY.last`; None: what the registry says.
        init_timeout: seconds to wait for the server before the run goes offline.
        finish_timeout: seconds that the end of the run waits for its upload; what was not uploaded stays in the folder
            of the run.

    Raises:
        InputError: the mode (or WANDB_MODE) or one of the summaries is not one of the choices.

    >>> wandb_logger("outputs", mode="offline").name
    'genstab'
    >>> wandb_logger("outputs", mode="of")
    Traceback (most recent call last):
    ...
    genstab.errors.InputError: mode='of' is not one of online, offline, disabled
    """
    source = "mode"
    if mode is None and (mode := os.environ.get("WANDB_MODE") or None):
        source = "WANDB_MODE"
        mode = {"run": "online", "dryrun": "offline"}.get(mode, mode)  # their older names
    if mode is not None and mode not in MODES:
        raise InputError(f"{source}={mode!r} is not one of {', '.join(MODES)}")
    summary = best_ends() if summary is None else summary
    for key, best in summary.items():
        if best not in ("max", "min"):
            raise InputError(f"summary[{key!r}]={best!r} is not one of max, min")
    # Its telemetry would wait for a silent server, too, and that for half a minute after the end of the program.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return FallbackWandbLogger(
        save_dir,
        cast(Mode | None, mode),
        summary,
        init_timeout,
        finish_timeout,
        project=project,
        name=name,
        group=group,
        tags=tuple(tags) or None,
        config=None if config is None else dict(config),
    )


class FallbackWandbLogger(WandbLogger):
    """A `WandbLogger` whose run goes offline where it cannot go on online; made by `wandb_logger`.

    Its `folders` are those of its runs, the second one of a run that went on after wandb's service had died.
    """

    def __init__(
        self,
        save_dir: str | Path,
        mode: Mode | None,
        summary: Mapping[str, str],
        init_timeout: float,
        finish_timeout: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(save_dir=save_dir, **kwargs)
        self._mode = mode
        self._summary = dict(summary)
        self._init_timeout, self._finish_timeout = init_timeout, finish_timeout
        self.folders: list[Path] = []
        self._went_offline = False

    @property
    @rank_zero_experiment
    def experiment(self) -> "wandb.Run":
        """The run, started at first use; on the other ranks an object that does nothing."""
        # A spawned process finds an id to attach to, which the parent class knows how to do.
        if self._experiment is None and getattr(self, "_attach_id", None) is None:
            self._experiment = self._start()
        return super().experiment

    def _start(self) -> "wandb.Run":
        import wandb  # here: it takes 0.4 s, and the other ranks and loggers never need it
        from wandb.sdk import wandb_setup

        Path(self._wandb_init["dir"]).mkdir(parents=True, exist_ok=True)
        if wandb.run is not None:
            end_run(wandb.run, self._finish_timeout)
        mode = self._mode
        # without starting its service, which may fail
        if mode is None and (stored := wandb_setup.singleton().settings.mode) in ("offline", "disabled"):
            mode = stored
        run, problem, then = None, "", ""
        if mode is None or mode == "online":
            try:
                if _logged_in():
                    run = self._init("online")
                elif mode == "online":
                    problem = "no API key is configured (see `wandb login`)"
            except service_failures() as error:
                problem = f"{wandb_setup.singleton().settings.base_url}: {said(error)}"
                if died(error):
                    end_service()
            mode = "offline"
        if run is None:
            try:
                run = self._init(mode)
            except service_failures() as error:
                problem = problem or said(error)
                end_service()
                run, then = self._init("disabled"), "The training goes on without it"
        if not run.disabled:
            self.folders.append(Path(run.dir).parent)  # run.dir is its folder `files`
        if problem:
            how = "online" if self.folders else "at all"
            then = then or f"This run is logged offline; upload it later with `{self.how_to_upload()}`"
            rank_zero_warn(f"W&B cannot log {how}: {problem}. {then}")
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for key, best in self._summary.items():
            run.define_metric(key, step_metric=STEP, step_sync=True, summary=f"{best},last")
        return run

    def _init(self, mode: Mode) -> "wandb.Run":
        import wandb

        settings = wandb.Settings(
            console="off",  # a progress bar is no log
            disable_code=True,  # no diff of a large tree; the commit is still noted
            quiet=True,  # the run's folder is still printed
            init_timeout=self._init_timeout,
            finish_timeout=self._finish_timeout,
            finish_timeout_raises=True,
        )
        # wandb warns of `anonymous`, which the parent class sets; and a run that resumes nothing must not say it does:
        # an upload of what it has would be added to what the server has of it already.
        without = {"anonymous"} if self._wandb_init["id"] else {"anonymous", "resume"}
        arguments = {key: value for key, value in self._wandb_init.items() if key not in without}
        with patience(self._init_timeout + PATIENCE):
            return wandb.init(**arguments, mode=mode, settings=settings)

    def go_on_offline(self, error: Exception) -> None:
        """Begin another run of the same id, offline, after wandb's service died; after a second time, go on without."""
        dead = self._experiment
        end_service()
        self._mode = "disabled" if self._went_offline or dead is None else "offline"
        self._experiment, self._went_offline = None, True
        if dead is not None:
            self._wandb_init |= {"id": dead.id, "config": dict(dead.config)}
        then = "the training goes on without W&B" if self.experiment.disabled else "the run goes on offline"
        rank_zero_warn(
            f"wandb's service died ({said(error)}): {then}; what was logged in the last 15 s may be lost, upload the "
            f"rest later with `{self.how_to_upload()}`"
        )

    def how_to_upload(self) -> str:
        """Return the command that uploads all that the run's folders hold."""
        return how_to_upload(self.folders)


def how_to_upload(folders: Iterable[Path]) -> str:
    """Return the command that uploads what the folders of runs hold.

    >>> how_to_upload([Path("out put/wandb/run-1")])
    "wandb sync --include-online 'out put/wandb/run-1'"
    """
    folders = list(folders)
    online = any(folder.name.startswith("run-") for folder in folders)  # wandb leaves these out unless told to
    return shlex.join(["wandb", "sync", *["--include-online"] * online, *map(str, folders)])


def _logged_in() -> bool:
    import wandb

    # No viewer: login would ask the server for the user's name, only to print it, for ten seconds if need be.
    wandb.setup(wandb.Settings(mode="online", x_disable_viewer=True))
    return wandb.login(prompt=False, verify=False)
