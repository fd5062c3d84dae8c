"""The shipped kernels, compiled without a GPU, need no more resources than before."""

import json
from dataclasses import replace

import pytest
import triton

from flashpoint.kernels import MLPShape
from flashpoint.kernels.mlp.chunks import chunks_of, guide_chunks_of
from flashpoint.kernels.mlp.config import config_for
from flashpoint.kernels.mlp.layout import layout_of
from flashpoint.kernels.resources import Launch, Resources, faults, record, sass
from flashpoint.kernels.resources import __main__ as command

from .processes import run_compiled


def compile_offline(*arguments, timeout=590):
    return run_compiled("-m", "flashpoint.kernels.resources", *arguments, timeout=timeout)


def test_two_small_kernels():
    """Of both forms; the tests below compile the others."""
    chosen = "sample fp16: operand_kernel"
    done = compile_offline("--main", "--arch", "90", "--jobs", "1", "--only", chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"hopper {chosen}" in done.stdout
    assert "2 kernels compiled, 0 problems" in done.stdout


HOPPER = """
import importlib
import triton
from triton.experimental.gluon._runtime import GluonASTSource
from flashpoint.kernels.resources import HOPPER, launches, sass
from flashpoint.kernels.resources.launch import _target

name = "hopper width 128"
launch = launches(90, {name: HOPPER[name]})[f"{name}: chain_kernel"]
kernel = getattr(importlib.import_module(launch.module), launch.kernel)
source = GluonASTSource(kernel, launch.signature, launch.constants, launch.attributes)
compiled = triton.compile(source, target=_target(90), options=launch.options)
text = sass.disassembled(compiled.asm["cubin"])
in_registers = [i for i in sass.parse(text) if i.name == "HGMMA" and i.operands[1][0] == "R"]
print(len(in_registers), *sass.tensor_core(sass.parse(text)).values())
for code in (text, text.replace("gsb0, 0x0", "gsb0, 0x7")):
    touches = {kind for clash in sass.clashes(sass.parse(code))
               for kind in ("writes the left operand", "reads accumulators") if kind in clash}
    print(*sorted(touches), sep=", ")
"""


def test_registers_in_flight_of_a_chain_that_keeps_activations_in_registers(tmp_path):
    """All its left operands are in registers; with weaker waits they would be overwritten."""
    done = run_compiled("-c", HOPPER, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    counts, shipped, weakened = done.stdout.splitlines()
    products, *by_shape = map(int, counts.split())
    assert products == sum(by_shape) > 0
    assert shipped == ""
    assert weakened == "reads accumulators, writes the left operand"


@pytest.mark.slow
def test_training_and_sampling_on_every_chip():
    done = compile_offline("--main")
    assert done.returncode == 0, done.stdout + done.stderr
    for kernel in (
        "train fp16: train", "sample fp16: chain", "guided fp16: chain", "drop-in fp16: forward",
        "drop-in fp16: backward",
    ):  # fmt: skip
        assert f"hopper {kernel}_kernel" in done.stdout
    assert "HGMMA" in done.stdout


@pytest.mark.slow
def test_networks_of_other_sizes_on_hopper():
    """A few that differ in the order of their products and in what their registers hold."""
    chosen = [
        "uneven: forward_kernel",
        "width 64 tf32: forward_kernel",
        "width 128 bf16: chain_kernel",
        "width 256 gelu: forward_kernel",
        "width 512 fp16: forward_kernel",
    ]
    done = compile_offline("--arch", "90", "--only", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(chosen)} kernels compiled" in done.stdout


@pytest.mark.nightly
def test_every_kernel_on_every_chip():
    done = compile_offline(timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dependent_launch_that_does_not_wait_is_a_fault():
    launch = Launch("", "", 90, {}, {}, {}, {"launch_pdl": True})
    load = sass.parse("/*0010*/ LDG.E R4, desc[UR12][R4.64] ;\n")
    wait = sass.parse("/*0000*/ ACQBULK ;\n")
    assert faults.too_early(launch, wait + load) is None
    assert faults.too_early(launch, load + wait) is not None
    assert faults.too_early(launch, []) is not None
    assert faults.too_early(replace(launch, options={}), load) is None


STEP_COUNTERS = """
import torch
from flashpoint.kernels import Course, MLPShape, TrainingData, adamw_state, resources
from flashpoint.kernels.adamw import kernel as adamw
from flashpoint.kernels.adamw import shadow_of
from flashpoint.kernels.q_sample.kernel import draw
from flashpoint.kernels.train_step.kernel import buffers_of, training_sums

shape, one = MLPShape((3, 32, 2)), torch.ones(1, dtype=torch.int64)
parameters = torch.zeros(1, shape.num_parameters)
course = Course(torch.ones(1, 9), one, one, torch.ones(1, 9))
data = TrainingData(torch.zeros(1, 9, 2), torch.ones(1, 5, 5), torch.zeros(1, 5, 1), None, one,
                    torch.arange(5)[None])
shadow, state = shadow_of(parameters, shape, "fp16"), adamw_state(parameters)
buffers, splits = buffers_of(data, shape, 1, 64, "fp16")
sums = torch.zeros(1, splits, shape.num_parameters + 2)
clock = torch.arange(3)  # every second one lies at a multiple of 16 bytes

def step(number):
    training_sums(parameters, shape, data, sums, shadow, buffers, batch_size=64, seed=one,
                  step=clock[number], refresh=None, first_row=0, rows=64, add=False)
    draw(data, one, clock[number], 64)
    adamw.adamw_(parameters, sums, state, course, clock[number + 1], (0.9, 0.99), 1e-8, 0.0, True,
                 0.9, None, None, shadow)

assert clock[0].data_ptr() % 16 != clock[1].data_ptr() % 16
print(*resources.launches(90, {"first": lambda: step(0), "second": lambda: step(1)}), sep="\\n")
"""


def test_a_second_step_needs_no_other_kernels():
    """A CUDA graph is captured after a first step; nothing can be compiled during the capture."""
    done = run_compiled("-c", STEP_COUNTERS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"first: {name}_kernel" for name in ("train", "weight_gradient", "draw", "adamw")
    ]


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        command.main(["--main"])
    assert "TRITON_INTERPRET must not be set" in capsys.readouterr().err


GOOD = {
    "registers": 200,
    "spill_stores": 8,
    "spill_loads": 8,
    "stack": 32,
    "shared": 122880,
    "tensor_core": {"HGMMA.64x128x16": 17, "HGMMA.64x8x16": 16},
    "faults": {},
    "seconds": 1.0,
}
FAULT = {"serialised": "wgmmas serialized due to a reason (C7511)"}


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({}, []),
        ({"registers": 255, "stack": 64, "seconds": 5.0}, []),
        ({"tensor_core": {"HGMMA.64x128x16": 1, "HGMMA.64x8x16": 1}}, []),
        ({"seconds": 5.1}, ["took 5.1 s to compile, 1.0 s when recorded"]),
        ({"spill_stores": 0}, []),
        ({"spill_stores": 16}, ["spill_stores went from 8 to 16 bytes"]),
        ({"spill_loads": 12}, ["spill_loads went from 8 to 12 bytes"]),
        ({"tensor_core": {"HGMMA.64x8x16": 32}}, ["no longer uses HGMMA.64x128x16"]),
        ({"faults": FAULT}, ["serialised: wgmmas serialized due to a reason (C7511)"]),
        (
            {"shared": 232449},
            ["needs 232449 bytes of shared memory, the chip has 232448"],
        ),
    ],
)
def test_what_counts_as_a_problem(change, problems):
    found = Resources(**(GOOD | change))
    assert record.problems_of(found, 90, GOOD) == problems


@pytest.mark.parametrize(
    ("before", "now", "accepted", "problems"),
    [
        (1.0, 5.0, {}, []),
        (1.6, 5.1, {}, ["took 5.1 s to compile, 1.6 s when recorded"]),
        (5.0, 14.9, {}, []),
        (5.0, 15.1, {}, ["took 15.1 s to compile, 5.0 s when recorded"]),
        (5.1, 1.0, {}, ["took 5.1 s to compile, 5.0 s are allowed"]),
        (5.1, 15.0, {"compilation": "why"}, []),
        (5.1, 16.0, {"compilation": "why"}, ["took 16.0 s to compile, 5.1 s when recorded"]),
    ],
)  # fmt: skip
def test_machines_differ_but_not_threefold(before, now, accepted, problems):
    recorded = GOOD | {"seconds": before, "accepted": accepted}
    found = Resources(**(GOOD | {"seconds": now}))
    assert record.problems_of(found, 90, recorded) == problems


@pytest.mark.parametrize(
    ("all_kernels", "one_kernel", "problem"),
    [
        ([2.5] * 9, 12.4, None),
        ([2.5] * 9, 12.6, "took 12.6 s to compile, 1.0 s when recorded"),
        ([0.5] * 9, 5.1, "took 5.1 s to compile, 1.0 s when recorded"),
        ([1.0] * 6 + [20.0] * 3, 5.0, "took 20.0 s to compile, 1.0 s when recorded"),
        ([2.5] * 3, 5.1, "took 5.1 s to compile, 1.0 s when recorded"),  # too few to tell
    ],
)
def test_a_machine_that_is_slow_at_all_kernels_is_allowed_more(all_kernels, one_kernel, problem):
    seconds = [*all_kernels, one_kernel]
    found = {f"kernel {number}": Resources(**(GOOD | {"seconds": each}))
             for number, each in enumerate(seconds)}  # fmt: skip
    recorded = {"sm_90": dict.fromkeys(found, GOOD)}
    problems = record.compare(recorded, {90: found})
    assert {each.split(": ")[1] for each in problems} == ({problem} if problem else set())


@pytest.mark.parametrize(
    ("change", "accepted", "problems"),
    [
        ({"seconds": 8.0, "spill_stores": 64, "spill_loads": 60}, {}, []),
        ({"seconds": 8.1}, {}, ["took 8.1 s to compile, 8.0 s are allowed"]),
        ({"seconds": 8.1}, {"compilation": "why"}, []),
        ({"spill_loads": 68}, {}, ["spills 68 bytes, 64 are allowed"]),
        ({"spill_stores": 68}, {"spills": "why"}, []),
    ],
)
def test_limits_of_the_form_for_hopper(change, accepted, problems):
    found = Resources(**(GOOD | change))
    limits = record.limits_of("hopper sample fp16: chain_kernel")
    recorded = GOOD | change | {"accepted": accepted}
    assert record.problems_of(found, 90, recorded, limits) == problems
    assert record.limits_of("sample fp16: chain_kernel") == record.PORTABLE


def test_a_reason_is_for_one_fault():
    found = Resources(**(GOOD | {"faults": FAULT | {"in flight": "R1"}}))
    recorded = GOOD | {"accepted": {"serialised": "as fast all the same"}}
    assert record.problems_of(found, 90, recorded) == ["in flight: R1"]


def test_a_fault_is_one_without_a_record():
    found = Resources(**(GOOD | {"faults": FAULT}))
    assert len(record.problems_of(found, 90, None)) == 1


@pytest.mark.parametrize(
    ("now", "accepted", "status", "kept"),
    [
        ({}, {}, 0, None),
        (FAULT, {}, 1, None),
        (FAULT, {"serialised": "why"}, 0, {"serialised": "why"}),
        (FAULT, {"in flight": "why"}, 1, None),
        ({}, {"serialised": "why"}, 0, None),
    ],
)
def test_an_update_keeps_reasons_and_invents_none(
    now, accepted, status, kept, monkeypatch, tmp_path
):
    file = tmp_path / "resources.json"
    before = {triton.__version__: {"sm_90": {"kernel": GOOD | {"accepted": accepted}}}}
    file.write_text(json.dumps(before))
    found = {90: {"kernel": Resources(**(GOOD | {"registers": 1, "faults": now}))}}
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(record, "RECORD", file)
    monkeypatch.setattr(command, "_compile_all", lambda *_: (found, []))
    assert command.main(["--update"]) == status
    written = json.loads(file.read_text())[triton.__version__]["sm_90"]["kernel"]
    assert written["registers"] == 1
    assert written.get("accepted") == kept


@pytest.mark.parametrize(("now", "kept"), [(64, None), (68, {"spills": "why"})])
def test_an_update_keeps_the_reason_of_spills(now, kept, monkeypatch, tmp_path):
    name = "hopper sample fp16: chain_kernel"
    before = {triton.__version__: {"sm_90": {name: GOOD | {"accepted": {"spills": "why"}}}}}
    monkeypatch.setattr(record, "RECORD", tmp_path / "resources.json")
    record.update(before, {90: {name: Resources(**(GOOD | {"spill_loads": now}))}}, False)
    assert record.read()[triton.__version__]["sm_90"][name].get("accepted") == kept


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("ptxas info    : Used 255 registers, used 1 barriers", None),
        (
            "ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are "
            "serialized due to insufficient register resources for the wgmma pipeline in the "
            "function 'chain_kernel'\nptxas info    : 11 bytes gmem",
            "wgmmas serialized due to insufficient register resources for the wgmma pipeline "
            "(C7511)",
        ),
        (
            "ptxas-blackwell info    : (C7510) Potential Performance Loss: wgmma.mma_async "
            "instructions are serialized due to the presence of Extern calls in the function "
            "'chain_kernel' in line 816",
            "wgmmas serialized due to the presence of Extern calls (C7510)",
        ),
    ],
)
def test_notes_that_wgmmas_are_serialised(log, why):
    assert faults.why_serialised(log) == why


HALF = "%5 = tt.dot %2, %3, %4 : tensor<64x64xbf16> * tensor<64x256xbf16> -> tensor<64x256xf32>"
SINGLE = "%5 = tt.dot %2, %3, %4 : tensor<64x16xf32> * tensor<16x64xf32> -> tensor<64x64xf32>"
TF32 = SINGLE.replace("%4 :", "%4, inputPrecision = tf32 :")


@pytest.mark.parametrize(
    ("arch", "ttir", "used", "fault"),
    [
        (90, SINGLE, [], None),
        (90, "%4 = tt.load %2 : tensor<64x64x!tt.ptr<f16>>", [], None),
        (80, HALF, ["HMMA.16816"], None),
        (80, HALF, [], "multiplies in half precision or tf32 without HMMA"),
        (90, HALF, ["HMMA.16816"], "multiplies in half precision or tf32 without HGMMA"),
        (90, TF32, [], "multiplies in half precision or tf32 without HGMMA"),
        (90, HALF, ["HGMMA.64x8x16", "HGMMA.64x64x16"], None),
        (90, HALF, ["HGMMA.64x8x16", "HGMMA.64x32x16"], "HGMMA of 32 columns, 64 are possible"),
        (90, HALF, ["HGMMA.64x64x16", "HGMMA.64x32x16"], "HGMMA of 32 columns, 64 are possible"),
        (100, HALF, ["UTCHMMA"], None),
        (100, HALF, ["HMMA.16816"], r"multiplies in half precision or tf32 without UTC\w*MMA"),
    ],
)  # fmt: skip
def test_products_that_tensor_cores_should_do(arch, ttir, used, fault):
    net = layout_of(MLPShape((3, 256, 256, 2)), "fp16")
    launch = Launch("", "", arch, {}, {(3,): net}, {}, {"num_warps": 8})
    used = dict.fromkeys(used, 1)
    assert faults.without_tensor_cores(launch, SINGLE + "\n" + ttir, used) == fault


def test_narrow_layers_may_have_narrow_products():
    net = layout_of(MLPShape((3, 64, 64, 2)), "fp16")
    launch = Launch("", "", 90, {}, {(3,): net}, {}, {"num_warps": 8})
    assert faults.without_tensor_cores(launch, HALF, {"HGMMA.64x32x16": 9}) is None
    fault = faults.without_tensor_cores(launch, HALF, {"HGMMA.64x16x16": 9})
    assert fault == "HGMMA of 16 columns, 32 are possible"


def test_groups_of_warps_with_rows_of_their_own_share_no_columns():
    net, config = layout_of(MLPShape((3, 256, 256, 2)), "fp16"), config_for("fp16", (9, 0), 9000, 1)
    assert config.rows == 128
    launch = Launch("", "", 90, {}, {(3,): net, (4,): config}, {}, {"num_warps": 8})
    last, hidden = {"HGMMA.64x16x16": 16}, {"HGMMA.64x128x16": 17}
    assert faults.without_tensor_cores(launch, HALF, last | hidden) is None
    for narrow in (8, 32):
        used = hidden | {f"HGMMA.64x{narrow}x16": 1}
        fault = faults.without_tensor_cores(launch, HALF, used)
        assert fault == f"HGMMA of {narrow} columns, 64 are possible"


def test_products_of_weight_gradients_may_have_the_columns_of_a_narrow_layer():
    net = layout_of(MLPShape((9, 256, 256, 2)), "fp16")  # 32 columns, in two parts, and 16
    launch = Launch("", "weight_gradient_kernel", 90, {}, {(3,): net}, {}, {"num_warps": 8})
    used = dict.fromkeys(("HGMMA.64x128x16", "HGMMA.64x32x16", "HGMMA.64x16x16"), 1)
    assert faults.without_tensor_cores(launch, HALF, used) is None
    fault = faults.without_tensor_cores(launch, HALF, {"HGMMA.64x8x16": 9, "HGMMA.64x24x16": 9})
    assert fault == "HGMMA of 24 columns, 64 are possible"


GLUON = (
    """
ttng.warp_group_dot %h, %w, %sums, %true {inputPrecision = 0 : i32, isAsync = true} :
""".replace("\n", "")
    + " tensor<64x128xf16, #ttg.dot_op<{opIdx = 0}>> * !ttg.memdesc<128x128xf16>"
)


@pytest.mark.parametrize(
    ("width", "used", "fault"),
    [
        (256, ["64x128x16", "64x8x16"], None),
        (64, ["64x64x16", "64x8x16"], None),
        (256, ["64x128x16", "64x64x16", "64x8x16"], "HGMMA of 64 columns, 128 are possible"),
        (64, ["64x64x16", "64x16x16"], "HGMMA of 16 columns, 64 are possible"),
        (256, [], "multiplies in half precision or tf32 without HGMMA"),
    ],
)
def test_products_in_parts_are_as_wide_as_a_part(width, used, fault):
    net = chunks_of(layout_of(MLPShape((3, width, width, 2)), "fp16"), 2)
    launch = Launch("", "", 90, {}, {(3,): net}, {}, {"num_warps": 4})
    counts = {f"HGMMA.{shape}": 1 for shape in used}
    assert faults.without_tensor_cores(launch, GLUON, counts) == fault
    assert faults.without_tensor_cores(launch, "", counts) is None


def test_a_guide_has_products_of_its_slices_and_classes():
    net = chunks_of(layout_of(MLPShape((3, 256, 256, 2)), "fp16"), 2, guided=True)
    guide = guide_chunks_of(layout_of(MLPShape((3, 100, 200, 500, 20)), "fp16"), 2)
    used = dict.fromkeys((f"HGMMA.64x{n}x16" for n in (128, 64, 32, 16, 8)), 1)
    with_guide = Launch("", "", 90, {}, {(3,): net, (4,): guide}, {}, {"num_warps": 4})
    assert faults.without_tensor_cores(with_guide, GLUON, used) is None
    alone = replace(with_guide, constants={(3,): net})
    fault = faults.without_tensor_cores(alone, GLUON, used)
    assert fault == "HGMMA of 16 columns, 128 are possible"
