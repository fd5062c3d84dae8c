"""Every study of the command ``flashpoint study``, by name."""

from dataclasses import replace
from typing import Any, cast

from ..schedules import Schedule
from ..training import RECIPES, Recipe
from . import published
from .protocols import BY_CLASS, IMAGES, IMAGES_BY_CLASS, OUTLINES, TEST_SPLIT
from .study import OUR_BEST, Grid, Study, Variant, classic

_FIVE_SETS = ("moons", "circles", "blobs", "manycircles", "helix")
_SURFACES = ("sin_5_5", "helix")
_SURFACE_BETA = (1e-5, 1.28e-2)
_SCHEDULES = {
    "linear": "linear",
    "hyperbolic secant": "sech",
    "cosine": "cosine",
    "scaled linear": "scaled_linear",
    "sigmoid": "sigmoid",
}
# This variant reaches the scores of perfect samples on the data sets of two and three dimensions.
BEST = Variant(Schedule(500), cast(Recipe, RECIPES["small"][0]))
_IMAGE_VARIANT = Variant(
    Schedule(200, "edm", sigma_min=0.02, sigma_max=20.0, sigma_data=0.75),
    Recipe(
        6000,
        batch_size=256,
        lr=3e-3,
        ema_decay=0.995,
        low_noise=0,
        activation="silu",
        t_density="log-normal",
    ),
)


def _by_class(variant: Variant) -> Variant:
    """Returns a variant whose model is conditional; one time in five it is not given the class."""
    return replace(variant, recipe=replace(variant.recipe, p_uncond=0.2))


def _predicting(schedule: Schedule, **changes: Any) -> Variant:
    """Returns our best recipe with another forward process or prediction."""
    return replace(BEST, schedule=schedule, recipe=replace(BEST.recipe, **changes))


def _surface(schedule: str = "linear", **changes):
    """Returns the published setting of sin_5_5 and of the standardised helix."""
    return classic(50, _SURFACE_BETA, schedule, batch_size=1024, **changes)


def _seeking(temperature: float, posterior_draws: int) -> Variant:
    """Returns the published setting, sampled by reward; temperature 1 is Bayes' rule."""
    return replace(classic(150), temperature=temperature, posterior_draws=posterior_draws)


_TIMESTEPS = Study(
    name="timesteps",
    title="How many timesteps?",
    varied="timesteps T",
    grids=(
        Grid(
            "Linear schedule from 1e-4 to 0.02, 100 epochs",
            _FIVE_SETS,
            {**{str(T): classic(T) for T in (10, 50, 100, 150, 200, 500)}, OUR_BEST: BEST},
            published={"EMD": published.TIMESTEPS_EMD, "kernel NLL": published.TIMESTEPS_NLL},
        ),
    ),
    quick_rows=("moons", "blobs", "manycircles"),
    quick_columns=("10", "50", "200", "500"),
    quick_factor=4,
)

_BETAS = Study(
    name="betas",
    title="How much noise per timestep?",
    varied="range of beta",
    grids=(
        Grid(
            "Linear schedule, T = 200, 100 epochs",
            _FIVE_SETS,
            {
                f"{start:g} to {end:g}": classic(200, (start, end))
                for start, end in (
                    (1e-4, 0.02), (1e-3, 0.2), (1e-5, 0.002), (1e-5, 0.02), (1e-4, 0.2), (1e-5, 0.2)
                )
            },
            published={"EMD": published.BETAS_EMD},
        ),
    ),
    quick_rows=("moons", "blobs", "manycircles"),
    quick_columns=("0.0001 to 0.02", "0.001 to 0.2", "1e-05 to 0.002"),
    quick_factor=5,
)  # fmt: skip

_SCHEDULE_STUDY = Study(
    name="schedules",
    title="Which schedule?",
    varied="schedule",
    grids=(
        Grid(
            "T = 50, beta from 1e-5 to 1.28e-2, batch 1,024, 100 epochs",
            _SURFACES,
            {**{title: _surface(name) for title, name in _SCHEDULES.items()}, OUR_BEST: BEST},
            TEST_SPLIT,
            {"EMD": published.SCHEDULES_EMD},
        ),
        Grid(
            "T = 200, beta from 1e-4 to 0.02, batch 64, 100 epochs",
            _FIVE_SETS,
            {title: classic(200, schedule=name) for title, name in _SCHEDULES.items()},
        ),
    ),
    quick_rows=("sin_5_5", "blobs"),
    quick_columns=tuple(_SCHEDULES),
    quick_factor=10,
)

_EPOCHS = Study(
    name="epochs",
    title="How long to train?",
    varied="epochs",
    grids=(
        Grid(
            "T = 50, beta from 1e-5 to 1.28e-2, batch 1,024",
            _SURFACES,
            {str(epochs): _surface(epochs=epochs) for epochs in (100, 500, 1000, 2000)},
            TEST_SPLIT,
            {"EMD": published.EPOCHS_EMD},
        ),
    ),
    quick_rows=("sin_5_5",),
    quick_columns=("100", "500", "1000", "2000"),
    quick_factor=20,
)

_COMPLEXITY = Study(
    name="complexity",
    title="How large a network?",
    varied="hidden layers",
    grids=(
        Grid(
            "T = 50, beta from 1e-5 to 1.28e-2, batch 1,024, 100 epochs",
            _SURFACES,
            {
                ", ".join(map(str, widths)): _surface(hidden_layers=widths, linear_input=False)
                for widths in ((64,), (64, 64), (64, 128, 128), (128,) * 4, (256,) * 4)
            },
            TEST_SPLIT,
            {"EMD": published.COMPLEXITY_EMD},
        ),
    ),
    quick_rows=_SURFACES,
    quick_columns=("64", "64, 64", "64, 128, 128"),
    quick_factor=2,
)

_GUIDANCE = Study(
    name="guidance",
    title="How strongly to guide towards a class?",
    varied="guidance scale w",
    grids=(
        Grid(
            "Classifier-free guidance, T = 150, p_uncond = 0.2, 100 epochs",
            _FIVE_SETS,
            {
                **{
                    f"{w:g}": replace(classic(150, p_uncond=0.2), guidance=w)
                    for w in (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
                },
                **{
                    f"{OUR_BEST}, {w:g}": replace(_by_class(BEST), guidance=w)
                    for w in (0.0, 0.5, 1.0)
                },
            },
            BY_CLASS,
            {"EMD": published.GUIDANCE_EMD, "accuracy": published.GUIDANCE_ACCURACY},
        ),
    ),
    quick_rows=("moons", "circles", "blobs"),
    quick_columns=("0", "1", "4"),
    quick_factor=4,
)

_REWARD = Study(
    name="reward",
    title="How to ask for a class without training for it?",
    varied="temperature",
    grids=(
        Grid(
            "SVDD-PM with 10 candidates, T = 150, 100 epochs",
            _FIVE_SETS,
            {
                **{
                    f"{temperature:g}": _seeking(temperature, 4)
                    for temperature in (0.2, 0.3, 0.5, 1)
                },
                "x0_hat alone, 0.2": _seeking(0.2, 0),
            },
            BY_CLASS,
            {"EMD": published.REWARD_EMD, "accuracy": published.REWARD_ACCURACY},
        ),
    ),
    quick_rows=("moons", "helix"),
    quick_columns=("0.2", "x0_hat alone, 0.2"),
    quick_factor=5,
)

_DIGITS = Study(
    name="digits",
    title="Do images work too?",
    varied="model",
    grids=(
        Grid("Images of 64 pixels", ("digits",), {"unconditional": _IMAGE_VARIANT}, IMAGES),
        Grid(
            "Images of 64 pixels, by class",
            ("digits",),
            {
                f"w = {w:g}": replace(_by_class(_IMAGE_VARIANT), guidance=w)
                for w in (0.0, 0.5, 1.0, 2.0)
            },
            IMAGES_BY_CLASS,
        ),
    ),
    quick_rows=("digits",),
    quick_columns=("unconditional", "w = 0", "w = 1"),
    quick_factor=4,
)

_LINEAR = Schedule(500)
_PREDICTIONS = Study(
    name="predictions",
    title="What should the network predict?",
    varied="prediction",
    grids=(
        Grid(
            "T = 500, 3,000 steps of 1,024 rows, hidden layers 128, 128, 128",
            ("states",),
            {
                "eps": BEST,
                "x0": _predicting(_LINEAR.predicting("x0")),
                "x0, min-SNR": _predicting(_LINEAR.predicting("x0"), weighting="min-snr"),
                "v": _predicting(_LINEAR.predicting("v")),
                "v, to no data": _predicting(Schedule(500, prediction="v", zero_terminal_snr=True)),
                "flow": _predicting(Schedule(500, "flow")),
                "flow, logit-normal": _predicting(Schedule(500, "flow"), t_density="logit-normal"),
                "EDM": _predicting(Schedule(500, "edm"), low_noise=0.0, t_density="log-normal"),
            },
            OUTLINES,
        ),
    ),
    quick_rows=("states",),
    quick_columns=("eps", "x0", "v", "flow", "EDM"),
    quick_factor=2,
    shown="distance to the data",
)

STUDIES = {
    study.name: study
    for study in (
        _TIMESTEPS, _BETAS, _SCHEDULE_STUDY, _EPOCHS, _COMPLEXITY, _GUIDANCE, _REWARD, _DIGITS,
        _PREDICTIONS,
    )
}  # fmt: skip
