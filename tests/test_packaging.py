"""The package as it is installed: one namespace, with its data files."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_module_and_data_file(wheel):
    tracked = subprocess.run(
        ["git", "ls-files", "kernels", "diffusion", "bench"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    kinds = (".py", ".json", ".html", ".css", ".js", "py.typed")
    wanted = {name for name in tracked if name.endswith(kinds) and "/suite/" not in name}
    wanted = {name for name in wanted if not name.startswith("bench/records/")}
    packed = {str(path.relative_to(wheel / "flashpoint")) for path in wheel.rglob("*.*")
              if "flashpoint/" in str(path)}  # fmt: skip
    assert wanted
    assert wanted <= packed, wanted - packed


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
