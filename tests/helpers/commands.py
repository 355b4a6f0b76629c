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
from multiprocessing import forkserver, reduction
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
PRELOADED = ["tests.helpers.preloaded"]
SECONDS = 300  # after which a program counts as hanging
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


SERVER = "FORK_SERVER_OF_TESTS"  # the variable with the server's address, for programs that did not come from it


def server() -> str:
    """Start the server, unless it runs; return its address."""
    if address := os.environ.get(SERVER):
        _use(address)
    elif forkserver._forkserver._forkserver_address is None:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(ROOT)  # it is not told `sys.path`
        try:
            forkserver.ensure_running()
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
    return forkserver._forkserver._forkserver_address


def _use(address: str) -> None:
    """Fork from a server that another process started; `multiprocessing` would start one more."""
    of_this_process = forkserver._forkserver
    of_this_process._forkserver_address = address
    of_this_process.ensure_running = lambda: None
    if of_this_process._forkserver_alive_fd is None:
        of_this_process._forkserver_alive_fd = os.open(os.devnull, os.O_WRONLY)


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
        self, arguments: list[str], env: dict[str, str], stdout: Any = None, stderr: Any = None,
        text: bool = False, start_new_session: bool = False, cwd: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.args, self.returncode = arguments, None
        pipes: list[int] = []
        self.stdout, out = self._output(stdout, 1, text, pipes)
        self.stderr, err = self._output(stderr, 2, text, pipes) if stderr != subprocess.STDOUT else (None, out)
        folder, outputs = str(cwd or Path.cwd()), (_Descriptor(out), _Descriptor(err))
        given = (arguments, env, folder, os.getpid(), server(), outputs, start_new_session)
        self._process = _context.Process(target=_run, args=given, name="MainProcess")
        self._process.start()
        self.pipe = os.readlink(f"/proc/self/fd/{out}")
        for number in pipes:
            os.close(number)
        self.pid = self._process.pid

    @staticmethod
    def _output(wanted: Any, own: int, text: bool, pipes: list[int]) -> tuple[Any, int]:
        if wanted == subprocess.PIPE:
            reading, writing = os.pipe()
            pipes.append(writing)
            return os.fdopen(reading, "r" if text else "rb"), writing
        if wanted == subprocess.DEVNULL:
            pipes.append(os.open(os.devnull, os.O_WRONLY))
            return None, pipes[-1]
        return None, own if wanted is None else wanted if isinstance(wanted, int) else wanted.fileno()

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


def _run(
    arguments: list[str], env: dict[str, str], cwd: str, parent: int, address: str, outputs: tuple[int, int],
    new_session: bool,
) -> None:  # fmt: skip
    """Become the program, in the forked child."""
    _use(address)
    stdout, stderr = outputs
    os.getppid = lambda: parent if _lives(parent) else 1  # who asked the server for it
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
    _read_again(env)
    os.chdir(cwd)
    atexit._clear()  # the server's, which its own end calls
    multiprocessing.set_start_method("fork", force=True)  # of its own processes: the default
    multiprocessing.process._parent_process = None
    subprocess.Popen = Popen  # Lightning's launcher and submitit's fork their processes as well, and so does torchrun
    sys.modules["torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"].Popen = Popen
    code = _exit_code(arguments)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.exit(code)


def _read_again(env: dict[str, str]) -> None:
    """Do what torch and Lightning do with the environment when they are imported."""
    import torch
    from lightning_fabric.utilities.rank_zero import _get_rank, rank_zero_only

    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    rank_zero_only.rank = _get_rank() or 0


def _lives(process: int) -> bool:
    """Return whether a process runs or is stopped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


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


class Popen(subprocess.Popen):
    """Forks what would be another interpreter with a script, a module or a program, and starts all else."""

    def __new__(cls, args: Any, env: dict[str, str] | None = None, **options: Any) -> Any:
        """Return a `ForkedPopen`, or an instance to be initialised as ever."""
        words = [word for word in args[1:] if word != "-u"] if isinstance(args, list | tuple) else []
        if not words or args[0] != sys.executable or not (words[0] in ("-m", "-c") or words[0].endswith(".py")):
            return super().__new__(cls)
        kept = {name: options.get(name) for name in ("stdout", "stderr", "cwd")}
        text = bool(options.get("text") or options.get("encoding") or options.get("universal_newlines"))
        session = bool(options.get("start_new_session"))
        return ForkedPopen(
            words, dict(os.environ if env is None else env), text=text, start_new_session=session, **kept
        )


def holders(process: ForkedPopen) -> list[int]:
    """Return the processes that can write to the output of a program: itself and whatever it started."""
    found = []
    for other in Path("/proc").glob("[0-9]*"):
        try:
            if int(other.name) != os.getpid() and os.readlink(other / "fd" / "1") == process.pipe:
                found.append(int(other.name))
        except OSError:
            continue  # another user's, or it just ended
    return found


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
