"""A user's own networks: any module of (x_t, t), or of (x_t, t, y), as denoiser or classifier.

x_t is float32 [B, d]; t int64 [B] counts the timesteps from 0, the least noisy one; y int64 [B] is
the class, C for none. The output is what the schedule's ``prediction`` says [B, d], or the logits
of a classifier [B, C]. The rows of a batch are independent points. A module says of itself, in
attributes that training sets where they are missing,

* ``point_dim``: d;
* ``num_classes``: C, of a conditional denoiser alone;
* ``prediction``: what it was trained to predict.
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..kernels import accelerate
from .errors import UserError, check_integer
from .models import Perceptron, check_weights, fused_copy
from .schedules import Schedule

_ROWS = 3  # of the run that checks a network
# How far, relative to the largest output, a row's output may depend on the rows beside it. Half
# precision rounds by up to 0.8%.
_SAME_ROW = 0.02


def is_own(model: object) -> TypeGuard[nn.Module]:
    """Returns True for a module that is none of this package's perceptrons."""
    return isinstance(model, nn.Module) and not isinstance(model, Perceptron)


def check_is_own(name: str, model: object) -> None:
    """Raises :class:`UserError` unless it is a module that is none of this package's."""
    if not is_own(model):
        raise UserError(
            f"{name} must be an nn.Module of (x_t, t) of your own, got {type(model).__name__}; the "
            "recipe's hidden_layers make the perceptrons of this package"
        )


def takes_timesteps(model: object, *, labelled: bool = False) -> bool:
    """Returns True for a module of (x_t, t), False for a function of (point and time feature).

    It goes by the number of arguments, each with y besides if ``labelled``.
    """
    if not is_own(model):
        return False
    signature = inspect.signature(model.forward)
    if labelled:
        return _takes(signature, 3)
    return not _takes(signature, 1) and (_takes(signature, 2) or _takes(signature, 3))


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def point_dim(name: str, model: nn.Module) -> int:
    """Returns the dimension d of the points that an own network takes.

    Raises:
        ValueError: the network does not say it.
    """
    dim = getattr(model, "point_dim", None)
    if dim is None:
        raise UserError(
            f"{name} must say the dimension of its points, as a network that a Trainer had does: "
            f"set its attribute point_dim, got a {type(model).__name__} without"
        )
    check_integer(f"{name}.point_dim", dim, 1)
    return int(dim)


def num_classes(model: nn.Module) -> int | None:
    """Returns the number C of classes that an own denoiser is conditioned on; None for others."""
    classes = getattr(model, "num_classes", None)
    if classes is not None:
        check_integer("model.num_classes", classes, 1)
    return classes


def check_own_network(
    name: str,
    model: nn.Module,
    schedule: Schedule,
    dim: int,
    outputs: int | None,
    classes: int | None = None,
    *,
    fractions: bool = False,
) -> int:
    """Runs a copy of a network on a few rows, and checks what comes out.

    The rows have the first, a middle and the last of the timesteps, and of the classes.

    Args:
        name: name of the argument.
        model: the network.
        schedule: the forward process.
        dim: dimension of the points.
        outputs: width of the output; None for any, as of a classifier.
        classes: number of classes of a conditional denoiser; None for a network without y.
        fractions: True if the network is to take timesteps between the whole ones, as float32.

    Returns:
        The width of the output.

    Raises:
        ValueError: the module is no such network; the message says why.
    """
    check_parameters(name, model)
    network = _copied(name, model).eval()
    given = _few_rows(model, schedule, dim, classes, fractions=fractions)
    said = f"x_t float32 [{_ROWS}, {dim}], t {str(given[1].dtype)[6:]} [{_ROWS}]"
    if classes is not None:
        said += f", y int64 [{_ROWS}] from 0 to {classes}"
    out = _output(name, network, given, said, outputs)
    alone = _output(name, network, [each[:1] for each in given], said, outputs)
    if (out[:1] - alone).abs().max() > _SAME_ROW * out.abs().max():
        raise UserError(
            f"{name} must treat the rows of a batch as independent points: the output of a row "
            "depends on the other rows"
        )
    return out.shape[1]


def check_differentiable(
    name: str, model: nn.Module, schedule: Schedule, dim: int, classes: int | None = None
) -> None:
    """Runs a copy of a network with gradients, and checks that it can be copied afterwards.

    Args:
        name, model, schedule, dim, classes: see :func:`check_own_network`, which has passed.

    Raises:
        ValueError: the output has no gradient, or the network keeps a tensor that has one.
    """
    network = _copied(name, model).eval()
    given = _few_rows(model, schedule, dim, classes)
    with torch.enable_grad(), _same_random_state(given[0].device):
        out = network(*given)
    if not out.requires_grad:
        raise UserError(f"{name} must return an output with a gradient, got one without")
    _copied(name, network, "once it has run, ")


def _few_rows(
    model: nn.Module, schedule: Schedule, dim: int, classes: int | None, *, fractions: bool = False
) -> list[Tensor]:
    """Returns x_t, t and perhaps y of the rows that check a network, where its parameters are."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    x = torch.linspace(-1, 1, _ROWS * dim, device=device).view(_ROWS, dim)
    last = schedule.num_steps - 1
    t = torch.tensor([last // 2, 0, last], device=device)
    given = [x, t.float() if fractions else t]
    if classes is not None:
        given.append(torch.tensor([classes // 2, 0, classes], device=device))
    return given


def _same_random_state(device: torch.device) -> AbstractContextManager:
    """Returns a context that leaves PyTorch's random state as it was."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@torch.no_grad()
def _output(
    name: str, network: nn.Module, given: list[Tensor], said: str, outputs: int | None
) -> Tensor:
    """Returns the output [B, outputs] for some rows, as float32."""
    try:
        with _same_random_state(given[0].device):
            out = network(*(each.clone() for each in given))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} must be a network of ({said}), but it failed: {type(error).__name__}: {reason}"
        ) from error
    rows = len(given[0])
    if not isinstance(out, Tensor):
        raise UserError(f"{name} must return a tensor, got {type(out).__name__}")
    if out.dim() != 2 or out.shape[0] != rows or outputs not in (None, out.shape[1]):
        wanted = "C" if outputs is None else outputs
        raise UserError(
            f"{name} must return [{rows}, {wanted}] for {rows} rows, got {list(out.shape)}"
        )
    if not out.is_floating_point():
        raise UserError(f"{name} must return floating-point numbers, got {out.dtype}")
    if not out.isfinite().all():
        raise UserError(f"{name} must return finite numbers, got NaN or infinity for ({said})")
    return out.float()


def check_parameters(name: str, model: nn.Module) -> None:
    """Raises :class:`UserError` unless all parameters are finite, and float32 or fixed."""
    if hasattr(model, "_orig_mod"):
        raise UserError(f"{name} must be the network itself, got what torch.compile made of it")
    for key, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UserError(f"{name} must have parameters of known shape: call it once; got {key}")
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise UserError(
                f"{name} must have float32 parameters, got {parameter.dtype} in {key}; "
                f"{name}.float() makes them so"
            )
    check_weights(name, *(p.detach() for p in model.parameters() if p.is_floating_point()))


def _copied(name: str, model: nn.Module, when: str = "") -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} must be a module that copy.deepcopy copies: {when}{reason}"
        ) from error


def own_copy(name: str, model: nn.Module, device: torch.device) -> nn.Module:
    """Returns a copy of a network on the device, in ``eval()`` mode, its perceptrons fused."""
    network = _copied(name, model).to(device).eval()
    accelerate(network)
    return network


def predictor(
    model: Callable[..., Tensor],
    schedule: Schedule,
    device: torch.device,
    dim: int | None,
    *,
    labelled: bool = False,
) -> Callable[..., Tensor]:
    """Returns a denoiser as a function of (x_t [n, d], timestep, labels int64 [n] if any).

    Args:
        model: a network of this package or a function, of (point and timestep feature [n, d + F],
            labels); or an own network of (x_t, t, y).
        schedule: the forward process.
        device: the device of the points.
        dim: d; None if it is not known.
        labelled: True if it is called with labels.

    Raises:
        ValueError: the model is no network or function, or fails.
    """
    if not takes_timesteps(model, labelled=labelled):
        predict = fused_copy(model, device)
        return lambda x_t, t, *labels: predict(schedule.inputs(x_t, t), *labels)
    assert isinstance(model, nn.Module)
    classes = num_classes(model)
    if labelled and classes is None:
        raise UserError("model must say its number of classes: set its attribute num_classes")
    dim = point_dim("model", model) if dim is None else dim
    check_own_network("model", model, schedule, dim, dim, classes)
    network = own_copy("model", model, device)

    def own(x_t: Tensor, t: int, *labels: Tensor) -> Tensor:
        def full(number: int) -> Tensor:
            return torch.full((len(x_t),), number, device=device)

        without = () if classes is None else (full(classes),)
        return network(x_t, full(t), *(labels or without)).float()

    return own


def describe(model: nn.Module, prediction: str | None, dim: int, classes: int | None) -> None:
    """Sets the attributes by which a network says what it is, where it does not say so itself.

    Args:
        model: the network.
        prediction: what it is trained to predict; None for a classifier.
        dim: dimension of its points.
        classes: number of classes of a conditional denoiser; None for others.

    Raises:
        ValueError: it says something else.
    """
    said = getattr(model, "prediction", None)
    if isinstance(said, str) and prediction not in (None, said):
        raise UserError(
            f"model.prediction must be {prediction}, that of the schedule, got {said!r}; None "
            "trains it to predict something else"
        )
    for name, value in (("point_dim", dim), ("num_classes", classes)):
        here = getattr(model, name, None)
        if here is None and value is not None:
            setattr(model, name, value)
        elif value is not None and here != value:
            raise UserError(f"model.{name} must be {value}, that of the data, got {here!r}")
    if isinstance(getattr(model, "prediction", None), str | None):  # some have a layer of this name
        model.prediction = prediction  # type: ignore[assignment]
