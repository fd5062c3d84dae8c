"""The whole reverse process in one launch, in the form that fits; same contract as :mod:`.kernel`.

The form for Hopper GPUs is imported where it runs, and only there.
"""

from torch import Tensor

from .._dispatch import capability_of, log_once
from ..forms import Form, form_of
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
    if _form(denoiser, x, guide, condition, precision).name == "hopper":
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
) -> Form:
    """Returns the form of a chain; logs once if the table names another one."""
    models, rows, dim = x.shape
    capability = capability_of(x.device)
    config = chain_config_for(
        precision, capability, rows, models,
        guided=guide is not None, classifier_free=condition is not None and condition.free,
    )  # fmt: skip
    gap = None
    if config.form == "hopper":
        judge = None if guide is None else layout_of(guide.classifier.shape, precision)
        gap = gap_of_chain(layout_of(denoiser.shape, precision), judge, dim, config)
    form = form_of(config, capability, gap)
    if form.name != config.form:
        log_once(f"a sampling chain in the {form.name} form instead of the Hopper form: {form.why}")
    return form
