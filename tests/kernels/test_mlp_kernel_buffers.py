"""The fused perceptron's memory: layouts, scratch, operands, and the same bits every time."""

from types import SimpleNamespace

import pytest
import torch

from flashpoint.kernels import adamw_, adamw_state, shadow_of
from flashpoint.kernels.mlp import MLPShape, reference
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.mlp.config import to_operand

from .networks import SMALL, check, exact, make_batch, make_network, relative_error, run, tensors_of


def strided(tensor):
    """Yields the same values in every layout that a caller might have."""
    yield tensor.transpose(1, 2).contiguous().transpose(1, 2)
    yield torch.stack((tensor, tensor), dim=-1)[..., 0]
    padded = torch.cat((tensor, tensor), dim=1)
    yield padded[:, : tensor.shape[1]]
    yield torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view_as(tensor)  # misaligned


@pytest.mark.usefixtures("poisoned")
def test_layouts_of_input_and_gradient(device):
    shape = MLPShape((3, 20, 2))
    flat = make_network(shape, models=2, device=device)
    x, grad_y = make_batch(shape, 65, models=2, device=device)
    expected = run(flat, shape, x, grad_y, "fp32")
    for x_view, grad_view in zip(strided(x), strided(grad_y), strict=True):
        for actual, wanted in zip(
            run(flat, shape, x_view, grad_view, "fp32"), expected, strict=True
        ):
            assert torch.equal(actual, wanted)


@pytest.mark.usefixtures("poisoned")
def test_expanded_input_and_gradient(device):
    shape = MLPShape((3, 20, 2))
    flat = make_network(shape, models=2, device=device)
    x = torch.randn(1, 1, 3, device=device).expand(2, 65, 3)
    grad_y = torch.ones((), device=device).expand(2, 65, 2)
    check(flat, shape, x, grad_y, "fp32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_data(device, dtype):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 65, device=device)
    y, grad_x, grad = run(flat, shape, x.to(dtype), grad_y.to(dtype), "fp16")
    expected = exact(flat, shape, x.to(dtype), grad_y.to(dtype))
    assert y.dtype == grad_x.dtype == dtype
    assert grad.dtype == torch.float32
    assert relative_error(y, expected[0]) <= 1e-2
    assert relative_error(grad, expected[2]) <= 5e-2


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.usefixtures("poisoned")
def test_parameters_and_gradient_inside_larger_buffers(device, models):
    shape = MLPShape(SMALL)
    x, grad_y = make_batch(shape, 300, models, device=device)
    flat = make_network(shape, models, device=device)
    expected = run(flat, shape, x, grad_y, "fp32")
    size = shape.num_parameters
    larger = torch.cat((flat, flat, flat), dim=1)[:, size - 5 : 2 * size + 5]
    y, saved = mlp.forward_flat(x, larger[:, 5:-5], shape, "fp32")
    assert torch.equal(y, expected[0])
    for out in (
        torch.zeros(models, 3 * size, device=device)[:, size : 2 * size],
        torch.zeros(models, size, 2, device=device)[..., 0],
    ):
        mlp.backward(grad_y, saved, shape, "fp32", need_x=False, grad=out)
        assert torch.equal(out, expected[2])
        assert out._base.count_nonzero() == expected[2].count_nonzero()


@pytest.mark.usefixtures("poisoned")
def test_rows_do_not_see_each_other(device):
    """Neither the rows that pad a tile nor those of other tiles change a row's output."""
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    x, _ = make_batch(shape, 200, device=device)
    y, _ = mlp.forward_flat(x, flat, shape, "fp16")
    for rows in (1, 64, 130):
        part, _ = mlp.forward_flat(x[:, :rows], flat, shape, "fp16")
        assert torch.equal(part, y[:, :rows])


@pytest.mark.usefixtures("poisoned")
def test_without_saving(device, monkeypatch):
    """Scratch that is used over and over gives the same bits as a buffer for all rows."""
    monkeypatch.setattr(mlp, "slots", lambda *_: 2)  # few, so that a program has several tiles
    shape, models = MLPShape(SMALL), 2
    flat = make_network(shape, models, device=device)
    x, grad_y = make_batch(shape, 300, models, device=device)
    y, saved = mlp.forward_flat(x, flat, shape, "fp16")
    again, _ = mlp.forward_flat(x, flat, shape, "fp16", save=False)
    assert torch.equal(y, again)
    grad_x, _ = mlp.backward(grad_y, saved, shape, "fp16")
    assert torch.equal(grad_x, mlp.backward(grad_y, saved, shape, "fp16", need_weights=False)[0])


@pytest.mark.parametrize("models", [1, 5, 100, 114, 115])
@pytest.mark.parametrize("multiprocessors", [108, 114, 132])
def test_all_programs_run_at_once(monkeypatch, models, multiprocessors):
    """One program more than the GPU holds would take as long as all the others together."""
    properties = SimpleNamespace(multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    slots = mlp.slots(models, torch.device("cuda"))
    assert slots == 1 or slots * models <= multiprocessors
    assert (slots + 1) * models > multiprocessors


def test_same_bits_every_time(device):
    shape = MLPShape(SMALL)
    flat = make_network(shape, device=device)
    batch = make_batch(shape, 1000, device=device)
    first, second = (run(flat, shape, *batch, "fp16") for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_separate_parameters(device):
    shape = MLPShape(SMALL)
    parameters = shape.unpack(make_network(shape, device=device))
    x, grad_y = make_batch(shape, 20, device=device)
    y, saved = mlp.forward(x, tuple(tensors_of(parameters)), shape, "fp32")
    grad_x, grad = mlp.backward(grad_y, saved, shape, "fp32")
    assert grad_x.shape == x.shape
    assert [g.shape for g in tensors_of(grad)] == [p.shape for p in tensors_of(parameters)]
    assert mlp.backward(grad_y, saved, shape, "fp32", need_x=False)[0] is None
    assert mlp.backward(grad_y, saved, shape, "fp32", need_weights=False)[1] is None
    assert relative_error(y, reference.mlp(x, parameters, shape)) <= 1e-5


@pytest.mark.gpu
def test_offsets_beyond_32_bits(device):
    """The last of 4.5 million rows of 512 columns is as right as the first."""
    shape = MLPShape((3, 512, 2))
    flat = make_network(shape, device=device)
    x, _ = make_batch(shape, 4_500_000, device=device)
    y, _ = mlp.forward_flat(x, flat, shape, "fp16")
    tail, _ = mlp.forward_flat(x[:, -1000:], flat, shape, "fp16")
    assert relative_error(y[:, -1000:], tail) <= 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "tf32", "bf16"])
def test_replays_of_a_graph_give_the_same_bits(device, precision):
    shape = MLPShape((3, 256, 256, 256, 256, 2))
    flat = make_network(shape, device=device)
    x, grad_y = make_batch(shape, 10_000, device=device)
    expected = run(flat, shape, x, grad_y, precision)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(flat, shape, x, grad_y, precision)
    for _ in range(100):
        graph.replay()
        assert all(map(torch.equal, captured, expected))


def odd_floats(device):
    """Returns numbers of all magnitudes, ties, infinities and a fragile NaN, [1, 1024]."""
    mantissa = torch.randint(0, 2**23, (1024,), dtype=torch.int32)
    bits = mantissa + (torch.randint(1, 250, (1024,), dtype=torch.int32) << 23)
    bits[:3] = torch.tensor([0x7FFFFFFF, 0x7F800000, 0])  # NaN, infinity and zero
    bits[3:500] &= ~0xFFF  # every second of them a tie
    numbers = bits.view(torch.float32)
    return torch.where(torch.rand(1024) < 0.5, -numbers, numbers)[None].to(device)


def test_tf32_is_rounded_to_nearest(device):
    """Ties go away from zero, as in ``cvt.rna.tf32.f32``; tensor cores would cut bits off."""
    shape, weights = MLPShape((64, 16), "none", bias=False), odd_floats(device)
    operands = mlp.operand_weights(weights, shape, "tf32")[0].view(16, -1)[:, :64].reshape(1, -1)
    finite = weights.isfinite()
    assert torch.equal(operands[~finite].isnan(), weights[~finite].isnan())
    assert operands[~finite].isinf().any()
    assert not (operands[finite].view(torch.int32) & 0x1FFF).any()
    rounded, wanted = operands[finite].double(), weights[finite].double()
    half_a_step = 2.0 ** (wanted.abs().log2().floor() - 11)
    error = (rounded - wanted).abs()
    assert (error <= half_a_step).all()
    ties = (error == half_a_step) & (wanted != 0)
    assert ties.any()
    assert (rounded[ties].abs() > wanted[ties].abs()).all()
    assert torch.equal(to_operand(weights, "tf32").nan_to_num(7.0), operands.nan_to_num(7.0))


def test_operands_of_tf32_are_rounded_where_they_are_written(device):
    """Inputs, activations and weights have no bits that tensor cores would cut off."""
    shape = MLPShape((3, 32, 32, 2))
    flat = make_network(shape, device=device)
    x, _ = make_batch(shape, 70, device=device)
    _, saved = mlp.forward_flat(x, flat, shape, "tf32")
    updated, state = flat.clone(), adamw_state(flat)
    for backend in ("triton", "torch"):
        shadow = shadow_of(flat, shape, "tf32")
        adamw_(updated, flat, state, lr=1e-2, step=1, shadow=shadow, backend=backend)
        expected = mlp.operand_weights(updated, shape, "tf32")
        assert torch.equal(shadow.packed, expected)
    live = saved.activations[:, :70]
    for operand in (live, saved.weights, expected):
        assert not (operand.contiguous().view(torch.int32) & 0x1FFF).any()
    assert (live[..., :3] - x).abs().max() <= 2**-11 * x.abs().max()
