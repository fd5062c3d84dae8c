"""The whole reverse process in one launch, in the form that fits; same contract as :mod:`.kernel`.

The form for Hopper GPUs is imported where it runs, and only there.
"""

from torch import Tensor

from .._dispatch import capability_of
from ..forms import chosen_form
from ..mlp.chunks import gap_of_chain
from ..mlp.config import chain_config_for
from ..mlp.layout import layout_of
from . import kernel
from .reference import Condition, Guide, Network


def sample_chain(
    denoiser: Network,
    x: Tensor,
    table: Tensor,
    time_features: Tensor,
    seed: Tensor,
    guide: Guide | None,
    condition: Condition | None,
    first_row: int,
    keep_every: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """Returns samples [M, B, d] and the trajectory [K, M, B, d] of chains from x_T [M, B, d]."""
    launch = kernel.sample_chain
    if _form(denoiser, x, guide, condition, precision) == "hopper":
        from . import hopper

        launch = hopper.sample_chain
    return launch(
        denoiser, x, table, time_features, seed, guide, condition, first_row, keep_every, precision
    )


def _form(
    denoiser: Network,
    x: Tensor,
    guide: Guide | None,
    condition: Condition | None,
    precision: str,
) -> str:
    """Returns the name of the form of a chain."""
    models, rows, dim = x.shape
    capability = capability_of(x.device)
    config = chain_config_for(
        precision, capability, rows, models,
        guided=guide is not None, classifier_free=condition is not None and condition.free,
    )  # fmt: skip

    def gap() -> str | None:
        judge = None if guide is None else layout_of(guide.classifier.shape, precision)
        return gap_of_chain(layout_of(denoiser.shape, precision), judge, dim, config)

    return chosen_form("a sampling chain", config, capability, gap)
