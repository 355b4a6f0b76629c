"""The command line: compose and check the config of a command, and only then import its job, and torch with it."""

import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError

from genstab.cli.arguments import (
    MULTIRUN,
    PATHS,
    check_launcher,
    check_words,
    name_model,
    name_networks,
    name_runs,
    to_overrides,
)
from genstab.cli.check_config import check_keys, check_options, check_seed, check_training, check_type
from genstab.cli.config_errors import one_line, refusal
from genstab.cli.help import HELP, with_comments
from genstab.cli.model_options import check_model
from genstab.cli.recorded import masked_variable
from genstab.cli.signatures import signature_of
from genstab.errors import DISK, InputError
from genstab.runtime.masking import masked
from genstab.runtime.process_state import process_state_restored
from genstab.runtime.provenance import version_text
from genstab.runtime.run_folder import fresh
from genstab.runtime.signals import SIGNALLED, Stopped, by_submitit

if TYPE_CHECKING:
    from genstab.distributed.rendezvous import Rendezvous

_PACKAGE = Path(__file__).resolve().parents[1]
# conf/ lies inside the package in a wheel and beside it in a checkout.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir())
OmegaConf.register_new_resolver("fresh", fresh, use_cache=True, replace=True)  # once per program, like `now`
OmegaConf.register_new_resolver("oc.env", masked_variable, replace=True)
# Holds a job's composed config for the processes that Lightning starts, see `genstab.cli.train`.
WORKER_CONFIG = "GENSTAB_WORKER_CONFIG"
# What torchrun, SLURM and submitit set, see `genstab.distributed.rendezvous.join_rendezvous`.
_STARTED_BY_OTHERS = {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SUBMITIT_EXECUTOR"}
USAGE = """genstab: image-to-image models that stay stable when their input moves

usage: genstab COMMAND [key=value …]

  train      train an anti-aliased pix2pix and measure its shift PSNR
  measure    measure how stable any image-to-image model is
  predict    apply a checkpoint, or any other model, to a folder of images
  export     write a model as an ONNX, TorchScript or torch.export file, and check it
  report     one page that compares runs
  shard      pack pairs into shards, for data sets that do not fit on one disk
  workspace  make a W&B workspace that compares runs (needs an account)

genstab COMMAND --help shows the options and examples.
genstab --version shows versions, the machine and the commit: add it to a bug report."""


@dataclass(frozen=True)
class Command:
    """A command of `genstab`."""

    job: str  # the function that takes the config, imported after the config was checked
    used_by: tuple[str, ...] = ()  # the functions or classes that take the keys outside of groups
    loads_model: bool = False  # whether keys under `model` say what to load
    overrides: Callable[[Sequence[str]], list[str]] = to_overrides  # of Hydra, from the words on the command line

    def check(self, config: dict[str, Any]) -> None:
        """Raise an `InputError` for the first option that is not known or has the wrong type."""
        if self.loads_model:
            check_model(config["model"])
            config = {key: value for key, value in config.items() if key != "model"}
        check_options(config)
        for target in self.used_by:
            types = signature.types if (signature := signature_of(target)) else {}
            for key in types.keys() & config.keys():
                check_type(key, config[key], types[key])
        if "trainer" in config:
            check_training(config)
        elif config.get("seed") is not None:  # null keeps the order of shards
            check_seed(config["seed"])


_VALUES = "genstab.inference.value_range.parse_values"
COMMANDS = {
    "train": Command("genstab.cli.submitit:run_wherever", overrides=name_networks),
    "measure": Command("genstab.cli.jobs:run_measure", ("genstab.evaluation.options.MeasureOptions",), True),
    "predict": Command("genstab.cli.jobs:run_predict", ("genstab.inference.predict.predict", _VALUES), True),
    "export": Command("genstab.cli.jobs:run_export", ("genstab.inference.export.export",), True, name_model),
    "report": Command("genstab.cli.jobs:run_report", overrides=name_runs),
    "shard": Command("genstab.cli.jobs:run_shard", ("genstab.data.shards.write.write_shards",)),
    "workspace": Command("genstab.cli.jobs:run_workspace"),
}


@contextmanager
def _readers_may_leave() -> Iterator[None]:
    """End without a word if whoever reads the output has read enough, as in `genstab --help | head -1`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout, 0)  # for errors alone
        if not output.poll(0):
            raise  # of another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(SIGNALLED + signal.SIGPIPE)


@_readers_may_leave()
def main() -> None:
    """Run the command that `sys.argv[1]` names."""
    command = sys.argv.pop(1) if len(sys.argv) > 1 else "--help"
    if command == "train" or _started_by_lightning():
        train()
    elif command in ("-h", "--help"):
        print(USAGE)
    elif command == "--version":
        print(version_text())
    elif command in COMMANDS:
        _launch(command)
    else:
        meant = "".join(f"; did you mean {each}?" for each in get_close_matches(command, COMMANDS, n=1))
        sys.exit(f"genstab: {command!r} is not one of {', '.join(COMMANDS)}{meant}")


def _started_by_lightning() -> bool:
    """Return whether this is one of the other processes of a training: their command line is not to be looked at."""
    return WORKER_CONFIG in os.environ and "LOCAL_RANK" in os.environ


@_readers_may_leave()
@process_state_restored()
def train() -> None:
    """Run `genstab train`, with the Hydra overrides in `sys.argv`: alone, or as one of several processes."""
    processes: Rendezvous | None = None
    with _one_line_errors():
        if _started_by_lightning():
            from genstab.cli.train import run_train

            run_train(OmegaConf.create(os.environ[WORKER_CONFIG]))  # type: ignore[arg-type]  # a dict
            return
        if _STARTED_BY_OTHERS & os.environ.keys():
            from genstab.cli.train import follow
            from genstab.distributed.rendezvous import join_rendezvous

            processes = join_rendezvous()
            if processes is not None:
                signal.signal(signal.SIGTERM, _stop)
                if processes.rank:
                    follow(processes)
                    return
    with nullcontext() if processes is None else processes.end_others_on_exit():
        _launch("train", processes)


def _stop(signum: int, frame: FrameType | None) -> None:
    """End in order when torchrun asks for it because another process failed: the first one may have to say why."""
    raise Stopped(signum)


def _launch(name: str, *given: object) -> None:
    """Run the job of a command on `conf/NAME.yaml` with the overrides in `sys.argv`; `given` are further arguments."""
    if any(word.startswith("run_name=") for word in sys.argv[1:]) or not os.environ.get("WANDB_NAME"):
        os.environ.pop("WANDB_NAME", None)  # it comes after the command line, and empty it is none
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra raise errors, so that we print them in one line
    command = COMMANDS[name]
    errors: list[InputError] = []
    started = False

    def job(config: DictConfig) -> object:
        nonlocal started
        started = True
        try:
            check_keys(config, OmegaConf.load(CONF / f"{name}.yaml"))  # type: ignore[arg-type]  # groups of keys
            plain = _plain(config)
            command.check(plain)
            return resolve_name(command.job)(config, *given)
        except (InputError, InterpolationResolutionError) as error:
            said = error if isinstance(error, InputError) else InputError(one_line(error))
            if by_submitit():
                raise InputError(masked(str(said))) from error  # another process waits for it
            errors.append(said)  # not raised through Hydra, which prints a line of its own and ends the sweep
            return None

    with _one_line_errors(name):
        check_launcher(sys.argv[1:])
        sys.argv[1:] = command.overrides(sys.argv[1:])
        check_words(sys.argv[1:])
        try:
            run = hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)
            if HELP & set(sys.argv):
                with suppress(SystemExit), redirect_stdout(StringIO()) as printed:
                    run()
                overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
                print(with_comments(printed.getvalue(), CONF, name, overrides), end="")
            else:
                run()
        except OSError as error:
            # Hydra's own errors are OSErrors, too; after the start it can be the folder of the next job of a sweep
            if error.filename is None or (started and error.errno not in DISK):
                raise
            key = "hydra.sweep.dir" if MULTIRUN & set(sys.argv) else "hydra.run.dir"
            raise InputError(f"cannot make {error.filename}: {error.strerror} ({key}=DIR sets it)") from error
        except RuntimeError as error:
            if (reason := refusal(error)) is None:
                raise
            raise InputError(reason) from error
        finally:
            HydraConfig.instance().cfg = None  # what runs later in this process is another job
        for other in errors[:-1]:
            print(f"genstab: {other}", file=sys.stderr)
        if errors:
            raise errors[-1]


def _defaults(command: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(command)


def _plain(config: DictConfig) -> dict[str, Any]:
    if missing := sorted(OmegaConf.missing_keys(config)):
        options = " ".join(f"{key}={'NAME' if key == 'entity' else 'DIR'}" for key in missing)
        raise InputError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: add {options}")
    for key in sorted(PATHS - {"ckpt_path"}):  # with which an empty text means none
        if OmegaConf.select(config, key) == "":
            raise InputError(f"{key}= is empty: name a file or a folder, or leave it out")
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]  # a dict


@contextmanager
def _one_line_errors(command: str = "train") -> Iterator[None]:
    """End the program with one line if the input or the command line is to blame."""
    try:
        yield
    except InputError as error:
        sys.exit(masked(f"genstab: {error}"))
    except KeyboardInterrupt:
        print("genstab: stopped", file=sys.stderr)
        sys.exit(SIGNALLED + signal.SIGINT)
    except (CompactHydraException, InterpolationResolutionError, GrammarParseError) as error:
        if isinstance(error, InstantiationException):
            raise
        sys.exit(masked(f"genstab: {one_line(error, lambda: _defaults(command))}"))
    except ValueError as error:
        if "Config group override must be" not in str(error):
            raise
        sys.exit("genstab: remove a group with ~, as in ~logger; it cannot be null")
