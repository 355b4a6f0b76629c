"""What belongs to the whole process: environment variables and signal handlers."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Not SIGCHLD, for which torch's data loader installs a handler once in a program.
SIGNALS = [getattr(signal, each) for each in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, each)]


@contextmanager
def process_state_restored() -> Iterator[None]:
    """Undo at the end what was changed in this context."""
    environment = dict(os.environ)
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        if threading.current_thread() is threading.main_thread():  # elsewhere Python changes no handler
            for signum, handler in handlers.items():
                if handler is not None:  # None: it was not installed from Python
                    signal.signal(signum, handler)
