"""Measures samples of every data set beside real points.

``python -m flashpoint.bench datasets --out FOLDER`` trains an unconditional denoiser, a conditional
denoiser and a classifier of noisy points on each data set, and samples in every way. After each set
it writes ``<name>.json``, and ``tables.md`` about all sets in the folder.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev

import click
import torch
from torch import Tensor

from .. import diffusion as fd
from ..diffusion.device import choose_device
from ..diffusion.errors import UserError, check_choice, check_seed
from ..diffusion.files import load_json, make_folder, save_json, write_atomically
from ..diffusion.metrics.knn import fit_knn
from ..diffusion.metrics.table import markdown_table
from ..kernels.philox import child_seed
from . import machine

SCHEDULE = fd.Schedule(500)
P_UNCOND = 0.1

_REPEATS = 10  # values of the EMD, each the mean of 5 draws of 250 points
_SAMPLES, _OF_CLASS, _REWARDED, _HELD_OUT = 5000, 5000, 500, 5000
_CLASSIFIED = 500  # points that are classified by their denoising error
_REWARD_STEPS, _CANDIDATES, _POSTERIOR_DRAWS = 100, 10, 4


class DatasetBench:
    """All measurements of one data set.

    Args:
        name: name of the data set.
        seed: seed of everything random.
        device: device that does the work.
        recipe: training of denoisers and classifier, a name of :data:`fd.RECIPES`.
    """

    def __init__(self, name: str, seed: int, device: str | None, recipe: str = "small"):
        whole = fd.dataset(name)
        self.seed, self.device = seed, device
        self.denoiser, self.classifier = fd.RECIPES[recipe]
        # The held-out points are new draws if there is a generator, else a part of the data.
        if whole.redraw is None:
            self.points, self.held_out = whole.split(0.5, seed)
        else:
            self.points, self.held_out = whole, whole.fresh(_HELD_OUT, child_seed(seed, 99))
        self.knn = None if whole.labels is None else fit_knn(self.points)
        self.seconds: dict[str, float] = {}

    def real(self, number: int, n: int, label: int | None = None) -> Tensor:
        """Returns real points [n, d] that were not trained on, other ones for each number."""
        if self.points.redraw is not None:
            return self.points.redraw(n, child_seed(self.seed, 1000 + number), label)[0]
        rest = self.held_out.data if label is None else self.held_out.of_class(label)
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(number))
        return rest[order[:n]]

    def train(self, title: str, recipe, classify: bool = False):
        """Trains a network."""
        start = time.perf_counter()
        trainer = fd.Trainer(
            self.points, SCHEDULE, recipe, classify=classify, seed=self.seed, device=self.device
        )
        trainer.run(trainer.total_steps)
        self.seconds[title] = time.perf_counter() - start
        return trainer.model()

    def sample(self, title: str, model, n: int, **options) -> Tensor:
        """Draws new samples [n, d]."""
        start = time.perf_counter()
        seed = child_seed(self.seed, 7)
        x = fd.sample(model, SCHEDULE, n, seed=seed, device=self.device, **options).x.cpu()
        self.seconds[title] = time.perf_counter() - start
        return x

    def run(self) -> dict:
        """Measures everything and returns the numbers for the record."""
        denoiser = self.train("train denoiser", self.denoiser)
        result = {
            "data": self.points.name,
            "points": len(self.points),
            "dimension": self.points.dim,
            "held out": "new draws" if self.points.redraw else "the other half of the data",
            "unconditional": self.whole(self.sample("sample", denoiser, _SAMPLES)),
        }
        if self.knn is not None:
            recipe = replace(self.denoiser, p_uncond=P_UNCOND)
            conditional = self.train("train conditional", recipe)
            classifier = self.train("train classifier", self.classifier, classify=True)
            result["classes"] = self.classes(denoiser, conditional, classifier)
            result["by denoising error"] = self.classified(conditional)
        return {**result, "seconds": self.seconds}

    def whole(self, x: Tensor) -> dict:
        """Returns EMD and kernel NLL of unconditional samples, each beside that of real points."""
        real = [self.real(number, len(x)) for number in range(_REPEATS)]
        data = self.points.data
        emd = _spread(lambda k: fd.emd(x, data, seed=k))
        floor = _spread(lambda k: fd.emd(real[k], data, seed=_REPEATS + k))
        return {
            "emd": emd[0],
            "emd of real": {"mean": floor[0], "sd": floor[1]},
            "within two sd": abs(emd[0] - floor[0]) <= 2 * floor[1],
            "kernel nll": fd.kernel_nll(x, data),
            "kernel nll of real": mean(fd.kernel_nll(y, data) for y in real[:3]),
            "kernel nll of the data itself": fd.kernel_nll(data, data),
        }

    def classes(self, denoiser, conditional, classifier) -> dict:
        """Samples each class with every kind of guidance and measures the samples."""
        classes = range(self.points.num_classes)
        labels = torch.arange(len(classes)).repeat_interleave(_OF_CLASS)

        def parts(x: Tensor) -> list[Tensor]:
            return [x[labels == label] for label in classes]

        ways = {}
        for w in (0, 1):
            x = self.sample(
                f"sample w = {w}", conditional, len(labels), label=labels, scale=float(w)
            )
            ways[f"told the class, w = {w}"] = parts(x)
        ways["classifier guidance"] = parts(
            self.sample("sample guided", denoiser, len(labels), classifier=classifier, label=labels)
        )
        start = time.perf_counter()
        ways["reward guidance"] = [self._rewarded(denoiser, classifier, c) for c in classes]
        self.seconds["sample rewarded"] = time.perf_counter() - start
        real = [[self.real(k, _OF_CLASS, c) for c in classes] for k in range(_REPEATS)]
        floor = _spread(lambda k: fd.emd_by_class(real[k], self.points, seed=_REPEATS + k))
        return {
            "judge on held-out points": self.knn.score(self.held_out.data, self.held_out.labels),
            "accuracy of real": mean(self.accuracy(one) for one in real),
            "emd of real": {"mean": floor[0], "sd": floor[1]},
            "ways": {way: self._scores(x, floor) for way, x in ways.items()},
        }

    def _rewarded(self, denoiser, classifier, label: int) -> Tensor:
        """Draws samples of high log p(label | x), by the classifier at the least noisy t."""
        feature = SCHEDULE.time_features[0].float()
        # With more dimensions than candidates the covariance of the posterior is unknown.
        posterior_draws = _POSTERIOR_DRAWS if self.points.dim < _CANDIDATES else 0

        @torch.no_grad()
        def reward(x: Tensor) -> Tensor:
            inputs = torch.cat((x, feature.to(x).expand(len(x), -1)), dim=1)
            return classifier(inputs.cpu()).log_softmax(dim=1)[:, label].to(x.device)

        return fd.sample_with_reward(
            denoiser,
            SCHEDULE,
            _REWARDED,
            reward,
            candidates=_CANDIDATES,
            temperature=1.0,
            posterior_draws=posterior_draws,
            num_steps=_REWARD_STEPS,
            seed=child_seed(self.seed, 200 + label),
            device=self.device,
        ).x.cpu()

    def accuracy(self, samples: Sequence[Tensor]) -> float:
        """Returns the share of samples [n, d] that nearest neighbours put in their class."""
        return mean(
            float((self.knn.predict(x.numpy()) == label).mean()) for label, x in enumerate(samples)
        )

    def _scores(self, samples: Sequence[Tensor], floor: tuple[float, float]) -> dict:
        emd = _spread(lambda k: fd.emd_by_class(samples, self.points, seed=k))[0]
        return {
            "accuracy": self.accuracy(samples),
            "emd by class": emd,
            "within two sd": abs(emd - floor[0]) <= 2 * floor[1],
        }

    def classified(self, conditional) -> dict:
        """Classifies held-out points with the conditional denoiser and with nearest neighbours."""
        start = time.perf_counter()
        x, labels = self.held_out.data[:_CLASSIFIED], self.held_out.labels[:_CLASSIFIED]
        prior = self.points.labels.bincount()
        classifier = fd.DiffusionClassifier(
            conditional, SCHEDULE, prior=prior, seed=self.seed, device=self.device
        )
        accuracy = classifier.score(x, labels)
        self.seconds["classify"] = time.perf_counter() - start
        return {"points": len(x), "accuracy": accuracy, "judge": self.knn.score(x, labels)}


def _spread(measure: Callable[[int], float]) -> tuple[float, float]:
    values = [measure(number) for number in range(_REPEATS)]
    return mean(values), stdev(values)


def table(results: Sequence[dict]) -> str:
    """Returns the tables of all data sets: samples, samples of a class, and classified points."""
    return "\n\n".join((
        markdown_table(
            ("data", "EMD", "of real points", "kernel NLL", "of real points", "of the data itself"),
            map(_unconditional, results),
        ),
        markdown_table(
            ("data", "samples", "accuracy", "of real points", "EMD by class", "of real points"),
            (row for one in results if "classes" in one for row in _classes(one)),
        ),
        markdown_table(
            ("data", "held-out points classified by denoising error", "by the judge"),
            (_classified(one) for one in results if "by denoising error" in one),
        ),
    ))  # fmt: skip


def _unconditional(one: dict) -> tuple[str, ...]:
    """Returns the line of a data set's unconditional samples."""
    found = one["unconditional"]
    return (
        one["data"],
        f"{found['emd']:.1f}{_mark(found['within two sd'])}",
        _mean_sd(found["emd of real"]),
        f"{found['kernel nll']:.3f}",
        f"{found['kernel nll of real']:.3f}",
        f"{found['kernel nll of the data itself']:.3f}",
    )


def _classes(one: dict) -> Iterator[tuple[str, ...]]:
    """Yields a line for each way of sampling a class."""
    found = one["classes"]
    for way, scores in found["ways"].items():
        yield (
            one["data"],
            way,
            f"{scores['accuracy']:.3f}",
            f"{found['accuracy of real']:.3f}",
            f"{scores['emd by class']:.1f}{_mark(scores['within two sd'])}",
            _mean_sd(found["emd of real"]),
        )


def _classified(one: dict) -> tuple[str, ...]:
    """Returns the line of a data set's points that were classified."""
    found = one["by denoising error"]
    return one["data"], f"{found['accuracy']:.3f}", f"{found['judge']:.3f}"


def _mean_sd(real: dict) -> str:
    return f"{real['mean']:.1f} ± {real['sd']:.1f}"


def _mark(passed: bool) -> str:
    return "" if passed else " ✗"


def _check_folder(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raises :class:`UserError` if results would be lost, or if others there are damaged."""
    there = [name for name in fd.DATASETS if (out / f"{name}.json").exists()]
    if not overwrite and (lost := [f"{name}.json" for name in there if name in names]):
        raise UserError(
            f"--out {out} has {', '.join(lost)} already: choose another folder, or --overwrite"
        )
    for name in there:
        if name not in names:
            load_json(out / f"{name}.json", "record")


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the record.")
@click.option("--recipe", default="small", show_default=True, help="small, fast or long.")
@click.option("--overwrite", is_flag=True, help="Replace the files of data sets in the folder.")
@click.option("--seed", default=0, show_default=True, help="Seed of everything random.")
@click.option("--device", default=None, help="cpu, cuda or cuda:N. Default: the best.")
def main(
    names: tuple[str, ...],
    out: Path,
    recipe: str,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> None:
    """Measure samples of data sets, NAMES or all, beside real points of each."""
    names = names or tuple(fd.DATASETS)
    for name in names:
        check_choice("NAMES", name, fd.DATASETS)
    check_choice("--recipe", recipe, fd.RECIPES)
    check_seed(seed)
    choose_device(device)
    _check_folder(make_folder(out), names, overwrite)
    for name in names:
        bench = DatasetBench(name, seed, device, recipe)
        result = bench.run()
        settings = {
            "seed": seed,
            "schedule": asdict(SCHEDULE),
            "denoiser": asdict(bench.denoiser),
            "classifier": asdict(bench.classifier),
            "machine": machine.describe(),
        }
        save_json(out / f"{name}.json", {**result, **settings})
        done = (out / f"{name}.json" for name in fd.DATASETS)
        results = [load_json(path, "record") for path in done if path.is_file()]
        write_atomically(out / "tables.md", (table(results) + "\n").encode())
        click.echo(table([result]))
