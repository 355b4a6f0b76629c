"""The command line: from the arguments to a composed config and its job; with `jobs`, all that knows Hydra."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType

import hydra
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError

from genstab.cli.config_errors import one_line
from genstab.cli.jobs import run_measure, run_predict, run_report, run_shard, run_workspace
from genstab.cli.submitit import check_launcher, refusal, run_wherever
from genstab.cli.train import WORKER_CONFIG, run_train
from genstab.distributed.lost_process import SpokenFor
from genstab.distributed.rendezvous import team
from genstab.errors import InputError
from genstab.runtime.files import DISK
from genstab.runtime.run_folder import fresh
from genstab.runtime.signals import SIGNALLED, Stopped, by_submitit

_PACKAGE = Path(__file__).resolve().parents[1]
# conf/ lies inside the package in a wheel and beside it in a checkout.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
OmegaConf.register_new_resolver("fresh", fresh, use_cache=True, replace=True)  # once a program, as `now`
PATHS = {
    "ckpt_path", "corruptions.baseline", "costs", "data.root", "hydra.run.dir", "hydra.sweep.dir", "input",
    "model.checkpoint", "output", "output_dir", "plot", "table",
}  # fmt: skip
USAGE = """genstab: image-to-image models that stay stable when their input moves

usage: genstab COMMAND [key=value …]

  train      train an anti-aliased pix2pix and measure its shift PSNR
  measure    measure how stable any image-to-image model is
  predict    apply a checkpoint, or any other model, to a folder of images
  report     one page that compares runs
  shard      pack pairs into shards, for data sets that do not fit one disk
  workspace  the same comparison in W&B, for those who have an account

genstab COMMAND --help shows the options and examples."""


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """End the program with one line where the input or the command line is to blame."""
    try:
        yield
    except InputError as error:
        sys.exit(f"genstab: {error}")
    except KeyboardInterrupt:
        print("genstab: stopped", file=sys.stderr)
        sys.exit(SIGNALLED + signal.SIGINT)
    except (CompactHydraException, InterpolationResolutionError, GrammarParseError) as error:
        if isinstance(error, InstantiationException):
            raise
        sys.exit(f"genstab: {one_line(error)}")
    except ValueError as error:
        if "Config group override must be" not in str(error):
            raise
        sys.exit("genstab: a group is left out with ~, as in ~logger, and not set to null")


def _hydra(config_name: str, run: Callable[[DictConfig], object]) -> None:
    """Call `run` with `conf/CONFIG_NAME.yaml` changed by the overrides in `sys.argv`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra raise errors, for one line of ours
    errors: list[InputError] = []
    started = False

    def job(config: DictConfig) -> object:
        nonlocal started
        started = True
        try:
            return run(config)
        except InputError as error:
            if by_submitit():
                raise  # another process waits for it
            errors.append(error)  # past Hydra, which would print a line before it; a sweep goes on
            return None

    with _one_line_errors():
        _check_words()
        check_launcher(sys.argv[1:])
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        except OSError as error:
            # as of Hydra's own, which also are OSErrors; after the start, of the folder of a sweep's next job
            if error.filename is None or (started and error.errno not in DISK):
                raise
            key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
            raise InputError(f"cannot make {error.filename}: {error.strerror} ({key}=DIR sets it)") from error
        except RuntimeError as error:
            if (reason := refusal(error)) is None:
                raise
            raise InputError(reason) from error
        for other in errors[:-1]:
            print(f"genstab: {other}", file=sys.stderr)
        if errors:
            raise errors[-1]


def _check_words() -> None:
    """Raise an `InputError` for a word that Hydra would only call a syntax error."""
    values = {"-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "-c", "--cfg", "-p", "--package"}
    for before, word in zip(sys.argv, sys.argv[1:], strict=False):
        if "=" not in word and word[:1] not in ("-", "~") and before not in values:
            raise InputError(f"{word!r} is not key=value, as in model.checkpoint=FILE (--help lists the keys)")


def _plain_paths() -> None:
    """Quote the values that are a path, unless they are quoted, refer to other keys or are choices of a sweep."""
    sweep = {"-m", "--multirun"} & set(sys.argv)
    for i, word in enumerate(sys.argv[1:], 1):
        key, is_override, value = word.partition("=")
        special = (
            re.search(r"[^\w/.%*@$?|+-]", value, re.ASCII)
            and not value.startswith(("'", '"'))
            and not re.search(r"\$\{|\\", value)
        )
        if is_override and key in PATHS and special and (not sweep or key[:6] == "hydra." or Path(value).exists()):
            sys.argv[i] = f"{key}={_quoted(value)}"


def _any_model_key() -> None:
    """Let `model.NAME=` on the command line also add a key: a network's arguments are not in our configs."""
    sys.argv[1:] = [re.sub(r"^(?=model\.[^=]+=)", "++", argument) for argument in sys.argv[1:]]


def _stop(signum: int, frame: FrameType | None) -> None:
    """End in order, as torchrun asks for where another process failed: the first one may have something to say."""
    raise Stopped(signum)


def train() -> None:
    """Run `genstab train`, with the Hydra overrides in `sys.argv`."""
    if WORKER_CONFIG in os.environ and "LOCAL_RANK" in os.environ:
        with _one_line_errors():
            run_train(OmegaConf.create(os.environ[WORKER_CONFIG]))  # type: ignore[arg-type]  # a dict
        return
    with _one_line_errors():
        processes = team()
        if processes is not None:
            signal.signal(signal.SIGTERM, _stop)
        if processes is not None and processes.rank:
            with processes.following():
                for config in processes.configs():
                    with suppress(SpokenFor):  # the first one says whether there is another job
                        run_train(OmegaConf.create(config), processes)  # type: ignore[arg-type]  # a dict
            return
    _plain_paths()
    with nullcontext() if processes is None else processes.leading():
        _hydra("train", partial(run_wherever, processes=processes))


def predict() -> None:
    """Run `genstab predict`, with the Hydra overrides in `sys.argv`."""
    _plain_paths()
    _any_model_key()
    _hydra("predict", run_predict)


def measure_model() -> None:
    """Run `genstab measure`, with the Hydra overrides in `sys.argv`."""
    _plain_paths()
    _any_model_key()
    _hydra("measure", run_measure)


def report() -> None:
    """Run `genstab report`, with folders and Hydra overrides in `sys.argv`."""
    words = sys.argv[1:]
    runs = [word for word in words if not word.startswith("-") and ("=" not in word or Path(word).exists())]
    rest = [re.sub("^(title|output)=(.*)", lambda found: f"{found[1]}={_quoted(found[2])}", word) for word in words]
    sys.argv[1:] = [f"runs=[{','.join(map(_quoted, runs))}]"] * bool(runs) + [w for w in rest if w not in runs]
    _hydra("report", run_report)


def _quoted(text: str) -> str:
    """Let any text be a value in Hydra's grammar, in which a colon, a comma or a bracket means something."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def shard() -> None:
    """Run `genstab shard`, with the Hydra overrides in `sys.argv`."""
    _plain_paths()
    _hydra("shard", run_shard)


def workspace() -> None:
    """Run `genstab workspace`, with the Hydra overrides in `sys.argv`."""
    _hydra("workspace", run_workspace)


COMMANDS = {
    "train": train,
    "measure": measure_model,
    "predict": predict,
    "report": report,
    "shard": shard,
    "workspace": workspace,
}


def main() -> None:
    """Run the command that `sys.argv[1]` names."""
    if WORKER_CONFIG in os.environ and "LOCAL_RANK" in os.environ:
        train()  # Lightning starts the other processes without the command's name
        return
    command = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(USAGE)
    elif command in COMMANDS:
        COMMANDS[command]()
    else:
        sys.exit(f"genstab: {command!r} is not one of {', '.join(COMMANDS)}")
