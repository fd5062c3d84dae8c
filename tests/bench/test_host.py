"""The benchmark of the host's time: what it runs, and that nothing is launched on a CPU."""

import json
import re

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from flashpoint.bench import host
from flashpoint.kernels import _dispatch, _perceptrons
from flashpoint.kernels.mlp.kernel import forward_kernel
from flashpoint.kernels.resources import without_launches

CPU = torch.device("cpu")


@pytest.fixture
def launches(monkeypatch):
    """The kernels that would have been launched."""
    seen = []
    monkeypatch.setattr(
        type(forward_kernel), "run", lambda kernel, *_, **__: seen.append(kernel.__name__)
    )
    return seen


def drop_in(name="accelerate", setting=host.SETTINGS[0]):
    plain = nn.Sequential(nn.Linear(3, 16), nn.PReLU(), nn.Linear(16, 2))
    plain = plain if setting.autocast else plain.to(setting.dtype)
    x = torch.randn(1, 3)
    return host.DROP_INS[name](plain), x if setting.autocast else x.to(setting.dtype)


@pytest.mark.parametrize("name", host.DROP_INS)
@pytest.mark.parametrize("setting", host.SETTINGS, ids=lambda setting: setting.name)
def test_every_work_takes_the_path_to_the_kernels(name, setting, monkeypatch):
    # As on a GPU: no kernel is launched, and the interpreter's refusal of bf16 is none of a host.
    monkeypatch.setattr(_dispatch, "is_interpreted", lambda: False)
    calls, run = [], _perceptrons.run_kernels
    monkeypatch.setattr(_perceptrons, "run_kernels", lambda *call: calls.append(call) or run(*call))
    model, x = drop_in(name, setting)
    with without_launches():
        for work in host.WORKS.values():
            work(host.job(model, x, setting))
    assert len(calls) == len(host.WORKS)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_launches_are_replaced_and_come_back(launches):
    model, x = drop_in()
    with without_launches():
        host.forward_and_backward(host.job(model, x, host.SETTINGS[0]))
    assert not launches
    forward_kernel[1,]()
    assert launches == ["forward_kernel"]
    assert torch.equal(model(x), nn.Sequential.forward(model, x))  # on a CPU the layers run again


def test_a_line_of_each_work_and_a_record(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "SETTINGS", host.SETTINGS[:1])
    done = CliRunner().invoke(
        host.main, ["--device", "cpu", "--rounds", "3", "--record", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    what_is_left_out, *lines = done.output.splitlines()
    assert "launch" in what_is_left_out
    assert len(lines) == len(host.WORKS) * len(host.DROP_INS)
    for line in lines:
        assert re.search(r"[\d.]+ us, nn.Sequential +[\d.]+ us: [\d.]+ times as fast", line)
    results = json.loads((tmp_path / "record.json").read_text())["stages"]["host"]["results"]
    assert [one["work"] for one in results[:3]] == list(host.WORKS)
    assert all(one["timing"]["ours_us"] > 0 for one in results)


def test_what_is_wrong_is_not_timed():
    model, x = drop_in()
    other, _ = drop_in()
    host.check(model, nn.Sequential(*model), x, host.SETTINGS[0])
    with pytest.raises(SystemExit, match="wrong in autocast fp16"):
        host.check(model, nn.Sequential(*other), x, host.SETTINGS[0])
