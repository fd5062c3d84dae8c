"""The networks, all multi-layer perceptrons, and the flat form that the kernels take."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..kernels import MLPParameters, MLPShape, Network, accelerate
from ..kernels.default_state import in_default_state
from ..kernels.modules import ACTIVATION_MODULES as ACTIVATIONS
from ..kernels.modules import perceptron_layers
from .choices import CLASS_EMBEDDINGS
from .errors import UserError, check_choice, check_integer, shown
from .schedules import EMBEDDING_DIM, Schedule, sinusoidal_embedding

_Self = TypeVar("_Self", bound="Perceptron")


class Perceptron(nn.Module):
    """Base class of all layouts of a perceptron, with its shape and its flat form.

    Attributes:
        shape: widths and activation.
        prediction: what a trained denoiser predicts, as in
            :class:`~flashpoint.diffusion.Schedule`; None where nobody said it, and of classifiers.
            It is no part of the ``state_dict``.
    """

    shape: MLPShape
    act: nn.Module
    prediction: str | None = None

    def linears(self) -> list[nn.Linear]:
        """Returns the linear layers from input to output."""
        return [layer for layer in self.modules() if isinstance(layer, nn.Linear)]

    def network(self) -> Network:
        """Returns a copy of the parameters in the flat form [1, P] of ``flashpoint.kernels``."""
        slope = self.act.weight.detach()[None] if isinstance(self.act, nn.PReLU) else None
        parameters = MLPParameters(
            tuple(layer.weight.detach()[None] for layer in self.linears()),
            tuple(layer.bias.detach()[None] for layer in self.linears()),
            slope,
        )
        return Network(self.shape.pack(parameters), self.shape)

    @torch.no_grad()
    def load_flat(self: _Self, flat: Tensor) -> _Self:
        """Copies flat parameters [P] into this module; returns the module."""
        if not isinstance(flat, Tensor) or flat.shape != (self.shape.num_parameters,):
            given = list(flat.shape) if isinstance(flat, Tensor) else type(flat).__name__
            raise UserError(
                f"flat must be a tensor [{self.shape.num_parameters}] for widths "
                f"{self.shape.widths}, got {given}"
            )
        weights, biases, slope = self.shape.unpack(flat[None])
        assert biases is not None  # every layer here has one
        for layer, weight, bias in zip(self.linears(), weights, biases, strict=True):
            layer.weight.copy_(weight[0])
            layer.bias.copy_(bias[0])
        if slope is not None and isinstance(self.act, nn.PReLU):
            self.act.weight.copy_(slope[0])
        return self


def layer_widths(input_dim: int, output_dim: int, hidden_layers: Sequence[int]) -> tuple[int, ...]:
    """Returns the widths of a perceptron's layers from input to output.

    Raises:
        ValueError: a width is no integer or less than 1, or the hidden layers are no sequence.
    """
    try:
        hidden = tuple(hidden_layers)
    except TypeError:
        raise UserError(f"hidden_layers must be widths, got {shown(hidden_layers)}") from None
    check_integer("input_dim", input_dim, 1)
    check_integer("output_dim", output_dim, 1)
    for width in hidden:
        check_integer("hidden_layers", width, 1)
    return tuple(map(int, (input_dim, *hidden, output_dim)))


class MLP(Perceptron):
    """A multi-layer perceptron whose layers share one activation.

    With PReLU, whose slope is shared too, the ``state_dict`` has the keys ``act.weight``,
    ``model.0.weight``, ``model.0.bias``, ``model.1.weight`` (the slope again), ``model.2.weight``
    and so on. Other activations have no weights.

    Args:
        input_dim: width of the input, the point and its timestep feature together.
        output_dim: width of the output.
        hidden_layers: widths of the hidden layers, possibly none.
        activation: one of :data:`ACTIVATIONS`.
        linear_input: no activation after the first layer.

    Raises:
        ValueError: a width is less than 1, the activation is unknown, or a linear input does not
            go with it.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_layers: Sequence[int] = (),
        *,
        activation: str = "prelu",
        linear_input: bool = False,
    ):
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        widths = layer_widths(input_dim, output_dim, hidden_layers)
        self.shape = MLPShape(widths, activation, linear_input=linear_input)
        self.act = ACTIVATIONS[activation]()
        self.model = perceptron_layers(widths, self.act, linear_input=linear_input)

    def forward(self, x: Tensor) -> Tensor:
        """Returns y [..., output_dim] for x [..., input_dim]."""
        return self.model(x)


class ConditionalMLP(MLP):
    """An MLP that takes the class of a point as an input, or no class.

    The class enters as further inputs, a row of a fixed table. With the identity as the table, the
    weights of these inputs are the learned embedding of each class.

    Its ``state_dict`` is that of :class:`MLP` and the table, ``class_features``.

    Args:
        input_dim: width of the input without the class.
        output_dim: width of the output.
        hidden_layers: widths of the hidden layers, possibly none.
        class_features: inputs that stand for each class, float [C + 1, E]; the last row stands for
            no class. See :func:`class_table`.
        activation, linear_input: see :class:`MLP`.

    Raises:
        ValueError: see :class:`MLP`, or the table has no class.
    """

    class_features: Tensor

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        hidden_layers: Sequence[int] = (),
        *,
        class_features: Tensor,
        activation: str = "prelu",
        linear_input: bool = False,
    ):
        if class_features.dim() != 2 or len(class_features) < 2:
            raise UserError(
                "class_features must be [C + 1, E] with at least one class, "
                f"got {list(class_features.shape)}"
            )
        super().__init__(
            input_dim + class_features.shape[1],
            output_dim,
            hidden_layers,
            activation=activation,
            linear_input=linear_input,
        )
        self.register_buffer("class_features", class_features.float())

    @property
    def num_classes(self) -> int:
        """Number of classes C; it is also the label that stands for no class."""
        return len(self.class_features) - 1

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns y [..., output_dim] for x [..., input_dim] and, if given, labels int64 [...]."""
        if labels is None:
            labels = torch.full(x.shape[:-1], self.num_classes, device=x.device)
        return self.model(torch.cat((x, self.class_features[labels]), dim=-1))


@in_default_state
def class_table(num_classes: int, embedding: str = "learned") -> Tensor:
    """Returns the inputs that stand for each class, and in the last row for none: [C + 1, E].

    Args:
        num_classes: C.
        embedding: ``learned`` is one input for each class, whose weights are the embedding
            (E = C + 1); ``sinusoidal`` is sines and cosines of the label (E = 16).

    Raises:
        ValueError: there is no class, or the embedding is unknown.
    """
    check_integer("num_classes", num_classes, 1)
    check_choice("class_embedding", embedding, CLASS_EMBEDDINGS)
    if embedding == "learned":
        return torch.eye(num_classes + 1)
    return sinusoidal_embedding(torch.arange(num_classes + 1), EMBEDDING_DIM).float()


@in_default_state
@torch.random.fork_rng(devices=[])
def new_mlp(shape: MLPShape, class_features: Tensor | None = None) -> MLP:
    """Returns an MLP of a shape; a :class:`ConditionalMLP` if there are class features [C + 1, E].

    The first of the shape's widths counts the class features. The global random state stays as it
    was.
    """
    dim, *hidden, out = shape.widths
    options: Any = {"activation": shape.activation, "linear_input": shape.linear_input}
    if class_features is None:
        return MLP(dim, out, hidden, **options)
    dim -= class_features.shape[1]
    return ConditionalMLP(dim, out, hidden, class_features=class_features, **options)


@in_default_state
def seeded_mlp(shape: MLPShape, seed: int, class_features: Tensor | None = None) -> MLP:
    """Returns :func:`new_mlp` with PyTorch's initialisation, drawn from a seed.

    The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds those of GPUs, too
        return new_mlp(shape, class_features)


def check_weights(name: str, *weights: Tensor) -> None:
    """Raises :class:`UserError` if weights of a network, [...] each, are not finite."""
    bad = sum(int((~each.isfinite()).sum()) for each in weights)
    if bad:
        total = sum(each.numel() for each in weights)
        raise UserError(
            f"{name} must have finite weights, got NaN or infinity in {bad} of {total}; "
            "did its training diverge?"
        )


def check_prediction(model: object, schedule: Schedule) -> None:
    """Raises :class:`UserError` if a model was trained to predict another thing than is assumed.

    A model that does not say what it predicts, as most functions, predicts what the schedule says.
    """
    trained, assumed = getattr(model, "prediction", None), schedule.prediction
    if isinstance(trained, str) and trained != assumed:
        raise UserError(
            f"schedule must be that of a model that predicts {trained}, got one for {assumed}: "
            f'take schedule.predicting("{trained}")'
        )


def fused_copy(model: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """Returns a float32 copy of a network on the device whose layers run fused.

    Any function is returned as it is.

    Raises:
        ValueError: it is no function, or some of the weights are not finite.
    """
    if not callable(model):
        raise UserError(f"model must be a network or a function, got {type(model).__name__}")
    if not isinstance(model, nn.Module):
        return model
    check_weights("model", *model.parameters())
    model = copy.deepcopy(model).to(device, torch.float32)
    accelerate(model)
    return model
