"""wandb's service, a process of its own on this machine: its death, its patience, and the end of a run."""

import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

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
