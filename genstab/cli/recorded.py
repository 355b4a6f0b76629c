"""The config as files, logs and pages keep it: environment variables, which may be secrets, stay names."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from genstab.cli.arguments import quoted

SHORTEST = 4  # characters of a value that is hidden in a message: shorter ones are no secrets


def recorded(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain types, resolved, but for the text of `${oc.env:…}`, which is kept.

    This holds wherever a value comes from: another key, a part of a text, another resolver. What cannot be resolved
    without the value of the variable stays as it is written.

    >>> recorded(OmegaConf.create({"token": "${oc.env:TOKEN}", "url": "https://${token}@host/${size}", "size": 8}))
    {'token': '${oc.env:TOKEN}', 'url': 'https://${oc.env:TOKEN}@host/8', 'size': 8}
    """
    with _variables_stay_names():
        return _plain(config)


def without_values(text: str, config: DictConfig) -> str:
    """Return a text with the names of the environment variables that a config names in place of their values."""
    names: set[str] = set()
    with _variables_stay_names(names):
        _plain(config)
    values = {os.environ[name]: _name(name) for name in names if len(os.environ.get(name, "")) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, values[value])
    return text


@contextmanager
def _variables_stay_names(seen: set[str] | None = None) -> Iterator[None]:
    def named(name: str, *default: Any) -> str:
        if seen is not None:
            seen.add(name)
        return _name(name, *default)

    OmegaConf.register_new_resolver("oc.env", named, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _name(*words: Any) -> str:
    return f"${{oc.env:{','.join(map(_word, words))}}}"


def _word(value: Any) -> str:
    """Write an argument of a resolver in OmegaConf's grammar."""
    text = "null" if value is None else str(value)
    if re.fullmatch(r"[\w./%*@?|+-]+", text, re.ASCII) or text.startswith("${oc.env:"):
        return text
    return quoted(text)


def _plain(node: Container) -> Any:
    written: Any = OmegaConf.to_container(node, resolve=False)
    if isinstance(written, dict):
        return {key: _value(node, key, written[key]) for key in written}
    return [_value(node, index, each) for index, each in enumerate(written)]


def _value(node: Any, key: Any, written: Any) -> Any:
    try:
        value = node[key]
    except Exception:  # a resolver of the user's that needs the value may raise any
        return written
    return _plain(value) if isinstance(value, DictConfig | ListConfig) else value
