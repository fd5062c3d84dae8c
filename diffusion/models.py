"""The networks, all multi-layer perceptrons, and their flat form that the kernels take."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..kernels import MLPParameters, MLPShape, Network, accelerate
from .errors import UserError, check_at_least, check_choice
from .schedules import EMBEDDING_DIM, sinusoidal_embedding

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "prelu": nn.PReLU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
CLASS_EMBEDDINGS = ("learned", "sinusoidal")

_Self = TypeVar("_Self", bound="Perceptron")


class Perceptron(nn.Module):
    """What all layouts of a perceptron share: its shape and its flat form."""

    shape: MLPShape
    act: nn.Module

    def linears(self) -> list[nn.Linear]:
        """The linear layers from input to output."""
        return [layer for layer in self.modules() if isinstance(layer, nn.Linear)]

    def network(self) -> Network:
        """A copy of the parameters in the flat form [1, P] that ``flashpoint.kernels`` takes."""
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
        if flat.shape != (self.shape.num_parameters,):
            raise UserError(
                f"flat must be [{self.shape.num_parameters}] for widths {self.shape.widths}, "
                f"got {list(flat.shape)}"
            )
        weights, biases, slope = self.shape.unpack(flat[None])
        assert biases is not None  # every layer here has one
        for layer, weight, bias in zip(self.linears(), weights, biases, strict=True):
            layer.weight.copy_(weight[0])
            layer.bias.copy_(bias[0])
        if slope is not None and isinstance(self.act, nn.PReLU):
            self.act.weight.copy_(slope[0])
        return self


class MLP(Perceptron):
    """Linear layers with one activation, shared by all of them, in between.

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
        widths = (input_dim, *hidden_layers, output_dim)
        self.shape = MLPShape(widths, activation, linear_input=linear_input)
        self.act = ACTIVATIONS[activation]()
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), self.act]
        if linear_input:
            del layers[1]
        self.model = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """y [..., output_dim] of x [..., input_dim]."""
        return self.model(x)


class ConditionalMLP(MLP):
    """An MLP that is told the class of a point, or that it is told none.

    The class enters as further inputs, a row of a fixed table. With the identity as table the
    weights of these inputs are the learned embedding of each class.

    Its ``state_dict`` is that of :class:`MLP` and the table, ``class_features``.

    Args:
        input_dim: width of the input without the class.
        output_dim: width of the output.
        hidden_layers: widths of the hidden layers, possibly none.
        class_features: float [C + 1, E], what the network sees of each class, the last row for
            'unconditional'; see :func:`class_table`.
        activation, linear_input: as of :class:`MLP`.

    Raises:
        ValueError: as of :class:`MLP`, or the table has no class.
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
        """C; it is also the label that means 'unconditional'."""
        return len(self.class_features) - 1

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """y [..., output_dim] of x [..., input_dim] and labels int64 [...]; None for no class."""
        if labels is None:
            labels = torch.full(x.shape[:-1], self.num_classes, device=x.device)
        return self.model(torch.cat((x, self.class_features[labels]), dim=-1))


def class_table(num_classes: int, embedding: str = "learned") -> Tensor:
    """What a network sees of each class and of 'unconditional', float32 [C + 1, E].

    Args:
        num_classes: C.
        embedding: ``learned``, one input for each class, whose weights are the embedding
            (E = C + 1); or ``sinusoidal``, sines and cosines of the label (E = 16).

    Raises:
        ValueError: there is no class, or the embedding is unknown.
    """
    check_at_least("num_classes", num_classes, 1)
    check_choice("class_embedding", embedding, CLASS_EMBEDDINGS)
    if embedding == "learned":
        return torch.eye(num_classes + 1)
    return sinusoidal_embedding(torch.arange(num_classes + 1), EMBEDDING_DIM).float()


class _Block(nn.Module):
    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h).relu()


class BlockMLP(Perceptron):
    """The classic network: a linear layer, ReLU blocks, a linear layer.

    The same function as ``MLP(..., activation="relu", linear_input=True)``, with the ``state_dict``
    of the classic course code: ``inblock.weight``, ``midblocks.0.linear.weight``, ...,
    ``outblock.weight`` and their biases. :meth:`to_mlp` and :meth:`from_mlp` convert.

    Args:
        input_dim: width of the input, the point and its timestep feature together.
        output_dim: width of the output.
        hidden_layers: widths of the input layer and of each block; at least one.

    Raises:
        ValueError: a width is less than 1, or there is none.
    """

    def __init__(self, input_dim: int, output_dim: int, hidden_layers: Sequence[int] = (128,) * 6):
        super().__init__()
        widths = (input_dim, *hidden_layers, output_dim)
        self.shape = MLPShape(widths, "relu", linear_input=True)
        self.act = nn.ReLU()
        self.inblock = nn.Linear(widths[0], widths[1])
        self.midblocks = nn.ModuleList([_Block(*pair) for pair in pairwise(widths[1:-1])])
        self.outblock = nn.Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        """y [..., output_dim] of x [..., input_dim]."""
        h = self.inblock(x)
        for block in self.midblocks:
            h = block(h)
        return self.outblock(h)

    def to_mlp(self) -> MLP:
        """A copy in the other layout."""
        dim, *hidden, out = self.shape.widths
        model = MLP(dim, out, hidden, activation="relu", linear_input=True)
        return model.load_flat(self.network().parameters[0])

    @classmethod
    def from_mlp(cls, model: MLP) -> "BlockMLP":
        """A copy of an MLP with ReLU and a linear input in this layout.

        Raises:
            ValueError: the MLP is another function.
        """
        if not (model.shape.activation == "relu" and model.shape.linear_input):
            raise UserError("model must have ReLU and a linear input to be written in blocks")
        dim, *hidden, out = model.shape.widths
        return cls(dim, out, hidden).load_flat(model.network().parameters[0])


def new_mlp(shape: MLPShape, class_features: Tensor | None = None) -> MLP:
    """An MLP of that shape; a :class:`ConditionalMLP` if there are class features [C + 1, E].

    The first of the shape's widths counts the class features.
    """
    dim, *hidden, out = shape.widths
    options: Any = {"activation": shape.activation, "linear_input": shape.linear_input}
    if class_features is None:
        return MLP(dim, out, hidden, **options)
    dim -= class_features.shape[1]
    return ConditionalMLP(dim, out, hidden, class_features=class_features, **options)


def seeded_mlp(shape: MLPShape, seed: int, class_features: Tensor | None = None) -> MLP:
    """:func:`new_mlp`, initialised as PyTorch does, from a seed.

    The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_mlp(shape, class_features)


def mlp_of_state(state: dict[str, Tensor], activation: str | None = None) -> MLP | BlockMLP:
    """The network that a ``state_dict`` belongs to, with its weights.

    Args:
        state: of an :class:`MLP`, a :class:`ConditionalMLP` or a :class:`BlockMLP`.
        activation: which one, where the weights do not tell; None is PReLU where there is a slope
            and ReLU otherwise.

    Raises:
        ValueError: there are no weights, or they are of another architecture.
    """
    weights = [x for key, x in state.items() if key.endswith("weight") and x.dim() == 2]
    if not weights:
        raise UserError("no state_dict of an MLP")
    dim, *hidden = (weight.shape[1] for weight in weights)
    out, table = len(weights[-1]), state.get("class_features")
    model: MLP | BlockMLP
    if "inblock.weight" in state:
        model = BlockMLP(dim, out, hidden)
    else:
        activation = activation or ("prelu" if "act.weight" in state else "relu")
        second = state.get("model.1.weight")  # of a layer, or PReLU's slope
        linear_input = second is not None and second.dim() == 2
        shape = MLPShape((dim, *hidden, out), activation, linear_input=linear_input)
        model = new_mlp(shape, table)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"another architecture: {' '.join(str(error).split())}") from error
    return model


def fused_copy(model: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    """A copy of a network on the device whose layers run fused; other functions as they are."""
    if not isinstance(model, nn.Module):
        return model
    model = copy.deepcopy(model).to(device)
    accelerate(model)
    return model
