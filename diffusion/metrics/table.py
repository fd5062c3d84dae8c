"""Tables in Markdown, and the words for a metric beside its band of real draws."""

from collections.abc import Iterable, Sequence

from .bands import Score


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns rows of text under a header as a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None, spec: str = ".4f") -> str:
    """Returns a metric as text, ``not defined`` for None."""
    return "not defined" if value is None else format(value, spec)


def beside_band(value: float, low: float, high: float, spec: str = ".4f") -> str:
    """Returns a metric of samples with the band that holds 99% of real draws."""
    return f"{value:{spec}} ({low:{spec}} to {high:{spec}})"


def band_cells(score: Score) -> list[str]:
    """Returns three cells: a metric of samples, the mean and the band of real draws."""
    return [f"{score.value:.4g}", f"{score.real:.4g}", f"{score.low:.4g} to {score.high:.4g}"]
