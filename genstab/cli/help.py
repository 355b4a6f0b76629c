"""What `genstab COMMAND --help` prints: the options with the comments of `conf/`, which Hydra leaves out."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml  # type: ignore[import-untyped]  # what Hydra reads with
from omegaconf import DictConfig, OmegaConf

HELP = {"-h", "--help"}
_KEY = re.compile(r"( *)([\w.]+):(?:.*?\s#\s(.*))?")


def with_comments(text: str, conf: Path, command: str, overrides: Sequence[str]) -> str:
    """Replace the config in Hydra's help text of a command by one line for each option, with its comment."""
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        config = hydra.compose(command, list(overrides), return_hydra_config=True)
    comments = _comments(conf / f"{command}.yaml")
    for group, choice in config.hydra.runtime.choices.items():
        if (path := conf / group / f"{choice}.yaml").is_file():
            comments.update(_comments(path, group.split("/")))
    shown = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return text.replace(OmegaConf.to_yaml(shown), "\n".join(_lines(shown, comments)) + "\n")


def _lines(node: DictConfig, comments: dict[str, str], above: str = "") -> list[str]:
    lines = []
    for key, value in OmegaConf.to_container(node).items():  # type: ignore[union-attr]  # a dict
        path = above + str(key)
        nested = isinstance(value, dict) and value
        written = "" if nested else f" {_flow(value)}"
        comment = f"  # {comments[path]}" if path in comments else ""
        lines.append("  " * above.count(".") + str(key) + f":{written}{comment}")
        if nested:
            lines += _lines(node[key], comments, f"{path}.")
    return lines


def _flow(value: Any) -> str:
    """Write a value in a line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def _comments(path: Path, package: Sequence[str] = ()) -> dict[str, str]:
    """Return the comment behind each key of a file, by its dotted path."""
    lines = path.read_text().splitlines()
    above = [] if lines[0] == "# @package _global_" else [*package]
    depth, found = len(above), {}
    for line in lines:
        if match := _KEY.fullmatch(line):
            indent, key, comment = match.groups()
            above[depth + len(indent) // 2 :] = [key]
            if comment:
                found[".".join(above)] = comment
    return found
