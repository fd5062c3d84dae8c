"""A program that runs as ``python ARGUMENTS`` does, in a process which has libraries already.

``warm_python`` runs this file in a new fork of its server; ``request`` is what it asks for.
"""

import atexit
import importlib
import io
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import types
from pathlib import Path

import numpy as np
import torch


def opened(number, old):
    """Returns a new stream of text; the old one may remember that it could seek."""
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    file = open(number, "wb", 0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    by_line = number == 2 and not unbuffered
    return io.TextIOWrapper(
        file, old.encoding, old.errors, line_buffering=by_line, write_through=unbuffered
    )


def take_surroundings(request):
    """Takes over streams, folder, environment, signals and seeds, as a new process has them."""
    for number, stream in enumerate((request["stdout"], request["stderr"]), start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = os.fdopen(0)  # the empty input that multiprocessing gives
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdout = sys.__stdout__ = opened(1, sys.stdout)
    sys.stderr = sys.__stderr__ = opened(2, sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # The variable is read when torch is imported, which the server did with its own.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    np.random.seed()  # noqa: NPY002 - all forks have inherited one seed
    # Processes that the program starts are those of any program.
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()


def become_main(code, **names):
    """Runs code as the module ``__main__``."""
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    vars(main).update(names, __builtins__=__builtins__)
    exec(code, vars(main))


def execute(arguments, path):
    """Runs ``-c CODE``, ``-m MODULE`` or a script; ``path`` is sys.path without its first entry."""
    importlib.invalidate_caches()
    first, *rest = arguments
    if first == "-c":
        sys.argv, sys.path[:] = ["-c", *rest[1:]], ["", *path]
        become_main(compile(rest[0], "<string>", "exec"))
    elif first == "-m":
        sys.argv, sys.path[:] = list(rest), [os.getcwd(), *path]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        script = Path(first)
        sys.argv, sys.path[:] = list(arguments), [str(script.resolve().parent), *path]
        become_main(compile(script.read_bytes(), first, "exec"), __file__=first)


def show_error():
    """Prints the exception that the program has not caught, without the frames of this file."""
    kind, error, trace = sys.exc_info()
    while trace and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        trace = trace.tb_next
    sys.excepthook(kind, error.with_traceback(trace), trace)


def status_of(arguments, path):
    """Runs the program; returns its exit status, or the negative number of a signal."""
    try:
        execute(arguments, path)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        show_error()
        return -signal.SIGINT
    except BaseException:
        show_error()
        return 1
    return 0


def end(status):
    """Ends this process as an interpreter ends, which multiprocessing would not do."""
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 120
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


if __name__ == "warm child":
    take_surroundings(request)  # noqa: F821 - a global that run_path is given
    end(status_of(request["arguments"], request["path"]))  # noqa: F821
