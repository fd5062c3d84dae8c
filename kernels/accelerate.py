"""Speeding up the perceptrons inside someone else's model, in place."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from ._layers import has_hooks, read_layers, run_layers


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs fused on a GPU whenever its layers are a perceptron."""

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out] of x [..., in]."""
        return run_layers(self, x)


@dataclass
class Acceleration:
    """What :func:`accelerate` did, by the modules' qualified names.

    Attributes:
        accelerated: modules that now run fused.
        skipped: modules that were left alone, and why.
    """

    accelerated: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or '(model)'}: fused" for name in self.accelerated]
        lines += [f"{name or '(model)'}: left alone, {why}" for name, why in self.skipped.items()]
        return "\n".join(lines) or "no perceptron found"


def accelerate(
    model: nn.Module,
    filter: Callable[[str, nn.Module], bool] | None = None,
    strict: bool = False,
) -> Acceleration:
    """Runs every perceptron inside a model fused, in place.

    A perceptron is an ``nn.Sequential`` of two or more Linear layers with one kind of activation
    between them. It keeps its layers, Parameters, ``state_dict``, hooks to come, mode and device;
    only its class changes, to a subclass of ``nn.Sequential`` that calls one operator. Should its
    layers later change so that they cannot be fused, they run one by one again; so they do where x
    is not on a GPU, because that is fastest there. Matrix products have the precision that PyTorch
    itself would use: autocast's, else ``torch.get_float32_matmul_precision()``. ``torch.compile``
    and ``torch.export`` take the subclass, ``torch.jit.script`` does not.

    Args:
        model: any module.
        filter: called with the qualified name and the module of each candidate, an
            ``nn.Sequential`` with a Linear layer; those for which it is false are left alone
            and not reported.
        strict: raise unless every candidate was fused, and there was at least one.

    Returns:
        which modules run fused and which do not, with the reason.

    Raises:
        ValueError: with ``strict``; no module has been changed then.
    """
    report, chosen = Acceleration(), []
    for name, module in model.named_modules():
        if not _is_candidate(module) or not (filter is None or filter(name, module)):
            continue
        reason = _why_not(module)
        if reason is None:
            report.accelerated.append(name)
            chosen.append(module)
        else:
            report.skipped[name] = reason
    if strict and (report.skipped or not chosen):
        raise ValueError(
            "model must have only perceptrons that can be fused, and at least one: "
            + str(report).replace("\n", "; ")
        )
    for module in chosen:
        module.__class__ = FusedSequential
    return report


def _is_candidate(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and any(
        isinstance(layer, nn.Linear) for layer in module
    )


def _why_not(module: nn.Sequential) -> str | None:
    if type(module) not in (nn.Sequential, FusedSequential):
        return f"{type(module).__name__} is a class of its own"
    if has_hooks(module):
        return "it has hooks"
    if "forward" in module.__dict__:
        return "it has a forward of its own"
    network = read_layers(module)
    if isinstance(network, str):
        return network
    return "there is no hidden layer" if len(network.weights) == 1 else None
