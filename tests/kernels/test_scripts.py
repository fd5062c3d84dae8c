"""Functions as TorchScript, and as Python where there is none."""

import inspect
import sys

import pytest
import torch

from flashpoint.kernels import scripts, training_sums, workspace_of
from flashpoint.kernels.train_step import pieces as training

from .networks import make_network
from .test_pieces import MANY, chain_of, run, shape_of, step_of
from .training import KINDS, make_data


@pytest.fixture(autouse=True)
def _nothing_compiled():
    scripts.scripted.cache_clear()
    yield
    scripts.scripted.cache_clear()


def is_compiled(function):
    return hasattr(scripts.scripted(function), "compiled")


@pytest.mark.parametrize("kind", KINDS)
def test_python_computes_what_torchscript_does(kind, monkeypatch):
    """PyTorch has no TorchScript for Python 3.14."""
    chain_kind = {"denoiser": "plain", "classifier": "guided", "conditional": "free"}[kind]
    results = []
    for too_new in (scripts._TOO_NEW, (3, 0)):
        monkeypatch.setattr(scripts, "_TOO_NEW", too_new)
        scripts.scripted.cache_clear()
        assert is_compiled(training._add_sums) == (sys.version_info < too_new)
        step = step_of(shape_of(kind), make_data("cpu", kind, 2), 2, MANY, refresh=2)
        results.append((*step, *run(chain_of(2, 100, chain_kind, columns=7))))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_without_sources_python_computes(monkeypatch):
    def missing(*_, **__):
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsourcelines", missing)
    assert not is_compiled(make_network)
    assert scripts.scripted(make_network) is make_network


def test_an_error_is_one_line():
    shape, data = shape_of("classifier"), make_data("cpu", "classifier")
    parameters = make_network(shape)
    workspace = workspace_of(parameters, shape, data, 8)
    data.labels[:] = 99
    with pytest.raises(RuntimeError, match="index 99 is out of bounds") as caught:
        training_sums(
            parameters, shape, data, workspace, batch_size=8, seed=torch.tensor([1]), step=0
        )
    assert len(str(caught.value).splitlines()) == 1
