"""The benchmark: `python -m genstab.bench layers`, `… step` and `… guards`."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from genstab.bench.guards import LOOK
from genstab.bench.guards import race as race_guards
from genstab.bench.layers import DTYPES, KINDS, LAYOUTS, OTHERS, layer_cases, other_blurs, race, versions
from genstab.bench.step import EVERY, OPTIONS, contest
from genstab.bench.step import race as race_steps
from genstab.bench.tables import Sheet, guards_table, key_ratios, layer_details, step_table
from genstab.bench.timing import machine
from genstab.errors import InputError, check_counts
from genstab.layers.filters import BINOMIAL, FILTERS

Report = dict[str, Any]
DESCRIPTION = """Time and peak memory, side by side in one run.

All that is compared runs in turn (A B C, B C A, …) in one process, so a machine that slows down changes the times but
hardly the ratios; ratios are medians over rounds. Close other programs nevertheless."""
EXAMPLES = """examples:
  python -m genstab.bench layers                                  every layer at every shape of the U-Net
  python -m genstab.bench layers --only blur --dtype float32      the blurs alone
  python -m genstab.bench step                                    a training step for every antialias option
  python -m genstab.bench step --antialias tri3xpre --batch 4     one option beside none
  python -m genstab.bench guards                                  a training with all of its checks beside one without
  python -m genstab.bench layers --device cuda --compile --json layers.json --markdown layers.md
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m genstab.bench", None, DESCRIPTION, EXAMPLES, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="layers|step|guards")
    last = ["channels_last"]
    defaults = (("layers", [1], 256, 64, 0.25, list(LAYOUTS)), ("step", [1, 4], 256, 64, 60.0, last))
    for name, batches, size, channels, seconds, layouts in (*defaults, ("guards", [4], 128, 32, 120.0, last)):
        command = commands.add_parser(name, help=HELP[name], description=HELP[name])
        add = command.add_argument
        add("--json", type=Path, metavar="FILE", help="write everything that was measured")
        add("--markdown", type=Path, metavar="FILE", help="write the tables, with the command and the machine")
        add("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="default: cpu")
        add("--threads", type=int, help="of torch on the CPU; default: torch's choice")
        add("--batch", type=int, nargs="+", default=batches, help=f"default: {_listed(batches)}")
        add("--size", type=int, default=size, help=f"side of the images, a power of two; default: {size}")
        add("--channels", type=int, default=channels, help=f"of the U-Net's first layer; default: {channels}")
        add("--seconds", type=float, default=seconds, help=f"for the rounds of one comparison; default: {seconds}")
        if name == "guards":
            add("--steps", type=int, default=LOOK, help=f"batches of a block, a multiple of {LOOK}; default: {LOOK}")
            command.set_defaults(compile=False)
            continue
        add("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help=f"default: {_listed(DTYPES)}")
        add("--layout", choices=LAYOUTS, nargs="+", default=layouts, help=f"default: {_listed(layouts)}")
        add("--compile", action="store_true", help="run everything through torch.compile")
        if name == "layers":
            filters = [filter for filter in FILTERS if filter != "none"]
            add("--filter", choices=filters, default="tri3", help="default: tri3")
            add("--against", choices=OTHERS, nargs="*", default=list(OTHERS), help=f"default: {_listed(OTHERS)}")
            add("--only", choices=KINDS, nargs="+", default=list(KINDS), help=f"default: {_listed(KINDS)}")
        else:
            text = f"{', '.join(OPTIONS)}; default: all of them"
            add("--antialias", nargs="+", default=list(EVERY), metavar="OPTION", help=text)
    return parser


HELP = {
    "layers": "the blur beside other libraries' and the blurred layers beside the plain ones",
    "step": "a whole training step of pix2pix for every antialias option beside none",
    "guards": "the trainer's loop with all checks (on_nan, collapse, signals, data.check) beside the same with none",
}


def _listed(values: Any) -> str:
    return " ".join(map(str, values))


def _check(options: argparse.Namespace) -> torch.device:
    """Check what argparse cannot; return the device."""
    for batch in options.batch:
        check_counts(batch=batch)
    check_counts(channels=options.channels)
    if options.size < 32 or options.size & (options.size - 1):
        raise InputError(f"size={options.size} is not a power of two of at least 32")
    if not 0 <= options.seconds < float("inf"):
        raise InputError(f"seconds={options.seconds} is not a number of at least 0")
    if options.threads is not None:
        check_counts(threads=options.threads)
    for path in (options.json, options.markdown):
        if path and not path.absolute().parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist")
        if path and path.is_dir():
            raise InputError(f"{path} is a folder, not a file")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present[options.device]:
        choices = ", ".join(name for name, there in present.items() if there)
        raise InputError(f"device={options.device} is not here; this machine has {choices}")
    return torch.device(options.device)


def _layers(options: argparse.Namespace, device: torch.device) -> Report:
    blurs, missing = other_blurs(options.against)
    if options.filter not in BINOMIAL:
        missing |= dict.fromkeys(blurs, f"has no filter {options.filter}")
        blurs = {}
    every = layer_cases(options.size, options.channels, options.filter, blurs)
    cases = [case for case in every if case.kind in options.only]
    places = [(b, layout, dtype) for b in options.batch for layout in options.layout for dtype in options.dtype]
    results, left_out = [], []
    with tqdm(total=len(places) * len(cases), unit="case", disable=None) as bar:
        for batch, layout, dtype in places:
            for case in cases:
                bar.set_description(f"{case.name} {layout} {dtype}", refresh=False)
                found, out = race(case, batch, layout, dtype, device, options.seconds, options.compile)
                results += found
                left_out += out
                bar.update()
    return {"missing": missing, "left_out": left_out, "results": results}


def _steps(options: argparse.Namespace, device: torch.device) -> Report:
    results = []
    with tqdm(unit="step", disable=None) as bar:
        for layout in options.layout:
            models = contest(options.antialias, options.size, options.channels, layout, options.compile, device)
            for batch in options.batch:
                for dtype in options.dtype:
                    bar.set_description(f"batch {batch} {layout} {dtype}", refresh=False)
                    place = (batch, options.size, layout, dtype, device)
                    results += race_steps(models, *place, options.seconds, options.compile, bar.update)
    return {"missing": {}, "left_out": [], "results": results}


def _guards(options: argparse.Namespace, device: torch.device) -> Report:
    check_counts(steps=options.steps)
    if options.steps % LOOK:
        raise InputError(f"steps={options.steps} is not a multiple of {LOOK}: the losses are looked at so often")
    results: list[dict[str, Any]] = []
    with tqdm(unit="block", disable=None) as bar:
        for batch in options.batch:
            place = (batch, options.size, options.channels, options.steps, options.seconds, device)
            found, checking = race_guards(*place, bar.update)
            results += found
    return {"missing": {}, "left_out": [], "results": results, "seconds_to_check_1000_pairs": checking}


RUN = {"layers": _layers, "step": _steps, "guards": _guards}


def _every_compilation() -> AbstractContextManager[None]:
    """Raise Dynamo's limit of recompilations, so that each of the compared modules is compiled."""
    import torch._dynamo  # slow to import

    patched: AbstractContextManager[None] = torch._dynamo.config.patch(
        recompile_limit=1000, accumulated_recompile_limit=10000, fail_on_recompile_limit_hit=True
    )
    return patched


def _notes(report: Report) -> list[str]:
    """Return notes for the tables: machine, versions, and what was not measured."""
    facts = report["machine"]
    processor = f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads of torch, {facts['system']}"
    speed = f"copies {facts['copy_gigabytes_per_second']:.1f} GB/s (read and written)"
    lines = [", ".join(filter(None, (processor, facts["gpu"], speed)))]
    if report["settings"]["compile"]:
        lines.append("Compiled with torch.compile")
    lines.append(", ".join(f"{name} {version}" for name, version in report["versions"].items() if version))
    if "seconds_to_check_1000_pairs" in report:
        lines.append(f"data.check=fast takes {report['seconds_to_check_1000_pairs']:.2f} s for 1000 pairs, once")
    lines += [f"Not compared: {name}, {reason}" for name, reason in report["missing"].items()]
    reasons: dict[str, list[str]] = {}
    for entry in report["left_out"]:
        key = f"{entry['contestant']} in {entry['case']}: {entry['reason']}"
        reasons.setdefault(key, []).append("×".join(map(str, entry["shape"])))
    lines += [f"Left out: {key} ({len(shapes)} times, {shapes[0]} first)" for key, shapes in reasons.items()]
    return lines


def sheets(report: Report) -> list[Sheet]:
    """Return the tables of a report, the short one first."""
    if report["settings"]["command"] == "guards":
        return [guards_table(report["results"])]
    if report["settings"]["command"] == "step":
        return [step_table(report["results"])]
    return [key_ratios(report["results"]), layer_details(report["results"])]


def markdown(report: Report) -> str:
    """Return the tables as Markdown with the command that made them, the long one collapsed."""
    short, *details = (sheet.markdown() for sheet in sheets(report))
    parts = [f"```\n{report['command']}\n```", "  \n".join(_notes(report)), short]
    parts += [f"<details><summary>Details</summary>\n\n{detail}\n\n</details>" for detail in details]
    return "\n\n".join(parts) + "\n"


def run(arguments: Sequence[str]) -> Report:
    """Run the benchmark that command-line arguments describe; print it, write its files, return what they hold.

    Raises:
        InputError: an argument that this machine or the networks cannot do.
        SystemExit: an argument that is none; argparse prints which and what is allowed.
    """
    options = _parser().parse_args(arguments)
    device = _check(options)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        report: Report = {
            "command": shlex.join(["python", "-m", "genstab.bench", *arguments]),
            "settings": {key: value for key, value in vars(options).items() if key not in ("json", "markdown")},
            "machine": machine(device),
            "versions": versions(),
        }
        with _every_compilation() if options.compile else nullcontext():
            report |= RUN[options.command](options, device)
    finally:
        torch.set_num_threads(before)
    console = Console(width=max(Console().width, 300), highlight=False)  # a narrow terminal would cut numbers
    for line in _notes(report):
        console.print(line, markup=False)
    for sheet in reversed(sheets(report)):  # the short one stays on the screen
        console.print(sheet.rich())
    if options.json:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(report), encoding="utf-8")
    return report


def main() -> None:
    """Run the benchmark with the arguments in `sys.argv`."""
    try:
        run(sys.argv[1:])
    except InputError as error:
        sys.exit(f"genstab: {error}")


if __name__ == "__main__":
    main()
