"""The config as files, logs and pages keep it: environment variables, which may be secrets, stay names."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from genstab.cli.arguments import quoted
from genstab.runtime.masking import mask

PUBLIC = ("WANDB_PROJECT", "WANDB_NAME")  # in conf/logger/wandb.yaml


def recorded(config: DictConfig) -> dict[str, Any]:
    """Return a config as plain types, resolved, but for the text of `${oc.env:…}`, which is kept.

    This holds wherever a value comes from: another key, a part of a text, another resolver. What cannot be resolved
    without the value of the variable stays as it is written.

    >>> recorded(OmegaConf.create({"token": "${oc.env:TOKEN}", "url": "https://${token}@host/${size}", "size": 8}))
    {'token': '${oc.env:TOKEN}', 'url': 'https://${oc.env:TOKEN}@host/8', 'size': 8}
    """
    with _variables_stay_names():
        return _plain(config)


def given(group: str) -> set[str]:
    """Return the keys of a group that the command line of this job set: `value_range` for `data.value_range=auto`."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    keys = [word.lstrip("+").partition("=")[0].split(".") for word in words]
    return {key[1] for key in keys if key[0] == group and len(key) > 1}


@contextmanager
def _variables_stay_names() -> Iterator[None]:
    OmegaConf.register_new_resolver("oc.env", _name, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", masked_variable, replace=True)


def masked_variable(name: str, *default: Any) -> Any:
    """Resolve `${oc.env:NAME}` as OmegaConf does; from then on the value is masked."""
    if name in os.environ and name not in PUBLIC:
        mask(os.environ[name], _name(name))
    return oc.env(name, *default)


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
