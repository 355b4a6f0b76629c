"""`python -m genstab.cli COMMAND`, the same as `genstab COMMAND`."""

from genstab.cli.main import main

main()
