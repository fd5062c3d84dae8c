"""Several ranks share the work and end where one would; two processes with gloo."""

import os
import signal
import textwrap

import pytest
import torch

from flashpoint.diffusion import Trainer
from flashpoint.diffusion.training import train_many
from flashpoint.diffusion.training.distributed import Ranks, join

from .. import warm_python
from ..warm_ranks import run_ranks
from .shared_runs import POINTS, RECIPES, SCHEDULE, TASKS, own_trainer

SHARED = """
    import sys
    sys.path.insert(0, {folder!r})
    import torch
    from flashpoint.diffusion import Trainer, train_many
    from flashpoint.diffusion.training.distributed import join
    from shared_runs import POINTS, RECIPES, SCHEDULE, TASKS, own_trainer

    ranks, device = join("cpu")
    assert ranks.size == 2
    found = {{}}
    for name, recipe in RECIPES.items():
        trainer = Trainer(POINTS, SCHEDULE, recipe, seed=1, device=device, ranks=ranks)
        trainer.run(20)
        found[name] = trainer.parameters
        found[name + " losses"] = trainer.losses
    own = own_trainer(ranks.rank, device=device, ranks=ranks)
    own.run(20)
    found["own"] = own.parameters
    for number, model in enumerate(train_many(TASKS, device=device, ranks=ranks)):
        found[f"task {{number}}"] = model.network().parameters
    if ranks.writes:
        torch.save(found, sys.argv[1])
"""

# The second rank dies in step 70; the command is what its users would start.
DIES = """
    import os, signal, sys
    from flashpoint.diffusion.training import engine
    from flashpoint.diffusion.cli import main

    do_step = engine.Engine._do_step
    def dies(self, step, after):
        if os.environ["RANK"] == "1" and step == 70:
            os.kill(os.getpid(), signal.SIGKILL)
        do_step(self, step, after)
    engine.Engine._do_step = dies
    main(sys.argv[1:])
"""


def two_ranks(script, *arguments):
    program = ["-c", textwrap.dedent(script), *arguments]
    return run_ranks(2, program, env=os.environ | {"OMP_NUM_THREADS": "1"})


def relative_difference(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def test_two_ranks_end_where_one_does(tmp_path):
    folder = os.path.dirname(__file__)
    for done in two_ranks(SHARED.format(folder=folder), tmp_path / "found.pt"):
        assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, recipe in RECIPES.items():
        trainer = Trainer(POINTS, SCHEDULE, recipe, seed=1, device="cpu")
        trainer.run(20)
        assert relative_difference(found[name], trainer.parameters) < 1e-5, name
        assert relative_difference(found[name + " losses"], trainer.losses) < 1e-5, name
    own = own_trainer(0, device="cpu")
    own.run(20)
    assert relative_difference(found["own"], own.parameters) < 1e-5
    for number, model in enumerate(train_many(TASKS, device="cpu")):
        expected = model.network().parameters
        assert relative_difference(found[f"task {number}"], expected) < 1e-5


COMMAND = ("train", "--data", "moons", "--steps", "110", "--classifier-steps", "5",
           "--batch-size", "32", "--timesteps", "20", "--checkpoint-every", "50",
           "--device", "cpu", "--out")  # fmt: skip


def test_a_rank_that_dies_ends_the_run_with_a_good_checkpoint(tmp_path):
    done, died = two_ranks(DIES, *COMMAND, tmp_path / "run")
    assert died.returncode == -signal.SIGKILL
    assert done.returncode != 0
    # Which comes first is chance: that rank 0 notices, or that it is told to stop.
    assert "error: rank 0 " in done.stderr
    assert "lost another of the 2 ranks" in done.stderr
    assert "--resume" in done.stderr
    state = torch.load(tmp_path / "run/checkpoints/training.pt", weights_only=True)
    assert state["denoiser"]["step"] == 50
    assert all(
        value.isfinite().all() for value in state["denoiser"].values() if torch.is_tensor(value)
    )
    again = warm_python.run(["-m", "flashpoint.diffusion", *COMMAND, tmp_path / "run", "--resume"])
    assert again.returncode == 0, again.stderr
    assert "at denoiser step 50" in again.stdout


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_all_rows_once(rows, size):
    shares = [Ranks(rank, size).share(rows) for rank in range(size)]
    assert [row for first, count in shares for row in range(first, first + count)] == list(
        range(rows)
    )
    assert max(count for _, count in shares) - min(count for _, count in shares) <= 1


def test_without_torchrun_there_is_one_rank(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu") == (Ranks(0, 1), "cpu")
    assert Ranks().writes
    assert Ranks().any(True)
    assert not Ranks().any(False)
