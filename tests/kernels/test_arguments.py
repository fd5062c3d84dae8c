"""Tensors that do not fit are named in one line, before a kernel reads past them."""

from dataclasses import replace

import pytest
import torch

from flashpoint.kernels import (
    AdamWState,
    Condition,
    Course,
    Guide,
    MLPShape,
    Network,
    TrainingData,
    adamw_,
    adamw_state,
    eps_table,
    q_sample,
    q_sample_batch,
    reverse_step,
    sample_chain,
    shadow_of,
    train_step,
    training_sums,
    workspace_of,
)

MODELS, POINTS, STEPS, CLASSES = 2, 6, 5, 3


def data_of(kind):
    """Returns data of two models, with every optional part that its kind has."""
    data = TrainingData(
        points=torch.randn(MODELS, POINTS, 2),
        forward_table=eps_table(torch.linspace(0.9, 0.1, STEPS).repeat(MODELS, 1)),
        time_features=torch.randn(MODELS, STEPS, 1),
        labels=torch.randint(0, CLASSES, (MODELS, POINTS)),
        n_points=torch.tensor([POINTS, 4]),
        t_table=torch.arange(STEPS).repeat(MODELS, 1),
        class_features=torch.randn(MODELS, CLASSES + 1, 2),
        p_uncond=torch.full((MODELS,), 0.3),
        n_steps=torch.tensor([STEPS, 3]),
        n_entries=torch.tensor([STEPS, 3]),
    )
    if kind == "denoiser":
        return data._replace(labels=None, class_features=None, p_uncond=None)
    return data if kind == "conditional" else data._replace(class_features=None, p_uncond=None)


def shape_of(kind):
    width = {"denoiser": 3, "classifier": 3, "conditional": 5}[kind]
    return MLPShape((width, 4, CLASSES if kind == "classifier" else 2))


def step_of(kind, shape=None, parameters=None, **wrong):
    shape = shape or shape_of(kind)
    if parameters is None:
        parameters = torch.randn(MODELS, shape.num_parameters)
    options = {name: wrong.pop(name) for name in ("seed", "step", "first_row") if name in wrong}
    options = {"batch_size": 4, "seed": 0, "step": 0, **options}
    return train_step(parameters, shape, data_of(kind)._replace(**wrong), **options)


def on_meta(kind, name):
    return {name: getattr(data_of(kind), name).to("meta")}


TRAINING = [
    (
        "denoiser",
        {"shape": MLPShape((3, 4, 3))},
        "shape must have 2 outputs, as many as a point, got 3",
    ),
    ("conditional", {"shape": MLPShape((5, 4, 1))}, "shape must have 2 outputs, as many"),
    *(
        ("conditional", on_meta("conditional", name), f"{name} must be on cpu like")
        for name in TrainingData._fields
    ),
    ("denoiser", {"points": torch.randn(POINTS, 2)}, r"points must be \[2, N, d\] or \[1, N, d\]"),
    ("denoiser", {"points": torch.randn(MODELS, POINTS, 2).half()}, "points must be torch.float32"),
    (
        "denoiser",
        {"forward_table": torch.ones(3, STEPS, 5)},
        r"forward_table must be \[2, T, 5\] or",
    ),
    (
        "denoiser",
        {"forward_table": torch.ones(1, STEPS, 4)},
        r"forward_table must be \[2, T, 5\] or",
    ),
    (
        "denoiser",
        {"forward_table": torch.ones(1, STEPS, 5).double()},
        "forward_table must be torch.float32",
    ),
    ("denoiser", {"time_features": torch.ones(MODELS, 4, 1)}, r"time_features must be \[2, 5, F\]"),
    ("denoiser", {"n_points": torch.tensor([POINTS])}, r"n_points must be \[2\], got \[1\]"),
    ("denoiser", {"n_points": torch.tensor([1, POINTS + 1])}, "n_points must be from 1 to 6"),
    ("denoiser", {"n_points": torch.tensor([1.0, 2.0])}, "n_points must be torch.int64"),
    ("denoiser", {"n_steps": torch.tensor([1, STEPS + 1])}, "n_steps must be from 1 to 5"),
    ("denoiser", {"n_steps": torch.tensor([1])}, r"n_steps must be \[2\], got \[1\]"),
    ("denoiser", {"n_entries": torch.tensor([0, 1])}, "n_entries must be from 1 to 5"),
    ("denoiser", {"t_table": torch.full((1, STEPS), STEPS)}, "t_table must be from 0 to 4"),
    ("denoiser", {"t_table": torch.tensor([[0]]).int()}, "t_table must be torch.int64"),
    ("classifier", {"labels": torch.full((MODELS, POINTS), CLASSES)}, "labels must be from 0 to 2"),
    (
        "classifier",
        {"labels": torch.zeros(MODELS, 5).long()},
        r"labels must be \[2, 6\] or \[1, 6\]",
    ),
    ("conditional", {"labels": torch.full((1, POINTS), 4)}, "labels must be from 0 to 3"),
    (
        "conditional",
        {"class_features": torch.ones(3, 4, 2)},
        r"class_features must be \[2, C \+ 1, E\]",
    ),
    ("conditional", {"p_uncond": torch.ones(1)}, r"p_uncond must be \[2\], got \[1\]"),
    ("conditional", {"p_uncond": torch.ones(2).double()}, "p_uncond must be torch.float32"),
    (
        "denoiser",
        {"seed": torch.tensor([1, 2, 3])},
        "seed must be one, or one for each of 2 models",
    ),
    ("denoiser", {"step": torch.tensor(0).int()}, "step must be an int or one int64 number on cpu"),
    (
        "denoiser",
        {"step": torch.tensor(0, device="meta")},
        "step must be an int or one int64 number",
    ),
    ("denoiser", {"first_row": -1}, "first_row must be an integer of at least 0, got -1"),
    ("denoiser", {"first_row": 5}, "first_row must be at most 4, the batch, got 5"),
    (
        "denoiser",
        {"parameters": torch.ones(MODELS, shape_of("denoiser").num_parameters).half()},
        "parameters must be torch.float32",
    ),
]


@pytest.mark.parametrize(("kind", "wrong", "message"), TRAINING)
def test_of_a_training_step(kind, wrong, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        step_of(kind, **wrong)
    assert "\n" not in str(caught.value)


def sums_of(rows=4, seed=(0, 0), parameters=None, workspace_rows=4, activation=None):
    shape = shape_of("denoiser")
    if parameters is None:
        parameters = torch.randn(MODELS, shape.num_parameters)
    workspace = workspace_of(
        parameters, shape, data_of("denoiser"), workspace_rows, backend="triton"
    )
    if activation is not None:  # not the one that the workspace was made for
        shape = replace(shape, activation=activation)
        parameters = parameters[:, : shape.num_parameters].contiguous()
        workspace = workspace._replace(sums=workspace.sums[..., : shape.num_parameters + 2])
    return training_sums(
        parameters, shape, data_of("denoiser"), workspace, batch_size=400,
        seed=torch.as_tensor(seed), step=0, rows=rows,
    )  # fmt: skip


SIZE = shape_of("denoiser").num_parameters
SUMS = [
    ({"activation": "silu"}, r"workspace must be of MLPShape\(.*'silu'.*, got that of MLPShape"),
    ({"rows": 65}, "rows must be at most 64, which workspace has room for, got 65"),
    ({"seed": (1,)}, r"seed must be \[2\], got \[1\]"),
    ({"seed": (1.0, 2.0)}, "seed must be torch.int64"),
    ({"seed": torch.tensor([1, 2, 3, 4])[::2]}, r"seed must be contiguous, got strides \(2,\)"),
    ({"parameters": torch.ones(SIZE, MODELS).T}, "parameters must be contiguous"),
]


@pytest.mark.parametrize(("wrong", "message"), SUMS)
def test_of_the_sums_of_a_training_step(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sums_of(**wrong)


@pytest.mark.parametrize("kind", ["denoiser", "classifier", "conditional"])
@pytest.mark.parametrize("refresh", [None, 2])
def test_data_may_lie_in_any_strides(device, kind, refresh):
    shape, data = shape_of(kind), data_of(kind)
    parameters = torch.randn(MODELS, shape.num_parameters).to(device)
    data = TrainingData(*(None if part is None else part.to(device) for part in data))
    apart = TrainingData(*(None if part is None else spread(part) for part in data))
    assert not any(part.is_contiguous() for part in apart if part is not None)
    one, other = (
        train_step(
            parameters, shape, each, batch_size=20, seed=1, step=3, refresh=refresh,
            precision="fp32", backend="triton",
        )
        for each in (data, apart)
    )  # fmt: skip
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def spread(tensor):
    """Returns the same values with gaps between them."""
    return torch.stack((tensor, tensor + 1), dim=-1)[..., 0]


def chain_of(**wrong):
    classes = {"guide": {}, "condition": {}}
    for name in list(wrong):
        part, _, field = name.partition("_")
        if part in classes:
            classes[part][field] = wrong.pop(name)
    guide, condition = wrong.pop("guide", None), wrong.pop("condition", None)
    if classes["guide"]:
        shape = MLPShape((3, 4, CLASSES))
        values = {
            "parameters": torch.randn(MODELS, shape.num_parameters),
            "labels": torch.zeros(MODELS, 4, dtype=torch.int64),
            **classes["guide"],
        }
        guide = Guide(Network(values["parameters"], shape), values["labels"])
    if classes["condition"]:
        values = {
            "features": torch.randn(MODELS, CLASSES + 1, 2),
            "labels": torch.zeros(MODELS, 4, dtype=torch.int64),
            **classes["condition"],
        }
        condition = Condition(values["features"], values["labels"])
    shape = MLPShape((5 if condition else 3, 4, 2))
    values = {
        "parameters": torch.randn(MODELS, shape.num_parameters),
        "x_T": torch.randn(MODELS, 4, 2),
        "table": torch.randn(MODELS, STEPS, 4),
        "time_features": torch.randn(MODELS, STEPS, 1),
        "seed": 0,
    }
    values |= wrong
    return sample_chain(
        Network(values["parameters"], shape), values["x_T"], values["table"],
        values["time_features"], seed=values["seed"], guide=guide, condition=condition,
    )  # fmt: skip


def meta(*shape, dtype=None):
    return torch.zeros(shape, dtype=dtype, device="meta")


GUIDE_SIZE = MLPShape((3, 4, CLASSES)).num_parameters
CHAINS = [
    (
        {"guide_labels": meta(MODELS, 4, dtype=torch.int64)},
        "guide.labels must be on cpu like x_T, got meta",
    ),
    (
        {"guide_labels": torch.zeros(MODELS, 4).int()},
        "guide.labels must be torch.int64, got torch.int32",
    ),
    ({"guide_labels": torch.full((MODELS, 4), CLASSES)}, "guide.labels must be from 0 to 2"),
    (
        {"guide_parameters": meta(MODELS, GUIDE_SIZE)},
        "guide.classifier.parameters must be on cpu like x_T",
    ),
    ({"guide_parameters": torch.ones(1, GUIDE_SIZE)}, r"guide.classifier.parameters must be \[2, "),
    (
        {"condition_labels": meta(MODELS, 4, dtype=torch.int64)},
        "condition.labels must be on cpu like x_T",
    ),
    ({"condition_labels": torch.zeros(MODELS, 4).int()}, "condition.labels must be torch.int64"),
    (
        {"condition_features": meta(MODELS, 4, 2)},
        "condition.class_features must be on cpu like x_T",
    ),
    (
        {"condition_features": torch.ones(MODELS, 4, 2).double()},
        "condition.class_features must be torch.fl",
    ),
    (
        {"condition_features": torch.ones(4, 2)},
        r"condition.class_features must be \[2, C \+ 1, E\]",
    ),
    ({"parameters": meta(MODELS, SIZE)}, "denoiser.parameters must be on cpu like x_T, got meta"),
    (
        {"parameters": torch.ones(MODELS, SIZE).double()},
        "denoiser.parameters must be torch.float32",
    ),
    ({"x_T": torch.randn(4, 2)}, r"x_T must be \[M, B, d\], got \[4, 2\]"),
    ({"x_T": torch.randn(MODELS, 4, 2).half()}, "x_T must be torch.float32, got torch.float16"),
    ({"table": torch.randn(STEPS, 4)}, r"table must be \[2, S, 4\]"),
    (
        {"table": torch.randn(MODELS, STEPS, 4).double()},
        "table must be torch.float32, got torch.float64",
    ),
    ({"time_features": torch.randn(MODELS, STEPS)}, r"time_features must be \[2, 5, F\]"),
    ({"time_features": meta(MODELS, STEPS, 1)}, "time_features must be on cpu like x_T, got meta"),
    ({"seed": torch.tensor([1, 2, 3])}, "seed must be one, or one for each of 2 models, got 3"),
]


@pytest.mark.parametrize(("wrong", "message"), CHAINS)
def test_of_a_chain(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        chain_of(**wrong)
    assert "\n" not in str(caught.value)


def test_what_fits_runs():
    """The calls above are right apart from the one argument that each gets wrong."""
    for kind in ("denoiser", "classifier", "conditional"):
        step_of(kind)
    sums_of()
    labels = torch.zeros(MODELS, 4, dtype=torch.int64)
    for part in ({}, {"guide_labels": labels}, {"condition_labels": labels}):
        chain_of(**part)


X = torch.ones(MODELS, 3, 2)


def adamw_with(step=1, lr=0.1, **wrong):
    parameters = torch.ones(MODELS, SIZE)
    state = AdamWState(
        *(wrong.get(name, part) for name, part in adamw_state(parameters)._asdict().items())
    )
    wrong = {name: value for name, value in wrong.items() if name not in AdamWState._fields}
    grad = wrong.pop("grad", torch.ones_like(parameters))
    adamw_(parameters, grad, state, lr=lr, step=step, **wrong)


def course_with(**wrong):
    numbers = torch.tensor([1, 2])
    return Course(torch.ones(MODELS, 3), numbers, numbers * 3, torch.zeros(MODELS, 6))._replace(
        **wrong
    )


OTHERS = [
    (
        lambda: q_sample(X, torch.ones(3, 9, 5), torch.zeros(MODELS, 3).long(), X),
        r"forward_table must be \[2, T, 5\] or \[1, T, 5\], got \[3, 9, 5\]",
    ),
    (
        lambda: q_sample(X, torch.ones(5, 5), torch.zeros(MODELS, 3).int(), X),
        "t must be torch.int64",
    ),
    (
        lambda: q_sample_batch(
            X, torch.ones(5, 5), 4, seed=0, step=0, t_table=meta(3, dtype=torch.int64)
        ),
        "t_table must be on cpu like points, got meta",
    ),
    (
        lambda: q_sample_batch(
            X, torch.ones(5, 5), 4, seed=0, step=0, t_table=torch.zeros(3, 4).long()
        ),
        r"t_table must be \[2, K\] or \[1, K\], got \[3, 4\]",
    ),
    (
        lambda: q_sample_batch(X, torch.ones(5, 5), 4, seed=torch.tensor([1, 2, 3]), step=0),
        "seed must be one, or one for each of 2 models, got 3",
    ),
    (
        lambda: reverse_step(X, X, torch.ones(3, 4)),
        "coefficients must be 4, or 4 for each of 2 models",
    ),
    (
        lambda: reverse_step(torch.ones(3), torch.ones(3), torch.ones(4)),
        r"x_t must be \[B, d\] or \[M, B, d\], got \[3\]",
    ),
    (
        lambda: q_sample(X, torch.tensor(0.5), torch.zeros(X.shape[:-1], dtype=torch.int64), X),
        r"forward_table must be \[",
    ),
    (
        lambda: reverse_step(X, X, torch.ones(4), seed=torch.tensor([1, 2, 3])),
        "seed must be one, or",
    ),
    (
        lambda: reverse_step(X, X, torch.ones(4), seed=1, step=torch.ones(1)),
        "step must be an int or one int64 number",
    ),
    (lambda: adamw_with(step=torch.tensor(1.0)), "step must be an int or one int64 number"),
    (lambda: adamw_with(exp_avg_sq=torch.ones(MODELS, 3)), r"state.exp_avg_sq must be \[2, "),
    (lambda: adamw_with(ema=meta(MODELS, SIZE)), "ema must be on cpu like parameters, got meta"),
    (
        lambda: adamw_with(squares=meta(MODELS, 1)),
        "squares must be on cpu like parameters, got meta",
    ),
    (lambda: adamw_with(squares=torch.ones(3, 1)), r"squares must be \[2, blocks\], got \[3, 1\]"),
    (
        lambda: adamw_with(shadow=shadow_of(torch.ones(1, SIZE), shape_of("denoiser"), "fp16")),
        r"shadow.packed must be \[2, ",
    ),
    (lambda: adamw_with(lr=torch.ones(3)), "lr must be one, or one for each of 2 models, got 3"),
    (
        lambda: adamw_with(grad=torch.ones(MODELS, 0, SIZE + 2)),
        r"grad must have at least one part, got \[2, 0, ",
    ),
    (lambda: adamw_with(grad=torch.ones(MODELS, 1, SIZE)), r"grad must be \[2, S, [0-9]+\], got"),
    (lambda: adamw_with(lr=-1e-3), "lr must be at least 0 and finite, got -0.001"),
    (lambda: adamw_with(lr=float("nan")), "lr must be at least 0 and finite, got nan"),
    (
        lambda: adamw_with(betas=(1.0, 0.9)),
        r"betas\[0\] must be at least 0 and less than 1, got",
    ),
    (lambda: adamw_with(betas=(0.9, -0.9)), r"betas\[1\] must be at least 0 and less than 1"),
    (lambda: adamw_with(eps=-1e-8), "eps must be at least 0"),
    (lambda: adamw_with(weight_decay=float("inf")), "weight_decay must be at least 0 and finite"),
    (lambda: adamw_with(ema_decay=2), "ema_decay must be at least 0 and less than 1, got 2"),
    (lambda: adamw_with(clip_norm=-1.0), "clip_norm must be at least 0, got -1.0"),
    (lambda: adamw_with(ema=torch.ones(MODELS, SIZE).double()), "ema must be torch.float32, got"),
    (
        lambda: shadow_of(torch.ones(1, SIZE), shape_of("denoiser"), "half"),
        "precision must be one of fp16, bf16, tf32, tf32x3, fp32, got 'half'",
    ),
    (
        lambda: shadow_of(torch.ones(1, 3), shape_of("denoiser"), "fp16"),
        r"parameters must be \[M, [0-9]+\], got \[1, 3\]",
    ),
    (
        lambda: adamw_with(lr=course_with(rates=torch.ones(1, 3))),
        r"rates must be \[2, K\], got \[1, 3\]",
    ),
    (lambda: adamw_with(lr=course_with(rates=torch.ones(3, MODELS).T)), "rates must be contiguous"),
    (lambda: adamw_with(lr=course_with(every=torch.ones(2))), "every must be torch.int64"),
    (
        lambda: adamw_with(lr=course_with(losses=meta(2, 6))),
        "losses must be on cpu like parameters",
    ),
    (
        lambda: adamw_with(lr=course_with(means=torch.ones(2, 2))),
        r"means must be \[2, 3\], got \[2, 2\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), OTHERS)
def test_of_other_operations(call, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)
