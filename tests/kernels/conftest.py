"""Fixtures of the tests of modules: they run on the kernels, interpreted if there is no GPU."""

import pytest
import torch

from flashpoint.kernels import _perceptrons


@pytest.fixture
def on_device(device):
    """New tensors and modules are on the device under test."""
    with torch.device(device):
        yield


@pytest.fixture
def fused_calls(monkeypatch):
    """The shapes of x of all calls that modules run fused, which float32 does too."""
    calls = []
    run = _perceptrons.run_kernels

    def counted(arguments, precision):
        calls.append(arguments.x.shape)
        return run(arguments, precision)

    monkeypatch.setattr(_perceptrons, "run_kernels", counted)
    monkeypatch.setattr(_perceptrons, "faster_in_pytorch", lambda _: None)
    monkeypatch.setattr(
        _perceptrons,
        "_worth_fusing",
        lambda x: type(x) in _perceptrons.PLAIN_TENSORS and not x.is_meta,
    )
    return calls
