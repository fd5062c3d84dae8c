"""No global setting changes the result of an operation, and no operation changes a setting."""

import logging
import os
import random
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event

import matplotlib as mpl
import numpy as np
import pytest
import torch

from flashpoint import diffusion as fd
from flashpoint import kernels as fk
from flashpoint.kernels.default_state import in_default_state

from .public_calls import (
    CALLS,
    DENOISER,
    EPS,
    FORWARD_TABLE,
    OTHERS,
    POINTS,
    RECIPE,
    SAMPLES,
    SCHEDULE,
    WEIGHTS,
    T,
    X,
)


@contextmanager
def setting(set_value, value, before):
    set_value(value)
    try:
        yield
    finally:
        set_value(before)


def default_dtype(dtype):
    return setting(torch.set_default_dtype, dtype, torch.float32)


def default_device(name):
    return setting(torch.set_default_device, name, None)


def matmul_precision(name):
    before = torch.get_float32_matmul_precision()
    return setting(torch.set_float32_matmul_precision, name, before)


def deterministic():
    return setting(torch.use_deterministic_algorithms, True, False)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expected in ("the schedule leaves alpha_bar", "file .* does not say how its network"):
            warnings.filterwarnings("ignore", expected)
        yield


@contextmanager
def other_seeds():
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # the global one
    random.seed(7)
    yield


# Settings that go together are in force together.
STATES = {
    "autocast, float64, default device": [
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: default_dtype(torch.float64),
        lambda: default_device("meta"),
    ],
    "autocast to fp16, float16, device as a context, grad mode": [
        lambda: torch.autocast("cpu", torch.float16),
        lambda: default_dtype(torch.float16),
        lambda: torch.device("meta"),
        torch.no_grad,
    ],
    "inference mode": [torch.inference_mode, other_seeds],
    "determinism, anomaly, low precision": [
        deterministic,
        lambda: torch.autograd.set_detect_anomaly(True),
        lambda: matmul_precision("medium"),
    ],
    "errors": [warnings_as_errors, lambda: np.errstate(divide="raise", invalid="raise")],
}


@contextmanager
def state_of(name):
    with ExitStack() as stack:
        for enter in STATES[name]:
            stack.enter_context(enter())
        yield


def settings():
    """Returns all global settings and random states that an operation could touch."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "function modes": torch._C._len_torch_function_stack(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filling": torch.utils.deterministic.fill_uninitialized_memory,
        "precision": torch.get_float32_matmul_precision(),
        "precision of the CPU": torch.backends.mkldnn.matmul.fp32_precision,
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "printing": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "seed of torch": torch.get_rng_state().tolist(),
        "seeds of numpy": str(np.random.get_state()),  # noqa: NPY002  # the global one
        "seed of Python": random.getstate(),
        "errors of numpy": np.geterr(),
        "printing of numpy": str(np.get_printoptions()),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "recursion": sys.getrecursionlimit(),
        "excepthook": sys.excepthook,
        "logging": (logging.root.level, list(logging.root.handlers)),
        "level of the log": logging.getLogger("flashpoint").level,
        "backend of matplotlib": dict(mpl.rcParams),
    }


def changed(before):
    after = settings()
    return [name for name, value in before.items() if after[name] != value]


def leaves(value):
    """Yields the tensors, arrays, numbers and texts in a result."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def difference(actual, expected):
    """Returns how a result differs from the expected one, None if it does not."""
    if isinstance(expected, torch.Tensor):
        for name in ("dtype", "device", "shape", "requires_grad"):
            if getattr(actual, name) != getattr(expected, name):
                return f"{name} {getattr(actual, name)} instead of {getattr(expected, name)}"
        if actual.is_inference():
            return "a tensor of inference mode"
        actual, expected = actual.detach().cpu().numpy(), expected.detach().cpu().numpy()
    same = (
        np.array_equal(np.asarray(actual), np.asarray(expected), equal_nan=True)
        if isinstance(expected, np.ndarray | float)
        else actual == expected
    )
    return None if same else f"{actual} instead of {expected}"


@pytest.fixture(scope="module")
def expected():
    """The results without any setting."""
    return {name: list(leaves(call())) for name, call in CALLS.items()}


@pytest.mark.parametrize("name", STATES)
def test_results_are_the_same_and_the_settings_stay(name, expected):
    wrong = {}
    with state_of(name):
        for call, run in CALLS.items():
            before = settings()
            try:
                results = list(leaves(run()))
            except Exception as error:
                wrong[call] = repr(error)
                continue
            pairs = zip(results, expected[call], strict=True)
            differences = [found for pair in pairs if (found := difference(*pair))]
            if differences or (touched := changed(before)):
                wrong[call] = differences or touched
    assert not wrong


def interrupted_training():
    def stop(_):
        raise KeyboardInterrupt

    fd.Trainer(POINTS, SCHEDULE, RECIPE, device="cpu").run(3, stop)


def failing_reward():
    def reward(_):
        raise ZeroDivisionError

    fd.sample_with_reward(DENOISER, SCHEDULE, 4, reward, device="cpu")


FAILURES = {
    "sample": (lambda: fd.sample(DENOISER, SCHEDULE, 0, device="cpu"), fd.UserError),
    "Points": (lambda: POINTS.split(2.0), fd.UserError),
    "load": (lambda: fd.load("nowhere"), fd.UserError),
    "q_sample": (lambda: fk.q_sample(X, FORWARD_TABLE, T + 9, EPS), ValueError),
    "Trainer": (interrupted_training, KeyboardInterrupt),
    "reward": (failing_reward, ZeroDivisionError),
}


@pytest.mark.parametrize("call", FAILURES)
@pytest.mark.parametrize("name", STATES)
def test_the_settings_stay_when_an_operation_fails(name, call):
    run, error = FAILURES[call]
    with state_of(name):
        before = settings()
        with pytest.raises(error):
            run()
        assert not changed(before)


def test_operations_in_two_threads_share_the_default_dtype():
    """The first one ends while the second one still needs float32."""

    @in_default_state
    def dtype_at_the_end(inside, leave):
        inside.set()
        assert leave.wait(60)
        return torch.ones(1).dtype

    events = [(Event(), Event()) for _ in range(2)]
    with default_dtype(torch.float64), ThreadPoolExecutor() as pool:
        running = []
        for inside, leave in events:
            running.append(pool.submit(dtype_at_the_end, inside, leave))
            assert inside.wait(60)
        for (_, leave), future in zip(events, running, strict=True):
            leave.set()
            assert future.result() == torch.float32
        assert torch.get_default_dtype() == torch.float64


def test_operations_compile_as_a_whole_under_autocast():
    def run(x):
        return fd.slerp(x, OTHERS, WEIGHTS)

    with torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(run, fullgraph=True, backend="eager")(SAMPLES)
    assert torch.equal(found, run(SAMPLES))
