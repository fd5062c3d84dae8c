"""Times the operations on their kernels against PyTorch, eager and compiled.

    python -m flashpoint.bench operations [--device cuda] [--rounds 30] [--record FOLDER]

For each operation and size, the answer of the kernels is first compared with the float64 reference.
A wrong answer is not timed. Then ours and each peer do the same work in turn, A B B A: warm, on
random data, between two CUDA events. The result is the median of the paired ratios with its
bootstrap 95% interval.

Ours runs from a CUDA graph. The peers are ``eager``, ordinary PyTorch, launch by launch; ``graph``,
the same captured in a CUDA graph; and ``compiled``, ``torch.compile`` in a CUDA graph. In the line
``both eager`` ours runs launch by launch as well.

On a CPU the reference runs in place of the kernels, and the numbers only show that the benchmark
works.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion import MLP, UserError
from ..kernels import (
    Course,
    FusedMLP,
    Shadow,
    TrainingData,
    adamw_,
    adamw_state,
    eps_table,
    q_sample_batch,
    reverse_step,
    shadow_of,
    train_step,
)
from ..kernels.q_sample.reference import batch_draw
from ..kernels.reduce_grad.reference import empty_parts
from .kinks import data_off_kinks, off_kinks
from .machine import free_device
from .options import budget_option, rounds_option
from .record import Record, record_option
from .timing import Runner, Timing, Work, from_graph, paired

HIDDEN = (256, 256, 256, 256)
POINTS, TIMESTEPS = 5000, 500
TOLERANCE = {"fp16": 2e-2, "bf16": 5e-2, "tf32": 2e-2, "fp32": 1e-4}


@dataclass
class Comparison:
    """One operation at one size, on the kernels and in PyTorch.

    Attributes:
        name, rows, precision: operation, number of rows, and precision of matrix products.
        ours: does the operation once, on the kernels.
        peers: do it once in PyTorch, by name.
        error: returns the largest relative error of ours against float64.
        tolerance: largest error that is accepted.
    """

    name: str
    rows: int
    precision: str
    ours: Work
    peers: dict[str, Work]
    error: Callable[[], float]
    tolerance: float


@dataclass
class Result:
    """The outcome of a comparison, without timings if ours is wrong."""

    name: str
    rows: int
    precision: str
    error: float
    tolerance: float
    correct: bool
    from_graph: bool = False  # True if ours ran from a CUDA graph
    timings: dict[str, Timing] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)  # reasons, by peer


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference divided by the norm of the expected."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Joins all numbers of some tensors in one dimension."""
    return torch.cat([tensor.flatten() for tensor in tensors])


# The comparisons.


def comparisons(device: torch.device, small: bool) -> Iterator[Comparison]:
    """Yields all comparisons, the most important first; ``small`` ones only check answers."""
    precisions = ("fp16", "tf32", "bf16", "fp32") if device.type == "cuda" else ("fp32",)
    for precision in precisions:
        for rows in (200,) if small else (10_000, 2048):
            yield training_step(device, rows, precision)
            yield perceptron(device, rows, precision, training=True)
        yield perceptron(device, 200 if small else 5000, precision, training=False)
        if precision == precisions[0]:
            yield noising(device, 200 if small else 10_000)
            yield reverse_update(device, 200 if small else 5000)
    if not small:
        yield training_step(device, 131_072, precisions[0])
        yield perceptron(device, 131_072, precisions[0], training=True)
        yield noising(device, 1_000_000)
        yield reverse_update(device, 1_000_000)


def perceptron(device: torch.device, rows: int, precision: str, training: bool) -> Comparison:
    """Compares the denoiser as a drop-in: forward, and in training also backward."""
    plain = MLP(3, 2, HIDDEN).to(device)
    fused, compiled = FusedMLP.from_module(plain, precision=precision), torch.compile(plain)
    x = torch.randn(rows, 3, device=device)
    if precision == "fp32":
        x = off_kinks(*plain.network(), x[None])[0]
    # The target is off the mean of y, so that the gradients of rows do not cancel. Otherwise one z
    # that half precision moves across the kink of its PReLU would count for too much.
    target = 1 + torch.randn(rows, 2, device=device)
    parameters = list(plain.parameters())

    def run(module: nn.Module) -> object:
        with pytorch_precision(precision, device):
            if not training:
                with torch.no_grad():
                    return module(x)
            loss = F.mse_loss(module(x).float(), target)
        return torch.autograd.grad(loss, parameters)

    def error() -> float:
        exact = MLP(3, 2, HIDDEN).to(device).double()
        exact.load_state_dict(plain.state_dict())
        y = exact(x.double())
        if not training:
            return relative_error(run(fused), y.detach())
        expected = torch.autograd.grad(F.mse_loss(y, target.double()), list(exact.parameters()))
        return relative_error(flat(run(fused)), flat(expected))

    return Comparison(
        name="mlp forward and backward" if training else "mlp forward",
        rows=rows,
        precision=precision,
        ours=partial(run, fused),
        peers={"eager": partial(run, plain), "compiled": partial(run, compiled)},
        error=error,
        tolerance=TOLERANCE[precision],
    )


def training_step(device: torch.device, rows: int, precision: str) -> Comparison:
    """Compares a training step: draw, noise, forward, loss and all gradients."""
    model = MLP(3, 2, HIDDEN).to(device)
    shape, seed = model.shape, torch.tensor([0], device=device)
    parameters = model.network().parameters.detach()
    data = TrainingData(
        points=torch.randn(1, POINTS, 2, device=device),
        forward_table=eps_table(torch.linspace(1, 1e-3, TIMESTEPS, device=device))[None],
        time_features=torch.linspace(-1, 1, TIMESTEPS, device=device)[None, :, None],
        labels=None,
        n_points=torch.tensor([POINTS], device=device),
        t_table=torch.arange(TIMESTEPS, device=device)[None],
    )
    if precision == "fp32":
        data = data_off_kinks(parameters, shape, data, batch_draw(data, seed, 0, rows))
    grad = torch.empty_like(parameters)

    def ours() -> Tensor:
        train_step(parameters, shape, data, batch_size=rows, seed=seed, step=0, grad=grad,
                   precision=precision)  # fmt: skip
        return grad

    def loss(module: nn.Module) -> object:
        index = torch.randint(POINTS, (rows,), device=device)
        t = torch.randint(TIMESTEPS, (rows,), device=device)
        eps = torch.randn(rows, 2, device=device)
        signal, noise = data.forward_table[0, t, :2, None].unbind(dim=1)
        x_t = signal * data.points[0, index] + noise * eps
        y = module(torch.cat((x_t, data.time_features[0, t]), dim=1))
        return F.mse_loss(y.float(), eps)

    compiled = torch.compile(loss)

    def peer(loss: Callable[[nn.Module], Tensor]) -> object:
        with pytorch_precision(precision, device):
            value = loss(model)
        return torch.autograd.grad(value, list(model.parameters()))

    def error() -> float:
        doubled = data._replace(**{
            name: getattr(data, name).double()
            for name in ("points", "forward_table", "time_features")
        })  # fmt: skip
        _, expected = train_step(parameters.double(), shape, doubled, batch_size=rows, seed=seed,
                                 step=0, backend="torch")  # fmt: skip
        return relative_error(ours(), expected)

    return Comparison(
        name="train_step",
        rows=rows,
        precision=precision,
        ours=ours,
        peers={"eager": partial(peer, loss), "compiled": partial(peer, compiled)},
        error=error,
        tolerance=TOLERANCE[precision],
    )


def noising(device: torch.device, rows: int) -> Comparison:
    """Compares the draw of a training batch and its noise."""
    points = torch.randn(POINTS, 2, device=device)
    alpha_bar = torch.linspace(1, 1e-3, TIMESTEPS, device=device)
    table, seed = eps_table(alpha_bar), torch.tensor([0], device=device)

    def ours() -> Tensor:
        return q_sample_batch(points, table, rows, seed=seed, step=0)[0]

    def peer() -> Tensor:
        index = torch.randint(POINTS, (rows,), device=device)
        a = alpha_bar[torch.randint(TIMESTEPS, (rows,), device=device), None]
        eps = torch.randn(rows, 2, device=device)
        return a.sqrt() * points[index] + (1 - a).sqrt() * eps

    def error() -> float:
        expected, _ = q_sample_batch(points, table, rows, seed=seed, step=0, backend="torch")
        return relative_error(ours(), expected.double())

    peers = {"eager": peer, "compiled": torch.compile(peer)}
    return Comparison("q_sample_batch", rows, "fp32", ours, peers, error, 1e-5)


def reverse_update(device: torch.device, rows: int) -> Comparison:
    """Compares one DDPM update with given noise."""
    x_t, eps, z = torch.randn(3, rows, 2, device=device).unbind()
    coefficients = torch.tensor([1.01, -0.02, 0.1, 0.0], device=device)
    c_x, c_eps, c_z, _ = coefficients.tolist()

    def ours() -> Tensor:
        return reverse_step(x_t, eps, coefficients, z=z)

    def peer() -> Tensor:
        return c_x * x_t + c_eps * eps + c_z * z

    def error() -> float:
        expected = reverse_step(
            x_t.double(), eps.double(), coefficients.double(), z=z.double(), backend="torch"
        )
        return relative_error(ours(), expected)

    peers = {"eager": peer, "compiled": torch.compile(peer)}
    return Comparison("reverse_step", rows, "fp32", ours, peers, error, 1e-5)


def optimiser(device: torch.device, parameters: int) -> Work:
    """Returns an update of AdamW and of the averaged weights as a work."""
    values, grad = torch.randn(2, 1, parameters, device=device).unbind()
    values = values.clone()
    state = adamw_state(values)
    return lambda: adamw_(values, grad, state, lr=1e-3, step=1)


def optimiser_error(device: torch.device) -> float:
    """Returns the relative error of an update from the sums of a training step, against float64.

    It is the largest one of the changes of the denoiser's weights, their average and moments, the
    loss, and the weights that the kernels read.
    """
    model = MLP(3, 2, HIDDEN).to(device)
    before = model.network().parameters.detach()
    sums = empty_parts(before, 1, 8, model.shape.num_parameters + 2).normal_()
    sums[..., -1] = 250.0  # terms
    step = torch.tensor(3, device=device)
    updates = torch.tensor([9], device=device)

    def changes(parameters: Tensor, sums: Tensor, shadow: Shadow | None) -> list[Tensor]:
        state, losses = adamw_state(parameters), torch.zeros(1, 9, device=device)
        course = Course(torch.full((1, 1), 1e-2, device=device), updates, updates, losses)
        adamw_(parameters, sums, state, lr=course, step=step, ema_decay=0.5, shadow=shadow)
        return [parameters - before, state.ema - before, state.exp_avg, state.exp_avg_sq, losses]

    exact = before.double()
    expected = changes(exact, sums.double(), None)
    shadow = shadow_of(before, model.shape, "fp16")
    actual = changes(before.clone(), sums, shadow)
    actual.append(shadow.packed)
    expected.append(shadow_of(exact.float(), model.shape, "fp16").packed.double())
    return max(map(relative_error, actual, expected))


def pytorch_precision(precision: str, device: torch.device):
    """Returns a context in which PyTorch multiplies matrices in a precision."""
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    if half is not None:
        return torch.autocast(device.type, half)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return nullcontext()


# The measurement.


def measure(comparison: Comparison, rounds: int, device: torch.device) -> Result:
    """Checks a comparison, and times it if ours is right."""
    result = Result(
        comparison.name, comparison.rows, comparison.precision, float("nan"),
        comparison.tolerance, correct=False,
    )  # fmt: skip
    try:
        result.error = comparison.error()
        result.correct = result.error <= result.tolerance
    except Exception as reason:  # one kernel that does not compile must not end the run
        result.unavailable["ours"] = one_line(reason)
    if not (result.correct and rounds):
        return result
    ours = eager = Runner(comparison.ours, 1)
    peers = {name: partial(Runner, work, 1) for name, work in comparison.peers.items()}
    if device.type == "cuda":
        try:
            ours, result.from_graph = from_graph(comparison.ours), True
        except RuntimeError as reason:
            result.unavailable["ours from a graph"] = one_line(reason)
        peers["both eager"] = peers["eager"]
        peers["graph"] = partial(from_graph, comparison.peers["eager"])
        peers["compiled"] = partial(from_graph, comparison.peers["compiled"])
    for name, prepare in peers.items():
        try:
            mine = eager if name == "both eager" else ours
            result.timings[name] = paired(mine, prepare(), rounds, device)
        except Exception as reason:  # compilers and captures raise various errors
            result.unavailable[name] = one_line(reason)
    return result


def one_line(error: Exception) -> str:
    """Returns the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def lines(result: Result) -> Iterator[str]:
    """Yields the lines that are printed about a result."""
    head = f"{result.name:24} {result.rows:>9} {result.precision:5} error {result.error:.1e}"
    if not result.correct:
        yield f"{head} WRONG, allowed {result.tolerance:.0e}; not timed"
    else:
        yield head
    for name, timing in result.timings.items():
        yield (
            f"    {name:10} {timing.peer_us:10.1f} us, ours {timing.ours_us:10.1f} us: "
            f"{timing.speedup:.2f} times as fast, 95% {timing.low:.2f} to {timing.high:.2f}"
        )
    for name, reason in result.unavailable.items():
        yield f"    {name}: unavailable, {reason}"


@click.command()
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@rounds_option(30, "Paired rounds of a comparison, 2 or more; 0 only checks.", least=0)
@click.option("--small", is_flag=True, help="200 rows: for a sanitizer, or a quick test.")
@budget_option(600.0)
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@record_option
def main(
    device: str | None, rounds: int, small: bool, budget: float, busy: bool, folder: Path | None
) -> None:
    """Time the operations against PyTorch, eager and compiled."""
    if rounds == 1:
        raise UserError("rounds must be 0 or at least 2, got 1")
    device, record = free_device(device, busy), Record(folder)
    if device.type != "cuda":
        click.echo("On a CPU the reference runs in place of the kernels.")
    end, results = time.monotonic() + budget, []
    torch.manual_seed(0)
    for comparison in comparisons(device, small):
        if time.monotonic() > end:
            click.echo(f"the budget of {budget:g} s is spent; the rest is not measured")
            break
        results.append(measure(comparison, rounds, device))
        click.echo("\n".join(lines(results[-1])))
        record.put("operations", results=[asdict(result) for result in results])
    if not all(result.correct for result in results):
        raise SystemExit(1)
