"""The benchmark: `python -m genstab.bench layers`, `… step` and `… guards`."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markdown import Markdown
from tqdm import tqdm

from genstab.bench.guards import BATCHES, time_guards
from genstab.bench.layers import DTYPES, KINDS, LAYOUTS, layer_cases, other_blurs, time_layers
from genstab.bench.step import OPTIONS, step_models, time_steps
from genstab.bench.tables import details_table, ratio_table
from genstab.layers.filters import BINOMIAL, FILTERS
from genstab.runtime.files import write_whole
from genstab.runtime.provenance import machine

Report = dict[str, Any]
DESCRIPTION = """Compare time and peak memory in one run.

Whatever is compared runs in turn in one process, and ratios are medians over rounds; close other programs nevertheless.
"""
EXAMPLES = """examples:
  python -m genstab.bench layers --only blur --dtype float32      the blurs alone
  python -m genstab.bench step --antialias tri3xpre --batch 4     one option and none
  python -m genstab.bench layers --device cuda --compile --json layers.json --markdown layers.md
"""
HELP = {
    "layers": "the blur and those of other libraries, blurred and plain layers",
    "step": "a training step of pix2pix with every antialias option and with none",
    "guards": f"training runs of {BATCHES} batches with and without checks (on_nan, collapse, signals)",
}
# Batch sizes, size, channels, seconds and layouts.
DEFAULTS: dict[str, tuple[list[int], int, int, float, list[str]]] = {
    "layers": ([1], 256, 64, 0.25, list(LAYOUTS)),
    "step": ([1, 4], 256, 64, 60.0, ["channels_last"]),
    "guards": ([4], 128, 32, 120.0, ["channels_last"]),
}


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m genstab.bench", None, DESCRIPTION, EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="layers|step|guards")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    devices = ["cpu", accelerator.type] if accelerator else ["cpu"]
    sizes = [2**i for i in range(5, 13)]
    for name, (batches, size, channels, seconds, layouts) in DEFAULTS.items():
        command = commands.add_parser(name, help=HELP[name], description=HELP[name])
        add = command.add_argument
        add("--json", type=_new_file, metavar="FILE", help="write everything that was measured")
        add("--markdown", type=_new_file, metavar="FILE", help="write the tables, with the command and the machine")
        add("--device", choices=devices, default="cpu", help="default: cpu")
        add("--batch", type=_count, nargs="+", default=batches, help="default: %(default)s")
        add("--size", type=int, choices=sizes, default=size, help="side of the images; default: %(default)s")
        add("--channels", type=_count, default=channels, help="of the U-Net's first layer; default: %(default)s")
        add("--seconds", type=float, default=seconds, help="for the rounds of one comparison; default: %(default)s")
        command.set_defaults(compile=False)
        if name == "guards":
            continue
        add("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help="default: %(default)s")
        add("--layout", choices=LAYOUTS, nargs="+", default=layouts, help="default: %(default)s")
        add("--compile", action="store_true", help="run everything through torch.compile")
        if name == "layers":
            add("--filter", choices=FILTERS[1:], default="tri3", help="default: tri3")
            add("--only", choices=KINDS, nargs="+", default=list(KINDS), help="default: %(default)s")
        else:
            text = f"{', '.join(OPTIONS)}; default: all of them"
            add("--antialias", choices=OPTIONS, nargs="+", default=list(OPTIONS), metavar="OPTION", help=text)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least 1")
    return int(text)


def _new_file(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder, not a file")
    if path.exists():
        raise argparse.ArgumentTypeError(f"{path} exists already: name another file")
    return path


def _layers(options: argparse.Namespace, device: torch.device) -> Report:
    blurs, missing = other_blurs()
    if options.filter not in BINOMIAL:
        missing |= dict.fromkeys(blurs, f"has no filter {options.filter}")
        blurs = {}
    every = layer_cases(options.size, options.channels, options.filter, blurs)
    cases = [case for case in every if case.kind in options.only]
    places = list(product(options.batch, options.layout, options.dtype, cases))
    results, left_out = [], []
    for batch, layout, dtype, case in tqdm(places, unit="case", disable=None):
        found, out = time_layers(case, batch, layout, dtype, device, options.seconds, options.compile)
        results += found
        left_out += out
    versions = {name: version(name.replace("_", "-")) for name in ("torch", *blurs)}
    return {"versions": versions, "missing": missing, "left_out": left_out, "results": results}


def _steps(options: argparse.Namespace, device: torch.device) -> Report:
    results = []
    for layout in options.layout:
        models = step_models(options.antialias, options.size, options.channels, layout, options.compile, device)
        for batch, dtype in product(options.batch, options.dtype):
            if options.compile:
                torch.compiler.reset()  # or the second batch size would get dynamic code
            results += time_steps(models, batch, options.size, layout, dtype, device, options.seconds)
    return {"versions": {"torch": torch.__version__}, "results": results}


def _guards(options: argparse.Namespace, device: torch.device) -> Report:
    shapes = [(batch, options.size, options.channels) for batch in options.batch]
    results = [result for shape in shapes for result in time_guards(*shape, device, options.seconds)]
    return {"versions": {"torch": torch.__version__}, "results": results}


RUN = {"layers": _layers, "step": _steps, "guards": _guards}


def markdown(report: Report) -> str:
    """Return the tables as Markdown, the short one last, after command, machine, versions and what was not measured."""
    facts = report["machine"]
    notes = [f"{', '.join(facts['devices'])}, {facts['threads']} threads of torch, {facts['platform']}"]
    if report["settings"]["compile"]:
        notes.append("Compiled with torch.compile")
    notes.append(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    notes += [f"Not compared: {name}, {reason}" for name, reason in report.get("missing", {}).items()]
    notes += [f"Left out: {layer}" for layer in dict.fromkeys(report.get("left_out", []))]
    parts = [f"```\n{report['command']}\n```", "  \n".join(notes)]
    details = details_table(report["results"])
    if report["settings"]["command"] == "layers":
        parts += ["<details><summary>Every layer at every shape</summary>", details, "</details>"]
        parts.append("Geometric mean over the U-Net's shapes (the worst, and where); below 1 is faster:")
        parts.append(ratio_table(report["results"]))
    else:
        parts += ["× is over the first row of the same images, layout and type:", details]
    return "\n\n".join(parts) + "\n"


def run(arguments: Sequence[str]) -> Report:
    """Run the benchmark that command-line arguments describe; print it, write its files, return what they hold."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    report: Report = {
        "command": shlex.join(["python", "-m", "genstab.bench", *arguments]),
        "settings": {key: value for key, value in vars(options).items() if key not in ("json", "markdown")},
        "machine": machine([device]),
    }
    # Dynamo would compile eight of the compared modules and run the others uncompiled.
    every = {"recompile_limit": 1000, "accumulated_recompile_limit": 10000, "fail_on_recompile_limit_hit": True}
    patched = torch.compiler.config.patch(every) if options.compile else nullcontext()  # type: ignore[attr-defined]  # not in its stub
    with patched:
        report |= RUN[options.command](options, device)
    text = markdown(report)
    Console(width=max(Console().width, 300)).print(Markdown(text))  # a narrow terminal would cut numbers
    if options.json:
        listed = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        write_whole(options.json, lambda file: file.write(listed.encode()))
    if options.markdown:
        write_whole(options.markdown, lambda file: file.write(text.encode()))
    return report


if __name__ == "__main__":
    run(sys.argv[1:])
