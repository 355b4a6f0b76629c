"""Run the code of a notebook in its fast mode, as a kernel does: `run_notebook.py NOTEBOOK` counts its pictures."""

import sys

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output


class Shell(InteractiveShell):
    """Has no windows, only pictures in its outputs."""

    def enable_gui(self, gui: object = None) -> None:
        """Wait for no window's events."""


def main(path: str) -> None:
    shell, pictures = Shell.instance(), 0
    shell.run_line_magic("matplotlib", "inline")
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        with capture_output() as shown:
            result = shell.run_cell(cell.source + "\n" + cell.metadata.get("fast", ""))
        if not result.success:
            sys.exit(f"{cell.source}\n{shown.stdout}{shown.stderr}")
        pictures += sum("image/png" in output.data for output in shown.outputs)
    print(pictures, "pictures")


if __name__ == "__main__":
    main(sys.argv[1])
