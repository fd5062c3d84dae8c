"""CUDA graphs of a function: captured without running it, run at each replay."""

import pytest
import torch

from flashpoint.kernels.cuda import capture, side_stream


@pytest.mark.gpu
@pytest.mark.parametrize("same_stream", [False, True])
def test_a_captured_function_runs_at_each_replay_only(device, same_stream):
    x = torch.zeros(3, device=device)
    with side_stream() as stream:
        x.add_(1)
    graph = capture(lambda: x.add_(1), stream if same_stream else None)
    assert x.tolist() == [1, 1, 1]
    graph.replay()
    graph.replay()
    assert x.tolist() == [3, 3, 3]
