"""From the words on the command line to overrides in the grammar of Hydra."""

import re
from collections.abc import Sequence
from pathlib import Path

from genstab.cli.signatures import signature_of
from genstab.errors import InputError

MULTIRUN = {"-m", "--multirun"}
PATHS = {
    "ckpt_path", "corruptions.baseline", "costs", "data.classes", "data.root", "hydra.run.dir", "hydra.sweep.dir",
    "init_from", "init_from_d", "input", "model.checkpoint", "output", "output_dir", "plot", "table",
}  # fmt: skip
_WITH_VALUE = {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-c", "--cfg", "-p", "--package"}

_LAUNCHER = "hydra/launcher="
_OURS = ("slurm", "slurm_cpu")
_PLUGIN = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"


def check_words(words: Sequence[str]) -> None:
    """Raise an `InputError` for a word that is neither an option nor an override."""
    for word in _not_overrides(words):
        raise InputError(f"{word!r} is not key=value, as in model.checkpoint=FILE (--help lists the keys)")


def _not_overrides(words: Sequence[str]) -> list[str]:
    pairs = zip(["", *words], words, strict=False)
    return [
        word for before, word in pairs if "=" not in word and word[:1] not in ("-", "~") and before not in _WITH_VALUE
    ]


def check_launcher(words: Sequence[str]) -> None:
    """Check the launcher of a sweep, before Hydra ignores it and runs the job here."""
    for word in words:
        if not word.startswith(_LAUNCHER):
            continue
        name = word.removeprefix(_LAUNCHER)
        if (name in _OURS or name.startswith("submitit")) and signature_of(_PLUGIN) is None:
            raise InputError(f"{word} needs a plugin of Hydra: pip install 'genstab[slurm]'")
        if name != "basic" and not {*MULTIRUN, "hydra.mode=MULTIRUN"} & set(words):
            raise InputError(f"{word} works only with -m, even for a single job")
        for size in words if name in _OURS else ():
            if re.match(r"trainer\.(devices|num_nodes)=(?![1-9]\d*$)", size):
                raise InputError(f"{size}: {word} needs a number, the same for all jobs")


def name_networks(words: Sequence[str]) -> list[str]:
    """Let `model.generator=NAME` choose a file of `conf/model/generator`, as `model/generator=NAME` does in Hydra.

    >>> name_networks(["model.generator=resnet", "model.discriminator=pixel,patchgan", "model.generator.channels=64"])
    ['model/generator=resnet', 'model/discriminator=pixel,patchgan', '++model.generator.channels=64']
    """
    choice = re.compile(r"model\.(generator|discriminator)=(?=[^=\s{\[$'\"]+$)")
    return to_overrides([choice.sub(r"model/\1=", word) if choice.match(word) else word for word in words])


def name_model(words: Sequence[str]) -> list[str]:
    """Let the one word that is not an override be `model.checkpoint`.

    >>> name_model(["runs/a", "output=model.onnx"])
    ['++model.checkpoint=runs/a', 'output=model.onnx']
    """
    named = _not_overrides(words)
    if len(named) > 1:
        raise InputError(f"{named[1]!r} is not key=value, and the model is {named[0]!r} already")
    return to_overrides([f"model.checkpoint={word}" if word in named else word for word in words])


def to_overrides(words: Sequence[str]) -> list[str]:
    """Quote paths, and let `GROUP.KEY=` add a key to a group that `check_options` compares with a signature.

    Our configs list neither the arguments of a user's network nor all those of Lightning's Trainer. Paths that are
    quoted, refer to other keys or are choices of a sweep stay as they are.

    >>> to_overrides(["data.root=it's here", "+data.size=64", "trainer.max_time=00:12:00:00", "logger.name=a"])
    ["++data.root='it\\\\'s here'", '++data.size=64', '++trainer.max_time=00:12:00:00', 'logger.name=a']
    """
    sweep = MULTIRUN & set(words)

    def override(word: str) -> str:
        key, _, value = word.partition("=")
        special = re.search(r"[^\w/.%*@$?|+-]", value, re.ASCII) and not re.search(r"^['\"]|\$\{|\\", value)
        if special and key in PATHS and (not sweep or key.startswith("hydra.") or Path(value).exists()):
            word = f"{key}={quoted(value)}"
        return re.sub(r"^\+?(?=(antialias|data|model|trainer)\.[^=]+=)", "++", word)

    return [override(word) for word in words]


def name_runs(words: Sequence[str]) -> list[str]:
    """Collect the words that are not overrides, the folders of `genstab report`, in the key `runs`."""
    runs = [word for word in words if not word.startswith("-") and ("=" not in word or Path(word).exists())]
    rest = [re.sub("^(title|output)=(.*)", lambda found: f"{found[1]}={quoted(found[2])}", word) for word in words]
    return [f"runs=[{','.join(map(quoted, runs))}]"] * bool(runs) + [word for word in rest if word not in runs]


def quoted(text: str) -> str:
    """Quote a text for the grammar of Hydra, in which colons, commas and brackets have a meaning."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
