"""The operations one by one, first checked against float64."""

import pytest

from flashpoint.bench import operations
from flashpoint.bench.timing import Runner, from_graph


@pytest.mark.parametrize("name", ["train_step", "mlp", "mlp_inference", "q_sample", "reverse_step"])
def test_operation(benchmark, device, name):
    precision = "fp16" if device.type == "cuda" else "fp32"
    rows = 10_000 if device.type == "cuda" else 2000
    comparison = {
        "train_step": lambda: operations.training_step(device, rows, precision),
        "mlp": lambda: operations.perceptron(device, rows, precision, training=True),
        "mlp_inference": lambda: operations.perceptron(device, rows, precision, training=False),
        "q_sample": lambda: operations.noising(device, rows),
        "reverse_step": lambda: operations.reverse_update(device, rows),
    }[name]()
    assert comparison.error() <= comparison.tolerance
    runner = from_graph(comparison.ours) if device.type == "cuda" else Runner(comparison.ours)
    benchmark.extra_info.update(works=runner.works)
    benchmark.pedantic(runner.run, rounds=20, warmup_rounds=3, iterations=1)
