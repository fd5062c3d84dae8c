"""Training steps and chains on a CPU in pieces, against the reference and float64."""

from itertools import product

import pytest
import torch

from flashpoint.kernels import (
    ACTIVATIONS,
    Condition,
    Course,
    Guide,
    MLPShape,
    Network,
    adamw_,
    adamw_state,
    sample_chain,
    train_step,
    training_sums,
    workspace_of,
)
from flashpoint.kernels.mlp import pieces as mlp_pieces
from flashpoint.kernels.sample_chain import pieces as chains
from flashpoint.kernels.sample_chain.reference import LEAST_ROWS
from flashpoint.kernels.train_step import pieces as training
from flashpoint.kernels.workers import Halted

from .networks import make_network, relative_error
from .training import CLASS_WIDTH, CLASSES, KINDS, make_data, one_model

SAME = 2e-6  # rounding of sums over some thousand rows
MANY = 2100  # rows of which two threads take a share each
SIZES = [(1, 1), (1, 63), (3, 65), (1, MANY), (2, MANY), (3, MANY)]  # models and rows


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_pieces(monkeypatch):
    """Makes pieces so small that a step has several, for models and rows."""
    monkeypatch.setattr(mlp_pieces, "_FLOATS", 2**13)
    monkeypatch.setattr(mlp_pieces, "_LEAST_ROWS", 100)
    monkeypatch.setattr(training, "_LEAST_FLOATS", 0)


def shape_of(kind, activation="prelu", hidden=(40, 24, 40), **options):
    widths = {"denoiser": (3, 2), "classifier": (3, CLASSES), "conditional": (3 + CLASS_WIDTH, 2)}
    first, last = widths[kind]
    if activation == "prelu":
        options.setdefault("slopes", len(hidden))
    return MLPShape((first, *hidden, last), activation=activation, **options)


def step_of(shape, data, models, rows, backend=None, dtype=torch.float32, **options):
    parameters = make_network(shape, models).to(dtype)
    floats = {name: part.to(dtype) for name, part in data._asdict().items()
              if part is not None and part.is_floating_point()}  # fmt: skip
    return train_step(
        parameters, shape, data._replace(**floats), batch_size=rows, seed=torch.arange(models) + 5,
        step=7, backend=backend, **options,
    )  # fmt: skip


@pytest.mark.parametrize(("models", "rows"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.usefixtures("poisoned", "small_pieces")
def test_a_step_is_that_of_the_reference_and_of_float64(kind, models, rows, refresh):
    data = make_data("cpu", kind, models, points=300, uneven=models > 1)
    shape = shape_of(kind)
    for backend, dtype in (("torch", torch.float32), (None, torch.float64)):
        expected = step_of(shape, data, models, rows, backend, dtype, refresh=refresh)
        actual = step_of(shape, data, models, rows, refresh=refresh)
        assert all(relative_error(*pair) < SAME for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize(
    ("activation", "options"),
    [
        *product(ACTIVATIONS, ({}, {"bias": False})),
        *product(("prelu", "leaky_relu", "relu", "none"), ({"linear_input": True},)),
    ],
)
@pytest.mark.usefixtures("poisoned", "small_pieces")
def test_every_activation(activation, models, options):
    if activation == "prelu":
        options = {**options, "slopes": 1}
    shape = shape_of("denoiser", activation, **options)
    data = make_data("cpu", "denoiser", models)
    expected = step_of(shape, data, models, 300, "torch")
    actual = step_of(shape, data, models, 300)
    assert all(relative_error(*pair) < SAME for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize("slope", [-0.5, 0.0, 1e-3, 1.0, 3.0])
@pytest.mark.parametrize("activation", ["prelu", "leaky_relu"])
def test_every_slope(slope, activation):
    shape = shape_of("denoiser", activation, hidden=(32, 32), negative_slope=slope)
    data, parameters = make_data("cpu", "denoiser"), make_network(shape)
    if activation == "prelu":
        shape.unpack(parameters).slope.fill_(slope)
    options = {"batch_size": 300, "seed": 3, "step": 1}
    expected = train_step(parameters, shape, data, **options, backend="torch")
    actual = train_step(parameters, shape, data, **options)
    assert all(relative_error(*pair) < SAME for pair in zip(actual, expected, strict=True))
    assert relative_error(*(shape.unpack(each[1]).weights[0] for each in (actual, expected))) < SAME


@pytest.mark.parametrize(("first", "rows"), [(0, MANY), (5, 0), (0, 1), (7, MANY - 7)])
def test_sums_are_added_up_over_chunks(first, rows):
    shape, data = shape_of("denoiser"), make_data("cpu", "denoiser", 2)
    parameters, seed = make_network(shape, 2), torch.tensor([1, 2])
    workspace = workspace_of(parameters, shape, data, MANY)
    assert isinstance(workspace.buffers, training.Shares)
    options = {"batch_size": MANY, "seed": seed, "step": 0}
    whole = training_sums(parameters, shape, data, workspace, **options).clone()
    workspace.sums.fill_(torch.nan)
    training_sums(parameters, shape, data, workspace, **options, first_row=0, rows=first)
    for start, some in ((first, rows), (first + rows, MANY - first - rows)):
        training_sums(
            parameters, shape, data, workspace, **options, first_row=start, rows=some, add=True
        )
    assert relative_error(workspace.sums, whole) < SAME


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("models", [1, 2, 5])
def test_the_number_of_threads_does_not_matter_but_for_rounding(number, models):
    torch.set_num_threads(number)
    shape, data = shape_of("denoiser"), make_data("cpu", "denoiser", models)
    expected = step_of(shape, data, models, 3 * MANY, "torch")
    actual = step_of(shape, data, models, 3 * MANY)
    assert all(relative_error(*pair) < SAME for pair in zip(actual, expected, strict=True))
    assert torch.get_num_threads() == number


def test_many_small_models_go_together_in_the_operations_of_the_reference(monkeypatch):
    data, shape = make_data("cpu", "denoiser", 3), shape_of("denoiser")
    monkeypatch.setattr(training, "_calls", None)  # of shares
    together = step_of(shape, data, 3, 64)
    for one, other in zip(together, step_of(shape, data, 3, 64, backend="torch"), strict=True):
        assert relative_error(one, other) < SAME


@pytest.mark.parametrize("models", [1, 3])
def test_a_workspace_of_another_network_is_refused(models):
    data, hidden = make_data("cpu", "denoiser", models), (6, 10)
    shape, other = (shape_of("denoiser", activation, hidden) for activation in ("relu", "tanh"))
    parameters = make_network(shape, models)  # as many numbers as the other's
    workspace = workspace_of(parameters, other, data, 8)
    seed = torch.arange(models)
    with pytest.raises(ValueError, match=r"workspace must be of .*relu.*, got that of .*tanh"):
        training_sums(parameters, shape, data, workspace, batch_size=8, seed=seed, step=0)


@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("backend", [None, "torch"])
def test_parameters_may_require_gradients(models, backend):
    shape, data = shape_of("denoiser"), make_data("cpu", "denoiser", models)
    parameters = make_network(shape, models).requires_grad_()
    loss, grad = train_step(
        parameters, shape, data, batch_size=64, seed=torch.arange(models), step=0, backend=backend
    )
    assert not loss.requires_grad
    assert not grad.requires_grad


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("alike", [True, False])
def test_fused_updates_are_those_of_the_reference(decoupled, alike):
    generator = torch.Generator().manual_seed(0)
    models, size = 3, 1001
    start = torch.randn(models, size, generator=generator)
    numbers = {
        "lr": torch.tensor([1e-3, 1e-3 if alike else 1e-2, 1e-3]),
        "weight_decay": torch.tensor([0.1, 0.1 if alike else 0.0, 0.1]),
        "ema_decay": torch.tensor([0.9, 0.9 if alike else 0.5, 0.9]),
    }
    results = []
    for backend in ("torch", None):
        parameters = start.clone()
        state = adamw_state(parameters)
        for step in range(1, 6):
            sums = torch.randn(models, 1, size + 2, generator=torch.Generator().manual_seed(step))
            sums[..., -1] = 100
            sums[1, 0, -2] = torch.nan if step == 3 else 1  # this model leaves the step out
            adamw_(
                parameters, sums, state, step=step, decoupled=decoupled, backend=backend, **numbers
            )
        results.append((parameters, *state))
    assert not torch.equal(results[0][0], start)
    assert all(relative_error(*pair) < SAME for pair in zip(*results, strict=True))


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("number", [int, torch.tensor])
def test_updates_on_a_course_are_those_of_the_reference(means, number):
    generator = torch.Generator().manual_seed(0)
    models, size = 3, 301
    start = torch.randn(models, size, generator=generator)
    rates = torch.rand(models, 4, generator=generator) * 1e-2
    results = []
    for backend in ("torch", None):
        parameters = start.clone()
        state = adamw_state(parameters)
        course = Course(
            rates, torch.tensor([2, 2, 3]), torch.tensor([7, 5, 9]), torch.zeros(models, 4),
            torch.zeros(models, 4) if means else None,
        )  # fmt: skip
        for step in range(1, 9):  # one model ends before the others
            sums = torch.randn(models, 1, size + 2, generator=torch.Generator().manual_seed(step))
            sums[..., -1] = 100
            sums[1, 0, -2] = torch.nan if step == 3 else 1  # this model leaves the step out
            adamw_(parameters, sums, state, lr=course, step=number(step), backend=backend)
        parts = (parameters, *state, course.losses, *([course.means] if means else []))
        results.append(parts)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert relative_error(one.nan_to_num(), other.nan_to_num()) < SAME
    assert results[0][4].isnan().any()


@pytest.mark.parametrize("backend", [None, "torch"])
def test_rows_after_the_end_of_an_epoch_do_not_count_even_if_their_error_is_infinite(backend):
    shape, data = shape_of("denoiser"), make_data("cpu", "denoiser")
    finite = []
    for point in range(30):
        points = data.points.clone()
        points[:, point] = 5e21  # its square is infinite in float32
        # The last step of an epoch of 270 pairs: 4 rows count, and 34 are those of one point.
        loss, grad = step_of(shape, data._replace(points=points), 1, 38, backend, refresh=1)
        finite.append(bool(loss.isfinite()) and bool(grad.isfinite().all()))
    assert 26 <= sum(finite) < 30


def chain_of(models, rows, kind, columns=4, seed=0, steps=5, activation="prelu"):
    """Returns the arguments of a chain that is guided, or not, in one of the ways."""
    generator = torch.Generator().manual_seed(seed)
    data = {"device": "cpu"}
    first = "conditional" if kind in ("class", "free") else "denoiser"
    denoiser = shape_of(first, activation, hidden=(40, 24))
    classifier = shape_of("classifier", activation, hidden=(24, 40))
    labels = torch.randint(0, CLASSES, (models, rows), generator=generator)
    features = torch.randn(models, CLASSES + 1, CLASS_WIDTH, generator=generator)
    table = torch.rand(models, steps, columns, generator=generator) * 0.8
    return {
        "denoiser": Network(make_network(denoiser, models, **data), denoiser),
        "x_T": torch.randn(models, rows, 2, generator=generator),
        "table": table,
        "time_features": torch.rand(models, steps, 1, generator=generator),
        "seed": torch.arange(models) + 3,
        "guide": Guide(Network(make_network(classifier, models, **data), classifier), labels)
        if kind == "guided" else None,
        "condition": Condition(features, labels, kind == "free")
        if kind in ("class", "free") else None,
        "first_row": 11,
        "keep_every": 2,
    }  # fmt: skip


def run(arguments, backend=None):
    rest = dict(arguments)
    inputs = [rest.pop(name) for name in ("denoiser", "x_T", "table", "time_features")]
    return sample_chain(*inputs, **rest, backend=backend)


@pytest.mark.parametrize(("models", "rows"), [(1, 0), *SIZES])
@pytest.mark.parametrize("kind", ["plain", "guided", "class", "free"])
@pytest.mark.parametrize("columns", [4, 7])
@pytest.mark.usefixtures("poisoned", "small_pieces")
def test_a_chain_is_that_of_the_reference(models, rows, kind, columns):
    arguments = chain_of(models, rows, kind, columns)
    for actual, expected in zip(run(arguments), run(arguments, "torch"), strict=True):
        assert relative_error(actual, expected) < SAME


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("keep_every", [0, 7, 200])
def test_a_long_chain_in_several_calls(activation, keep_every, monkeypatch):
    monkeypatch.setattr(mlp_pieces, "_CALL", 1e6)  # so that a call has a few steps
    arguments = chain_of(2, 70, "guided", 7, steps=103, activation=activation)
    arguments["table"][0, :, 2] = 0  # the first model has no noise
    arguments["keep_every"] = keep_every
    for actual, expected in zip(run(arguments), run(arguments, "torch"), strict=True):
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) < SAME


def test_a_chain_may_end_before_any_call():
    """So that an interrupt is soon answered."""
    called = []

    def walk(state, table, *_, first):
        called.append((first, len(table)))
        return state

    def stops():
        return len(called) == 4

    x, table, features = torch.zeros(40, 2), torch.zeros(103, 4), torch.zeros(103, 1)
    with pytest.raises(Halted):
        chains._run_chain(walk, x, table, features, torch.tensor(1), 0, 20, stops)
    assert called == [(0, 20), (20, 20), (40, 10), (50, 20)]


def test_a_network_may_guide_itself():
    arguments = chain_of(1, 50, "guided")
    shape = MLPShape((CLASSES + 1, 24, CLASSES))
    network = Network(make_network(shape), shape)
    arguments |= {"denoiser": network, "x_T": torch.randn(1, 50, CLASSES)}
    arguments["guide"] = arguments["guide"]._replace(classifier=network)
    for actual, expected in zip(run(arguments), run(arguments, "torch"), strict=True):
        assert relative_error(actual, expected) < SAME


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("rows", [32, 33, 100, 257, 5000])
def test_a_share_has_enough_rows_for_products_that_round_as_others_do(rows, threads):
    torch.set_num_threads(threads)
    for models in (1, 2, 3, 40, 100):
        shares = chains._shares(models, rows)
        assert len(shares) <= threads
        cells = [cell for of, some in shares for cell in product(
            range(of.start, of.stop), range(some.start, some.stop))]  # fmt: skip
        assert sorted(cells) == list(product(range(models), range(rows)))
        assert all(some.stop - some.start >= LEAST_ROWS for _, some in shares)


@pytest.mark.parametrize("rows", [1, 33, 100, 500])
def test_a_sample_of_one_of_many_models_is_that_of_the_model_alone(rows):
    arguments = chain_of(40, 500, "plain")
    arguments["x_T"] = arguments["x_T"][:, :rows]
    together, _ = run(arguments)
    for model in (0, 13, 39):
        alone = {
            **arguments,
            "denoiser": Network(arguments["denoiser"].parameters[model, None],
                                arguments["denoiser"].shape),
            **{name: arguments[name][model, None]
               for name in ("x_T", "table", "time_features", "seed")},
        }  # fmt: skip
        assert torch.equal(run(alone)[0][0], together[model])


def test_a_sample_does_not_depend_on_the_others_with_it():
    arguments = chain_of(1, MANY, "guided")
    samples, _ = run(arguments)
    for rows in (slice(0, 40), slice(1000, 1001), slice(5, MANY)):
        part = {
            **arguments,
            "x_T": arguments["x_T"][:, rows],
            "guide": arguments["guide"]._replace(labels=arguments["guide"].labels[:, rows]),
            "first_row": arguments["first_row"] + rows.start,
        }
        assert torch.equal(run(part)[0], samples[:, rows])


@pytest.mark.usefixtures("small_pieces")
def test_models_share_what_they_share():
    data, shape = make_data("cpu", "denoiser", 2), shape_of("denoiser")
    shared = data._replace(points=data.points[:1], forward_table=data.forward_table[:1])
    both = step_of(shape, shared, 2, 100)
    for model in range(2):
        alone = train_step(
            make_network(shape, 2)[model : model + 1], shape,
            one_model(shared._replace(points=data.points[:1].repeat(2, 1, 1),
                                      forward_table=data.forward_table[:1].repeat(2, 1, 1)), model),
            batch_size=100, seed=5 + model, step=7,
        )  # fmt: skip
        assert relative_error(both[1][model], alone[1][0]) < SAME
