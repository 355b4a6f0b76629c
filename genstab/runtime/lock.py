"""Locks of files between processes, where the file system has them."""

from typing import IO, Any


def lock(file: IO[Any], shared: bool = False) -> bool:
    """Lock an open file until it is closed or the process ends, however it ends; return False if another one has it.

    Several processes may have a shared lock. Where the file system has no locks, the answer is True.
    """
    try:
        import fcntl

        # not flock: forked workers of a data loader would hold it for a while after the process was killed
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except (ImportError, OSError):
        pass
    return True
