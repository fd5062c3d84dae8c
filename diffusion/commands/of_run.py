"""What the commands on a run share: its data, its state, and the files that they write."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import files
from ..checkpoints import load, standardisation_in
from ..data import DATASETS, Points, Standardisation
from ..errors import UserError
from ..progress import note, silence
from ..run_folder import NETWORKS, RunFolder
from ..run_record import check_data
from .data_choice import DataChoice, Remembered, remembered_in
from .points import read_points


def folder_of(run: Path) -> RunFolder:
    """Returns the folder of a run, of which RUN is the path or that of one of its networks."""
    inside = run.parent.name == RunFolder(run).checkpoints.name and not run.is_dir()
    return RunFolder(run.parent.parent if inside else run)


def check_run(run: Path) -> None:
    """Raises :class:`UserError` unless RUN is the folder of a run."""
    if not run.exists():
        raise UserError(f"{run} does not exist")
    if not RunFolder(run).config_file.exists():
        raise UserError(f"{run} is no folder of a run: it has no config.json")


def place_of(run: Path) -> Path:
    """Returns the folder in which what is made from RUN is kept by default."""
    folder = folder_of(run).path
    return folder if folder.is_dir() else folder.parent


def points_of_run(run: Path, choice: DataChoice, other_data: bool) -> Points:
    """Returns the data that a run was trained on, or the other data that the user wants.

    Args:
        run: RUN of the command line.
        choice: the options; the run knows what they leave open.
        other_data: True takes data that the run was not trained on.

    Raises:
        ValueError: the run does not remember its data, they are gone or have changed, or others
            are named.
    """
    return parts_of_run(run, choice, other_data)[0]


def parts_of_run(run: Path, choice: DataChoice, other_data: bool) -> tuple[Points, Points | None]:
    """Returns the data as :func:`points_of_run`, and those that the run has held out, if any."""
    folder = folder_of(run)
    config = folder.config() or {}
    if other_data and not choice.name:
        raise UserError("--other-data needs --data, which names them")
    known, map_ = remembered(run), map_of(run)
    completed = _complete(run, choice, known, map_, config)
    points = read_points(
        completed,
        note if choice.name else silence,  # the training has told how its own were read
        map_ if completed.standardise else None,
    )
    if other_data:
        return points, None
    held_out = None
    if known is not None:
        points, _, held_out = parts_of_data(points, known, config["seed"])
    if "digest" in config:
        check_data(folder, points)
    elif config:
        note(
            f"{run} is of an older version, which did not write down its data: whether these are "
            "the same cannot be checked"
        )
    return points, held_out


def parts_of_data(
    points: Points, known: Remembered, seed: int
) -> tuple[Points, Points | None, Points | None]:
    """Returns the points to train on, those to validate with and those to test with, if any.

    The points to test with are the same whatever the fraction of the others.

    Args:
        points: all points.
        known: the fractions.
        seed: seed of the run.
    """
    validation = test = None
    if known.test_fraction is not None:
        points, test = points.split(known.test_fraction, seed)
    if known.validation_fraction is not None:
        points, validation = _split_again(points, known.validation_fraction, seed)
    return points, validation, test


def _split_again(points: Points, fraction: float, seed: int) -> tuple[Points, Points]:
    try:
        return points.split(fraction, seed)
    except UserError as error:
        text = str(error).replace("test_fraction", "validation_fraction", 1)
        raise UserError(text) from error


def points_of_samples(samples: Path, choice: DataChoice, other_data: bool) -> Points:
    """Returns the data to measure a file of samples against: those of its run, if it is in one.

    Args:
        samples: the file.
        choice: the options; without any, samples in no run's folder are measured against STATES.
        other_data: True takes data that the samples' run was not trained on.

    Raises:
        ValueError: as for :func:`points_of_run`.
    """
    run = samples.absolute().parent.parent
    if samples.parent.name == RunFolder(run).outputs.name and RunFolder(run).config() is not None:
        return points_of_run(run, choice, other_data)
    return read_points(choice if choice.name else replace(choice, name="states"))


def source_of(
    choice: DataChoice,
    test_fraction: float | None = None,
    validation_fraction: float | None = None,
) -> dict[str, Any]:
    """Returns what a run remembers of the choice of its data, for :func:`remembered`."""
    named = choice.name in DATASETS
    name = choice.name if named else str(Path(choice.name).absolute())
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    return {**asdict(replace(choice, name=name)), **fractions}


def choice_to_go_on(choice: DataChoice, folder: Path) -> DataChoice:
    """Returns how the run of a folder, which is to go on, reads its data.

    An older version, which wrote down no digest, took the numbers of files as they are.
    """
    config = RunFolder(folder).config()
    if config is None or "digest" in config or choice.name in DATASETS:
        return choice
    return replace(choice, standardise=False)


def remembered(run: Path) -> Remembered | None:
    """Returns what the run of RUN remembers of its data; None where it remembers nothing."""
    folder = folder_of(run)
    return remembered_in(folder.config() or {}, str(folder.config_file))


def map_of(run: Path) -> Standardisation | None:
    """Returns the map between the units of a run's data and what its networks see, if any."""
    config = folder_of(run).config()
    return load(run).standardisation if config is None else standardisation_in(config)


def _complete(
    run: Path,
    choice: DataChoice,
    known: Remembered | None,
    map_: Standardisation | None,
    config: dict[str, Any],
) -> DataChoice:
    """Returns the choice with what the run remembers in place of what the user left open."""
    if choice.name:
        own = DataChoice("") if known is None else known.choice
        # Networks of points as they came take others so too; a map is that of the run.
        as_they_came = map_ is None and choice.name not in DATASETS
        return DataChoice(
            choice.name,
            own.only_class if choice.only_class is None else choice.only_class,
            choice.labels or (None if choice.name in DATASETS else own.labels),
            choice.standardise and not as_they_came,
        )
    if choice != DataChoice(""):
        raise UserError("--only-class, --labels and --no-standardise need --data here")
    if known is None:
        name = config.get("data", "").lower()
        if name not in DATASETS:
            raise UserError(f"{run} does not say what data it was trained on: give --data")
        return DataChoice(name)  # an older version wrote down no more
    name = known.choice.name
    if name not in DATASETS and not Path(name).exists():
        raise UserError(
            f"the data of run {run} are no longer at {name}: give their new place with --data"
        )
    return known.choice


def say_unfinished(run: Path) -> None:
    """Says on stderr which of a run's networks were not trained to the end."""
    for name, (step, total) in folder_of(run).progress().items():
        if step < total:
            note(f"{run} is not finished: its {name} is trained to step {step:,} of {total:,}")


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> str:
    """Checks files that are to be written, before any work; returns a remark for the last line.

    The remark says that what was there is replaced, if anything was.

    Args:
        outputs: the files that a command is to write.
        inputs: the files that it reads; None where there is none.

    Raises:
        ValueError: an output is an input, or a network or the settings of a run.
    """
    read, written = list(inputs), list(outputs)
    for output in written:
        files.check_apart(output, *read)
        folder = RunFolder(output.parent.parent)
        needed = (folder.training_file, *map(folder.network_file, NETWORKS))
        if any(files.same_file(output, one) for one in needed if one.exists()):
            raise UserError(f"file {output} would be written over, but it belongs to run {folder}")
    return " (in place of what was there)" if any(one.exists() for one in written) else ""


def files_of_run(run: Path) -> list[Path]:
    """Returns the files that are read when the networks of RUN are loaded."""
    if not run.is_dir():
        return [run]
    places = (RunFolder(run).network_file, lambda name: run / f"{name}.safetensors")
    return [place(name) for place in places for name in NETWORKS]


def files_of_data(name: str) -> list[Path]:
    """Returns the files that are read for the data of this name."""
    if not name or name in DATASETS:
        return []
    path = Path(name)
    return sorted(path.iterdir()) if path.is_dir() else [path]


def data_files_of(run: Path, choice: DataChoice | None = None) -> list[Path]:
    """Returns the files of the data that a run was trained on, and that a command reads."""
    known = remembered(run)
    names = (choice.name if choice else "", known.choice.name if known else "")
    return [path for name in names for path in files_of_data(name)]
