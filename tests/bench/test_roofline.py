"""The roofline: counted costs, measured rates, floors and fractions."""

import json
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner

from flashpoint.bench import costs
from flashpoint.bench.__main__ import main
from flashpoint.bench.costs import Cost, Rates
from flashpoint.bench.rates import measure_rates
from flashpoint.bench.roofline import Operation, place, table

CPU = torch.device("cpu")
DENOISER, CLASSIFIER = (3, 256, 256, 256, 256, 2), (3, 100, 200, 500, 5)
RATES = Rates({"fp32": 1e9}, memory=1e9, cache=1e10)


def test_flops_are_those_that_autograd_does():
    from torch.utils.flop_counter import FlopCounterMode

    layers = [torch.nn.Linear(i, o) for i, o in pairwise(DENOISER)]
    x = torch.randn(64, 3)
    with FlopCounterMode(display=False) as counter:
        torch.nn.Sequential(*layers)(x).sum().backward()
    # The counter is given no input gradient to count either.
    assert costs.training_step(DENOISER, 64).flops == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.nn.Sequential(*layers)(x)
    assert costs.chain(DENOISER, None, 64, 1).flops == counter.get_total_flops()


def test_guidance_adds_a_forward_and_an_input_gradient():
    plain, guided = (costs.chain(DENOISER, net, 10, 3).flops for net in (None, CLASSIFIER))
    assert guided - plain == 4 * costs.weights(CLASSIFIER) * 10 * 3


@pytest.mark.parametrize(
    ("cost", "floor", "bound"), [(Cost(2e6, 1e6), 2000, "matmul"), (Cost(1e6, 3e6), 3000, "memory")]
)
def test_the_floor_is_the_longer_of_both(cost, floor, bound):
    operation = Operation("nothing", 1, "fp32", cost, lambda: lambda: None)
    point = place(operation, RATES, CPU)
    assert (point.floor_us, point.bound) == (pytest.approx(floor), bound)
    assert point.fraction == pytest.approx(point.floor_us / point.us)
    assert point.low <= point.us <= point.high


def test_an_operation_that_fails_is_named_and_has_no_number():
    def prepare():
        raise RuntimeError("does not compile\nat all")

    point = place(Operation("broken", 1, "fp32", Cost(1, 1), prepare), RATES, CPU)
    assert point.unavailable == "RuntimeError: does not compile"
    assert "not measured" in table([point])


def test_rates_are_positive_and_matmul_beats_nothing_impossible():
    rates = measure_rates(CPU, small=True)
    assert 1e6 < rates.matmul["fp32"] < 1e14
    assert 1e6 < rates.memory < 1e13
    assert rates.floor(Cost(rates.matmul["fp32"], 0), "fp32") == 1.0


def test_every_operation_is_placed_and_drawn(tmp_path):
    done = CliRunner().invoke(
        main, ["roofline", "--device", "cpu", "--small", "--record", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    stage = json.loads((tmp_path / "record.json").read_text())["stages"]["roofline"]
    assert {point["name"] for point in stage["results"]} == {
        "train_step", "mlp forward and backward", "mlp forward", "sample_chain",
        "sample_chain, guided", "q_sample_batch", "reverse_step", "adamw_",
        "train_many, 1 models", "train_many, 2 models",
    }  # fmt: skip
    assert all(point["us"] > 0 and point["unavailable"] is None for point in stage["results"])
    assert (tmp_path / "roofline.png").stat().st_size > 1000
