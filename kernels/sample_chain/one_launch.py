"""The whole reverse process in one launch, in the form that fits; same contract as :mod:`.kernel`.

The form for Hopper GPUs is imported where it runs, and only there.
"""

from torch import Tensor

from .._dispatch import capability_of, log_once
from ..forms import Form, form_of
from ..mlp.chunks import chunks_of, gap_of_chunks, gap_of_guide, guide_chunks_of, ring_of
from ..mlp.config import Config, chain_config_for
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
    form = form_of(config, capability, _gap(denoiser, guide, dim, config, precision))
    if form.name != config.form:
        log_once(f"a sampling chain in the {form.name} form instead of the Hopper form: {form.why}")
    return form


def _gap(
    denoiser: Network, guide: Guide | None, dim: int, config: Config, precision: str
) -> str | None:
    """Returns why the Hopper form does not cover the networks of a chain, or None."""
    net = layout_of(denoiser.shape, precision)
    judge = None if guide is None else layout_of(guide.classifier.shape, precision)
    gap = gap_of_chunks(net, dim) or (judge and gap_of_guide(judge, dim))
    if gap is not None:
        return gap
    chunks = chunks_of(net, dim, guided=judge is not None)
    if ring_of(config, chunks, judge and guide_chunks_of(judge, dim)) < min(2, chunks.chunks):
        return "networks that leave no room for a ring of weights"
    return None
