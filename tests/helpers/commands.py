"""Run Python programs as a user would: in an interpreter of their own, or forked from one that is warm.

An interpreter that imports torch and Lightning needs five to eight seconds of processor time, several times what most
tests ask of it. `start` and `program` therefore fork from a server (`multiprocessing`'s, one for each test process)
that has imported everything and done nothing else: arguments, environment, folder, output, signals, exit code and a
`__main__` of its own are those of a new interpreter; what is not is what happens before `main`: options of `python`
itself, `sys.modules` and variables that are read at import. Where these are tested: `interpreter=True`.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing import forkserver, reduction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
PRELOADED = ["tests.helpers.preloaded"]
SECONDS = 300  # after which a program counts as hanging
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def _start_server() -> None:
    """Start the server, unless it runs, such that it finds this package: it is not told `sys.path`."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class _Descriptor:
    """An open file, for the child."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.number),)


def _received(duplicate: Any) -> int:
    return duplicate.detach()


class ForkedPopen:
    """A forked program, with those parts of `subprocess.Popen` that tests and Lightning's launcher use."""

    def __init__(
        self, arguments: list[str], env: dict[str, str], stdout: int | None = None, stderr: int | None = None,
        text: bool = False, start_new_session: bool = False, cwd: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.args, self.returncode = arguments, None
        pipes: list[int] = []
        self.stdout, out = self._output(stdout, 1, text, pipes)
        self.stderr, err = self._output(stderr, 2, text, pipes) if stderr != subprocess.STDOUT else (None, out)
        self._process = _context.Process(
            target=_run,
            args=(arguments, env, str(cwd or Path.cwd()), _Descriptor(out), _Descriptor(err), start_new_session),
            name="MainProcess",
        )
        _start_server()
        self._process.start()
        for number in pipes:
            os.close(number)
        self.pid = self._process.pid

    @staticmethod
    def _output(wanted: int | None, own: int, text: bool, pipes: list[int]) -> tuple[Any, int]:
        if wanted == subprocess.PIPE:
            reading, writing = os.pipe()
            pipes.append(writing)
            return os.fdopen(reading, "r" if text else "rb"), writing
        return None, own if wanted is None else wanted

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, once there is one."""
        if self.returncode is None:
            self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the exit code."""
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Read to the ends of both outputs and wait for the exit code."""
        read = {}
        streams = {name: stream for name in ("stdout", "stderr") if (stream := getattr(self, name)) is not None}
        readers = [
            threading.Thread(target=lambda name=name, stream=stream: read.update({name: stream.read()}), daemon=True)
            for name, stream in streams.items()
        ]
        until = None if timeout is None else time.monotonic() + timeout
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if until is None else max(0.0, until - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        for stream in streams.values():
            stream.close()
        self.wait(None if until is None else max(0.1, until - time.monotonic()))
        return read.get("stdout"), read.get("stderr")

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def __enter__(self) -> "ForkedPopen":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def _run(arguments: list[str], env: dict[str, str], cwd: str, stdout: int, stderr: int, new_session: bool) -> None:
    """Become the program, in the forked child."""
    if new_session:
        os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for number in {stdout, stderr} - {1, 2}:
        os.close(number)
    # as a new interpreter has them: by lines, unbuffered
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    atexit._clear()  # the server's, which its own end calls
    multiprocessing.process._parent_process = None
    _fork_ranks()
    code = _exit_code(arguments)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.exit(code)


def _exit_code(arguments: list[str]) -> int:
    """Run the program; return the code with which an interpreter would end."""
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path[0] = ""
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), vars(main))
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            sys.path[0] = os.getcwd()
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(arguments)
            sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 255
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _fork_ranks() -> None:
    """Let Lightning's launcher and torchrun fork their processes as well."""
    from pytorch_lightning.strategies.launchers import subprocess_script
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def popen(args: Sequence[str], env: dict[str, str], **options: Any) -> ForkedPopen:
        words = [word for word in args[1:] if word != "-u"]  # a new interpreter's option; ours ends its lines anyway
        assert args[0] == sys.executable, args
        return ForkedPopen(words, env, **options)

    subprocess_script.subprocess = SimpleNamespace(Popen=popen)
    subprocess_handler.Popen = popen


def start(*arguments: object, interpreter: bool = False, **variables: str) -> Any:
    """Start a script of the checkout (or `-m` and a module, or `-c` and a program) as a user would."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "PL_GLOBAL_SEED")}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    words = [str(argument) for argument in arguments]
    options: Any = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *words], **options) if interpreter else ForkedPopen(words, **options)


def finish(process: Any) -> tuple[int, str]:
    """Return the exit code and what was printed."""
    printed, _ = process.communicate(timeout=SECONDS)
    return process.returncode, printed


def program(*arguments: object, **options: Any) -> str:
    """Run a script of the checkout as a user would; return what it printed."""
    code, printed = finish(start(*arguments, **options))
    assert code == 0, printed[-6000:]
    return printed
