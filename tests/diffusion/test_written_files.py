"""Files that are written: whole or untouched, through links, never over what is read."""

import errno
import os

import pytest
import torch

from flashpoint.diffusion import UserError, dataset, files, plots
from flashpoint.diffusion.studies import report as studies


def write_gif(path):
    frames = torch.randn(3, 20, 2)
    plots.animation(frames, [2, 1, 0], dataset("moons"), path)


WRITERS = {
    "x.pt": lambda path: files.save(path, torch.zeros(3)),
    "x.json": lambda path: files.save_json(path, {"a": 1}),
    "x.png": lambda path: plots.scatter(torch.randn(20, 2), save_to=path),
    "x.gif": write_gif,
    "x.md": lambda path: studies.write_page((), path.parent, path),
}


@pytest.fixture
def full_disk(monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_the_old_file_of_every_kind(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(UserError, match=f"{name} cannot be written: No space left on device"):
        WRITERS[name](path)
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_goes_through_links_and_keeps_permissions(tmp_path, name):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / name, tmp_path / name
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    WRITERS[name](link)
    assert link.is_symlink()
    assert target.read_bytes() != b"old"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.save_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o640


def test_a_link_to_nowhere_and_a_long_name_are_one_line(tmp_path):
    (tmp_path / "x.pt").symlink_to(tmp_path / "missing" / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt cannot be written: No such file"):
        files.save(tmp_path / "x.pt", 1)
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    with pytest.raises(UserError, match=r"loop\.pt cannot be written"):
        files.save(tmp_path / "loop.pt", 1)
    with pytest.raises(UserError, match="File name too long"):
        files.save(tmp_path / ("x" * 300), 1)


def test_a_target_is_never_an_input_by_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = tmp_path / "one.pt"
    one.write_bytes(b"1")
    (tmp_path / "link.pt").symlink_to("one.pt")
    os.link(one, tmp_path / "hard.pt")
    names = ("one.pt", "./one.pt", f"../{tmp_path.name}/one.pt", "link.pt", "hard.pt")
    for name in names:
        with pytest.raises(UserError, match="would be written over"):
            files.check_apart(files.Path(name), None, one)
    files.check_apart(tmp_path / "two.pt", None, one)
    files.check_apart(tmp_path / "two.pt", tmp_path / "three.pt")
