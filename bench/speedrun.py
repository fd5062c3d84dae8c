"""Time to quality: training from initialisation until samples are as good as data.

    python -m flashpoint.bench calibrate              the tests' bands, from real draws alone
    python -m flashpoint.bench speedrun [--device cuda] [--record FOLDER]

There are two tracks. *mixture* has five Gaussians in the plane, whose best denoiser is known in
closed form. The excess loss of the denoiser must be at most tau, and 10,000 samples of each class
must pass the battery. *states* is the STATES experiment: 50,000 samples of all states and of each
must pass.

The recipe of a track is fixed beforehand. The time of a seed counts whether it passes or not, and
the pass rate stands beside it. The clock starts after import, compilation and a warm-up on dummy
data, with new parameters, optimiser and random state. It includes the upload of the data,
initialisation, the training of denoiser and classifier, and the averaged weights. The time of the
warm-up, the cold start, is reported beside it. Sampling and testing come after the clock has
stopped.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from scipy.stats import bootstrap
from torch import Tensor

from ..diffusion import (
    MLP,
    RECIPES,
    GaussianMixture,
    Points,
    Recipe,
    Schedule,
    Trainer,
    UserError,
    excess_loss,
    sample,
    states_points,
)
from ..diffusion.errors import check_choice
from ..diffusion.files import load_json, make_folder, save_json
from ..diffusion.progress import counted
from ..diffusion.training.written import known_fields, written
from .battery import (
    Battery,
    Calibration,
    MixtureBattery,
    StatesBattery,
    five_gaussians,
    mixture_points,
)
from .figures import speedrun_figure
from .machine import free_device
from .options import budget_option, count_option
from .record import Record, record_option
from .timing import clopper_pearson

CALIBRATION = Path(__file__).with_name("records") / "calibration.json"
# Variance of the reverse steps. With the variance of the posterior samples are narrower than data,
# and a battery notices this even if the denoiser is the best one.
VARIANCE = "beta"
_WARM_STEPS = 60
_SEEDS = {"cuda": 40, "cpu": 5}


@dataclass(frozen=True)
class Track:
    """A task of training, and the tests that its samples must pass.

    Attributes:
        denoiser, classifier: recipes of their training.
        target: distribution of the data if its best denoiser is known.
        long: recipe of the long runs that define tau, if there is a target.
    """

    name: str
    points: Points
    schedule: Schedule
    denoiser: Recipe
    classifier: Recipe
    battery: Battery
    target: GaussianMixture | None = None
    long: Recipe | None = None

    @property
    def long_runs(self) -> str:
        """Everything that tau depends on, in words; other words need another tau."""
        # In the order of the signature, which the order of the fields need not follow.
        names, known = inspect.signature(Recipe).parameters, known_fields(self.long)
        arguments = ", ".join(f"{name}={known[name]!r}" for name in names if name in known)
        return f"{written(self.schedule)}, Recipe({arguments})"


def mixture_track(small: bool = False) -> Track:
    """Returns the track of five Gaussians; ``small`` is a toy, to test the command.

    The battery detects the error of DDPM itself, whatever the denoiser. The closed-form denoiser
    needs 1000 steps to pass.
    """
    long = Recipe(steps=12_000, hidden_layers=(128, 128, 128), batch_size=1024, lr=4e-3,
                  low_noise=0.5)  # fmt: skip
    # Many rows for small networks, because the remaining error is noise of the gradient.
    rows = {"batch_size": 4096, "lr": 8e-3}
    track = Track(
        "mixture", mixture_points(500 if small else 50_000), Schedule(1000, beta_end=0.01),
        Recipe(hidden_layers=(64,) * 4, low_noise=0.75, steps=12_000, **rows),
        Recipe(hidden_layers=(64,) * 3, low_noise=0.5, steps=8000, **rows),
        MixtureBattery(60 if small else 10_000), five_gaussians(), long,
    )  # fmt: skip
    return toy(track) if small else track


def states_track(small: bool = False) -> Track:
    """Returns the track of STATES; ``small`` is a toy, to test the command."""
    points = states_points(200 if small else 5000)
    battery = StatesBattery(points, 60 if small else 50_000)
    track = Track("states", points, Schedule(), *RECIPES["fast"], battery)
    return toy(track) if small else track


def toy(track: Track) -> Track:
    """Returns the same track with few, small steps."""
    denoiser, classifier, long = (
        recipe and replace(recipe, steps=6, hidden_layers=(16,), batch_size=32)
        for recipe in (track.denoiser, track.classifier, track.long)
    )
    schedule = replace(track.schedule, num_steps=8)
    return replace(track, denoiser=denoiser, classifier=classifier, long=long, schedule=schedule)


TRACKS: dict[str, Callable[[bool], Track]] = {"mixture": mixture_track, "states": states_track}


def train(track: Track, seed: int, device: torch.device) -> tuple[MLP, MLP]:
    """Trains denoiser and classifier and returns their averaged weights, on the CPU."""
    models = []
    for classify, recipe in ((False, track.denoiser), (True, track.classifier)):
        trainer = Trainer(
            track.points, track.schedule, recipe, classify=classify, seed=seed, device=device
        )
        trainer.run(trainer.total_steps)
        models.append(trainer.model())
    return tuple(models)


def on_the_clock(track: Track, seed: int, device: torch.device) -> tuple[float, tuple[MLP, MLP]]:
    """Trains and returns the seconds and the models."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    models = train(track, seed, device)  # the models are on the CPU, so the device is done
    return time.perf_counter() - start, models


def warm_up(track: Track, device: torch.device) -> float:
    """Takes a few steps on dummy data, which compiles and captures everything; returns seconds."""
    dummy = Points(torch.randn_like(track.points.data), track.points.labels, name="dummy")
    denoiser, classifier = (
        replace(recipe, steps=min(_WARM_STEPS, recipe.steps))
        for recipe in (track.denoiser, track.classifier)
    )
    short = replace(track, points=dummy, denoiser=denoiser, classifier=classifier)
    return on_the_clock(short, 10**6, device)[0]


def samples_of(
    track: Track, models: tuple[MLP, MLP], seed: int, device: torch.device
) -> list[Tensor]:
    """Draws each set of samples of the battery, guided by the classifier if it is of one class."""
    denoiser, classifier = models
    sets = []
    for number, label in enumerate(track.battery.labels):
        guide = {} if label is None else {"classifier": classifier, "label": label}
        drawn = sample(
            denoiser, track.schedule, track.battery.size, seed=1000 * seed + number, device=device,
            variance=VARIANCE, **guide,
        )  # fmt: skip
        sets.append(drawn.x.cpu())
    return sets


def mean_excess(track: Track, denoiser: MLP) -> float:
    """Returns the mean excess loss over uniform timesteps."""
    return excess_loss(denoiser, track.schedule, track.target).mean().item()


def run_seed(
    track: Track, seed: int, calibration: Calibration, tau: float | None, device: torch.device
) -> dict:
    """Trains and tests one seed and returns the numbers for the record."""
    seconds, models = on_the_clock(track, seed, device)
    failed = track.battery.failed(samples_of(track, models, seed, device), calibration.bands)
    found = {"seed": seed, "seconds": seconds}
    if track.target is not None:
        found["excess loss"] = mean_excess(track, models[0])
        if not found["excess loss"] <= tau:
            failed.append("excess loss")
    return {**found, "passed": not failed, "failed": failed}


def summary(track: str, seeds: list[dict], cold_start: float) -> dict:
    """Returns pass rate, median and 95th percentile of the time, each with its 95% interval."""
    passed = sum(seed["passed"] for seed in seeds)
    times = [seed["seconds"] for seed in seeds]
    return {
        "track": track,
        "seeds": seeds,
        "pass_rate": [passed / len(seeds), *clopper_pearson(passed, len(seeds))],
        "median_seconds": _with_interval(times, 50),
        "p95_seconds": _with_interval(times, 95),
        "cold_start_seconds": cold_start,
    }


def _with_interval(values: Sequence[float], percent: float) -> list[float]:
    """Returns a percentile with its bootstrap 95% interval."""
    middle = float(np.percentile(values, percent))
    if len(values) < 2:
        return [middle, middle, middle]

    def statistic(x, axis):
        return np.percentile(x, percent, axis=axis)

    found = bootstrap((values,), statistic, method="percentile", rng=0).confidence_interval
    return [middle, float(found.low), float(found.high)]


def read_calibration(path: Path, track: Track) -> tuple[Calibration, float | None]:
    """Returns the bands and tau of a track.

    Raises:
        ValueError: the track is not calibrated, or was calibrated with another definition.
    """
    entry = _entry(path, track.name)
    needs_tau = track.target is not None
    if entry is None or (needs_tau and entry["tau"] is None):
        raise UserError(f"track {track.name} is not calibrated; run the command calibrate first")
    calibration = _battery(path, entry)
    if calibration.definition != track.battery.definition:
        raise UserError(
            f"track {track.name} was calibrated for {calibration.definition!r}, it is now "
            f"{track.battery.definition!r}; run the command calibrate again"
        )
    if needs_tau and entry.get("long runs") != track.long_runs:
        raise UserError(
            f"tau of track {track.name} was calibrated for {entry.get('long runs')}, it is now "
            f"{track.long_runs}; run the command calibrate again"
        )
    return calibration, entry["tau"]


def _read(path: Path) -> dict:
    return load_json(path, "calibration") if path.exists() else {}


def _entry(path: Path, name: str) -> dict | None:
    """Returns what a file of calibrations says of a track; None if nothing."""
    entry = _read(path).get(name)
    if entry is None:
        return None
    if not isinstance(entry, dict) or not {"battery", "tau"} <= entry.keys():
        raise UserError(f"calibration {path}: {name} must have battery and tau")
    tau = entry["tau"]
    if tau is not None and not (isinstance(tau, int | float) and 0 < tau < float("inf")):
        raise UserError(f"calibration {path}: tau of {name} must be above 0, got {tau!r}")
    return entry


def _battery(path: Path, entry: dict) -> Calibration:
    try:
        return Calibration.from_dict(entry["battery"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"calibration {path} is damaged ({error!r}); calibrate again") from error


def calibrate_tau(track: Track, runs: int, device: torch.device) -> dict:
    """Returns tau: the excess loss of the best of some long runs, plus their standard deviation.

    It is None if the best denoiser is not known, or without runs.
    """
    if track.long is None or runs == 0:
        return {"tau": None}
    reached = []
    for seed in counted(runs, "long runs", "runs"):
        trainer = Trainer(track.points, track.schedule, track.long, seed=seed, device=device)
        trainer.run(trainer.total_steps)
        reached.append(mean_excess(track, trainer.model()))
    tau = min(reached) + float(np.std(reached, ddof=1))
    return {"tau": tau, "reached by long runs": reached, "long runs": track.long_runs}


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        check_choice("track", name, TRACKS)
    return list(names) or list(TRACKS)


_calibration_option = click.option(
    "--calibration", "path", type=click.Path(path_type=Path), default=CALIBRATION,
    help="File of bands and tau. Default: bench/records/calibration.json.",
)  # fmt: skip
_track_option = click.option(
    "--track", "names", multiple=True, help="mixture or states; may be repeated. Default: both."
)


@click.command()
@_track_option
@count_option("--draws", 100, "Real draws that define the bands.", least=2)
@count_option("--repeats", 200, "Real draws that check them.")
@count_option("--long-runs", 10, "Trainings that define tau, 2 or more; 0 leaves it.", least=0)
@click.option("--tau-only", is_flag=True, help="Keep the bands of the file.")
@click.option("--device", default=None, help="Device of the trainings. Default: the best.")
@_calibration_option
def calibrate(names, draws, repeats, long_runs, tau_only, device, path) -> None:
    """Calibrate the bands of the speedrun's tests on real draws, and tau on long runs."""
    if long_runs == 1:
        raise UserError("--long-runs must be 0 or at least 2, got 1")
    device = free_device(device, busy=True)  # nothing is timed
    make_folder(path.parent)
    for name in _chosen(names):
        track, entry = TRACKS[name](False), _entry(path, name)
        if not tau_only:
            battery = track.battery.calibrate(draws, repeats)
            entry = {"battery": battery.to_dict(), "tau": None}
            save_json(path, _read(path) | {name: entry})
        elif entry is None:
            raise UserError(f"track {name} has no bands in {path.name}; leave out --tau-only")
        battery = _battery(path, entry)
        click.echo(
            f"{name}: {battery.passed} of {battery.repeats} real draws pass all "
            f"{len(battery.bands)} tests"
        )
        save_json(path, _read(path) | {name: entry | calibrate_tau(track, long_runs, device)})


@click.command()
@_track_option
@click.option("--small", is_flag=True, help="Toy sizes and bands, to test the command.")
@count_option("--seeds", None, "Number of seeds. Default: 40, on a CPU 5.")
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
@budget_option(36_000.0)
@click.option("--busy", is_flag=True, help="Measure although another process uses the GPU.")
@_calibration_option
@record_option
def speedrun(names, small, seeds, device, budget, busy, path, folder) -> None:
    """Measure the seconds of training until samples are as good as data."""
    device, record = free_device(device, busy), Record(folder)
    if not small:
        _read(path)  # a damaged one is told before the data of the tracks, which takes seconds
    tracks = [TRACKS[name](small) for name in _chosen(names)]
    bands = {
        track.name: (track.battery.calibrate(3, 2), 1.0) if small else read_calibration(path, track)
        for track in tracks
    }
    before = record.content["stages"].get("speedrun", {})
    calibration = before.get("calibration", {}) | {
        name: one.to_dict() | {"tau": tau} for name, (one, tau) in bands.items()
    }
    results = [one for one in before.get("results", []) if one["track"] not in bands]
    end = time.monotonic() + budget
    for track in tracks:
        cold_start, found = warm_up(track, device), []
        for seed in range(seeds or _SEEDS[device.type]):
            if found and time.monotonic() > end:
                click.echo(f"{track.name}: out of time after {len(found)} seeds")
                break
            found.append(run_seed(track, seed, *bands[track.name], device))
            so_far = [*results, summary(track.name, found, cold_start)]
            record.put("speedrun", calibration=calibration, results=so_far)
            click.echo(f"{track.name}, {describe(found[-1])}")
        results.append(summary(track.name, found, cold_start))
    if folder is not None:
        speedrun_figure(results, folder / "speedrun.png")


def describe(seed: dict) -> str:
    """Returns the outcome of a seed in one line."""
    verdict = "as good as data" if seed["passed"] else f"fails {', '.join(seed['failed'])}"
    return f"seed {seed['seed']}: {seed['seconds']:.2f} s, {verdict}"
