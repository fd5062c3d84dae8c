"""The calls of operations whose kernels are compiled.

A new kernel gets a call in :data:`CASES`. A nightly test compiles all; a slow test, which each
change must pass, those of :data:`MAIN`, and on sm_90 of :data:`HOPPER_MAIN`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import triton

from ..adamw import Course, adamw_state, shadow_of
from ..adamw.kernel import adamw_
from ..mlp import MLPShape
from ..mlp import launches as mlp
from ..mlp.activation import TABLE
from ..mlp.config import config_for, in_use
from ..q_sample import kernel as q_sample
from ..q_sample.reference import TrainingData
from ..reduce_grad import kernel as reduce_grad
from ..reduce_grad.reference import ReducedGradient, empty_parts
from ..reverse_step import kernel as reverse_step
from ..sample_chain.kernel import draw_prior
from ..sample_chain.one_launch import sample_chain
from ..sample_chain.reference import Condition, Guide, Network
from ..train_step.launches import prepared, training_sums

_DENOISER = MLPShape((3, 256, 256, 256, 256, 2))
_WIDE = MLPShape((3, 512, 512, 512, 2))
_WIDE_AND_UNEVEN = MLPShape((3, 512, 256, 384, 2))
_CLASSIFIER = MLPShape((3, 100, 200, 500, 5))
_RESIDUAL = MLPShape((384, 128, 128, 128, 128, 2), "gelu", residual=True)
_CLASS_WIDTH = 16  # of the class feature of a conditional denoiser
_MANY_ROWS = 10_000  # so many that tiles are larger
_MOST_ROWS = 16_897  # so many that programs do not measure the gradient of y


def _deep(width: int, activation: str = "prelu") -> MLPShape:
    return MLPShape((3, *[width] * 4, 2), activation)


def _network(shape: MLPShape) -> Network:
    """Returns a network whose parameters are 0."""
    return Network(torch.zeros(1, shape.num_parameters), shape)


def _train(
    shape: MLPShape,
    precision: str,
    refresh: int | None = None,
    class_width: int = 0,
    classify: bool = False,
    rows: int = 2048,
) -> None:
    """Runs a training step, of a conditional denoiser if its class features have a width."""
    shape = replace(shape, widths=(3 + class_width, *shape.widths[1:]))
    parameters = _network(shape).parameters
    data = TrainingData(
        points=torch.zeros(1, 5000, 2),
        forward_table=torch.ones(1, 500, 5),
        time_features=torch.zeros(1, 500, 1),
        labels=torch.zeros(1, 5000, dtype=torch.int64) if class_width or classify else None,
        n_points=torch.tensor([5000]),
        t_table=torch.arange(500)[None],
        class_features=torch.zeros(1, 6, class_width) if class_width else None,
        p_uncond=torch.zeros(1) if class_width else None,
    )
    shadow, buffers, splits = prepared(parameters, shape, data, rows, precision)
    training_sums(
        parameters, shape, data, empty_parts(parameters, 1, splits, shape.num_parameters + 2),
        shadow, buffers, batch_size=rows, seed=torch.tensor([0]), step=torch.tensor(0),
        refresh=refresh, first_row=0, rows=rows, add=False,
    )  # fmt: skip


def _update_weights() -> None:
    """Updates the weights from a gradient, and as training steps do, without and with clipping."""
    parameters, shape = _network(_DENOISER)
    state, size = adamw_state(parameters), shape.num_parameters + 2
    one = torch.ones(1, dtype=torch.int64)
    course = Course(torch.ones(1, 9), one, one, torch.ones(1, 9))
    sums = empty_parts(parameters, 1, 8, size)
    squares = torch.ones(1, triton.cdiv(size, reduce_grad.BLOCK))
    shadow = shadow_of(parameters, shape, "fp16")
    rest = (0.998, None, None, None)
    common = (state, 1e-3, 1, (0.9, 0.999), 1e-8, 0.01)
    adamw_(parameters, parameters, *common, True, *rest)
    ending = (state, course, one, (0.9, 0.999), 1e-8, 0.01)
    adamw_(parameters, sums, *ending, True, 0.998, None, None, shadow)
    reduced = ReducedGradient(sums[:, :1].contiguous(), squares)
    reduce_grad.reduce_grad(sums, reduced)
    adamw_(parameters, reduced.sums, *ending, False, 0.998, 1.0, squares, shadow)


def _draw() -> None:
    """Draws a training batch and x_T."""
    x = torch.zeros(1, 5000, 2)
    table = torch.arange(500)[None]
    forward_table, n_points = torch.ones(1, 500, 5), torch.tensor([5000])
    data = TrainingData(x, forward_table, x[:, :500, :0], None, n_points, table)
    q_sample.draw(data, torch.tensor([0]), 0, 2048)
    draw_prior(x, torch.tensor([0]), 0)


def _sample(
    shape: MLPShape,
    precision: str,
    guided: bool = False,
    classifier_free: bool = False,
    coefficients: int = 4,
    rows: int = 5000,
    classifier: MLPShape = _CLASSIFIER,
) -> None:
    """Runs a sampling chain, guided by a classifier or by the denoiser itself if asked.

    With 7 coefficients it is that of a linear multistep method.
    """
    labels = torch.zeros(1, rows, dtype=torch.int64)
    condition = None
    if classifier_free:
        shape = replace(shape, widths=(3 + _CLASS_WIDTH, *shape.widths[1:]))
        condition = Condition(torch.zeros(1, 6, _CLASS_WIDTH), labels, free=True)
    sample_chain(
        _network(shape), torch.zeros(1, rows, 2), torch.zeros(1, 1, coefficients),
        torch.zeros(1, 1, 1), torch.tensor([0]),
        Guide(_network(classifier), labels) if guided else None, condition, 0, 0, precision,
    )  # fmt: skip


def _train_on_hopper(shape: MLPShape, precision: str, tile: int = 64, **options) -> None:
    """Runs a training step in the form for Hopper GPUs, with ``tile`` rows in a program."""
    config = config_for(precision, (9, 0), 2048, 1)
    with in_use("training", replace(config, form="hopper", hopper_rows=tile)):
        _train(shape, precision, **options)


def _sample_on_hopper(shape: MLPShape, precision: str, rows: int = 64, **options) -> None:
    """Runs a sampling chain in the form for Hopper GPUs, ``rows`` in a program."""
    guided, classifier_free = options.get("guided"), options.get("classifier_free")
    kernel = "guided chain" if guided else "classifier-free chain" if classifier_free else "chain"
    config = config_for(precision, (9, 0), 5000, 1, kernel)
    with in_use(kernel, replace(config, form="hopper", hopper_rows=rows)):
        _sample(shape, precision, **options)


def _guide_on_hopper(classifier: MLPShape, rows: int = 64, denoiser: MLPShape = _DENOISER) -> None:
    """Runs such a chain with a guide."""
    _sample_on_hopper(denoiser, "fp16", rows, guided=True, classifier=classifier)


def _perceptron(
    shape: MLPShape,
    precision: str,
    dtype: torch.dtype = torch.float32,
    y_dtype: torch.dtype = torch.float32,
    rows: int = 2048,
    wanted: str = "x and layers",
) -> None:
    """Runs a network forwards and backwards, as layers do whose parameters and x have a dtype.

    Args:
        wanted: what gets gradients: ``x``, ``layers``, ``x and layers``, or ``nothing``, for which
            there is no way back.
    """
    weights, biases, slope = shape.unpack(_network(shape).parameters.to(dtype))
    layers = *weights, *(biases or ()), *(() if slope is None else (slope,))
    layers = tuple(layer.clone() for layer in layers)  # aligned, as parameters of a module are
    x = torch.zeros(1, rows, shape.widths[0], dtype=dtype)
    y = torch.zeros(1, rows, shape.widths[-1], dtype=y_dtype)
    _, saved = mlp.forward(x, layers, shape, precision, save=wanted != "nothing", y=y)
    if wanted != "nothing":
        grad_x = torch.empty_like(x) if "x" in wanted else None
        grad = torch.empty(1, shape.num_parameters, dtype=dtype) if "layers" in wanted else None
        mlp.write_gradients(y, saved, shape, precision, grad_x=grad_x, grad=grad)


def _perceptron_on_hopper(shape: MLPShape, precision: str, tile: int = 64, **options) -> None:
    """Runs a network in the form for Hopper GPUs, with ``tile`` rows in a program."""
    config = config_for(precision, (9, 0), 2048, 1, "perceptron")
    with in_use("perceptron", replace(config, form="hopper", hopper_rows=tile)):
        _perceptron(shape, precision, **options)


def _everything(shape: MLPShape, precision: str) -> None:
    """Trains, samples and runs a network."""
    _train(shape, precision)
    _sample(shape, precision)
    _perceptron(shape, precision)


def _elementwise() -> None:
    """Noises given points and does one reverse step."""
    x = torch.zeros(1, 2048, 2)
    q_sample.q_sample(x, torch.ones(1, 500, 5), torch.zeros(1, 2048, dtype=torch.int64), x)
    reverse_step.reverse_step(x, x, torch.zeros(1, 4), x, x)


MAIN: dict[str, Callable[[], None]] = {
    "train fp16": partial(_train, _DENOISER, "fp16"),
    "adamw": _update_weights,
    "sample fp16": partial(_sample, _DENOISER, "fp16"),
    "drop-in fp16": partial(_perceptron, _DENOISER, "fp16"),
}
CASES: dict[str, Callable[[], None]] = {
    **MAIN,
    "guided fp16": partial(_sample, _DENOISER, "fp16", guided=True),
    "guided bf16": partial(_sample, _DENOISER, "bf16", guided=True),
    "classifier-free fp16": partial(_sample, _DENOISER, "fp16", classifier_free=True),
    "solver fp16": partial(_sample, _DENOISER, "fp16", coefficients=7),
    "epoch fp16": partial(_train, _DENOISER, "fp16", refresh=25),
    "conditional fp16": partial(_train, _DENOISER, "fp16", class_width=6),
    "classifier fp16": partial(_train, _CLASSIFIER, "fp16", classify=True),
    "classifier bf16": partial(_train, _CLASSIFIER, "bf16", classify=True),
    "draw": _draw,
    "train bf16": partial(_train, _DENOISER, "bf16"),
    "train tf32": partial(_train, _DENOISER, "tf32"),
    "train fp32": partial(_train, _DENOISER, "fp32"),
    "train tf32x3": partial(_train, _DENOISER, "tf32x3"),
    "sample tf32x3": partial(_sample, _DENOISER, "tf32x3"),
    "drop-in tf32x3": partial(_perceptron, _DENOISER, "tf32x3"),
    "784 wide": partial(_perceptron, MLPShape((784, 512, 512, 10), "relu"), "fp16"),
    "uneven": partial(_perceptron, MLPShape((2, 100, 200, 500, 2), "gelu"), "fp16"),
    "residual fp16": partial(_perceptron, _RESIDUAL, "fp16"),
    "no hidden layer": partial(_perceptron, MLPShape((64, 10), "none"), "fp16"),
    "half data": partial(_perceptron, _DENOISER, "fp16", torch.float16, torch.float16),
    "most rows fp16": partial(_perceptron, _DENOISER, "fp16", rows=_MOST_ROWS),
    # What a training step under autocast runs.
    "autocast fp16": partial(
        _perceptron, _DENOISER, "fp16", y_dtype=torch.float16, wanted="layers"
    ),
    "elementwise": _elementwise,
    **{
        f"many rows {name}": partial(run, shape, precision, rows=_MANY_ROWS)
        for name, run, shape, precision in (
            ("train fp16", _train, _DENOISER, "fp16"),
            ("train bf16", _train, _DENOISER, "bf16"),
            ("drop-in fp16", _perceptron, _DENOISER, "fp16"),
            ("guided fp16", partial(_sample, guided=True), _DENOISER, "fp16"),
            ("gelu", _perceptron, _deep(256, "gelu"), "fp16"),
        )
    },
}
# Networks of other widths and activations, on sm_90 alone: there both change the order of the
# wgmmas and the number of registers.
VARIETY: dict[str, Callable[[], None]] = {
    "guided tf32": partial(_sample, _DENOISER, "tf32", guided=True),
    **{
        f"width {width} {precision}": partial(_everything, _deep(width), precision)
        for width in (64, 128, 256, 512)
        for precision in ("fp16", "bf16", "tf32")
    },
    **{
        f"width {width} {activation}": partial(_perceptron, _deep(width, activation), "fp16")
        for width in (128, 256, 512)
        # The cases above have prelu; leaky_relu and none compute less than others here.
        for activation in sorted(TABLE.keys() - {"prelu", "leaky_relu", "none"})
    },
}
# Calls in the form for Hopper GPUs, on sm_90 alone. Their names begin like this.
HOPPER_CASE = "hopper"
HOPPER: dict[str, Callable[[], None]] = {
    f"{HOPPER_CASE} {name}": run
    for name, run in {
        "sample fp16": partial(_sample_on_hopper, _DENOISER, "fp16"),
        "sample bf16": partial(_sample_on_hopper, _DENOISER, "bf16"),
        "classifier-free fp16": partial(_sample_on_hopper, _DENOISER, "fp16", classifier_free=True),
        "solver fp16": partial(_sample_on_hopper, _DENOISER, "fp16", coefficients=7),
        "guided fp16": partial(_sample_on_hopper, _DENOISER, "fp16", guided=True),
        "guided bf16": partial(_sample_on_hopper, _DENOISER, "bf16", guided=True),
        **{
            f"guided {activation}": partial(
                _guide_on_hopper, replace(_CLASSIFIER, activation=activation)
            )
            for activation in ("gelu", "silu", "tanh")
        },
        **{
            f"deep guided {activation}": partial(
                _guide_on_hopper, MLPShape((3, *[256] * 9, 5), activation)
            )
            for activation in ("prelu", "silu")
        },
        "128 rows guided silu": partial(
            _guide_on_hopper, replace(_CLASSIFIER, activation="silu"), 128
        ),
        "128 rows fp16": partial(_sample_on_hopper, _DENOISER, "fp16", 128),
        "128 rows classifier-free fp16": partial(
            _sample_on_hopper, _DENOISER, "fp16", 128, classifier_free=True
        ),
        "128 rows guided fp16": partial(_sample_on_hopper, _DENOISER, "fp16", 128, guided=True),
        "128 rows guided solver fp16": partial(
            _sample_on_hopper, _DENOISER, "fp16", 128, guided=True, coefficients=7
        ),
        "train fp16": partial(_train_on_hopper, _DENOISER, "fp16"),
        "train bf16": partial(_train_on_hopper, _DENOISER, "bf16"),
        "128 rows train fp16": partial(_train_on_hopper, _DENOISER, "fp16", 128, rows=_MANY_ROWS),
        "epoch fp16": partial(_train_on_hopper, _DENOISER, "fp16", refresh=25),
        "conditional fp16": partial(_train_on_hopper, _DENOISER, "fp16", class_width=6),
        "classifier fp16": partial(
            _train_on_hopper, MLPShape((3, 100, 200, 256, 5)), "fp16", classify=True
        ),
        "drop-in fp16": partial(_perceptron_on_hopper, _DENOISER, "fp16"),
        "drop-in bf16": partial(_perceptron_on_hopper, _DENOISER, "bf16"),
        "128 rows drop-in fp16": partial(
            _perceptron_on_hopper, _DENOISER, "fp16", 128, rows=_MOST_ROWS
        ),
        "autocast fp16": partial(
            _perceptron_on_hopper, _DENOISER, "fp16", y_dtype=torch.float16, wanted="layers"
        ),
        "frozen fp16": partial(_perceptron_on_hopper, _DENOISER, "fp16", wanted="x"),
        "no gradients fp16": partial(_perceptron_on_hopper, _DENOISER, "fp16", wanted="nothing"),
        "wide drop-in fp16": partial(_perceptron_on_hopper, _deep(512), "fp16"),
        "wide frozen fp16": partial(_perceptron_on_hopper, _deep(512), "fp16", wanted="x"),
        "wide no gradients fp16": partial(
            _perceptron_on_hopper, _deep(512), "fp16", wanted="nothing"
        ),
        "drop-in gelu": partial(_perceptron_on_hopper, _deep(256, "gelu"), "fp16"),
        "train gelu": partial(_train_on_hopper, _deep(256, "gelu"), "fp16"),
        "uneven": partial(_sample_on_hopper, MLPShape((3, 100, 200, 64, 256, 2)), "fp16"),
        "wide train fp16": partial(_train_on_hopper, _WIDE, "fp16"),
        "wide train gelu": partial(_train_on_hopper, replace(_WIDE, activation="gelu"), "fp16"),
        "wide train uneven": partial(_train_on_hopper, _WIDE_AND_UNEVEN, "fp16"),
        "wide sample fp16": partial(_sample_on_hopper, _WIDE, "fp16"),
        "wide sample uneven": partial(_sample_on_hopper, _WIDE_AND_UNEVEN, "bf16"),
        "wide gelu": partial(_sample_on_hopper, replace(_WIDE, activation="gelu"), "fp16"),
        "wide classifier-free fp16": partial(
            _sample_on_hopper, _WIDE, "fp16", classifier_free=True
        ),
        "wide guided fp16": partial(_sample_on_hopper, _WIDE, "fp16", guided=True),
        "wide guided silu": partial(
            _guide_on_hopper, replace(_CLASSIFIER, activation="silu"), denoiser=_WIDE
        ),
        "wide 128 rows fp16": partial(_sample_on_hopper, _WIDE, "fp16", 128),
        **{
            f"width {width}": partial(_sample_on_hopper, _deep(width), "fp16")
            for width in (64, 128, 200)
        },
        **{
            activation: partial(_sample_on_hopper, _deep(256, activation), "fp16")
            for activation in sorted(TABLE.keys() - {"prelu", "leaky_relu", "none"})
        },
    }.items()
}
# Those of them that a test compiles each time.
HOPPER_MAIN = {
    name: HOPPER[name]
    for name in (f"{HOPPER_CASE} {each} fp16" for each in ("sample", "guided", "train", "drop-in"))
}
