"""Threads that each take their own rows through a whole operation on a CPU.

PyTorch splits every single product and sum between its threads, which wait for each other some
hundred times in a training step. Threads that are left to themselves meet once. Python's lock does
not stand in the way of functions that :mod:`.scripts` compiles.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from threading import Barrier, Event

import torch

# Rows that a thread must have for itself: with fewer, it takes too long to wake it.
LEAST_ROWS = 256

Job = Callable[[Callable[[], bool]], object]


class Halted(Exception):
    """A job ended early, because another one failed."""


def workers_for(rows: int) -> int:
    """Returns in how many shares rows are processed: one for each thread, or 1 if they are few."""
    if not _number_can_be_set():
        return 1
    return torch.get_num_threads() if rows >= rows_for_all() else 1


def rows_for_all() -> int:
    """Returns the fewest rows of which every thread gets a share of its own."""
    return torch.get_num_threads() * LEAST_ROWS


def side_by_side(jobs: Sequence[Job]) -> None:
    """Runs each job on a thread of its own, the first on the calling one; returns after all.

    If there are several, PyTorch's operations use one thread in each. Jobs run without autograd,
    and in inference mode if the caller is in it. An error of a job is raised here.

    Args:
        jobs: functions that write to different memory. They are called with a function that returns
            True after an error in another job, or an interrupt; a job may then raise Halted.
    """
    inference, failed = torch.is_inference_mode_enabled(), Event()

    def run(job: Job) -> None:
        try:
            with torch.inference_mode() if inference else torch.no_grad():
                job(failed.is_set)
        except BaseException:
            failed.set()
            raise

    if len(jobs) == 1:
        run(jobs[0])
        return
    others = [_pool(len(jobs) - 1).submit(run, job) for job in jobs[1:]]
    errors: list[BaseException | None] = []
    try:
        with one_thread():
            run(jobs[0])
    except BaseException as error:
        errors.append(error)
    errors += [other.exception() for other in others]  # waits: they write to the caller's memory
    for failure in errors:
        if failure is not None and not isinstance(failure, Halted):
            raise failure


@contextmanager
def one_thread() -> Iterator[None]:
    """Makes PyTorch's operations use one thread inside of its block.

    Before and after :func:`side_by_side`, because PyTorch's own threads stay busy for some
    milliseconds after they have worked, and would take the cores away.
    """
    if not _number_can_be_set():
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache
def _number_can_be_set() -> bool:
    """Returns True if PyTorch's number of threads may change at any time, as with OpenMP."""
    return "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()


@lru_cache
def _pool(size: int) -> ThreadPoolExecutor:
    """Returns threads whose operations in PyTorch use one thread each."""
    threads, ready = torch.get_num_threads(), Barrier(size + 1)

    def start() -> None:
        torch.get_num_threads()  # at the first call a thread takes the number of other threads
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(size, "flashpoint", initializer=start)
    for _ in range(size):
        pool.submit(int)  # each of the first jobs starts a thread
    ready.wait()
    torch.set_num_threads(threads)  # further threads of other code start with this number
    return pool


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive one
