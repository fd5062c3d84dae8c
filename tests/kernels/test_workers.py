"""Jobs that run side by side on a CPU."""

import os
import threading

import pytest
import torch

from flashpoint.kernels import workers
from flashpoint.kernels.workers import (
    LEAST_ROWS,
    Halted,
    one_thread,
    side_by_side,
    workers_for,
)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_each_job_runs_once_on_a_thread_of_its_own_with_one_thread_of_pytorch(threads):
    found, meeting = {}, threading.Barrier(threads)  # which only all jobs at once can pass

    def job(number):
        meeting.wait(timeout=60)
        found[number] = (threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled())

    side_by_side([lambda _, number=number: job(number) for number in range(threads)])
    assert sorted(found) == list(range(threads))
    assert len({thread for thread, *_ in found.values()}) == threads
    assert {rest for _, *rest in found.values() for rest in [tuple(rest)]} == {(1, False)}
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("where", [0, -1])
def test_an_error_of_a_job_is_raised_and_halts_the_others(threads, where):
    failing = range(threads)[where]

    def job(number, stops):
        if number == failing:
            raise ValueError("of this job")
        while not stops():
            pass
        raise Halted

    with pytest.raises(ValueError, match="of this job"):
        side_by_side([lambda stops, n=n: job(n, stops) for n in range(threads)])
    assert torch.get_num_threads() == threads
    side_by_side([lambda _: None] * threads)  # and the next ones run


def test_a_job_meets_the_inference_mode_of_the_caller():
    found = []
    with torch.inference_mode():
        side_by_side([lambda _: found.append(torch.is_inference_mode_enabled())] * 2)
    assert found == [True, True]


def test_few_rows_are_left_to_the_threads_of_pytorch(threads):
    assert workers_for(threads * LEAST_ROWS - 1) == 1
    assert workers_for(threads * LEAST_ROWS) == threads
    with one_thread():
        assert workers_for(threads * LEAST_ROWS) == 1


def test_all_rows_go_together_where_the_number_of_threads_cannot_be_set(threads, monkeypatch):
    monkeypatch.setattr(workers, "_number_can_be_set", lambda: False)
    assert workers_for(threads * LEAST_ROWS) == 1
    with one_thread():
        assert torch.get_num_threads() == threads


def test_threads_that_start_later_have_the_number_that_was_set(threads):
    side_by_side([lambda _: None] * threads)
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [threads]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_starts_threads_of_its_own():
    side_by_side([lambda _: None] * 2)
    child = os.fork()
    if child == 0:
        found = []
        side_by_side([lambda _: found.append(1)] * 2)
        os._exit(0 if found == [1, 1] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
