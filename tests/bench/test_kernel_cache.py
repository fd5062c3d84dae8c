"""Compiled kernels are carried from one cache of Triton to another."""

import json
import os
import re

import pytest

from flashpoint.bench.kernel_cache import FILE, kernels_in, pack, unpack

from ..kernels.processes import run_compiled


def make_kernel(cache, name, size=100, when=0):
    """Makes a folder as Triton leaves it."""
    folder = cache / name
    folder.mkdir(parents=True)
    files = {"k.json": b"{}", "k.cubin": os.urandom(size)}
    for file, content in files.items():
        (folder / file).write_bytes(content)
    paths = {file: str(folder / file) for file in files}
    (folder / "__grp__k.json").write_text(json.dumps({"child_paths": paths}))
    os.utime(folder, (when, when))
    return files


def test_lists_name_the_files_where_they_are_now(tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    files = make_kernel(before, "ONE")
    assert pack(before, tmp_path / FILE) == 0
    assert unpack(tmp_path / FILE, now) is None
    paths = json.loads((now / "ONE/__grp__k.json").read_text())["child_paths"]
    assert paths == {file: str(now / "ONE" / file) for file in files}
    assert (now / "ONE/k.cubin").read_bytes() == files["k.cubin"]
    assert [path.name for path in now.iterdir()] == ["ONE"]


def test_what_is_there_stays_as_it_is(tmp_path):
    make_kernel(tmp_path / "before", "ONE")
    pack(tmp_path / "before", tmp_path / FILE)
    files = make_kernel(tmp_path / "now", "ONE")
    assert unpack(tmp_path / FILE, tmp_path / "now") is None
    assert (tmp_path / "now/ONE/k.cubin").read_bytes() == files["k.cubin"]


def test_what_a_killed_process_left_is_not_carried(tmp_path):
    cache = tmp_path / "cache"
    make_kernel(cache, "WHOLE")
    (cache / "WHOLE/tmp.pid_7_x").mkdir()
    (cache / "WHOLE/tmp.pid_7_x/k.cubin").write_bytes(b"half")
    (cache / "HALF").mkdir()
    (cache / "HALF/k.cubin").write_bytes(b"half")
    assert kernels_in(cache) == {"WHOLE"}
    pack(cache, tmp_path / FILE)
    unpack(tmp_path / FILE, tmp_path / "now")
    found = [path.relative_to(tmp_path / "now").as_posix() for path in tmp_path.glob("now/*/*")]
    assert sorted(found) == ["WHOLE/__grp__k.json", "WHOLE/k.cubin", "WHOLE/k.json"]


def test_the_newest_have_room_and_the_limit_holds(tmp_path):
    for number in range(6):
        make_kernel(tmp_path / "cache", f"K{number}", size=100_000, when=1000 + number)
    assert pack(tmp_path / "cache", tmp_path / FILE, limit=350_000) == 3
    assert (tmp_path / FILE).stat().st_size <= 350_000
    unpack(tmp_path / FILE, tmp_path / "now")
    assert kernels_in(tmp_path / "now") == {"K3", "K4", "K5"}


def test_a_damaged_archive_is_reported_and_adds_nothing(tmp_path):
    make_kernel(tmp_path / "cache", "ONE", size=100_000)
    pack(tmp_path / "cache", tmp_path / FILE)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    assert FILE in unpack(tmp_path / FILE, tmp_path / "now")
    assert list((tmp_path / "now").iterdir()) == []


def compiled_into(cache):
    """Runs the command that compiles a few kernels and returns its output."""
    done = run_compiled(
        "-m", "flashpoint.bench", "compile",
        TRITON_CACHE_DIR=str(cache), TRITON_STORE_BINARY_ONLY="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow  # compiles
def test_triton_finds_what_was_carried_elsewhere(tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    assert re.fullmatch(r"([1-9]\d*) kernels, \1 compiled now\n", compiled_into(before))
    pack(before, tmp_path / FILE)
    before.rename(tmp_path / "gone")
    unpack(tmp_path / FILE, now)
    assert re.fullmatch(r"[1-9]\d* kernels, 0 compiled now\n", compiled_into(now))
