"""The package as it is installed: one namespace, with its data files."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jinja2
import pytest
import yaml

ROOT = Path(__file__).parents[1]


def tracked(*folders):
    command = ["git", "ls-files", *folders]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_module_and_data_file(wheel):
    kinds = (".py", ".json", ".html", ".css", ".js", "py.typed")
    wanted = {
        name
        for name in tracked("kernels", "diffusion", "bench")
        if name.endswith(kinds) and "/suite/" not in name
    }
    wanted = {name for name in wanted if not name.startswith("bench/records/")}
    packed = {str(path.relative_to(wheel / "flashpoint")) for path in wheel.rglob("*.*")
              if "flashpoint/" in str(path)}  # fmt: skip
    assert wanted
    assert wanted <= packed, wanted - packed


def test_records_are_not_installed(wheel):
    """MANIFEST.in names them for the source archive."""
    assert not (wheel / "flashpoint/bench/records").exists()


def test_nothing_is_installed_outside_the_namespace(wheel):
    top = {path.name for path in wheel.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"flashpoint"}
    assert not (wheel / "flashpoint" / "__init__.py").exists()


def test_the_installed_package_finds_its_data_and_takes_no_bare_names(wheel):
    program = (
        "import sys, flashpoint.diffusion, flashpoint.kernels, flashpoint.bench\n"
        "assert flashpoint.diffusion.__file__.startswith(sys.argv[1]), flashpoint.diffusion\n"
        "assert len(flashpoint.diffusion.states_points(50)) == 50\n"
        "assert not {'kernels', 'diffusion', 'bench'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(wheel)],
        check=True, cwd=wheel, env={"PYTHONPATH": str(wheel), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


# The only file of an editable wheel that Python reads at its start, written where it is asked to.
EDITABLE = """
import sys, zipfile
from setuptools.build_meta import build_editable
folder = sys.argv[1]
with zipfile.ZipFile(f"{folder}/{build_editable(folder)}") as wheel:
    (path,) = [name for name in wheel.namelist() if name.endswith(".pth")]
    open(f"{folder}/pth", "wb").write(wheel.read(path))
"""


def test_an_editable_install_is_a_path_that_mypy_and_pyright_read(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("kernels", "diffusion", "bench"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-P", "-c", EDITABLE, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "pth").read_text().splitlines()
    assert Path(line).is_dir(), line  # code here would be a hook, which only Python runs
    assert [path.name for path in Path(line).iterdir()] == ["flashpoint"]
    for name in ("kernels", "diffusion"):
        assert (Path(line) / "flashpoint" / name / "py.typed").exists()


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_source_archive_has_what_its_tests_read():
    lines = [line.split() for line in (ROOT / "MANIFEST.in").read_text().splitlines()]
    folders = {name for command, *names in lines for name in names if command == "graft"}
    patterns = [name for command, *names in lines for name in names if command == "include"]
    built_in = {"MANIFEST.in", "pyproject.toml", "setup.py"}  # setuptools adds them
    for name in set(tracked()) - built_in - {".gitignore"}:
        top, *below = name.split("/")
        assert (top in folders) if below else any(map(Path(name).match, patterns)), name


def test_the_version_is_said_in_one_place():
    """All else reads it; the changelog names those that are published."""
    version = project()["version"]
    files = subprocess.run(
        ["git", "grep", "--files-with-matches", "--fixed-strings", "--word-regexp", version],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert set(files) <= {"pyproject.toml", "CHANGELOG.md"}


def test_the_readme_says_which_python():
    least = project()["requires-python"].removeprefix(">=")
    assert f"Python {least} or newer" in (ROOT / "README.md").read_text()


def test_the_conda_recipe_asks_for_what_the_package_asks_for():
    template = (ROOT / "conda.recipe/meta.yaml").read_text()
    recipe = yaml.safe_load(
        jinja2.Template(template).render(
            load_file_data=lambda name, **_: tomllib.loads((ROOT / name[3:]).read_text())
        )
    )
    assert recipe["package"] == {"name": "flashpoint", "version": project()["version"]}
    conda = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    asked = {
        conda.get(line.split()[0], line.split()[0]): line.partition(" ")[2]
        for line in recipe["requirements"]["run"]
        if not line.startswith("__")  # a system
    }
    assert asked.pop("python") == project()["requires-python"]
    wanted = [line.partition(";")[0].partition(">=") for line in project()["dependencies"]]
    assert asked == {name: sign + version for name, sign, version in wanted}
