"""A program in a warm process does what it does in a new Python."""

import os
import re
import signal
import subprocess
import sys

import pytest

from . import warm_python


def run_new(arguments, **options):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


VARIABLES = {"SOME": "thing", "LC_ALL": "C.UTF-8"}  # without a locale, Python would set one
SURROUNDINGS = """
import json, multiprocessing, os, signal, sys
print(json.dumps({
    "name": __name__, "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(),
    "variables": dict(os.environ), "file": globals().get("__file__"),
    "main": sys.modules["__main__"].__dict__ is globals(), "input": sys.stdin.read(),
    "methods": [str(signal.getsignal(n)).partition(" at ")[0] for n in (2, 15, 17)],
    "start": multiprocessing.get_start_method(), "group": os.getpgid(0),
}, sort_keys=True))
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_a_program_sees_what_it_sees_in_a_new_python(tmp_path, kind):
    (tmp_path / "folder").mkdir()
    script = tmp_path / "folder/told.py"
    script.write_text(SURROUNDINGS)
    program = {"-c": ("-c", SURROUNDINGS), "-m": ("-m", "told"), "script": (script,)}[kind]
    options = {"cwd": script.parent, "env": VARIABLES | {"PYTHONPATH": f"/no:{tmp_path}"}}
    warm = warm_python.run([*program, "--an", "option"], **options)
    new = run_new([*program, "--an", "option"], stdin=subprocess.DEVNULL, **options)
    assert (warm.returncode, new.returncode) == (0, 0), warm.stderr
    assert warm.stdout == new.stdout


@pytest.mark.parametrize("end", [
    "pass", "raise SystemExit", "raise SystemExit(3)", "raise SystemExit(-1)",
    "raise SystemExit('in one line')", "raise ValueError('no')", "raise KeyboardInterrupt",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "import os; os._exit(7)",
    "import atexit; atexit.register(print, 'last'); 1 / 0", "this is no Python",
    "import sys; sys.excepthook = lambda *_: print('mine'); 1 / 0",
    "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start(); print('soon')",
    "import sys; sys.stdout.write('no end of line'); sys.stderr.write('nor here')",
])  # fmt: skip
def test_a_program_ends_as_in_a_new_python(end):
    warm, new = warm_python.run(["-c", end]), run_new(["-c", end])
    assert warm.returncode == new.returncode
    assert warm.stdout == new.stdout
    assert warm.stderr == new.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_are_those_of_a_new_python(unbuffered):
    code = (
        "import sys\nsys.stdout.reconfigure(errors='replace')\n"
        "for s in (sys.stdout, sys.stderr):\n"
        "    print(s.encoding, s.errors, s.line_buffering, s.write_through, type(s.buffer))"
    )
    variables = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    warm, new = (each(["-c", code], env=variables) for each in (warm_python.run, run_new))
    assert (warm.stdout, warm.stderr) == (new.stdout, "")


def test_an_error_in_a_module_begins_with_its_line(tmp_path):
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    for program in (("-m", "wrong"), (tmp_path / "wrong.py",)):
        done = warm_python.run(program, cwd=tmp_path)
        assert done.returncode == 1
        assert re.match(r'.* call last\):\n  File ".*wrong\.py", line 1', done.stderr), done.stderr


def test_libraries_are_there_but_nothing_that_reads_the_environment():
    code = (
        "import sys\nprint({'torch', 'scipy.stats', 'matplotlib.figure'} <= set(sys.modules))\n"
        "print([name for name in sys.modules if name.startswith(('flashpoint', 'triton'))])\n"
    )
    assert warm_python.run(["-c", code]).stdout == "True\n[]\n"


@pytest.mark.parametrize("interpret", ["0", "1", None])
def test_the_interpreter_of_triton_is_on_only_if_it_is_asked_for(tmp_path, monkeypatch, interpret):
    if interpret is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
    script = tmp_path / "script.py"  # because Triton reads the source of functions
    script.write_text("import triton\n@triton.jit\ndef f(): pass\nprint(type(f).__name__)")
    kind = "InterpretedFunction" if interpret == "1" else "JITFunction"
    assert warm_python.run([script]).stdout == f"{kind}\n"


@pytest.mark.parametrize("threads", [1, 3])
def test_torch_has_the_threads_that_the_variable_says(threads):
    product = "torch.ones(500, 500).mm(torch.eye(500))[0, 0]"
    code = f"import torch\nprint(torch.get_num_threads(), {product})"
    done = warm_python.run(["-c", code], env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    assert done.stdout == f"{threads} tensor(1.)\n"


def test_random_numbers_differ_from_process_to_process():
    code = "import numpy, random; print(numpy.random.rand(), random.random())"
    found = [number for _ in range(2) for number in warm_python.run(["-c", code]).stdout.split()]
    assert len(set(found)) == 4


def test_signals_and_the_time_limit_reach_a_process_that_runs():
    code = (
        "import time\n"
        "try:\n    print('begun', flush=True)\n    time.sleep(600)\n"
        "except KeyboardInterrupt:\n    print('told')\n"
    )
    for number, status in ((signal.SIGINT, 0), (signal.SIGTERM, -15), (signal.SIGKILL, -9)):
        with warm_python.Popen(["-c", code]) as process:
            assert process.stdout.readline() == "begun\n"
            assert process.poll() is None
            os.kill(process.pid, number)
            assert process.communicate() == ["told\n" if status == 0 else "", ""]
        assert process.returncode == process.poll() == status
    with warm_python.Popen(["-c", code]) as process:
        assert process.stdout.readline() == "begun\n"
    assert process.returncode == -signal.SIGKILL  # nothing is left behind
    with pytest.raises(subprocess.TimeoutExpired):
        warm_python.run(["-c", code], timeout=0.5)


def test_long_outputs_of_both_streams_arrive_whole():
    code = (
        "import sys\nfor _ in range(20_000):\n"
        "    print('out' * 9)\n    print('err' * 9, file=sys.stderr)"
    )
    done = warm_python.run(["-c", code])
    assert (len(done.stdout), len(done.stderr)) == (560_000, 560_000)


def test_a_program_may_start_processes_of_its_own(tmp_path):
    (tmp_path / "script.py").write_text(
        "import multiprocessing, os\n"
        "def work(number):\n    return number * 2\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, [1, 2]))\n"
    )
    done = warm_python.run(["script.py"], cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[2, 4]\n", "")


def test_a_program_that_leaves_others_behind_ends_in_time(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('pid', 'w').write(str(other.pid))\n"
        "time.sleep(600)\n"
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            warm_python.run(["-c", code], cwd=tmp_path, timeout=5)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
