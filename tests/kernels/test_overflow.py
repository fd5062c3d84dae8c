"""Numbers beyond the range of fp16 become infinite or NaN; detect_overflow() says where."""

import pytest
import torch

from flashpoint.kernels import (
    MLPShape,
    Network,
    TrainingData,
    detect_overflow,
    eps_table,
    mlp,
    sample_chain,
    train_step,
)

# The interpreter computes with numpy, which warns of the overflows that are tested here.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")


def network(device, scale):
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 3), (16, 16), (2, 16)]
    return [
        (scale * torch.rand(shape, generator=generator)).to(device).requires_grad_()
        for shape in shapes
    ]


def run(x, weights, precision="fp16"):
    return mlp(x, weights, activation="relu", precision=precision, backend="triton")


def test_overflow_is_never_silent_and_named(device):
    x, weights = torch.ones(10, 3, device=device), network(device, 300.0)
    assert not run(x, weights).isfinite().any()
    with (
        pytest.raises(
            FloatingPointError, match=r"mlp \(call 1 of 1\) overflowed in fp16"
        ) as caught,
        detect_overflow(),
    ):
        run(x, weights)
    assert "\n" not in str(caught.value)
    with detect_overflow():
        run(x, weights, "fp32")


def test_overflow_of_a_gradient(device):
    x, weights = torch.ones(10, 3, device=device), network(device, 1.0)
    with (
        pytest.raises(FloatingPointError, match=r"mlp_backward \(call 2 of 2\) overflowed"),
        detect_overflow(),
    ):
        (run(x, weights) * 1e38).sum().backward()


def test_numbers_that_were_not_finite_before_are_not_blamed_on_the_operation(device):
    x = torch.full((10, 3), torch.inf, device=device)
    with detect_overflow():
        y = run(x, network(device, 1.0))
    assert not y.isfinite().any()


def test_an_error_in_the_block_is_not_replaced(device):
    def overflow_and_fail():
        run(torch.ones(1, 3, device=device), network(device, 300.0))
        raise KeyError("mine")

    with pytest.raises(KeyError), detect_overflow():
        overflow_and_fail()


def test_overflow_in_training_and_sampling(device):
    shape = MLPShape((3, 16, 2))
    parameters = torch.full((1, shape.num_parameters), 3e4, device=device)
    features = torch.ones(1, 4, 1, device=device)
    data = TrainingData(
        points=torch.ones(1, 5, 2, device=device),
        forward_table=eps_table(torch.full((1, 4), 0.5, device=device)),
        time_features=features,
        labels=None,
        n_points=torch.tensor([5], device=device),
        t_table=torch.arange(4, device=device)[None],
    )
    options = {"backend": "triton", "precision": "fp16", "seed": 0}
    with pytest.raises(FloatingPointError, match="train_step"), detect_overflow():
        train_step(parameters, shape, data, batch_size=8, step=0, **options)
    x_T, table = torch.ones(1, 8, 2, device=device), torch.ones(1, 4, 4, device=device)
    with pytest.raises(FloatingPointError, match="sample_chain"), detect_overflow():
        sample_chain(Network(parameters, shape), x_T, table, features, **options)


@pytest.mark.gpu
def test_looks_without_waiting_for_the_device(device):
    x, weights = torch.ones(10, 3, device=device), network(device, 1.0)
    run(x, weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with detect_overflow():
            run(x, weights)
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
