"""The references against autograd and torch.optim, and against themselves in other batches."""

import pytest
import torch
from torch.nn import functional as F

from flashpoint.kernels import (
    ACTIVATIONS,
    Condition,
    Guide,
    MLPShape,
    Network,
    adamw_,
    adamw_state,
    draw_prior,
    mlp,
    q_sample,
    q_sample_batch,
    reverse_step,
    sample_chain,
    train_step,
)
from flashpoint.kernels.mlp import reference as mlp_reference
from flashpoint.kernels.q_sample.reference import batch_draw
from flashpoint.kernels.sample_chain.reference import grad_log_p
from flashpoint.kernels.train_step.reference import noisy_inputs

from .training import make_data, one_model

T, N = 20, 50


def shape_of(activation="prelu", widths=(3, 8, 16, 2), slopes=1, bias=True):
    return MLPShape(widths, activation, slopes=slopes, bias=bias)


def parameters_of(shape, models=1, dtype=torch.float64):
    return torch.randn(models, shape.num_parameters, dtype=dtype) * 0.4


def training_data(models=1, labels=False):
    kind = "classifier" if labels else "denoiser"
    return make_data("cpu", kind, models, points=N, steps=T, classes=5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_written_out_backward_is_that_of_autograd(activation, models, bias):
    shape = shape_of(activation, slopes=2 if activation == "prelu" else 1, bias=bias)
    check_written_out_backward(shape, models)


def check_written_out_backward(shape, models):
    flat = parameters_of(shape, models).requires_grad_()
    x = torch.randn(models, 7, 3, dtype=torch.float64, requires_grad=True)
    y = mlp_reference.mlp(x, shape.unpack(flat), shape)
    grad_y = torch.randn_like(y)
    want_flat, want_x = torch.autograd.grad(y, (flat, x), grad_y)
    with torch.no_grad():
        networks = shape.unpack(flat)
        _, inputs, preactivations = mlp_reference.forward(x, networks, shape)
        grad = torch.full_like(flat, torch.nan)
        mlp_reference.backward(grad_y, inputs, preactivations, networks, shape, shape.unpack(grad))
        grad_x = mlp_reference.input_gradient(grad_y, preactivations, networks, shape)
    torch.testing.assert_close(grad, want_flat)
    torch.testing.assert_close(grad_x, want_x)


def test_mlp_is_that_of_torch_modules():
    linears = [torch.nn.Linear(3, 8), torch.nn.Linear(8, 4), torch.nn.Linear(4, 2)]
    act = torch.nn.PReLU(init=-0.3)
    module = torch.nn.Sequential(linears[0], act, linears[1], act, linears[2])
    x = torch.randn(2, 5, 3)
    y = mlp(x, [layer.weight for layer in linears], [layer.bias for layer in linears], act.weight)
    torch.testing.assert_close(y, module(x))


@pytest.mark.parametrize("linear_input", [False, True])
def test_each_activation_may_have_a_slope_of_its_own(linear_input):
    linears = [torch.nn.Linear(*widths) for widths in ((3, 8), (8, 8), (8, 8), (8, 2))]
    acts = [torch.nn.PReLU(init=slope) for slope in (-0.3, 0.4, 0.9)][linear_input:]
    module = torch.nn.Sequential(
        *linears[: 1 + linear_input],
        *(layer for pair in zip(acts, linears[1 + linear_input :], strict=True) for layer in pair),
    )
    x = torch.randn(5, 3)
    y = mlp(
        x, [layer.weight for layer in linears], [layer.bias for layer in linears],
        torch.cat([act.weight for act in acts]), linear_input=linear_input,
    )  # fmt: skip
    torch.testing.assert_close(y, module(x))


@pytest.mark.parametrize("activation", ["prelu", "leaky_relu", "relu"])
def test_linear_input_has_no_activation_after_the_first_layer(activation):
    first, *linears = [torch.nn.Linear(3, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2)]
    act = {
        "prelu": torch.nn.PReLU(init=-0.3),
        "leaky_relu": torch.nn.LeakyReLU(0.2),
        "relu": torch.nn.ReLU(),
    }[activation]
    module = torch.nn.Sequential(first, linears[0], act, linears[1])
    x = torch.randn(2, 5, 3)
    y = mlp(
        x, [first.weight, *(layer.weight for layer in linears)],
        [first.bias, *(layer.bias for layer in linears)],
        act.weight if activation == "prelu" else None,
        activation=activation, negative_slope=0.2, linear_input=True,
    )  # fmt: skip
    torch.testing.assert_close(y, module(x))


@pytest.mark.parametrize(("activation", "slopes"), [("prelu", 1), ("prelu", 2), ("relu", 1)])
def test_written_out_backward_with_a_linear_input(activation, slopes):
    shape = MLPShape((3, 8, 6, 8, 2), activation, slopes, linear_input=True)
    check_written_out_backward(shape, models=2)


def test_packing_and_unpacking_are_inverse():
    shape = shape_of(slopes=2)
    flat = parameters_of(shape, models=3)
    assert torch.equal(shape.pack(shape.unpack(flat)), flat)


@pytest.mark.parametrize("labels", [False, True])
def test_train_step_gradient_is_that_of_autograd(labels):
    shape = shape_of(widths=(3, 8, 16, 5 if labels else 2))
    parameters, data = parameters_of(shape, dtype=torch.float32), training_data(labels=labels)
    grad = torch.full_like(parameters, torch.nan)
    loss, _ = train_step(parameters, shape, data, batch_size=64, seed=3, step=9, grad=grad)
    _, draw = q_sample_batch(data.points, data.forward_table, 64, seed=3, step=9)
    leaf = parameters.clone().requires_grad_()
    y = mlp_reference.mlp(noisy_inputs(data, draw), shape.unpack(leaf), shape)
    if labels:
        want = F.cross_entropy(y[0], data.labels[0, draw.index[0]])
    else:
        x_0 = data.points[0, draw.index]
        _, _, p, q, weight = data.forward_table[0, draw.t][..., None].unbind(dim=2)
        want = (weight * (y - p * x_0 - q * draw.eps).square()).mean()
    torch.testing.assert_close(loss[0], want.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(want, leaf)[0])


@pytest.mark.parametrize("labels", [False, True])
def test_three_models_train_as_three_runs_do(labels):
    # Smooth: where the slope of PReLU jumps, rounding can decide which side a row is on.
    shape = shape_of("silu", (3, 8, 16, 5 if labels else 2))
    data, start = training_data(3, labels), parameters_of(shape, 3, torch.float32)
    seeds, lr = torch.tensor([1, 2, 2**40]), torch.tensor([1e-2, 3e-3, 1e-3])

    def train(parameters, data, seed, lr):
        state = adamw_state(parameters)
        for step in range(20):
            loss, grad = train_step(parameters, shape, data, batch_size=33, seed=seed, step=step)
            adamw_(parameters, grad, state, lr=lr, step=step + 1)
        return torch.cat((parameters, state.ema, loss[:, None]), dim=1)

    together = train(start.clone(), data, seeds, lr)
    for model in range(3):
        alone = train(
            start[model : model + 1].clone(), one_model(data, model),
            seeds[model : model + 1], lr[model : model + 1],
        )  # fmt: skip
        torch.testing.assert_close(together[model], alone[0], rtol=1e-5, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 0.01


def test_timesteps_come_as_often_as_they_stand_in_the_table():
    data = training_data()
    table = torch.tensor([[3, 3, 3, 7]])
    _, draw = q_sample_batch(data.points, data.forward_table, 8000, seed=0, step=0, t_table=table)
    assert set(draw.t.unique().tolist()) == {3, 7}
    assert abs((draw.t == 3).double().mean() - 0.75) < 5 * (0.75 * 0.25 / 8000) ** 0.5


def test_a_batch_split_over_ranks_is_the_same_batch():
    data = training_data()
    whole = q_sample_batch(data.points, data.forward_table, 10, seed=1, step=2)
    parts = [
        q_sample_batch(data.points, data.forward_table, rows, seed=1, step=2, first_row=first)
        for first, rows in ((0, 3), (3, 7))
    ]
    assert torch.equal(whole[0], torch.cat([x_t for x_t, _ in parts], dim=1))


def test_an_epoch_sees_every_pair_once_and_keeps_its_noise_until_refreshed():
    data, seed = training_data(), torch.tensor([5])
    steps = -(-N * T // 64)

    def epoch(number):
        draws = [
            batch_draw(data, seed, step, 64, 2)
            for step in range(number * steps, (number + 1) * steps)
        ]
        live = torch.cat([draw.live for draw in draws], dim=1)[0]
        index, t, eps = (
            torch.cat([getattr(draw, name) for draw in draws], dim=1)[0][live]
            for name in ("index", "t", "eps")
        )
        pair = t * N + index
        assert torch.equal(pair.sort().values, torch.arange(N * T))
        return pair, eps[pair.argsort()]

    (order_0, noise_0), (order_1, noise_1), (_, fresh) = (epoch(number) for number in range(3))
    assert not torch.equal(order_0, order_1)
    assert torch.equal(noise_0, noise_1)
    assert not torch.equal(noise_1, fresh)


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_that_of_torch(weight_decay, decoupled):
    start = torch.randn(2, 40, dtype=torch.float64)
    ours, theirs = start.clone(), start.clone().requires_grad_()
    state = adamw_state(ours)
    optimizer_class = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = optimizer_class([theirs], weight_decay=weight_decay)
    average = start.clone()
    for step in range(1, 30):
        grad = torch.randn_like(ours)
        lr = 1e-2 / step
        adamw_(
            ours, grad, state, lr=lr, step=step, weight_decay=weight_decay, decoupled=decoupled,
            ema_decay=0.9,
        )  # fmt: skip
        optimizer.param_groups[0]["lr"] = lr
        theirs.grad = grad
        optimizer.step()
        average = 0.9 * average + 0.1 * theirs.detach()
    torch.testing.assert_close(ours, theirs.detach())
    torch.testing.assert_close(state.ema, average)


def chain(models=1, rows=7, steps=6, guided=False, rows_from=0, keep_every=0, seed=1):
    generator = torch.Generator().manual_seed(0)

    def random(*size):
        return torch.randn(size, generator=generator)

    shape, classifier = shape_of(), shape_of(widths=(3, 8, 5))
    table = torch.stack((1 + 0.1 * random(models, steps), *random(3, models, steps) * 0.1), dim=-1)
    guide = None
    if guided:
        labels = torch.arange(100).expand(models, 100)[:, rows_from : rows_from + rows] % 5
        guide = Guide(Network(random(models, classifier.num_parameters), classifier), labels)
    seeds = torch.arange(models) + seed
    x_T = draw_prior(rows, 2, seed=seeds, first_row=rows_from)
    return sample_chain(
        Network(random(models, shape.num_parameters) * 0.3, shape), x_T, table,
        random(models, steps, 1), seed=seeds, guide=guide, first_row=rows_from,
        keep_every=keep_every,
    )  # fmt: skip


@pytest.mark.parametrize("guided", [False, True])
def test_a_sample_depends_on_its_row_alone(guided):
    whole = chain(rows=10, guided=guided)[0]
    parts = [
        chain(rows=rows, rows_from=first, guided=guided)[0] for first, rows in ((0, 4), (4, 6))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_long_chains_and_many_rows_cross_the_blocks_of_rows_and_noise():
    whole = chain(rows=2100, steps=103)[0]
    part = chain(rows=30, rows_from=990, steps=103)[0]
    torch.testing.assert_close(whole[:, 990:1020], part)


def test_three_chains_are_three_single_ones():
    whole = chain(models=3, guided=True)[0]
    assert whole.shape == (3, 7, 2)
    assert not torch.allclose(whole[0], whole[1])


def test_trajectory_starts_with_noise_and_ends_with_the_samples():
    samples, trajectory = chain(steps=7, keep_every=3)
    assert trajectory.shape == (4, 1, 7, 2)  # x_T, after 3, after 6, the end
    assert torch.equal(trajectory[0], draw_prior(7, 2, seed=1))
    assert torch.equal(trajectory[-1], samples)
    assert chain(steps=7)[1].shape == (0, 1, 7, 2)


def conditional_chain(condition, steps=5, guide=None, scale=1.5, models=2):
    """The samples of a chain without noise, and its networks, x_T, features and coefficients."""
    generator = torch.Generator().manual_seed(0)
    shape = shape_of(widths=(3 + 4, 8, 2))
    denoiser = Network(torch.randn(models, shape.num_parameters, generator=generator) * 0.3, shape)
    x_T = torch.randn(models, 6, 2, generator=generator)
    features = torch.randn(models, steps, 1, generator=generator)
    coefficients = torch.tensor([1.1, -0.3, 0.0, scale])
    table = coefficients.expand(models, steps, 4)
    return sample_chain(denoiser, x_T, table, features, seed=1, condition=condition, guide=guide)[
        0
    ], (shape.unpack(denoiser.parameters), x_T, features, coefficients)


@pytest.mark.parametrize("free", [False, True])
def test_conditional_chain_is_a_loop_over_rows_and_steps(free):
    class_features = torch.randn(2, 3 + 1, 4)
    labels = torch.tensor([[0, 1, 2, 3, 2, 1], [3, 3, 0, 0, 1, 2]])
    samples, (networks, x_T, features, (c_x, c_eps, _, w)) = conditional_chain(
        Condition(class_features, labels, free)
    )
    for model in range(2):
        weights, biases = ([part[model] for part in parts] for parts in networks[:2])

        def eps_of(x, t, y, model=model, weights=weights, biases=biases):
            row = torch.cat((x, features[model, t], class_features[model, y]))
            hidden = F.prelu(F.linear(row, weights[0], biases[0]), networks.slope[model])
            return F.linear(hidden, weights[1], biases[1])

        for row, label in enumerate(labels[model]):
            x = x_T[model, row]
            for t in range(features.shape[1]):
                eps = eps_of(x, t, label)
                if free:
                    eps = (1 + w) * eps - w * eps_of(x, t, 3)
                x = c_x * x + c_eps * eps
            torch.testing.assert_close(samples[model, row], x)


def test_guidance_of_scale_zero_or_without_a_class_is_none():
    table, labels = torch.randn(2, 4, 4), torch.tensor([[0, 1, 2, 3, 2, 1]] * 2)
    plain = conditional_chain(Condition(table, labels, False))[0]
    torch.testing.assert_close(conditional_chain(Condition(table, labels, True), scale=0)[0], plain)
    strong = conditional_chain(Condition(table, labels, True))[0]
    torch.testing.assert_close(strong[:, 3], plain[:, 3])  # label 3 stands for no class
    assert not torch.allclose(strong[:, :3], plain[:, :3])


CONDITION_ERRORS = [
    (Condition(torch.zeros(2, 4, 4), torch.full((2, 6), 4)), "condition.labels must be from 0 to"),
    (Condition(torch.zeros(2, 4, 4), torch.zeros(2, 5, dtype=torch.int64)), "labels must be .*6"),
    (Condition(torch.zeros(4, 4), torch.zeros(2, 6, dtype=torch.int64)), "class_features must be"),
    (Condition(torch.zeros(2, 4, 5), torch.zeros(2, 6, dtype=torch.int64)), "input width 8"),
    (None, "denoiser must have input width 3"),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "message"), CONDITION_ERRORS)
def test_a_wrong_condition_is_named(condition, message):
    with pytest.raises(ValueError, match=message):
        conditional_chain(condition)


def test_both_guidances_at_once_are_refused():
    classifier = shape_of(widths=(3, 5))
    labels = torch.zeros(2, 6, dtype=torch.int64)
    guide = Guide(Network(torch.zeros(2, classifier.num_parameters), classifier), labels)
    with pytest.raises(ValueError, match="guide must be None with classifier-free guidance"):
        conditional_chain(Condition(torch.zeros(2, 4, 4), labels, True), guide=guide)
    with pytest.raises(ValueError, match="eps_uncond must be None with grad_log_p"):
        reverse_step(*torch.zeros(2, 3, 2), torch.zeros(4), grad_log_p=torch.zeros(3, 2),
                     eps_uncond=torch.zeros(3, 2))  # fmt: skip


def test_guidance_gradient_is_that_of_autograd():
    shape = shape_of(widths=(3, 8, 16, 5))
    parameters, labels = parameters_of(shape), torch.tensor([[0, 4, 2]])
    x = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    log_p = mlp_reference.mlp(x, shape.unpack(parameters), shape).log_softmax(-1)
    want = torch.autograd.grad(log_p.gather(-1, labels[..., None]).sum(), x)[0]
    got = grad_log_p(Guide(Network(parameters, shape), labels), x.detach())
    torch.testing.assert_close(got, want)


ERRORS = [
    (lambda: mlp(torch.zeros(2, 3), [torch.zeros(4, 2)]), ValueError, "x must have 2"),
    (lambda: mlp(torch.zeros(2, 3, dtype=torch.int64), [torch.zeros(4, 3)]), TypeError, "x must"),
    (lambda: mlp(torch.zeros(2, 3), []), ValueError, "weights must hold"),
    (lambda: mlp(torch.zeros(2, 3), [torch.zeros(4, 3), torch.zeros(2, 5)], slope=torch.ones(1)),
     ValueError, r"weights\[1\] must be"),
    (lambda: mlp(torch.zeros(2, 3), [torch.zeros(4, 3), torch.zeros(2, 4)]), ValueError, "slope"),
    (lambda: mlp(torch.zeros(2, 3), [torch.zeros(4, 3)], backend="cuda"), ValueError, "backend"),
    (lambda: q_sample(torch.zeros(2, 3), torch.ones(5, 5), torch.tensor([0, 5]), torch.zeros(2, 3)),
     ValueError, "t must be from 0 to 4"),
    (lambda: q_sample(torch.zeros(2, 3), torch.ones(5, 5), torch.tensor([0, 1]), torch.zeros(2, 2)),
     ValueError, "eps must have the shape"),
    (lambda: q_sample_batch(torch.zeros(4, 2), torch.ones(5, 5), -1, seed=0, step=0),
     ValueError, "batch_size must be"),
    (lambda: reverse_step(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(3)),
     ValueError, "coefficients must have 4"),
    (lambda: reverse_step(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2), torch.zeros(4)),
     TypeError, "x_t must be a floating-point tensor"),
    (lambda: reverse_step(torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(4)),
     ValueError, "eps must have the shape of x_t"),
    (lambda: reverse_step(torch.zeros(2, 2), torch.zeros(2, 2, device="meta"), torch.zeros(4)),
     ValueError, "eps must be on cpu like x_t, got meta"),
    (lambda: reverse_step(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(4), seed=1, step=-1),
     ValueError, "step must be an integer of at least 0, got -1"),
    (lambda: reverse_step(torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(4), seed=1,
                          step=torch.zeros(2)), ValueError, "step must be an int or one int64"),
    (lambda: q_sample(torch.zeros(2, 3), torch.ones(5, 5), torch.tensor([0, 1], device="meta"),
                      torch.zeros(2, 3)), ValueError, "t must be on cpu"),
    (lambda: MLPShape((3,)), ValueError, "widths must be"),
    (lambda: MLPShape((3, 4, 2), "swish"), ValueError, "activation must be one of"),
    (lambda: MLPShape((3, 4, 4, 2), slopes=3), ValueError, "slopes must be"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
