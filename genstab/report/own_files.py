"""What `genstab report` may replace: files that it wrote itself, which it knows by what is in them."""

import io

from PIL import Image

SOFTWARE = "genstab report"  # in the metadata of pictures
PAGE_BEGINS, GENERATOR = b"<!doctype html>\n", b'\n<meta name="generator" content="genstab '
HEAD = 1000  # bytes of a page that hold its first meta tags, and nothing that quotes those of another page
TABLE_BEGINS = b"| option | runs |"
TABLE_LINES = (b"|", b"Differences on the same images, ")  # of `options_table` and `differences_table`
WRITTEN_BY_REPORT = ("output", "table", "plot", "film")
"""The options that name a file."""


def is_own(key: str, content: bytes) -> bool:
    """Return whether `genstab report` wrote the content of the file of an option.

    >>> is_own("table", b"| option | runs |\\n|---|---|\\n"), is_own("table", b"# Mine\\n\\n| option | runs |\\n")
    (True, False)
    """
    if key == "output":
        return content.startswith(PAGE_BEGINS) and GENERATOR in content[:HEAD]
    if key == "table":
        return content.startswith(TABLE_BEGINS) and all(
            line.startswith(TABLE_LINES) for line in content.splitlines() if line
        )
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return SOFTWARE in (picture.info.get("Software"), picture.info.get("comment", b"").decode("latin-1"))
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
