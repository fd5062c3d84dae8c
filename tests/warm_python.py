"""Programs in processes of their own, which start with the large libraries imported.

A new Python imports PyTorch, SciPy and Matplotlib for seconds before the code under test begins.
Here a server imports them once, and each program runs in a fork of it, see ``warm_child``. Neither
this library nor Triton is imported beforehand: each program imports them itself, with the
environment that it is given, which they read. Tests of the start itself, such as what is imported
and in which encoding, need a new Python.
"""

import functools
import io
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

# What commands and examples import sooner or later of the libraries that are always there. Those
# of the extras are not among them, because programs may be told that they are missing.
LIBRARIES = (
    "torch", "torch.distributed", "torch.profiler", "torch.utils.data", "numpy",
    "scipy.interpolate", "scipy.optimize", "scipy.sparse.linalg", "scipy.spatial", "scipy.stats",
    "sklearn.datasets", "sklearn.model_selection", "sklearn.neighbors", "sklearn.neural_network",
    "matplotlib.backends.backend_agg", "matplotlib.colorbar", "matplotlib.figure",
    "mpl_toolkits.mplot3d", "PIL.Image", "PIL.PngImagePlugin", "tqdm.auto", "click",
    "filelock", "sympy",
)  # fmt: skip
_CHILD = str(Path(__file__).with_name("warm_child.py"))


@functools.cache
def _context():
    """Returns the context of multiprocessing whose server has the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    # OpenMP reads it once, and would not outlive a fork with threads.
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        os.environ.pop("TRITON_INTERPRET", None)
        forkserver.ensure_running()
    return context


@functools.cache
def _installed():
    """Returns sys.path of a new Python without PYTHONPATH, apart from the first entry."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path[1:]))"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return tuple(json.loads(done.stdout))


class Popen:
    """A Python program that runs; used as subprocess.Popen is.

    Args:
        arguments: those of Python: ``-c CODE``, ``-m MODULE`` or a script, and the program's own.
        cwd: its folder; None is that of this process.
        env: all of its environment variables; None are those of this process.

    Attributes:
        args: the arguments.
        pid: the number of the process.
        stdout: its output, a text file.
        stderr: its errors, another.
    """

    def __init__(self, arguments, cwd=None, env=None):
        self.args = [os.fspath(argument) for argument in arguments]
        variables = dict(os.environ if env is None else env)
        extra = filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))
        request = {
            "arguments": self.args, "cwd": os.fspath(cwd or os.getcwd()), "env": variables,
            "path": [*map(os.path.abspath, extra), *_installed()],
        }  # fmt: skip
        ends = {}
        for name in ("stdout", "stderr"):
            ends[name], request[name] = _context().Pipe(duplex=False)
        options = {"init_globals": {"request": request}, "run_name": "warm child"}
        # By its path, because the server cannot import tests.
        self._process = _context().Process(target=runpy.run_path, args=(_CHILD,), kwargs=options)
        self._process.start()
        self.pid = self._process.pid
        for name, end in ends.items():
            request[name].close()  # so that the output ends when the process does
            setattr(self, name, os.fdopen(os.dup(end.fileno()), encoding="utf-8"))
            end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait()
        self.stdout.close()
        self.stderr.close()

    @property
    def returncode(self):
        """The exit status, the negative number of a signal, or None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout=None):
        """Waits for the end; returns the exit status."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number):
        """Sends a signal if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        """Sends SIGTERM if it still runs."""
        self._process.terminate()

    def kill(self):
        """Sends SIGKILL if it still runs."""
        self._process.kill()

    def communicate(self, timeout=None):
        """Waits for the end; returns all of its output and of its errors."""
        end = None if timeout is None else time.monotonic() + timeout
        found = [], []
        readers = [
            threading.Thread(target=lambda read, to: to.append(read()), args=each, daemon=True)
            for each in zip((self.stdout.read, self.stderr.read), found, strict=True)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if end is None else max(0, end - time.monotonic()))
        if any(reader.is_alive() for reader in readers):
            self.kill()
            # Processes that it has started may hold its streams open for ever.
            self.stdout, self.stderr = io.StringIO(), io.StringIO()
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait()
        return [text for (text,) in found]


def run(arguments, cwd=None, env=None, timeout=None):
    """Runs a program to its end; returns what subprocess.run does, with its output as text."""
    with Popen(arguments, cwd, env) as process:
        return finished(process, timeout)


def finished(process, timeout=None):
    """Waits for the end of a process; returns what subprocess.run does."""
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
