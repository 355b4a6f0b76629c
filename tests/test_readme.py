"""What the READMEs say is there: links, files, names, tests, pictures, and commands that compose."""

import importlib.util
import re
import shlex
import sys
import tomllib
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import unquote

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from genstab.bench.__main__ import _parser as bench_parser
from genstab.cli.main import CONF, main

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("genstab/*/__init__.py"))
READMES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "conf/README.md"]
READMES += [package / "README.md" for package in PACKAGES]
TEXTS = {path: path.read_text(encoding="utf-8") for path in READMES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("genstab", "conf", "tests", "notebooks", ".github")
by_file = pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path, language):
    return [code for kind, code in FENCE.findall(TEXTS[path]) if kind == language]


def inline_code(path):
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", TEXTS[path]))


def anchors(path):
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_first_page_is_short():
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 220


@by_file
def test_lines_are_short_but_for_tables(path):
    long = [line for line in TEXTS[path].splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long


@by_file
def test_every_link_leads_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXTS[path]))
    for link in links:
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target), link


@by_file
def test_every_path_and_every_name_of_the_package_exists(path):
    for code in inline_code(path):
        if re.fullmatch(r"[\w.]+/[\w./*-]*", code) and code.partition("/")[0] in FOLDERS:
            assert list(ROOT.glob(code.replace("NAME", "*"))), code
        if name := re.match(r"genstab(?:\.\w+)+(?=$|\()", code):
            assert resolve_name(name[0]) is not None


@by_file
def test_every_test_that_is_named_exists(path, tests):
    assert {code for code in inline_code(path) if re.fullmatch(r"test_\w+", code)} <= tests


@pytest.fixture(scope="module")
def tests():
    found = (re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE) for file in ROOT.glob("tests/**/test_*.py"))
    return {name for names in found for name in names}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_readme_lists_the_files_of_its_package(package):
    files = {str(file.relative_to(package)) for file in package.rglob("*.py") if file.name != "__init__.py"}
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", TEXTS[package / "README.md"], re.MULTILINE)
    assert sorted(listed) == sorted(files)


def test_the_first_page_links_to_every_other_one():
    first = TEXTS[ROOT / "README.md"]
    assert [path for path in READMES[1:] if f"({path.relative_to(ROOT)})" not in first] == []


def test_every_option_of_every_group_is_named():
    text = TEXTS[ROOT / "conf/README.md"]
    sections = dict(re.findall(r"^## `([\w/]+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    options = {}
    for file in ROOT.glob("conf/**/*.yaml"):
        options.setdefault(str(file.parent.relative_to(ROOT / "conf")), set()).add(file.stem)
    commands = {f"{name}.yaml" for name in options.pop(".")}
    assert set(re.findall(r"^\| `(\w+\.yaml)`", text, re.MULTILINE)) == commands
    listed = {group: re.findall(r"^\| (.*?) \|", section, re.MULTILINE) for group, section in sections.items()}
    assert {group: set(re.findall(r"`(\w+)`", " ".join(cells))) for group, cells in listed.items()} == options


@cache
def keys():
    """Return every key of the configs, dotted."""
    found = set()

    def collect(node, prefix):
        for key, value in node.items():
            found.add(prefix + key)
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")

    every = [("train", f"data={file.stem}") for file in ROOT.glob("conf/data/*.yaml")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for command, *overrides in [*every, ("measure",)]:
            collect(OmegaConf.to_container(compose(command, overrides)), "")
    return found


@by_file
def test_every_key_of_a_config_exists(path):
    groups = r"antialias|callbacks|data|logger|map|features|corruptions|model\.generator|model\.discriminator"
    for word in (word for code in inline_code(path) for word in code.split()):
        if (key := re.match(rf"((?:{groups})(?:\.\w+)+)(?:=|$)", word)) and not word.endswith(".py"):
            assert key[1] in keys(), word


def command_lines(path):
    """Yield every line of the blocks without a language and every inline code, as words."""
    lines = [line for block in blocks(path, "") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *(part for code in inline_code(path) for part in code.split(" && "))]:
        if re.match(r"(genstab|python|torchrun|srun|make|pip) ", line) and "…" not in line and "COMMAND" not in line:
            yield shlex.split(line, comments=True)


def one_by_one(words):
    """Yield the command lines of a sweep's jobs: every choice of every override once, beside others' choices."""
    if "-m" not in words:
        yield words
        return
    overrides = OverridesParser.create().parse_overrides([word for word in words if "=" in word])
    choices = [
        [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line]
        for override in overrides
    ]
    for each in zip_longest(*choices):
        yield [choice or first[0] for choice, first in zip(each, choices, strict=True)]


@cache
def composes(command, *overrides):
    """Compose one job as its command does, or raise; sweeps over launchers as Hydra's API does."""
    if any(override.startswith("hydra/launcher=") for override in overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(command, list(overrides))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setattr(sys, "argv", ["genstab", command, *overrides, "--cfg=job"])
        main()
    return printed.getvalue()


@pytest.mark.slow
@by_file
def test_every_command_composes(path, monkeypatch, tmp_path):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text()
    monkeypatch.chdir(tmp_path)
    for program, *words in command_lines(path):
        if program == "pip":
            assert words[-1] in ["pre-commit", *(f"genstab[{extra}]" for extra in extras)]
        elif program == "make":
            assert re.search(f"^{words[0]}:", makefile, re.MULTILINE), words
        elif words[:2] == ["-m", "genstab.bench"]:
            bench_parser().parse_args(words[2:])
        elif words[0] == "-m":
            assert importlib.util.find_spec(words[1]), words
        elif program == "genstab" and words[0].startswith("-"):
            assert words in (["--version"], ["--help"])
        else:
            command, arguments = words[0], words[1:]
            if program != "genstab":
                command, arguments = "train", words[words.index("train.py") + 1 :]
            if arguments == ["--help"]:
                assert (CONF / f"{command}.yaml").is_file()
                continue
            for job in one_by_one(arguments):
                assert composes(command, *job)


@by_file
def test_python_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for code in blocks(path, "python"):
        program = compile(code, str(path), "exec")
        if "torch.onnx.export" not in code:  # slow, and tests/inference/test_export.py does it
            exec(program, {})
