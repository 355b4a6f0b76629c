"""What has to be there before anything else can be imported: a folder for temporary files."""

import tempfile


def scratch() -> str:
    """Return the folder for temporary files, which libraries ask for while they are imported.

    Raises:
        SystemExit: there is none; with one line, since no command has begun that could say it.

    >>> scratch() == tempfile.gettempdir()
    True
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise SystemExit(f"genstab: {error.strerror}: set TMPDIR to a folder that can be written") from None


SCRATCH = scratch()
