"""The choice of a backend, and the message if the chosen one cannot run."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flashpoint.kernels import (
    MLPShape,
    _dispatch,
    accelerate,
    mlp,
    q_sample,
    reverse_step,
)
from flashpoint.kernels._dispatch import elementwise_gap, use_triton
from flashpoint.kernels.mlp.layout import gap_of


@pytest.fixture(autouse=True)
def _forget():
    """Empties the caches of problems of devices and of logged messages."""
    _dispatch._find_problem.cache_clear()
    _dispatch._log.cache_clear()
    yield
    _dispatch._find_problem.cache_clear()


def test_device_chooses(device):
    assert use_triton(None, "x", torch.ones(1, device=device)) == (device.type == "cuda")
    assert use_triton("triton", "x", torch.ones(1, device=device))
    assert not use_triton("torch", "x", torch.ones(1, device=device))


def test_cpu_tensor_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.ones(2, 2)
    with pytest.raises(
        RuntimeError, match=r"^backend 'triton' needs CUDA tensors, .*x_t is on cpu"
    ):
        reverse_step(x, x, torch.ones(4), backend="triton")


def test_no_triton(monkeypatch):
    monkeypatch.setattr(_dispatch, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match=r"^backend 'triton' needs the package triton"):
        use_triton("triton", "x", torch.ones(1))


def test_old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert _dispatch.problem_of(torch.device("cuda:0")) == (
        "needs compute capability 8.0 or more, got 7.5"
    )


def test_old_gpu_is_refused_in_one_line_or_left_to_the_reference(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    tensor = SimpleNamespace(device=torch.device("cuda:0"), is_cuda=True)
    with pytest.raises(
        RuntimeError,
        match=r"^backend 'triton' needs compute capability 8.0 .*, got 7.5 \(x is on cuda:0\)$",
    ):
        use_triton("triton", "x", tensor)
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        assert not use_triton(None, "x", tensor)
    assert "needs compute capability 8.0 or more, got 7.5" in caplog.text


def test_wide_layers_go_to_the_reference_with_one_line(device, caplog):
    x = torch.randn(5, 3, device=device)
    weights = [torch.randn(513, 3, device=device), torch.randn(2, 513, device=device)]
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        for _ in range(2):
            y = mlp(x, weights, activation="relu", backend="triton")
    torch.testing.assert_close(y, (x @ weights[0].T).relu() @ weights[1].T)
    assert [record.message for record in caplog.records] == [
        "plain PyTorch instead of Triton kernels: a hidden layer of 513, wider than 512"
    ]


def test_what_kernels_do_not_cover_goes_to_the_reference_with_one_line(device, caplog):
    x = torch.ones(5, 2, dtype=torch.float64, device=device)
    t = torch.zeros(5, dtype=torch.int64, device=device)
    table = torch.full((3, 5), 0.25, dtype=torch.float64, device=device)
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        for _ in range(2):
            x_t = q_sample(x, table, t, x, backend="triton")
    assert x_t.dtype == torch.float64
    assert [record.message for record in caplog.records] == [
        "plain PyTorch instead of Triton kernels: float64"
    ]


def test_gradients_through_elementwise_operations(device):
    x = torch.ones(5, 2, device=device, requires_grad=True)
    assert elementwise_gap(x) is not None
    reverse_step(x, x, torch.ones(4, device=device), backend="triton").sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2))


def test_gaps_of_networks():
    assert gap_of(MLPShape((784, 512, 784)), torch.float32) is None
    assert gap_of(MLPShape((3, 513, 2)), torch.float32) == "a hidden layer of 513, wider than 512"
    assert gap_of(MLPShape((3, 2)), torch.float64) == "float64"


def test_unknown_precision():
    with pytest.raises(
        ValueError, match=r"^precision must be one of fp16, bf16, tf32, tf32x3, fp32, got 'fp8'"
    ):
        mlp(torch.ones(4, 3), [torch.ones(2, 3)], precision="fp8")


@pytest.mark.parametrize("name", ["mps", "xpu", "meta"])
def test_other_devices_run_the_reference(monkeypatch, name):
    """Nothing is computed: PyTorch here has no such device, and meta tensors have no numbers."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with FakeTensorMode():
        x, weights = torch.ones(5, 3, device=name), [torch.ones(8, 3, device=name)]
        weights.append(torch.ones(2, 8, device=name))
        for options in ({}, {"precision": "fp16"}, {"backend": "torch"}):
            y = mlp(x, weights, activation="relu", **options)
            assert (y.device.type, y.dtype, y.shape) == (name, torch.float32, (5, 2))
        with pytest.raises(RuntimeError, match=rf"^backend 'triton' needs CUDA .* is on {name}"):
            mlp(x, weights, activation="relu", backend="triton")


def test_modules_on_other_devices_run_layer_by_layer():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).to("meta")
    assert str(accelerate(model)).startswith(
        "(model) [3-8-2, relu]: layer by layer on meta, fused on a GPU"
    )
    assert model(torch.ones(5, 3, device="meta")).shape == (5, 2)
