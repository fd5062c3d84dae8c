"""Fixtures of the tests of modules: they run on the kernels, interpreted if there is no GPU."""

import pytest
import torch

from flashpoint.kernels import _layers, mlp


@pytest.fixture
def on_device(device):
    """New tensors and modules are on the device under test."""
    with torch.device(device):
        yield


@pytest.fixture
def fused_calls(monkeypatch):
    """The shapes of x of all calls that modules run fused."""
    calls = []

    def counted(x, *args, **kwargs):
        calls.append(x.shape)
        return mlp(x, *args, **kwargs, backend="triton")

    monkeypatch.setattr(_layers, "mlp", counted)
    monkeypatch.setattr(_layers, "_worth_fusing", lambda x: x.device.type != "meta")
    return calls
