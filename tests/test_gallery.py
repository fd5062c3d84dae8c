"""The check of the pictures of the documentation finds what has changed."""

import runpy
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
GALLERY = runpy.run_path(str(ROOT / "docs/gallery.py"), run_name="gallery")


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same pictures."""
    drawn, kept = tmp_path / "drawn", tmp_path / "kept"
    for folder in (drawn, kept):
        (folder / "gallery").mkdir(parents=True)
        shutil.copy(ROOT / "docs/gallery/conditional.png", folder / "gallery")
    return drawn, kept


def test_equal_pictures_do_not_differ(folders):
    assert GALLERY["differences"](*folders) == []


def test_a_missing_title_is_found(folders):
    path = folders[1] / "gallery/conditional.png"
    image = Image.open(path).convert("RGB")
    ImageDraw.Draw(image).rectangle((0, 0, image.width // 5, 40), fill="white")
    image.save(path)
    (line,) = GALLERY["differences"](*folders)
    assert line.startswith("gallery/conditional.png differs by ")


def test_another_size_and_a_picture_too_few_or_too_many_are_found(folders):
    drawn, kept = folders
    image = Image.open(kept / "gallery/conditional.png")
    image.resize((100, 30)).save(kept / "gallery/conditional.png")
    shutil.copy(drawn / "gallery/conditional.png", drawn / "gallery/new.png")
    shutil.copy(drawn / "gallery/conditional.png", kept / "gallery/old.png")
    found = GALLERY["differences"](drawn, kept)
    assert [line.split()[0].rstrip(":") for line in found] == [
        "gallery/conditional.png", "gallery/new.png", "gallery/old.png",
    ]  # fmt: skip


def test_screenshots_are_not_compared(folders):
    shutil.copy(folders[1] / "gallery/conditional.png", folders[1] / "gallery/viewer.png")
    assert GALLERY["differences"](*folders) == []
