"""Analysis of the machine code of matrix products: their shapes, and registers in flight."""

import pytest
import triton

from flashpoint.kernels.resources import sass

from .processes import run_compiled

# Left operand in R28 to R31, accumulators in R88 to R151.
PRODUCT = "HGMMA.64x128x16.F32 R88, R28, gdesc[UR12], R88, gsb0"
WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def listing(*lines):
    """SASS as cuobjdump prints it, instruction n at address 16 n."""
    text = "\tcode for sm_90a\n\t\tFunction : some_kernel\n"
    for number, line in enumerate(lines):
        text += f"        /*{16 * number:04x}*/ {line:>60} ;   /* 0x00000a00ff017b82 */\n"
        text += f"{'/* 0x000e700000000800 */':>90}\n"
    return text


def clashes(*lines):
    return sass.clashes(sass.parse(listing(*lines)))


def test_instructions_are_read_with_their_predicates():
    text = listing("LDC R1, c[0x0][0x28]", "@!UP0 BRA 0x0", "EXIT") + (
        "        /*10030*/                   BRA 0x10030;    /* 0xfffffffc00fc7947 */\n"
    )
    assert sass.parse(text) == [
        (0x0, False, "LDC", ("R1", "c[0x0][0x28]")),
        (0x10, True, "BRA", ("0x0",)),
        (0x20, False, "EXIT", ("",)),
        (0x10030, False, "BRA", ("0x10030",)),
    ]


def test_several_functions_are_refused():
    with pytest.raises(ValueError, match="text must be the SASS of one function"):
        sass.parse(listing("NOP", "EXIT") + listing("EXIT"))


def test_tensor_core_instructions_are_counted_by_shape():
    code = sass.parse(
        listing(
            PRODUCT,
            PRODUCT,
            "HGMMA.64x8x8.F32.TF32 R24, gdesc[UR8].tnspB, RZ, !UPT",
            "HMMA.16816.F32.BF16 R4, R8, R12, R4",
            "UTCHMMA gdesc[UR6], gdesc[UR4], tmem[UR7], tmem[UR18], idesc[UR19], UP1",
            "HFMA2.MMA R5, -RZ, RZ, 0, 0",
        )
    )
    assert sass.tensor_core(code) == {
        "HGMMA.64x128x16": 2,
        "HGMMA.64x8x8": 1,
        "HMMA.16816": 1,
        "UTCHMMA": 1,
    }


@pytest.mark.parametrize(
    "toucher",
    [
        "LDSM.16.M88.4 R28, [R5]",
        "HADD2.F32 R31, -RZ, R13.H0_H0",
        "@P0 MOV R29, R2",
        "SHFL.BFLY PT, R30, R7, 0x1, 0x1f",
        "HGMMA.64x8x16.F32 R28, gdesc[UR12], RZ, !UPT, gsb0",
    ],
)
def test_writing_a_left_operand_in_flight(toucher):
    assert clashes(PRODUCT, toucher, WAIT, "EXIT") == [
        f"{toucher.removeprefix('@P0 ')} at 0x10 writes the left operand of {PRODUCT} at 0x0"
    ]
    assert clashes(PRODUCT, WAIT, toucher, WAIT, "EXIT") == []


@pytest.mark.parametrize(
    ("toucher", "touch"),
    [
        ("FMUL R151, R1, R2", "writes"),
        ("LDS.128 R88, [R5]", "writes"),
        ("STG.E desc[UR4][R2.64], R90", "reads"),
        ("FSETP.GT.AND P0, PT, R88, RZ, PT", "reads"),
        ("FADD R1, R2, -R150.reuse", "reads"),
        ("HGMMA.64x64x16.F32 R88, gdesc[UR12], R88, gsb0", "writes"),
        ("HGMMA.64x128x16.F32 R152, R120, gdesc[UR12], R152, gsb0", "reads"),
    ],
)
def test_touching_accumulators_in_flight(toucher, touch):
    assert clashes(PRODUCT, toucher, WAIT, "EXIT") == [
        f"{toucher} at 0x10 {touch} accumulators of {PRODUCT} at 0x0"
    ]
    assert clashes(PRODUCT, WAIT, toucher, WAIT, "EXIT") == []


@pytest.mark.parametrize(
    "neighbour",
    [
        "LDS.128 R32, [R5]",
        "MOV R27, R28",
        "FMUL R152, R1, R2",
        "MOV R1, R87",
        "STS [R28], R29",
        "ISETP.GE.AND P0, PT, R28, R5, PT",
        "UMOV UR28, 0x400",
        "LDC.64 R2, c[0x0][0x228]",
        "HGMMA.64x128x16.F32 R88, gdesc[UR16], R88, gsb0",
        "HGMMA.64x128x16.F32 R88, R32, gdesc[UR16], R88, gsb0",
        "HGMMA.64x128x16.F32 R152, R28, gdesc[UR16], RZ, !UPT, gsb0",
    ],
)
def test_what_else_may_be_done_meanwhile(neighbour):
    assert clashes(PRODUCT, neighbour, WAIT, "EXIT") == []


def test_a_left_operand_in_shared_memory_occupies_no_registers():
    product = "HGMMA.64x128x16.F32 R88, gdesc[UR12], R88, gsb0"
    assert clashes(product, "MOV R28, R2", WAIT, "EXIT") == []


def test_a_wait_may_leave_the_newest_groups_in_flight():
    second = "HGMMA.64x128x16.F32 R88, R32, gdesc[UR16], R88, gsb0"
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert clashes(PRODUCT, second, wait, "MOV R28, R2", WAIT, "EXIT") == []
    (found,) = clashes(PRODUCT, second, wait, "MOV R32, R2", WAIT, "EXIT")
    assert found == f"MOV R32, R2 at 0x30 writes the left operand of {second} at 0x10"


def test_products_of_one_group_are_waited_for_together():
    first = PRODUCT.removesuffix(", gsb0")
    second = "HGMMA.64x128x16.F32 R88, R32, gdesc[UR16], R88, gsb0"
    third = "HGMMA.64x128x16.F32 R88, R36, gdesc[UR16], R88, gsb0"
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert len(clashes(first, second, wait, "MOV R28, R2", WAIT, "EXIT")) == 1
    assert clashes(first, second, third, wait, "MOV R28, R2", WAIT, "EXIT") == []


def test_a_product_of_no_closed_group_is_not_waited_for():
    assert len(clashes(PRODUCT.removesuffix(", gsb0"), WAIT, "MOV R28, R2", "EXIT")) == 1


@pytest.mark.parametrize(("left", "found"), [(0, 0), (1, 1), (3, 1)])
def test_the_next_trip_around_a_loop(left, found):
    wait = f"WARPGROUP.DEPBAR.LE gsb0, {left:#x}"
    loop = ("LDSM.16.M88.4 R28, [R5]", PRODUCT, wait, "@P0 BRA 0x0", WAIT, "EXIT")
    assert len(clashes(*loop)) == found


def test_a_wait_in_a_loop_leaves_the_newest_of_each_trip():
    second = "HGMMA.64x128x16.F32 R88, R32, gdesc[UR16], R88, gsb0"
    trip = (PRODUCT, second, "WARPGROUP.DEPBAR.LE gsb0, 0x1", "@P0 BRA 0x0", WAIT, "EXIT")
    assert clashes("MOV R28, R2", *trip) == []
    assert len(clashes("MOV R32, R2", *trip)) == 1


def test_every_path_counts():
    around = ("@P0 BRA 0x30", WAIT, "MOV R28, R2", WAIT, "EXIT")
    assert len(clashes(PRODUCT, *around)) == 1  # the branch leads past the wait
    assert clashes(PRODUCT, "@P0 BRA 0x30", "NOP", WAIT, "MOV R28, R2", "EXIT") == []
    assert clashes(PRODUCT, "BRA 0x30", "MOV R28, R2", WAIT, "EXIT") == []
    assert len(clashes(PRODUCT, "BRA.U UP0, 0x30", "MOV R28, R2", WAIT, "EXIT")) == 1
    assert clashes(PRODUCT, "EXIT", "MOV R28, R2", "EXIT") == []
    assert len(clashes(PRODUCT, "@P0 EXIT", "MOV R28, R2", "EXIT")) == 1


def test_predicates_make_waits_and_products_uncertain():
    assert len(clashes(PRODUCT, f"@P0 {WAIT}", "MOV R28, R2", "EXIT")) == 1
    assert len(clashes(f"@P0 {PRODUCT}", "MOV R28, R2", "EXIT")) == 1
    second = "@P0 HGMMA.64x128x16.F32 R88, R32, gdesc[UR16], R88, gsb0"
    wait = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
    assert len(clashes(PRODUCT, second, wait, "MOV R28, R2", WAIT, "EXIT")) == 1


def test_calls_are_followed_and_return():
    waits = ("CALL.REL.NOINC 0x40", "MOV R28, R2", "EXIT", WAIT, "RET.REL.NODEC R12 0x0")
    assert clashes(PRODUCT, *waits) == []
    writes = ("CALL.REL.NOINC 0x40", WAIT, "EXIT", "MOV R28, R2", "RET.REL.NODEC R12 0x0")
    assert len(clashes(PRODUCT, *writes)) == 1
    returns = ("CALL.REL.NOINC 0x40", "MOV R28, R2", "EXIT", "NOP", "RET.REL.NODEC R12 0x0")
    assert len(clashes(PRODUCT, *returns)) == 1


def test_a_jump_through_a_table_may_lead_anywhere():
    assert len(clashes("MOV R28, R2", "EXIT", PRODUCT, "BRX R4 -0x120", "EXIT")) == 1


def test_a_jump_out_of_the_function_is_refused():
    with pytest.raises(ValueError, match="BRA 0x70 at 0x0 leads out of the function"):
        clashes("BRA 0x70", PRODUCT, "EXIT")


# A pipelined product as Triton compiles it for sm_90, its left operand as loaded or changed in
# registers; then the first once more with weaker waits.
PIPELINED = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from flashpoint.kernels.resources import sass


@triton.jit
def product(a_ptr, b_ptr, c_ptr, ACTIVATE: tl.constexpr):
    row, k, column = tl.arange(0, 64)[:, None], tl.arange(0, 64), tl.arange(0, 128)[None, :]
    acc = tl.zeros((64, 128), tl.float32)
    for start in tl.range(0, 2048, 64, num_stages=3):
        a = tl.load(a_ptr + row * 2048 + (start + k)[None, :])
        b = tl.load(b_ptr + column * 2048 + (start + k)[:, None])
        if ACTIVATE:
            a = tl.maximum(a.to(tl.float32), 0.0).to(b.dtype)
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + row * 128 + column, acc)


def listing(activate):
    signature = {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32", "ACTIVATE": "constexpr"}
    aligned = {(argument,): [["tt.divisibility", 16]] for argument in range(3)}
    source = ASTSource(product, signature, {(3,): activate}, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    return sass.disassembled(compiled.asm["cubin"])


plain = listing(False)
for text in (plain, listing(True), plain.replace("gsb0, 0x0", "gsb0, 0x7")):
    code = sass.parse(text)
    print(len(sass.clashes(code)), *sass.tensor_core(code))
"""


def test_compiled_products(tmp_path):
    """Triton 3.6 overwrites left operands in flight (issue 9433 of triton); later ones do not."""
    script = tmp_path / "pipelined.py"
    script.write_text(PIPELINED)
    done = run_compiled(str(script), TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert [shape for _, shape in found] == ["HGMMA.64x128x16"] * 3
    plain, activated, weakened = (int(number) for number, _ in found)
    assert plain == 0
    assert (activated > 0) == triton.__version__.startswith("3.6.")
    assert weakened > 0
