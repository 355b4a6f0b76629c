"""Waiting for another process, but no longer than said."""

import socket
import time
from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def in_time(ask: Callable[[], T], seconds: float) -> T:
    """Return what `ask` returns; it is called in a thread, which is left alone where it takes longer.

    Raises:
        TimeoutError: it takes longer.
        Exception: what `ask` raises.

    >>> in_time(lambda: 6 * 7, seconds=1)
    42
    """
    answers: Queue[tuple[T | None, Exception | None]] = Queue()

    def answer() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:  # for the other thread
            answers.put((None, error))

    Thread(target=answer, daemon=True).start()
    try:
        found, problem = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer for {seconds:.0f} s") from None
    if problem is not None:
        raise problem
    return found  # type: ignore[return-value]  # there is one


def connect(address: str, port: int, seconds: float) -> None:
    """Connect, to see that somebody listens, and go.

    Raises:
        OSError: nobody does, or not within so many seconds.
    """
    socket.create_connection((address, port), timeout=seconds).close()


def reach(address: str, port: int, seconds: float, listening: bool = True) -> None:
    """Wait until there is such an address and, if that is asked, somebody who listens there.

    Raises:
        OSError: there is not, within so many seconds.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            if listening:
                connect(address, port, seconds)
            else:
                socket.getaddrinfo(address, port)
        except OSError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)
        else:
            return
