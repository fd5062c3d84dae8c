"""Makes the perceptrons inside any model run fused, in place."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from ._kinds import checked
from ._perceptrons import (
    Layers,
    has_hooks,
    never_fused,
    not_yet_fused,
    read_layers,
    run_layers,
    when_fused,
)


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs fused on a GPU whenever its layers can be."""

    def forward(self, input: Tensor) -> Tensor:  # the name of nn.Sequential's own argument
        """Returns y [..., out] of an input [..., in]."""
        return run_layers(self, input)


@dataclass
class Acceleration:
    """The report of :func:`accelerate`; modules have their qualified names.

    Attributes:
        accelerated: modules that from now on run fused on a GPU.
        skipped: modules that were left alone, with the reason.
        when: accelerated modules that run fused only in some settings, with these settings.
        waiting: modules that will run fused once their parameters have another dtype or lie on
            another GPU, with the reason; until then their layers run one by one.
        elsewhere: accelerated modules whose parameters are not on a GPU, with the device; their
            layers run there one by one.
    """

    accelerated: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    when: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or '(model)'}: {self._way(name)}" for name in self.accelerated]
        lines += [
            f"{name or '(model)'}: not yet fused, {why}" for name, why in self.waiting.items()
        ]
        lines += [f"{name or '(model)'}: left alone, {why}" for name, why in self.skipped.items()]
        return "\n".join(lines) or "no perceptron found"

    def _way(self, name: str) -> str:
        """Returns how an accelerated module runs."""
        fused = f"fused {self.when.get(name, '')}".rstrip()
        device = self.elsewhere.get(name)
        return fused if device is None else f"layer by layer on {device}, {fused}"


@checked
def accelerate(
    model: nn.Module,
    filter: Callable[[str, nn.Module], bool] | None = None,
    strict: bool = False,
) -> Acceleration:
    """Makes every perceptron inside a model run fused, in place.

    A perceptron is an ``nn.Sequential`` of two or more Linear layers with one kind of activation
    between them and no hidden layer wider than the kernels cover. It keeps its layers, Parameters,
    ``state_dict``, mode, device and the ability to take hooks; only its class changes, to a
    subclass of ``nn.Sequential`` that calls the kernels, in compiled code through one operator.
    Matrix products have the precision that PyTorch itself would use: autocast's, else
    ``torch.get_float32_matmul_precision()``.

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
            alone and not reported.
        strict: True to raise unless every candidate can run fused, and there is at least one.

    Returns:
        The modules that run fused and those that do not, with the reason.

    Raises:
        TypeError: the model is no module, or the filter no function.
        ValueError: ``strict`` is True and a candidate cannot run fused, or there is none; the model
            is unchanged.
    """
    report, chosen = Acceleration(), []
    for name, module in model.named_modules():
        if not _is_candidate(module) or not (filter is None or filter(name, module)):
            continue
        network = _read(module)
        if isinstance(network, str):
            report.skipped[name] = network
            continue
        chosen.append(module)
        gap = not_yet_fused(network)
        if gap is None:
            report.accelerated.append(name)
            if not network.weights[0].is_cuda:
                report.elsewhere[name] = network.weights[0].device.type
            when = when_fused(network)
            if when is not None:
                report.when[name] = when
        else:
            report.waiting[name] = gap
    if strict and (report.skipped or report.waiting or not chosen):
        raise ValueError(
            "model must have only perceptrons that can be fused, and at least one: "
            + str(report).replace("\n", "; ")
        )
    for module in chosen:
        module.__class__ = FusedSequential
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
        model.get_submodule(name).__class__ = nn.Sequential
    return names


def _is_candidate(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and any(
        isinstance(layer, nn.Linear) for layer in module
    )


def _read(module: nn.Sequential) -> Layers | str:
    """Returns the perceptron that a module is, or the reason to leave it alone."""
    if type(module) not in (nn.Sequential, FusedSequential):
        return f"{type(module).__name__} is a class of its own"
    if has_hooks(module):
        return "it has hooks"
    if "forward" in module.__dict__:
        return "it has a forward of its own"
    network = read_layers(module)
    if isinstance(network, str):
        return network
    if len(network.weights) == 1:
        return "there is no hidden layer"
    return never_fused(network) or network
