"""The drop-in under PyTorch's tools on a GPU: the same bits as without them, where possible.

Tests of small sizes that need no CUDA also run in the interpreter.
"""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from flashpoint.kernels import accelerate

pytestmark = pytest.mark.usefixtures("on_device", "fused_calls")

CUDA_ONLY = pytest.mark.gpu
ROWS = [70, pytest.param(10_000, marks=CUDA_ONLY)]


def perceptron(width=32):
    act = nn.PReLU(init=-0.3)
    model = nn.Sequential(
        nn.Linear(3, width), act, nn.Linear(width, width), act, nn.Linear(width, 2)
    )
    accelerate(model, strict=True)
    return model


def results(run, model, x):
    """Returns y and all gradients."""
    x = x.detach().requires_grad_()
    y = run(x)
    grad_y = torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, *model.parameters()), grad_y)]


def assert_same_bits(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", ROWS)
def test_two_runs(rows):
    model, x = perceptron(), torch.randn(rows, 3)
    assert_same_bits(results(model, model, x), results(model, model, x))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(rows, reentrant):
    model, x = perceptron(), torch.randn(rows, 3)

    def gradients(run):
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        run(inputs).square().mean().backward()
        return [inputs.grad, *(parameter.grad for parameter in model.parameters())]

    expected = gradients(model)
    assert_same_bits(gradients(lambda x: checkpoint(model, x, use_reentrant=reentrant)), expected)


@pytest.mark.parametrize("rows", ROWS)
def test_saved_on_the_cpu(rows):
    model, x = perceptron(), torch.randn(rows, 3)
    expected = results(model, model, x)
    with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
        assert_same_bits(results(model, model, x), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "aot_eager"},
        pytest.param({"mode": "reduce-overhead"}, marks=CUDA_ONLY),
        pytest.param({"mode": "default", "dynamic": True}, marks=CUDA_ONLY),
    ],
    ids=lambda options: options.get("mode", "aot_eager"),
)
def test_compiled(options):
    """With reduce-overhead every graph becomes a CUDA graph, none is skipped."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = perceptron()
    compiled = torch.compile(model, fullgraph=True, **options)
    for _ in range(5):  # warm-up, capture, replays
        x = torch.randn(70, 3)
        torch.compiler.cudagraph_mark_step_begin()
        got = [each.clone() for each in results(compiled, model, x)]
        assert_same_bits(got, results(model, model, x))
    assert not torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


@pytest.mark.parametrize("rows", ROWS)
def test_autocast_and_gradient_scaler(device, rows, fused_calls):
    """A step that overflows is skipped, as with the layers."""
    model = perceptron()
    plain = nn.Sequential(*copy.deepcopy(model))
    x, target = torch.randn(rows, 3), torch.randn(rows, 2)
    losses, scales = [], []
    for each in (model, plain):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**100, growth_interval=1000)
        for step in range(8):
            if step == 1:
                scaler.update(2.0**10)
            with torch.autocast(device.type, torch.float16):
                y = each(x)
            assert y.dtype == torch.float16
            loss = nn.functional.mse_loss(y.float(), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            scales.append(scaler.get_scale())
    assert len(fused_calls) == 8
    assert losses[0] == losses[1]
    assert losses[7] < losses[1]
    assert losses[:8] == pytest.approx(losses[8:], rel=5e-3)
    assert scales[:8] == scales[8:]
    assert scales[0] < 2.0**100


@pytest.mark.parametrize("rows", ROWS)
def test_ddp_of_one_rank(tmp_path, device, rows):
    model, x = perceptron(), torch.randn(rows, 3)
    expected = results(model, model, x)[2:]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        y = wrapped(x)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
        got = [parameter.grad for parameter in model.parameters()]
    finally:
        dist.destroy_process_group()
    assert_same_bits(got, expected)


@CUDA_ONLY
@pytest.mark.parametrize("rows", [70, 10_000])
def test_a_side_stream_does_not_wait_for_the_main_one(rows):
    model, x = perceptron(256), torch.randn(rows, 3)
    expected = results(model, model, x)
    torch.cuda.synchronize()
    stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(stream):
        results(model, model, x)  # this allocates the memory
        stream.synchronize()
        with torch.cuda.stream(main):
            torch.cuda._sleep(3_000_000_000)  # more than a second
        got = [results(model, model, x) for _ in range(3)]
        stream.synchronize()
        assert not main.query()
    torch.cuda.synchronize()
    for each in got:
        assert_same_bits(each, expected)


@CUDA_ONLY
def test_backward_from_another_stream_than_forward():
    model, x = perceptron(256), torch.randn(10_000, 3)
    expected = results(model, model, x)
    stream, main = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(main)
    inputs = x.clone().requires_grad_()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        y = model(inputs)
    main.wait_stream(stream)
    grad_y = torch.linspace(-1, 1, y.numel()).view(y.shape)
    got = torch.autograd.grad(y, (inputs, *model.parameters()), grad_y)
    assert_same_bits([y.detach(), *got], expected)


@CUDA_ONLY
@pytest.mark.parametrize("rows", [70, 10_000])
def test_a_hundred_replays_of_fp16(rows):
    model, x = perceptron(256).half(), torch.randn(rows, 3).half()
    expected = [each.clone() for each in results(model, model, x)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(model, model, x)
    for _ in range(100):
        graph.replay()
        assert_same_bits(captured, expected)


@CUDA_ONLY
def test_graphed_callable():
    model = perceptron(256)
    graphed = torch.cuda.make_graphed_callables(
        copy.deepcopy(model), (torch.randn(1000, 3, requires_grad=True),)
    )
    for _ in range(3):
        x = torch.randn(1000, 3)
        assert_same_bits(results(graphed, graphed, x), results(model, model, x))


@CUDA_ONLY
def test_on_the_last_device_of_the_machine():
    """The device is not the current one, if there are two."""
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    model, x = perceptron(), torch.randn(1000, 3)
    there = copy.deepcopy(model).to(device)
    got = results(there, there, x.to(device))
    assert {each.device for each in got} == {device}
    torch.testing.assert_close(
        [each.cpu() for each in got], [each.cpu() for each in results(model, model, x)]
    )
