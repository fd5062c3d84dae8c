"""Which form of a kernel runs, and what says so."""

import logging
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import triton

from flashpoint.kernels import Condition, Guide, MLPShape, Network, _dispatch, forms, sample_chain
from flashpoint.kernels.forms import form_of, forms_on, problem_of_gluon
from flashpoint.kernels.mlp import config
from flashpoint.kernels.mlp.config import KERNELS, config_for
from flashpoint.kernels.sample_chain import one_launch
from flashpoint.kernels.train_step import launches

from .test_import import run

HOPPER = (9, 0)
PORTABLE = config_for("fp16", HOPPER, 64, 1, "chain")
CHOSEN = replace(PORTABLE, form="hopper")
LARGE = replace(CHOSEN, hopper_rows=128)


@pytest.fixture
def compiled(monkeypatch):
    """The environment of a process that compiles kernels."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.usefixtures("compiled")
def test_the_hopper_form_runs_where_the_table_names_it():
    assert form_of(CHOSEN, HOPPER).name == "hopper"
    assert form_of(PORTABLE, HOPPER) == ("portable", "no measurement shows the Hopper form faster")


@pytest.mark.usefixtures("compiled")
def test_the_portable_form_runs_where_the_other_cannot(monkeypatch):
    assert form_of(CHOSEN, (10, 0)).why == "the Hopper form needs capability 9.0, got 10.0"
    assert form_of(CHOSEN, HOPPER, "points of 99 coordinates").why == "points of 99 coordinates"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert form_of(CHOSEN, HOPPER, "points of 99 coordinates").why == "Triton's interpreter"
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    assert form_of(CHOSEN, HOPPER).why == "triton 3.10.0, Gluon is known for 3.6 and 3.9"
    assert {form_of(CHOSEN, capability).name for capability in [(8, 0), HOPPER]} == {"portable"}


@pytest.mark.parametrize("version", ["3.6.0", "3.6.1+git12", "3.9.3", "3.9.0rc1"])
def test_known_versions_of_gluon(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    assert problem_of_gluon() is None


@pytest.mark.parametrize("version", ["3.5.1", "3.7.1", "3.10.0", "4.6.0", "2.8.0"])
def test_unknown_versions_of_gluon(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    assert problem_of_gluon() == (f"triton {version}, Gluon is known for 3.6 and 3.9")


def test_no_gluon_without_triton(monkeypatch):
    monkeypatch.setattr(forms, "find_spec", lambda _: None)
    assert problem_of_gluon() == "triton is not installed"


def test_gluon_is_not_imported_where_the_portable_form_runs():
    """Triton itself imports it when it launches any kernel."""
    code = """
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
import torch, flashpoint.kernels as fk, flashpoint.diffusion, flashpoint.bench
shape = fk.MLPShape((3, 16, 16, 2))
denoiser = fk.Network(torch.zeros(1, shape.num_parameters), shape)
table, features = torch.ones(1, 2, 4), torch.zeros(1, 2, 1)
for backend in (None, "triton"):
    fk.sample_chain(denoiser, torch.zeros(1, 5, 2), table, features, seed=0, backend=backend)
    gluon = "triton.experimental.gluon" if backend is None else "flashpoint.kernels.gluon"
    print(gluon in sys.modules, "flashpoint.kernels.sample_chain.kernel" in sys.modules)
"""
    assert run(code).splitlines() == ["False False", "False True"]


def chain(widths=(3, 64, 64, 2), precision="fp16", rows=5, guide=None, condition=None):
    """Runs a chain of one step, in the form that fits."""
    shape = MLPShape(widths)
    denoiser = Network(torch.zeros(1, shape.num_parameters), shape)
    x = torch.zeros(1, rows, widths[-1])
    table, features = torch.ones(1, 1, 4), torch.zeros(1, 1, 1)
    return one_launch.sample_chain(
        denoiser, x, table, features, torch.tensor([0]), guide, condition, 0, 0, precision
    )


@pytest.fixture
def launched(monkeypatch, compiled):  # noqa: ARG001
    """The forms that chains are launched in, none of which does anything."""
    forms = []
    portable, hopper = (
        SimpleNamespace(sample_chain=lambda *_, name=name: forms.append(name))
        for name in config.FORMS
    )
    monkeypatch.setattr(one_launch, "kernel", portable)
    package = sys.modules[one_launch.__package__]  # kernels.sample_chain names a function
    monkeypatch.setattr(package, "hopper", hopper, raising=False)
    monkeypatch.setattr(config, "steps_of", lambda *_: ((0, PORTABLE), (2, CHOSEN), (4, LARGE)))
    _dispatch._log.cache_clear()
    return forms


def test_a_chain_is_launched_in_the_form_of_the_table(launched, caplog):
    labels = torch.zeros(1, 65, dtype=torch.int64)
    condition = Condition(torch.zeros(1, 3, 4), labels, free=True)
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        for rows in (64, 65):
            chain(rows=rows)
        chain((7, 64, 64, 2), rows=65, condition=condition)
        shape = MLPShape((3, 100, 200, 500, 5))
        classifier = Network(torch.zeros(1, shape.num_parameters), shape)
        chain(rows=65, guide=Guide(classifier, labels))
    assert launched == ["portable", "hopper", "hopper", "hopper"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"precision": "tf32"}, "precision tf32"),
        ({"widths": (3, 64, 520, 2)}, "a hidden layer of 520, wider than 512"),
        ({"widths": (3, 64, 2)}, "fewer than 2 hidden layers, 1"),
        ({"widths": (41, 64, 64, 40)}, "points of 40 coordinates, more than 32"),
        ({"guide": (3, 16, 5)}, "fewer than 2 hidden layers, 1"),
        ({"guide": (3, 16, 16, 65)}, "65 classes, more than 64"),
        (
            {"guide": (33, 256, 512, 64), "widths": (33, 256, 256, 32), "rows": 200},
            "shared memory has room for 1 of the 2 chunks of weights that it needs",
        ),
    ],
)
def test_what_the_hopper_form_does_not_cover_is_logged_once(options, why, launched, caplog):
    options = dict(options)
    if "guide" in options:
        shape = MLPShape(options["guide"])
        network = Network(torch.zeros(1, shape.num_parameters), shape)
        options["guide"] = Guide(network, torch.zeros(1, 65, dtype=torch.int64))
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        for _ in range(2):
            chain(**{"rows": 65} | options)
    assert launched == ["portable"] * 2
    assert [record.message for record in caplog.records] == [
        f"a sampling chain in the portable form instead of the Hopper form: {why}"
    ]


def test_the_interpreter_runs_the_portable_form_although_the_table_names_the_other(
    device, monkeypatch, caplog
):
    _dispatch._log.cache_clear()
    shape = MLPShape((3, 16, 16, 2))
    denoiser = Network(torch.randn(1, shape.num_parameters, device=device), shape)
    x, table, features = (torch.randn(1, *size, device=device) for size in ((5, 2), (3, 4), (3, 1)))
    call = partial(sample_chain, denoiser, x, table, features, seed=0, backend="triton")
    expected, _ = call()
    monkeypatch.setattr(config, "steps_of", lambda *_: ((0, CHOSEN),))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        assert torch.equal(call()[0], expected)
    assert "instead of the Hopper form: Triton's interpreter" in caplog.text


@pytest.mark.parametrize(
    ("widths", "precision", "why"),
    [
        ((3, 64, 64, 2), "fp16", None),
        ((3, 64, 64, 2), "tf32", "precision tf32"),
        ((3, 64, 520, 2), "bf16", "a hidden layer of 520, wider than 512"),
        ((3, 64, 2), "fp16", "fewer than 2 hidden layers, 1"),
    ],
)
@pytest.mark.usefixtures("compiled")
def test_a_training_step_takes_the_form_of_the_table(widths, precision, why, monkeypatch, caplog):
    """Buffers and the order of the weights are those of the form."""
    taken = []
    package = sys.modules[launches.__package__]
    for form, name in (("hopper", "hopper"), ("portable", "kernel")):
        module = SimpleNamespace(
            buffers_of=lambda *_, form=form: (form, 1),
            training_sums=lambda *_, form=form, **__: taken.append(form),
        )
        monkeypatch.setattr(package, name, module, raising=False)
        monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", module)
    monkeypatch.setattr(config, "steps_of", lambda *_: ((0, CHOSEN),))
    _dispatch._log.cache_clear()
    shape = MLPShape(widths)
    parameters = torch.zeros(1, shape.num_parameters)
    expected = "portable" if why else "hopper"
    with caplog.at_level(logging.INFO, logger="flashpoint"):
        for _ in range(2):
            shadow, buffers, _ = launches.prepared(parameters, shape, None, 65, precision)
            launches.training_sums(parameters, shape, None, None, shadow, buffers, rows=65)
    assert (buffers, shadow.chunked, taken) == (expected, why is None, [expected] * 2)
    assert [record.message for record in caplog.records] == (
        [f"a training step in the portable form instead of the Hopper form: {why}"] if why else []
    )


@pytest.fixture
def on_a_gpu(monkeypatch, compiled):  # noqa: ARG001
    """The forms on a GPU of a capability, by operation."""

    def found(capability):
        monkeypatch.setattr(forms, "problem_of", _dispatch._find_problem.__wrapped__)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        _dispatch._capability.cache_clear()
        return forms_on(torch.device("cuda:0"))

    yield found
    _dispatch._capability.cache_clear()


def test_every_kernel_belongs_to_an_operation():
    assert {*forms._OPERATIONS.values()} == {*KERNELS}


def test_forms_on_a_cpu():
    assert {form for _, form in forms_on(torch.device("cpu"))} == {
        ("PyTorch", "needs a CUDA device")
    }


def test_forms_on_gpus(on_a_gpu):
    old = {form for _, form in on_a_gpu((7, 5))}
    assert old == {("PyTorch", "needs compute capability 8.0 or more, got 7.5")}
    for capability, why in (
        ((8, 0), "the Hopper form needs capability 9.0, got 8.0"),
        (HOPPER, "no measurement shows the Hopper form faster"),
    ):
        found = dict(on_a_gpu(capability))
        assert found.pop("AdamW") == ("portable", "its only form")
        assert found == dict.fromkeys(
            ("training step", "perceptron", "chain", "classifier-free chain", "guided chain"),
            ("portable", why),
        )


def test_an_operation_may_take_two_forms(on_a_gpu, monkeypatch):
    steps = ((0, PORTABLE), (20, replace(PORTABLE, rows=128)), (133, CHOSEN), (265, LARGE))
    monkeypatch.setattr(forms, "steps_of", lambda *_: steps)
    assert on_a_gpu(HOPPER)[4:8] == [
        ("chain", ("portable", "no measurement shows the Hopper form faster")),
        ("  from 8,449 rows", ("hopper", "measured to be faster")),
        ("classifier-free chain", ("portable", "no measurement shows the Hopper form faster")),
        ("  from 8,449 rows", ("hopper", "measured to be faster")),
    ]
