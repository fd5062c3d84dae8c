"""Studies and their grids: data sets in rows, variants of a model in columns."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..schedules import Schedule, given_schedule
from ..training import PlainRecipe, Recipe
from .protocols import WHOLE, Protocol
from .published import Row

OUR_BEST = "our best"  # start of the labels of columns with the project's own recipe
CLASSIC_WIDTHS = (128,) * 6  # an input layer without activation and five blocks with ReLU


@dataclass(frozen=True)
class Variant:
    """One way to train a model and to sample from it.

    Args:
        schedule: the forward process, and what the network predicts; the recipe leaves it open.
        recipe: recipe of the training.
        epochs: passes over the data, which decide the number of steps; None keeps the number of
            the recipe.
        variance: variance of the reverse steps, see :func:`flashpoint.diffusion.reverse_table`.
        guidance: scale w of classifier-free guidance, for a conditional model.
        temperature: temperature of the choice among 10 candidates by their reward, the
            log-probability of the class (SVDD-PM, :func:`flashpoint.diffusion.sample_with_reward`);
            None samples without a reward.
        posterior_draws: number of clean points behind the value of a candidate; 0 takes x0_hat
            alone.
    """

    schedule: Schedule
    recipe: Recipe
    epochs: int | None = None
    variance: str = "posterior"
    guidance: float | None = None
    temperature: float | None = None
    posterior_draws: int = 0

    def recipe_for(self, n_points: int) -> Recipe:
        """Returns the recipe with its number of steps for a data set of ``n_points`` points."""
        if self.epochs is None:
            return self.recipe
        steps_per_epoch = -(-n_points // self.recipe.batch_size)
        return replace(self.recipe, steps=self.epochs * steps_per_epoch)

    def shortened(self, factor: int) -> "Variant":
        """Returns the same variant with the training cut to 1/factor."""
        if self.epochs is None:
            return replace(self, recipe=replace(self.recipe, steps=self.recipe.steps // factor))
        return replace(self, epochs=max(1, self.epochs // factor))

    @property
    def model(self) -> "Variant":
        """The part that decides the training: variants that share it share a trained model."""
        return replace(
            self, variance="posterior", guidance=None, temperature=None, posterior_draws=0
        )


def classic(
    T: int,
    beta: tuple[float, float] = (1e-4, 0.02),
    schedule: str = "linear",
    *,
    epochs: int = 100,
    batch_size: int = 64,
    hidden_layers: tuple[int, ...] = CLASSIC_WIDTHS,
    linear_input: bool = True,
    p_uncond: float | None = None,
) -> Variant:
    """Returns the published setting, with sigma_t^2 = beta_t in the reverse steps.

    Args:
        T: number of timesteps.
        beta: first and last beta.
        schedule: name of the schedule.
        epochs: passes over the data.
        batch_size: rows of a batch.
        hidden_layers: widths of the hidden layers.
        linear_input: leaves out the activation after the first layer.
        p_uncond: probability of withholding the class; None for a model without classes.
    """
    recipe = PlainRecipe(
        hidden_layers=hidden_layers,
        activation="relu",
        linear_input=linear_input,
        batch_size=batch_size,
        p_uncond=p_uncond,
    )
    forward = given_schedule(
        T, schedule, *(() if schedule == "cosine" else beta), time_feature="sinusoidal"
    )
    return Variant(forward, recipe, epochs, "beta")


class Model(NamedTuple):
    """A model to be trained, which several cells may share."""

    data: str
    standardise: bool
    variant: Variant


@dataclass(frozen=True)
class Cell:
    """A data set and a variant, with the protocol that measures their samples."""

    data: str
    column: str
    variant: Variant
    protocol: Protocol

    @property
    def model(self) -> Model:
        """The model that the cell needs."""
        return Model(self.data, self.protocol.standardise, self.variant.model)


@dataclass(frozen=True)
class Grid:
    """One table of a study.

    Args:
        title: title of the table.
        rows: names of data sets.
        columns: variants by label.
        protocol: protocol that measures the cells.
        published: published numbers by metric and data set, in the order of the columns.
    """

    title: str
    rows: tuple[str, ...]
    columns: dict[str, Variant]
    protocol: Protocol = WHOLE
    published: dict[str, dict[str, Row]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Returns all cells, row by row."""
        return [
            Cell(data, column, variant, self.protocol)
            for data in self.rows
            for column, variant in self.columns.items()
        ]

    def published_at(self, metric: str, data: str, column: str) -> float | None:
        """Returns the published number of a cell, or None if nobody published one."""
        row = self.published.get(metric, {}).get(data, ())
        return dict(zip(self.columns, row, strict=False)).get(column)


@dataclass(frozen=True)
class Study:
    """A question, and the grids of models that answer it.

    Args:
        name: name on the command line.
        title: heading of the study.
        varied: quantity that differs between the columns, as a label of axes.
        grids: its tables.
        quick_rows, quick_columns: rows and columns of its quick form.
        quick_factor: factor by which the quick form shortens the training.
        shown: the metric in its figure.
    """

    name: str
    title: str
    varied: str
    grids: tuple[Grid, ...]
    quick_rows: tuple[str, ...]
    quick_columns: tuple[str, ...]
    quick_factor: int
    shown: str = "EMD"

    def on(self, data: str) -> "Study":
        """Returns the same study on one other data set.

        Args:
            data: name or path, see :func:`~flashpoint.diffusion.dataset`.
        """
        grids = tuple(replace(grid, rows=(data,)) for grid in self.grids)
        return replace(self, grids=grids, quick_rows=(data,))

    def quick(self) -> "Study":
        """Returns a reduced study, which takes less than five minutes on two CPU cores."""
        grids = [grid for grid in self.grids if set(grid.rows) & set(self.quick_rows)]
        return replace(self, grids=tuple(map(self._reduced, grids)))

    def _reduced(self, grid: Grid) -> Grid:
        rows = tuple(row for row in grid.rows if row in self.quick_rows)
        columns = {
            label: variant.shortened(self.quick_factor)
            for label, variant in grid.columns.items()
            if label in self.quick_columns
        }
        published = {
            metric: {
                data: tuple(grid.published_at(metric, data, column) for column in columns)
                for data in rows
            }
            for metric in grid.published
        }
        title = f"{grid.title}; training cut to 1/{self.quick_factor}"
        return replace(grid, title=title, rows=rows, columns=columns, published=published)

    def cells(self) -> Iterator[Cell]:
        """Yields every cell of every grid."""
        for grid in self.grids:
            yield from grid.cells()
