"""A sweep that runs: the same as each model alone, kept as it goes, on the command line too."""

import json
import os
import signal

import pytest
import torch

from flashpoint import diffusion as fd
from flashpoint.diffusion import UserError, sample, train_many
from flashpoint.diffusion.metrics.yardstick import Yardstick
from flashpoint.diffusion.progress import Progress
from flashpoint.diffusion.sweeps import Sweep, SweepRun, runner
from flashpoint.diffusion.sweeps.groups import chunks_of, part_of, trainings_of
from flashpoint.diffusion.sweeps.plan import plan_of
from flashpoint.diffusion.sweeps.progress import SweepProgress, duration
from flashpoint.diffusion.training import ManyTrainer

from .helpers import flashpoint

pytestmark = pytest.mark.usefixtures("few_points")

CPU = torch.device("cpu")
MOONS = fd.dataset("moons")
FEW = {"steps": 20, "batch_size": 32, "timesteps": 30, "schedule": "cosine", "method": "ddim"}
FACTORS = {**FEW, "hidden": "8x2,12", "prediction": "eps,v", "seed": "0,1", "sampling_steps": "4,6"}
METRICS = ["sliced_wasserstein", "sample_to_data"]


def sweep(factors=FACTORS, points=MOONS, metrics=METRICS, **options):
    return Sweep(points, factors, 60, metrics, 10, **options)


def run_of(folder, swept=None, **options):
    return SweepRun(
        swept or sweep(), folder, device="cpu", say=lambda _: None, quiet=True, **options
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a finished sweep, and its table."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, run_of(folder).run()


def test_each_model_is_the_one_that_trains_alone_with_the_metrics_of_an_evaluation(done):
    _, table = done
    assert len(table) == 16
    for number in (0, 13):
        model = sweep().models[number]
        network = train_many([model.task(MOONS)], device="cpu")[0]
        config = model.config(network, MOONS, 60)
        x = sample(
            network, model.schedule, 60, seed=config.seed, method="ddim",
            num_steps=model.values["sampling_steps"], device="cpu",
        ).x  # fmt: skip
        scores = fd.evaluate(x, MOONS, repeats=10).scores
        found = table[number].metrics
        assert list(found) == METRICS
        for name in METRICS:
            assert found[name].value == pytest.approx(scores[name].value, rel=1e-3)
            assert found[name].real == scores[name].real
            assert (found[name].low, found[name].high) == (scores[name].low, scores[name].high)
        assert table[number].values == model.values
        assert table[number].steps == 20


@pytest.mark.parametrize("known", [True, False], ids=["known distribution", "unknown"])
def test_a_yardstick_is_an_evaluation(known):
    points = MOONS if known else fd.Points(MOONS.data[:160])
    metrics = ["kde_nll", "sliced_wasserstein", "mmd", "datum_by_datum"]
    yardstick = Yardstick(points, 90, metrics, repeats=3, seed=3)
    for seed in (1, 2):
        x = torch.randn(90, 2, generator=torch.Generator().manual_seed(seed))
        whole = fd.evaluate(x, points, repeats=3, seed=3, full=True)
        every = whole.scores | whole.battery
        assert yardstick.measure(x) == {key: every[key] for key in metrics}


def test_models_that_differ_in_the_sampling_share_a_network(done):
    folder, _ = done
    assert len(list((folder / "networks").glob("*.pt"))) == 8
    assert len(list((folder / "models").glob("*.json"))) == 16


def test_networks_of_one_kind_train_in_the_same_launches(tmp_path, monkeypatch):
    trained = []

    class Watched(ManyTrainer):
        def __init__(self, tasks, **options):
            trained.append({task.shape().widths for task in tasks})
            super().__init__(tasks, **options)

    monkeypatch.setattr(runner, "ManyTrainer", Watched)
    run_of(tmp_path).run()
    assert trained == [{(3, 8, 8, 2)}, {(3, 12, 2)}]


def test_nothing_that_is_there_is_done_again(done, monkeypatch):
    folder, table = done

    for name in ("ManyTrainer", "sample_many", "Yardstick"):
        monkeypatch.setattr(runner, name, None)  # a call would fail
    assert list(run_of(folder, resume=True).run()) == list(table)


def test_values_can_be_added_to_a_sweep(tmp_path, monkeypatch):
    few = {**FACTORS, "seed": 0}
    first = run_of(tmp_path, sweep(few)).run()
    assert len(first) == 8
    trained = []
    monkeypatch.setattr(
        runner, "ManyTrainer", lambda tasks, **o: trained.extend(tasks) or ManyTrainer(tasks, **o)
    )
    both = run_of(tmp_path, resume=True).run()
    assert len(trained) == 4
    assert [one.number for one in both] == list(range(16))
    assert [one.metrics for one in both if one.values["seed"] == 0] == [
        one.metrics for one in first
    ]


@pytest.mark.parametrize("moment", ["a network", "a result"])
def test_an_interrupted_sweep_goes_on(tmp_path, done, monkeypatch, moment):
    _, table = done
    owner = runner.SweepFolder
    name = "save_network" if moment == "a network" else "save_result"
    real, calls = getattr(owner, name), []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 6:  # in the second of two groups of networks; or of the first's models
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(owner, name, stops)
    run = run_of(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    del run  # and the lock of the folder
    monkeypatch.setattr(owner, name, real)
    trained = []
    monkeypatch.setattr(
        runner, "ManyTrainer", lambda tasks, **o: trained.extend(tasks) or ManyTrainer(tasks, **o)
    )
    again = run_of(tmp_path, resume=True).run()
    assert len(trained) == (3 if moment == "a network" else 4)
    assert len(again) == len(table)
    for one, other in zip(again, table, strict=True):
        for metric in METRICS:
            value = other.metrics[metric].value
            assert one.metrics[metric].value == pytest.approx(value, rel=1e-3)


def test_a_training_that_diverges_stops_no_other(tmp_path):
    table = run_of(tmp_path, sweep({**FEW, "hidden": 8, "lr": [1e-3, 1e30]})).run()
    assert table[0].metrics
    assert not table[0].failed
    assert table[1].failed.startswith("the loss is not finite from step")
    assert not table[1].metrics
    again = run_of(tmp_path, resume=True, swept=sweep({**FEW, "hidden": 8, "lr": [1e-3, 1e30]}))
    assert [one.failed for one in again.run()] == [one.failed for one in table]


def test_conditional_models_draw_without_a_class_or_each_class_as_the_data_do(tmp_path):
    factors = {**FEW, "hidden": 8, "p_uncond": 0.1, "scale": "none,0,1.5", "sampling_steps": 4}
    swept = sweep(factors, metrics=["occupancy", "sliced_wasserstein"])
    table = run_of(tmp_path, swept).run()
    assert all(one.metrics.keys() == {"occupancy", "sliced_wasserstein"} for one in table)
    network = swept.models[0].task(MOONS).initial()
    free, guided = (swept.models[place].config(network, MOONS, 4000) for place in (0, 2))
    assert free.label is None
    shares = torch.bincount(guided.label) / 4000
    assert shares == pytest.approx(torch.bincount(MOONS.labels) / len(MOONS), abs=0.04)
    assert len({one.metrics["sliced_wasserstein"].value for one in table}) == 3


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_parts_are_the_whole_and_cost_alike(parts):
    trainings = trainings_of(sweep({**FACTORS, "seed": "0..9"}))
    shares = [part_of(trainings, part, parts) for part in range(parts)]
    assert [one for share in shares for one in share] == trainings
    costs = [sum(one.cost for one in share) for share in shares]
    assert max(costs) - min(costs) <= 2 * max(one.cost for one in trainings)


def test_chunks_hold_networks_of_one_kind():
    trainings = trainings_of(sweep({**FACTORS, "steps": "10,20"}))
    chunks = list(chunks_of(trainings, CPU, 3))
    assert [len(chunk) for chunk in chunks] == [3, 1] * 4
    for chunk in chunks:
        assert len({(one.task.kind(), one.task.total_steps) for one in chunk}) == 1
    assert [len(chunk) for chunk in chunks_of(trainings, CPU)] == [4] * 4
    wide = trainings_of(sweep({"hidden": "256x4", "batch_size": 10_000, "seed": "0..2"}))
    assert [len(chunk) for chunk in chunks_of(wide, CPU)] == [1, 1, 1]  # no two fit the cache


def test_a_plan_counts_groups_memory_and_time():
    swept = sweep()
    plan = plan_of(swept, trainings_of(swept), CPU)
    assert [(one.widths, one.networks, one.models) for one in plan.groups] == [
        ((3, 8, 8, 2), 4, 8), ((3, 12, 2), 4, 8),
    ]  # fmt: skip
    parameters = 3 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2 + 1
    assert plan.groups[0].memory == 4 * (4 * 5 * parameters + 2 * 32 * (3 + 8 + 8 + 2) * 4)
    assert 0 < plan.groups[0].training < plan.seconds < 100
    text = plan.to_markdown()
    assert "16 models of 8 networks in 2 groups" in text
    assert "an estimate from a few timed steps on this machine" in text
    double = plan_of(swept, trainings_of(sweep({**FACTORS, "steps": 20_000})), CPU)
    assert double.groups[0].training > 100 * plan.groups[0].training


def test_drawing_costs_what_the_evaluations_of_the_method_do():
    swept = sweep({**FEW, "hidden": 8, "method": "ddim,heun,dpm++2m", "sampling_steps": "none,6"})
    assert [model.evaluations for model in swept.models] == [30, 6, 59, 11, 30, 6]
    (training,) = trainings_of(swept)
    costs = [training.drawing_cost(model, 7) for model in swept.models]
    parameters = training.task.shape().num_parameters
    assert costs == [7 * parameters * model.evaluations for model in swept.models]


def test_the_time_left_is_that_of_the_work_left(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("flashpoint.diffusion.sweeps.progress.time.monotonic", lambda: clock[0])
    progress = SweepProgress(Progress("sweep", 12, "models", shown=False), 1000.0, 2, 12)
    assert progress.left() is None
    clock[0] += 10
    progress.spent(250.0)
    assert progress.left() == pytest.approx(30)  # nothing says yet how long measuring takes
    clock[0] += 2
    progress.finished(2.0)
    assert progress.left() == pytest.approx(30 + 9 * 2)
    assert [duration(seconds) for seconds in (-1, 7, 300, 36_000)] == [
        "0 s", "7 s", "5 min", "10.0 h",
    ]  # fmt: skip


def test_the_function_returns_the_table_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    factors = {**FEW, "hidden": [8], "seed": range(2), "sampling_steps": 4}
    table = fd.sweep(
        "moons", factors, samples=60, metrics=METRICS, real_draws=10, device="cpu", quiet=True
    )
    assert len(table) == 2
    assert "sliced Wasserstein" in table.to_markdown()
    assert not list(tmp_path.iterdir())
    kept = fd.sweep(
        MOONS, factors, out="kept", samples=60, metrics=METRICS, real_draws=10, device="cpu",
        quiet=True,
    )  # fmt: skip
    assert kept[0].metrics == table[0].metrics
    names = {path.name for path in (tmp_path / "kept").iterdir()}
    assert {"results.json", "results.csv", "table.md", "factors.png", "sweep.json"} <= names


SMALL = (
    "--set", "hidden=8x2", "--set", "steps=20", "--set", "batch_size=32", "--set", "timesteps=30",
    "--set", "schedule=cosine", "--set", "sampling-steps=4", "--samples", 60, "--real-draws", 10,
    "--metrics", "sliced_wasserstein", "--device", "cpu",
)  # fmt: skip


def test_the_command_leaves_a_table_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("sweep", "--data", "moons", *SMALL, "--set", "prediction=v,flow")
    result = flashpoint(*command)
    assert result.exit_code == 0, result.output
    assert "| prediction | models | sliced Wasserstein distance |" in result.output
    assert "everything is in runs/sweep-moons" in result.output
    content = json.loads((tmp_path / "runs/sweep-moons/results.json").read_text())
    assert len(content["models"]) == 2
    again = flashpoint(*command)
    assert again.exit_code == 2
    assert "holds a sweep already; --resume goes on with it" in again.output
    more = flashpoint(*command, "--set", "seed=0,1", "--resume")
    assert more.exit_code == 0, more.output
    assert "2 of 4 models are there" in more.output
    other = flashpoint(*command, "--resume", "--real-draws", 11)
    assert other.exit_code == 2
    assert "is measured otherwise (real draws 10, now 11)" in other.output
    moved = flashpoint(
        "sweep", "--data", "circles", *SMALL, "--resume", "--out", "runs/sweep-moons"
    )
    assert moved.exit_code == 2
    assert "the data have changed since sweep runs/sweep-moons was started" in moved.output
    anew = flashpoint(*command, "--overwrite", "--quiet")
    assert anew.exit_code == 0
    assert len(list((tmp_path / "runs/sweep-moons/models").iterdir())) == 2


def test_a_dry_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text('[set]\nlr = [1e-3, 2e-3]\nseed = "0..2"\n')
    result = flashpoint("sweep", "--data", "moons", *SMALL, "--file", "grid.toml", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "6 models in 1 group" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["grid.toml"]


def test_a_signal_ends_a_sweep_with_what_is_finished(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = runner.SweepFolder.save_result

    def told(*arguments):
        real(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    command = ("sweep", "--data", "moons", *SMALL, "--set", "seed=0..2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.SweepFolder, "save_result", told)
        result = flashpoint(*command)
    assert result.exit_code == 143
    line = "stopped by SIGTERM with 1 of 3 models finished; the same command with --resume goes on"
    assert line in result.output
    assert flashpoint(*command, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--set must be given at least once, as in --set lr=1e-3,3e-3, or --file"),
        (("--set", "lrr=1"), "a sweep has no key 'lrr'; did you mean 'lr'?"),
        (("--set", "lr=1,x"), "lr must be a number, got 'x'"),
        (("--set", "lr=1", "--metrics", "emdd"), "--metrics must be one of"),
        (("--set", "lr=1", "--best", "emd"), "--best must be one of the metrics of the sweep"),
        (("--set", "lr=1", "--shard", "4/3"), "--shard must be one of 1/N to N/N"),
        (("--set", "lr=1", "--resume", "--overwrite"), "exclude each other"),
        (("--file", "none.toml"), "none.toml cannot be read: it does not exist"),
    ],
)
def test_wrong_options_are_one_line_before_any_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = flashpoint("sweep", "--data", "moons", *arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error: ")
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_damaged_result_is_one_line(tmp_path):
    few = sweep({**FEW, "hidden": 8, "sampling_steps": 4})
    run_of(tmp_path, few).run()
    file = next((tmp_path / "models").iterdir())
    file.write_text("{}")
    with pytest.raises(UserError, match=r"does not hold the result of the model .*delete it"):
        run_of(tmp_path, few, resume=True).run()


def test_data_in_the_folder_of_a_sweep_are_not_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own" / "networks"
    folder.mkdir(parents=True)
    torch.save({"data": torch.randn(50, 2)}, folder / "own.pt")
    result = flashpoint(
        "sweep", "--data", folder / "own.pt", *SMALL, "--out", "own", "--overwrite"
    )  # fmt: skip
    assert result.exit_code == 2
    assert "would be written over" in result.output
    assert (folder / "own.pt").exists()
