"""Parts of a sweep: several processes leave what one would, and one that died is done again."""

import json
import os
import re
import signal
import textwrap

import pytest
import torch

from flashpoint.diffusion import UserError
from flashpoint.diffusion.device import own_device
from flashpoint.diffusion.sweeps import SweepRun, SweepTable
from flashpoint.diffusion.sweeps.shards import Part, part_of_text, this_part

from .. import warm_python
from ..warm_ranks import run_ranks
from .shared_runs import sweep


def run(folder, part=None, **options):
    """Does a part of the sweep, one model at a time, so that all parts agree to the last bit."""
    part = Part() if part is None else part_of_text(part)
    return SweepRun(
        sweep(), folder, part=part, together=1, device="cpu", say=lambda _: None, quiet=True,
        **options,
    ).run()  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table that one process leaves."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return SweepTable.read(folder)


def scores(table):
    return [(one.number, one.values, one.metrics, one.steps) for one in table]


# The process of a rank; that of rank 1 is killed after it has kept two networks and one model.
RANK = """
    import os, signal, sys
    sys.path.insert(0, {folder!r})
    from shared_runs import sweep
    from flashpoint.diffusion.sweeps import SweepRun
    from flashpoint.diffusion.sweeps.shards import this_part
    from flashpoint.diffusion.sweeps.store import SweepFolder

    kept, save = [], SweepFolder.save_network
    def dies(self, *arguments):
        save(self, *arguments)
        kept.append(arguments)
        if os.environ.get("RANK") == {victim!r} and len(kept) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    SweepFolder.save_network = dies
    part = this_part()
    run = SweepRun(sweep(), sys.argv[1], part=part, together=1, device="cpu",
                   resume="--resume" in sys.argv, best="sliced_wasserstein")
    print(f"part {{part}} of {{len(run.models)}} models", flush=True)
    run.run()
"""


def two_ranks(victim, *arguments):
    script = RANK.format(folder=os.path.dirname(__file__), victim=victim)
    program = ["-c", textwrap.dedent(script), *arguments]
    return run_ranks(2, program, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_rank_that_was_killed_is_done_again(tmp_path, whole):
    folder = tmp_path / "sweep"
    _, killed = two_ranks("1", folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "results.json").exists()
    kept = {path: path.read_bytes() for path in folder.glob("*/*.json")}
    assert 0 < len(list(folder.glob("models/*.json"))) < 12
    both = two_ranks("none", folder, "--resume")
    assert [done.returncode for done in both] == [0, 0], both[0].stderr + both[1].stderr
    said = both[0].stdout + both[1].stdout
    shares = dict(re.findall(r"part (\S+) of (\d+) models", said))
    assert shares.keys() == {"1/2", "2/2"}
    assert sum(map(int, shares.values())) == 12
    assert "the part that ends last writes the table" in said
    assert {path: path.read_bytes() for path in kept} == kept  # what was kept was not done again
    assert scores(SweepTable.read(folder)) == scores(whole)
    assert (folder / "table.md").exists()
    assert (folder / "factors.png").exists()
    assert (folder / "best-sliced_wasserstein/config.json").exists()


def test_parts_one_after_another_leave_what_one_process_does(tmp_path, whole):
    for number in (2, 3):
        assert len(run(tmp_path, f"{number}/3")) < 12
        assert not (tmp_path / "results.json").exists()
    assert scores(run(tmp_path, "1/3")) == scores(whole)
    assert scores(SweepTable.read(tmp_path)) == scores(whole)


def test_another_number_of_parts_goes_on(tmp_path, whole):
    run(tmp_path, "1/3")
    assert scores(run(tmp_path, resume=True)) == scores(whole)


def test_a_part_that_was_begun_wants_resume(tmp_path):
    run(tmp_path, "1/3")
    with pytest.raises(UserError, match=r"holds part 1/3 of a sweep already; --resume goes on"):
        run(tmp_path, "1/3")
    with pytest.raises(UserError, match="holds a sweep already"):
        run(tmp_path)
    run(tmp_path, "1/3", resume=True)
    run(tmp_path, overwrite=True)
    assert not list(tmp_path.glob("parts/*/.lock.json"))
    with pytest.raises(UserError, match="holds a sweep already"):  # of one process by now
        run(tmp_path, "2/3")


def test_a_part_deletes_nothing_of_others(tmp_path):
    with pytest.raises(UserError, match=r"overwrite must be left out for part 2/3 of a sweep"):
        run(tmp_path, "2/3", overwrite=True)


def test_a_part_of_another_sweep_is_one_line(tmp_path):
    run(tmp_path, "1/3")
    record = json.loads((tmp_path / "sweep.json").read_text())
    record["factors"]["lr"] = [1.0]
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="a sweep with other values"):
        run(tmp_path, "2/3")


# Holds a part of the sweep until it is killed.
HOLDS = """
    import sys, time
    sys.path.insert(0, {folder!r})
    from shared_runs import sweep
    from flashpoint.diffusion.sweeps import SweepRun
    from flashpoint.diffusion.sweeps.shards import this_part

    run = SweepRun(sweep(), sys.argv[1], part=this_part(sys.argv[2]), device="cpu")
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("held", "refused", "allowed", "message"),
    [
        ("1/3", ("1/3", None, "2/4"), "2/3", r"in use by"),
        pytest.param("1/1", ("1/3", None), None, r"in use by", marks=pytest.mark.slow),
    ],
)
def test_what_another_process_does_is_not_done_twice(tmp_path, held, refused, allowed, message):
    script = textwrap.dedent(HOLDS).format(folder=os.path.dirname(__file__))
    with warm_python.Popen(["-c", script, tmp_path, held]) as process:
        assert process.stdout.readline() == "holds\n"
        for part in refused:
            with pytest.raises(UserError, match=message):
                run(tmp_path, part, resume=True)
        if allowed:
            run(tmp_path, allowed)
    run(tmp_path, refused[0], resume=True)  # the killed process has lost its lock


def test_shards_are_parts_of_the_ranks_of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert this_part() == (0, 1)
    assert this_part("3/16") == (2, 16)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    assert this_part() == (1, 4)
    assert this_part("3/16") == (9, 64)
    assert str(this_part("3/16")) == "10/64"


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/2/3", ""])
def test_a_shard_that_is_none_is_one_line(text):
    with pytest.raises(UserError, match=r"shard must be one of 1/N to N/N, as 3/16, got"):
        part_of_text(text)


def test_a_process_takes_the_cuda_device_of_its_local_number(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_device("cpu") == "cpu"
    assert own_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="must be at most 2, the number of CUDA devices"):
        own_device("cuda")
    with pytest.raises(UserError, match="device must be cpu, cuda or cuda:N, got 'gpu'"):
        own_device("gpu")
