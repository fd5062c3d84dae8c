"""What callbacks are told of a training, and the logs that they write."""

import csv
import json
import math
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flashpoint import diffusion as fd
from flashpoint.diffusion.training.distributed import Ranks
from flashpoint.diffusion.training.losses import LossRecord
from flashpoint.diffusion.training.recipes import PlateauDecay

POINTS, SCHEDULE = fd.states_points(60), fd.Schedule(20, "cosine")
RECIPE = fd.Recipe(steps=220, hidden_layers=(8,), batch_size=16)


class Listener(fd.Callback):
    """Keeps what it is told; fails where it is asked to."""

    def __init__(self, fails=None):
        self.told, self.fails = [], fails

    def _hear(self, *what):
        self.told.append(what)
        if self.fails == what[0]:
            raise ConnectionError("no network")

    def on_begin(self, settings):
        self._hear("begin", settings)

    def on_log(self, step, values):
        self._hear("log", step, values)

    def on_end(self):
        self._hear("end")

    @property
    def rows(self):
        return {step: values for name, step, values in filter(lambda t: t[0] == "log", self.told)}


def trainer(recipe=RECIPE, **options):
    return fd.Trainer(POINTS, SCHEDULE, recipe, device="cpu", **options)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_callback_hears_of_settings_losses_and_the_end():
    listener, training = Listener(), trainer(seed=5)
    training.run(1000, callbacks=[listener])
    (_, settings), *_, last = listener.told
    assert last == ("end",)
    assert settings | {"network": "denoiser", "first_step": 0, "total_steps": 220, "seed": 5,
                       "data": POINTS.name, "points": 60, "dim": 2, "device": "cpu",
                       "recipe/lr": RECIPE.lr, "recipe/hidden_layers": [8],
                       "schedule/num_steps": 20} == settings  # fmt: skip
    assert json.loads(json.dumps(settings)) == settings
    assert list(listener.rows) == [50, 100, 150, 200, 220]
    rates = RECIPE.rates(training.task.pairs)
    for step, values in listener.rows.items():
        losses = training.losses[(step - 1) // 50 * 50 : step]
        assert values["loss"] == pytest.approx(losses.mean().item())
        assert values["lr"] == pytest.approx(rates[step - 1].item())
    seconds = [values["seconds"] for values in listener.rows.values()]
    assert 0 < seconds[0] < seconds[-1]
    assert seconds == sorted(seconds)


def test_settings_of_a_network_of_ones_own_name_it_and_no_layers():
    class Mine(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x) * t[:, None]

    listener = Listener()
    trainer(model=Mine(2, 2)).run(1, callbacks=[listener])
    settings = listener.told[0][1]
    assert settings["model"] == "Mine"
    assert not {"recipe/hidden_layers", "recipe/activation"} & settings.keys()
    assert settings["recipe/lr"] == RECIPE.lr


def test_a_callback_can_take_gradients():
    class Slope(fd.Callback):
        def on_log(self, step, values):
            x = torch.ones(3, requires_grad=True)
            self.found = torch.autograd.grad((x * step * values["lr"]).sum(), x)[0] / values["lr"]

    slope = Slope()
    trainer().run(50, callbacks=[slope])
    assert slope.found.tolist() == pytest.approx([50] * 3)


def test_rows_do_not_depend_on_where_a_training_was_cut():
    whole, parts, training = Listener(), Listener(), trainer()
    trainer().run(220, callbacks=[whole])
    for steps in (70, 30, 99, 100):
        training.run(steps, callbacks=[parts])
    assert [name for name, *_ in parts.told].count("begin") == 4
    assert [settings["first_step"] for name, *settings in parts.told if name == "begin"
            for settings in settings] == [0, 70, 100, 199]  # fmt: skip
    assert list(parts.rows) == list(whole.rows)
    for step, values in whole.rows.items():
        assert parts.rows[step]["loss"] == values["loss"]


def test_the_learning_rate_of_a_classic_recipe_is_that_of_the_step():
    # Halves the rate where the loss does not fall, which no table can know before.
    recipe = fd.ClassicRecipe(8, (8,), 60, lr=1e-7, optimizer="adam", decay=PlateauDecay(0.5, 0))
    listener, training = Listener(), trainer(recipe)
    training.run(10**6, callbacks=[listener])
    every = recipe.steps_per_rate(training.task.pairs)
    for step, values in listener.rows.items():
        rate = training.engine.course.rates[0, (step - 1) // every].item()
        assert values["lr"] == pytest.approx(rate), step
    assert len({values["lr"] for values in listener.rows.values()}) > 1


def test_a_failing_callback_is_named_and_the_training_can_go_on():
    training, others = trainer(), Listener()
    with pytest.raises(fd.UserError) as caught:
        training.run(220, callbacks=[others, Listener("log")])
    assert str(caught.value) == (
        "callback Listener has failed in on_log at step 50: ConnectionError: no network"
    )
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert [name for name, *_ in others.told] == ["begin", "log", "end"]
    assert training.step == 50
    training.run(10)
    alone = trainer()
    alone.run(60)
    assert torch.equal(training.parameters, alone.parameters)


@pytest.mark.parametrize("method", ["begin", "end"])
def test_all_that_have_begun_are_told_of_the_end(method):
    first, second = Listener(), Listener(method)
    with pytest.raises(fd.UserError, match=f"has failed in on_{method}: ConnectionError"):
        trainer().run(60, callbacks=[first, second])
    assert [first.told[-1], second.told[-1]] == [("end",), ("end",)]


class Careless(Listener):
    """Cannot end what did not go well."""

    def on_end(self):
        self.told.append(("end",))
        raise AttributeError("run")


@pytest.mark.parametrize("fails", ["begin", "log"])
def test_the_first_error_is_the_one_that_is_told(fails):
    listener = Careless(fails)
    with pytest.raises(fd.UserError, match=f"has failed in on_{fails}.*ConnectionError"):
        trainer().run(60, callbacks=[Careless(), listener])
    assert listener.told[-1] == ("end",)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer().run(60, progress=interrupted, callbacks=[Careless()])


@pytest.mark.parametrize(
    ("callbacks", "got"),
    [(print, "must be a list of Callbacks"), ([Listener], "must be objects with methods"),
     ([print], "must be objects with methods on_begin, on_log and on_end"),
     (fd.Callback, "must be a list")],
)  # fmt: skip
def test_what_is_no_callback_is_told_before_the_training(callbacks, got):
    training = trainer()
    with pytest.raises(fd.UserError, match=f"callbacks {got}"):
        training.run(60, callbacks=callbacks)
    assert training.step == 0


def test_only_the_first_rank_logs(monkeypatch):
    monkeypatch.setattr(Ranks, "add_up", lambda *_: None)
    listener = Listener()
    trainer(ranks=Ranks(1, 2)).run(60, callbacks=[listener])
    assert listener.told == []


def test_the_mean_of_a_very_long_record_is_that_of_the_losses_kept():
    record = LossRecord(torch.arange(10.0)[None], [1000])  # every hundredth loss
    record.copy_to_host(0, 1000)
    assert record.step_on_host == 1000
    assert record.mean_on_host(0, 0, 300) == 1.0
    assert record.mean_on_host(0, 650, 690) == 6.0  # none is kept of these
    record.wait()


def test_a_table_is_there_while_the_network_trains(tmp_path):
    path, seen = tmp_path / "losses.csv", []

    class Reader(fd.Callback):
        def on_log(self, step, values):
            seen.append((step, values["loss"], rows_of(path)[-1]))

    training = trainer()
    training.run(220, callbacks=[fd.CSVLog(path), Reader()])
    assert [step for step, *_ in seen] == [50, 100, 150, 200, 220]
    for step, loss, row in seen:
        assert (int(row["step"]), float(row["loss"])) == (step, pytest.approx(loss))
    rows = rows_of(path)
    assert list(rows[0]) == ["step", "network", "loss", "lr", "seconds"]
    assert {row["network"] for row in rows} == {"denoiser"}
    assert float(rows[0]["loss"]) == pytest.approx(training.losses[:50].mean().item(), rel=1e-6)


LOGS = {"csv": fd.CSVLog, "jsonl": fd.JSONLog}


def steps_in(path):
    if path.suffix == ".csv":
        return [(row["network"], int(row["step"])) for row in rows_of(path)]
    return [(row["network"], row["step"]) for row in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize("kind", LOGS)
def test_a_training_that_goes_on_cuts_off_the_rows_of_later_steps(tmp_path, kind):
    path, training = tmp_path / f"losses.{kind}", trainer()
    training.run(100, callbacks=[LOGS[kind](path)])
    state = training.state_dict()
    trainer(classify=True).run(60, callbacks=[LOGS[kind](path)])
    training.run(100, callbacks=[LOGS[kind](path)])
    with path.open("a") as file:  # a process that was killed while it wrote
        file.write('{"step": 25' if kind == "jsonl" else "25")
    training = trainer()
    training.load_state_dict(state)
    training.run(1000, callbacks=[LOGS[kind](path)])
    assert sorted(steps_in(path)) == [("classifier", 50)] + [
        ("denoiser", step) for step in (50, 100, 150, 200, 220)
    ]


@pytest.mark.parametrize("kind", LOGS)
def test_nothing_is_overwritten_unasked(tmp_path, kind):
    path = tmp_path / f"losses.{kind}"
    trainer().run(100, callbacks=[LOGS[kind](path)])
    with pytest.raises(fd.UserError, match="holds the log of another denoiser; take another name"):
        trainer().run(50, callbacks=[LOGS[kind](path)])
    assert steps_in(path) == [("denoiser", 50), ("denoiser", 100)]
    trainer().run(50, callbacks=[LOGS[kind](path, overwrite=True)])
    assert steps_in(path) == [("denoiser", 50)]
    for foreign in ("step,loss\n1,2\n", "mine", '{"loss": 3}\n', '{"step": "x"}\n'):
        path.write_text(foreign)
        with pytest.raises(fd.UserError, match="is no log of a training, or damaged"):
            trainer().run(50, callbacks=[LOGS[kind](path, overwrite=True)])
        assert path.read_text() == foreign
    with pytest.raises(fd.UserError, match=rf"must end in \.{kind}"):
        LOGS[kind](tmp_path / "losses.txt")


def test_new_numbers_get_a_column_and_infinite_ones_stay_valid(tmp_path):
    table, lines = fd.CSVLog(tmp_path / "a.csv"), fd.JSONLog(tmp_path / "a.jsonl")
    for log in (table, lines):
        log.on_begin({"network": "denoiser", "first_step": 0})
        log.on_log(50, {"loss": 0.1 + 0.2})
        log.on_log(100, {"loss": math.inf, "nll": 2.0})
        log.on_end()
    assert [(row["loss"], row["nll"]) for row in rows_of(table.path)] == [
        ("0.3", ""),
        ("inf", "2.0"),
    ]
    rows = [json.loads(line) for line in lines.path.read_text().splitlines()]
    assert [row["loss"] for row in rows] == [0.3, None]
    assert rows[1]["nll"] == 2.0


def curve(folder, name="loss"):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_the_curves(tmp_path):
    training, listener = trainer(), Listener()
    training.run(100, callbacks=[fd.TensorBoardLog(tmp_path)])
    state = training.state_dict()
    training.run(50, callbacks=[fd.TensorBoardLog(tmp_path)])
    training.load_state_dict(state)
    training.run(1000, callbacks=[fd.TensorBoardLog(tmp_path), listener])
    found = curve(tmp_path / "denoiser")
    assert [step for step, _ in found] == [50, 100, 150, 200, 220]
    assert found[-1][1] == pytest.approx(listener.rows[220]["loss"])
    with pytest.raises(fd.UserError, match="denoiser holds the log of another denoiser"):
        trainer().run(50, callbacks=[fd.TensorBoardLog(tmp_path)])
    trainer().run(60, callbacks=[fd.TensorBoardLog(tmp_path, overwrite=True)])
    assert [step for step, _ in curve(tmp_path / "denoiser", "lr")] == [50]


def test_a_missing_tensorboard_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(fd.UserError, match=r'pip install "flashpoint\[tensorboard\]"'):
        fd.TensorBoardLog(tmp_path)
