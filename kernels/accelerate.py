"""Makes the perceptrons inside any model run fused, in place."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

from torch import Tensor, nn

from ._blocks import block_of, expression_of
from ._kinds import checked
from ._perceptrons import run_layers, run_parts
from ._reading import (
    Layers,
    Part,
    children_of,
    described,
    has_hooks,
    never_fused,
    not_yet_fused,
    read_children,
    runs_of,
    when_fused,
)


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs fused on a GPU whenever its layers can be.

    Attributes:
        fused_parts: start and stop of the layers that run fused, where others stay as they are;
            None if all do.
    """

    fused_parts: list[Part] | None = None

    def forward(self, input: Tensor) -> Tensor:  # the name of nn.Sequential's own argument
        """Returns y [..., out] of an input [..., in]."""
        if self.fused_parts is None:
            return run_layers(self, input)
        return run_parts(self, self.fused_parts, input)


@dataclass
class Acceleration:
    """The report of :func:`accelerate`; modules have their qualified names.

    Attributes:
        accelerated: modules that from now on run fused on a GPU, wholly or in part.
        skipped: modules that were left alone, with the reason.
        when: accelerated modules that run fused only in some settings, with these settings.
        waiting: modules that will run fused once their parameters have another dtype or lie on
            another GPU, with the reason; until then their layers run one by one.
        elsewhere: accelerated modules whose parameters are not on a GPU, with the device; their
            layers run there one by one.
        networks: accelerated and waiting modules, with the widths, the activation and the number
            of residual blocks of what runs fused.
        partly: those of which only some layers run fused: which, and why the others do not.
        outside: modules with Linear layers that are in no candidate, with the reason why nothing
            is fused there.
    """

    accelerated: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    when: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    partly: dict[str, str] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [self._line(name, self._way(name)) for name in self.accelerated]
        lines += [self._line(name, f"not yet fused, {why}") for name, why in self.waiting.items()]
        lines += [self._line(name, f"left alone, {why}") for name, why in self.skipped.items()]
        lines = lines or ["no perceptron found"]
        lines += [self._line(name, f"not fused, {why}") for name, why in self.outside.items()]
        return "\n".join(lines)

    def _line(self, name: str, what: str) -> str:
        network = f" [{self.networks[name]}]" if name in self.networks else ""
        part = f"; {self.partly[name]}" if name in self.partly else ""
        return f"{name or '(model)'}{network}: {what}{part}"

    def _way(self, name: str) -> str:
        """Returns how an accelerated module runs."""
        fused = f"fused {self.when.get(name, '')}".rstrip()
        device = self.elsewhere.get(name)
        return fused if device is None else f"layer by layer on {device}, {fused}"

    def _add(self, name: str, networks: list[Layers]) -> None:
        """Adds a module whose layers form networks."""
        self.networks[name] = "; ".join(map(described, networks))
        gap = next(filter(None, map(not_yet_fused, networks)), None)
        if gap is not None:
            self.waiting[name] = gap
            return
        self.accelerated.append(name)
        weight = networks[0].weights[0]
        if not weight.is_cuda:
            self.elsewhere[name] = weight.device.type
        when = when_fused(networks[0])
        if when is not None:
            self.when[name] = when


@checked
def accelerate(
    model: nn.Module,
    filter: Callable[[str, nn.Module], bool] | None = None,
    strict: bool = False,
) -> Acceleration:
    """Makes every perceptron inside a model run fused, in place.

    A perceptron is an ``nn.Sequential`` of two or more Linear layers with one kind of activation
    between them and no hidden layer wider than the kernels cover. Residual blocks may stand in the
    place of all hidden layers but the first: modules of any class whose ``forward`` computes
    x + act(linear(x)). Where such layers are only a part of an ``nn.Sequential``, beside a
    LayerNorm, say, that part runs fused and the rest as it is.

    The module keeps its layers, Parameters, ``state_dict``, mode, device and the ability to take
    hooks; only its class changes, to a subclass of ``nn.Sequential`` that calls the kernels, in
    compiled code through one operator. Matrix products have the precision that PyTorch itself would
    use: autocast's, else ``torch.get_float32_matmul_precision()``.

    The layers run one by one, as before,

    * if they were changed so that they cannot be fused;
    * if x is not on a GPU, where the layers are fastest;
    * in float32 at full precision, and in tf32 unless under ``torch.no_grad()``, because PyTorch's
      own products are faster there;
    * for dtypes and GPUs that the kernels do not cover, and for subclasses of ``Tensor``;
    * under ``torch.func`` transforms, forward-mode differentiation, ``torch.jit.trace``,
      ``torch.fx.symbolic_trace`` and ``torch.export``, which must see PyTorch's operations.

    ``torch.compile`` takes the operator; ``torch.jit.script`` does not take the subclass, but the
    model after :func:`decelerate`.

    Args:
        model: any module.
        filter: function of the qualified name and the module of each candidate, an
            ``nn.Sequential`` with a Linear layer. Candidates for which it returns False are left
            alone and not reported; nor are Linear layers outside candidates.
        strict: True to raise unless every candidate can run fused as a whole, and there is at least
            one.

    Returns:
        The modules that run fused and those that do not, with the reason.

    Raises:
        TypeError: the model is no module, or the filter no function.
        ValueError: ``strict`` is True and a candidate cannot run fused as a whole, or there is
            none; the model is unchanged.
    """
    report = Acceleration()
    chosen: list[tuple[nn.Module, list[Part] | None]] = []
    for name, module in model.named_modules():
        if not _is_candidate(module) or not (filter is None or filter(name, module)):
            continue
        found = _parts_of(module)
        if isinstance(found, str):
            report.skipped[name] = found
            continue
        parts, why = found
        chosen.append((module, None if why is None else parts))
        if why is not None:
            report.partly[name] = f"{_numbers(parts)} only, because {why}"
        networks = (_network(module, part) for part in parts)
        report._add(name, [each for each in networks if not isinstance(each, str)])
    if strict and (report.skipped or report.waiting or report.partly or not chosen):
        raise ValueError(
            "model must have only perceptrons that can be fused, and at least one: "
            + str(report).replace("\n", "; ")
        )
    if filter is None:
        report.outside = _outside(model)
    for module, fused_parts in chosen:
        module.__class__ = FusedSequential
        module.__dict__.pop("fused_parts", None)
        if fused_parts is not None:
            module.__dict__["fused_parts"] = fused_parts
    return report


@checked
def decelerate(model: nn.Module) -> list[str]:
    """Undoes :func:`accelerate`: every perceptron inside a model runs layer by layer again.

    Modules, Parameters and hooks stay the objects that they are.

    Args:
        model: any module.

    Returns:
        The qualified names of the modules that were accelerated.

    Raises:
        TypeError: the model is no module.
    """
    names = [name for name, module in model.named_modules() if type(module) is FusedSequential]
    for name in names:
        module = model.get_submodule(name)
        module.__class__ = nn.Sequential
        module.__dict__.pop("fused_parts", None)
    return names


def _is_candidate(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(module, nn.Sequential) and any(
        isinstance(layer, nn.Linear) for layer in module
    )


def _parts_of(module: nn.Sequential) -> tuple[list[Part], str | None] | str:
    """Returns the parts of a module that can run fused, and why the others cannot.

    The latter is None if the module is a perceptron. The reason alone is returned if no part is.
    """
    if type(module) not in (nn.Sequential, FusedSequential):
        return f"{type(module).__name__} is a class of its own"
    if has_hooks(module):
        return "it has hooks"
    if "forward" in module.__dict__:
        return "it has a forward of its own"
    network = _network(module, None)
    why: str | None
    if isinstance(network, str):
        why = network
    elif len(network.weights) == 1:
        return "there is no hidden layer"
    else:
        why = never_fused(network)
    children = children_of(module, None)
    parts = [(0, len(children))] if why is None else runs_of(children)
    return (parts, why) if parts else str(why)


def _network(module: nn.Sequential, part: Part | None) -> Layers | str:
    return read_children(children_of(module, part))


def _numbers(parts: list[Part]) -> str:
    """Returns the positions of the layers of parts, in words."""
    return "layers " + " and ".join(f"{start} to {stop - 1}" for start, stop in parts)


def _outside(model: nn.Module) -> dict[str, str]:
    """Returns the modules with Linear layers that are in no candidate, and what they are."""
    inside = {id(child) for module in model.modules() if _is_candidate(module) for child in module}
    found = {}
    for name, module in model.named_modules():
        linears = [each for each, child in module.named_children() if type(child) is nn.Linear]
        if linears and not _is_candidate(module) and id(module) not in inside:
            found[name] = _what(module, linears)
    return found


def _what(module: nn.Module, linears: list[str]) -> str:
    """Returns why the Linear layers of a module, whose names are given, do not run fused."""
    kind = type(module)
    if block_of(kind) is not None:
        return "a residual block that is not in an nn.Sequential between Linear layers"
    if len(linears) == 1:
        return f"one Linear layer alone ({linears[0]})"
    names = f"the Linear layers {', '.join(linears)}"
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return f"{names} are called one by one: only an nn.Sequential is read"
    expression = expression_of(kind)
    if expression is not None:
        return f"it computes {expression}: of residual blocks only x + act(linear(x)) is covered"
    return f"{names} are called by {kind.__name__}.forward, which is not read"
