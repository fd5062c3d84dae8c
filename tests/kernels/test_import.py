"""The modules that `import flashpoint.kernels` needs and loads."""

import subprocess
import sys

LOADED_MODULES = """
import sys
import torch{triton}
before = set(sys.modules)
{block}
import flashpoint.kernels
new = {{name.partition(".")[0] for name in set(sys.modules) - before if sys.modules[name]}}
print(*sorted(new - set(sys.stdlib_module_names) - {{"flashpoint"}}))
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=590
    ).stdout.strip()


def test_loads_nothing_beyond_torch_and_triton():
    assert run(LOADED_MODULES.format(triton=", triton", block="")) == ""


def test_works_without_triton():
    code = LOADED_MODULES.format(triton="", block="sys.modules['triton'] = None")
    code += "x = torch.ones(1, 2)\nprint(flashpoint.kernels.mlp(x, [x], backend='torch').item())"
    assert run(code) == "2.0"


def test_folders_are_not_importable_by_their_bare_names():
    code = (
        "import sys, flashpoint.kernels; print({'kernels', 'diffusion', 'bench'} & {*sys.modules})"
    )
    assert run(code) == "set()"
