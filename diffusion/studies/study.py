"""What a study is: data sets in rows, settings in columns, a cell where they meet."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..schedules import Schedule
from ..training import PlainRecipe, Recipe
from .protocols import WHOLE, Protocol
from .published import Row

OUR_BEST = "our best"  # how the labels begin of columns with the project's own setting
CLASSIC_WIDTHS = (128,) * 6  # an input layer without activation, five blocks with ReLU


@dataclass(frozen=True)
class Setting:
    """One way to train a model and to draw from it.

    Args:
        schedule: of the forward process.
        recipe: how to train.
        epochs: passes over the data, which decide the number of steps; None keeps the recipe's.
        variance: of the reverse steps, see :func:`flashpoint.diffusion.reverse_table`.
        guidance: scale w of classifier-free guidance, where the model is told the class.
        temperature: of the choice among 10 candidates by their reward, the log-probability of the
            class (SVDD-PM, :func:`flashpoint.diffusion.sample_with_reward`).
        posterior_draws: clean points behind the value of a candidate; 0 for x0_hat alone.
    """

    schedule: Schedule
    recipe: Recipe
    epochs: int | None = None
    variance: str = "posterior"
    guidance: float | None = None
    temperature: float | None = None
    posterior_draws: int = 0

    def recipe_for(self, n_points: int) -> Recipe:
        """The recipe with its number of steps for a data set of so many points."""
        if self.epochs is None:
            return self.recipe
        steps_per_epoch = -(-n_points // self.recipe.batch_size)
        return replace(self.recipe, steps=self.epochs * steps_per_epoch)

    def shortened(self, factor: int) -> "Setting":
        """The same with training cut to 1/factor."""
        if self.epochs is None:
            return replace(self, recipe=replace(self.recipe, steps=self.recipe.steps // factor))
        return replace(self, epochs=max(1, self.epochs // factor))

    @property
    def model(self) -> "Setting":
        """What two settings have in common if one trained model serves both."""
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
) -> Setting:
    """The published setting; sigma_t^2 = beta_t in the reverse steps, as course work has it."""
    recipe = PlainRecipe(
        hidden_layers=hidden_layers,
        activation="relu",
        linear_input=linear_input,
        batch_size=batch_size,
        p_uncond=p_uncond,
    )
    return Setting(Schedule(T, schedule, *beta, time_feature="sinusoidal"), recipe, epochs, "beta")


class Model(NamedTuple):
    """What a cell needs trained; several cells may need the same."""

    data: str
    standardise: bool
    setting: Setting


@dataclass(frozen=True)
class Cell:
    """Where a data set meets a setting."""

    data: str
    column: str
    setting: Setting
    protocol: Protocol

    @property
    def model(self) -> Model:
        """What is to be trained for it."""
        return Model(self.data, self.protocol.standardise, self.setting.model)


@dataclass(frozen=True)
class Grid:
    """One table of a study.

    Args:
        title: of the table.
        rows: names of data sets.
        columns: settings by the label of what is varied.
        protocol: how its cells are measured.
        published: numbers by metric and data set, in the order of the columns.
    """

    title: str
    rows: tuple[str, ...]
    columns: dict[str, Setting]
    protocol: Protocol = WHOLE
    published: dict[str, dict[str, Row]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Row by row."""
        return [
            Cell(data, column, setting, self.protocol)
            for data in self.rows
            for column, setting in self.columns.items()
        ]

    def published_at(self, metric: str, data: str, column: str) -> float | None:
        """The published number of a cell, None where there is none."""
        row = self.published.get(metric, {}).get(data, ())
        return dict(zip(self.columns, row, strict=False)).get(column)


@dataclass(frozen=True)
class Study:
    """A question, and the grids of models that answer it.

    Args:
        name: on the command line.
        title: of its page.
        varied: what the columns differ in, for axes.
        grids: its tables.
        quick_rows, quick_columns: what of them the quick form keeps.
        quick_factor: and by how much it shortens training.
    """

    name: str
    title: str
    varied: str
    grids: tuple[Grid, ...]
    quick_rows: tuple[str, ...]
    quick_columns: tuple[str, ...]
    quick_factor: int

    def on(self, data: str) -> "Study":
        """The same on one other data set, by what :func:`~flashpoint.diffusion.dataset` takes."""
        grids = tuple(replace(grid, rows=(data,)) for grid in self.grids)
        return replace(self, grids=grids, quick_rows=(data,))

    def quick(self) -> "Study":
        """Reduced to less than five minutes on two CPU cores."""
        grids = [grid for grid in self.grids if set(grid.rows) & set(self.quick_rows)]
        return replace(self, grids=tuple(map(self._reduced, grids)))

    def _reduced(self, grid: Grid) -> Grid:
        rows = tuple(row for row in grid.rows if row in self.quick_rows)
        columns = {
            label: setting.shortened(self.quick_factor)
            for label, setting in grid.columns.items()
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
        """Every cell of every grid."""
        for grid in self.grids:
            yield from grid.cells()
