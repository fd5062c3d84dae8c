"""The folder kernels/ as a local kernel of Hugging Face's own ``kernels`` package.

It runs in a process outside the repository, where ``kernels`` is the name of that package.
"""

import json
from pathlib import Path

import pytest

from .. import warm_python

FOLDER = Path(__file__).parents[2] / "kernels"

PROGRAM = """
import copy, json, sys
from pathlib import Path
import torch
from torch import nn
import flashpoint.kernels
from kernels import (
    LocalLayerRepository, Mode, get_loaded_kernels, kernelize, use_kernel_forward_from_hub,
    use_kernel_mapping,
)

@use_kernel_forward_from_hub("FusedPerceptron")
class Perceptron(nn.Sequential):
    pass

torch.manual_seed(0)
plain = Perceptron(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
model, x = copy.deepcopy(plain), torch.randn(7, 3)
repository = LocalLayerRepository(Path(sys.argv[1]), layer_name="FusedPerceptron")
with use_kernel_mapping({"FusedPerceptron": {"cpu": repository}}):
    kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu", use_fallback=False)

(loaded,) = get_loaded_kernels()
inner = sys.modules[loaded.module.__name__ + "._perceptrons"]
calls = []

def counted(arguments, precision):  # on the interpreted kernels, where the layer asks for a GPU
    calls.append(list(arguments.x.shape))
    return fused(arguments, precision)

fused, inner.run_kernels, inner._worth_fusing = inner.run_kernels, counted, lambda x: True
inner.faster_in_pytorch = lambda x: None  # although it is float32

def run(model):
    model.zero_grad()
    inputs = x.clone().requires_grad_()
    y = model(inputs)
    y.square().sum().backward()
    gradients = [inputs.grad, *(p.grad for p in model.parameters())]
    return [part.detach().flatten().tolist() for part in (y, *gradients)]

results = {"plain": run(plain), "kernel": run(model), "calls": len(calls)}
inner.run_kernels = fused
compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
results |= {
    "compiled": run(compiled),
    "forward": model.forward.__func__.__module__,
    "namespaces": [hasattr(getattr(torch.ops, name), "mlp")
                   for name in ("flashpoint", loaded.module.__name__)],
    "theirs": not Path(sys.modules["kernels"].__file__).is_relative_to(sys.argv[1]),
}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    run = warm_python.run(["-c", PROGRAM, FOLDER], cwd=elsewhere, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_layer_comes_from_the_folder(results):
    assert results["theirs"]
    assert results["forward"] == "_flashpoint_kernels.layers"


def test_forward_and_backward_run_on_the_kernel(results):
    assert results["calls"] == 1
    assert len(results["kernel"]) == 8  # y, the input's gradient and six parameters'
    for ours, plain in zip(results["kernel"], results["plain"], strict=True):
        assert ours == pytest.approx(plain, rel=1e-4, abs=1e-5)


def test_it_compiles_in_one_graph(results):
    for ours, plain in zip(results["compiled"], results["plain"], strict=True):
        assert ours == pytest.approx(plain, rel=1e-4, abs=1e-5)


def test_it_lives_beside_the_installed_package(results):
    assert results["namespaces"] == [True, True]
