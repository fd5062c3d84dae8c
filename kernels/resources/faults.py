"""Faults of a kernel that its compiled code shows."""

import re

from ..mlp.chunks import SLICE, ChunkLayout, GuideLayout
from ..mlp.config import Config
from ..mlp.layout import Layout
from . import sass
from .launch import Launch

# Instructions that access memory which kernels share.
_MEMORY = {"LDG", "STG", "LDGSTS", "ATOMG", "RED", "UBLKCP", "UTMALDG"}
# The instruction of each architecture's tensor cores.
TENSOR_CORE = {80: r"HMMA", 90: r"HGMMA", 100: r"UTC\w*MMA"}


def faults_of(launch: Launch, ir: str, code: list[sass.Instruction], log: str) -> dict[str, str]:
    """Returns a description of each kind of fault that a kernel has.

    Args:
        launch: launch of the kernel.
        ir: code of the kernel in triton's first intermediate representation.
        code: machine code of the kernel.
        log: messages of ptxas.
    """
    faults = {
        "serialised": why_serialised(log),
        "in flight": touched_in_flight(code),
        "tensor cores": without_tensor_cores(launch, ir, sass.tensor_core(code)),
        "dependent launch": too_early(launch, code),
    }
    return {kind: fault for kind, fault in faults.items() if fault is not None}


def why_serialised(log: str) -> str | None:
    """Returns why ptxas lets no two wgmmas overlap, from its notes C7510 to C7515, or None."""
    notes = re.findall(r"\((C75\d\d)\) .*?(serialized due to .*?) in (?:the )?function", log)
    return "; ".join(f"wgmmas {why} ({note})" for note, why in sorted(set(notes))) or None


def touched_in_flight(code: list[sass.Instruction]) -> str | None:
    """Returns the first access to a register of an HGMMA in flight, and their number, or None."""
    found = sass.clashes(code)
    return f"{found[0]} in flight; {len(found)} such pairs" if found else None


def too_early(launch: Launch, code: list[sass.Instruction]) -> str | None:
    """Returns how a kernel in a dependent launch reads what may not be there yet, or None.

    Its first access to memory has to come after ACQBULK, which waits for the kernel before.
    """
    if not launch.options.get("launch_pdl"):
        return None
    for instruction in code:
        if instruction.name == "ACQBULK":
            return None
        if instruction.name in _MEMORY:
            return f"{instruction} before the kernel before has ended"
    return "never waits for the kernel before"


def without_tensor_cores(launch: Launch, ir: str, used: dict[str, int]) -> str | None:
    """Returns how a kernel fails to use tensor cores for its products, or None.

    It fails if products in half precision or tf32 do without them, or use narrower instructions
    than the layers allow.

    Args:
        launch: launch of the kernel.
        ir: code of the kernel, with its products as they are written.
        used: numbers of its tensor-core instructions, by kind and shape.
    """
    products = re.findall(r"(?:tt\.dot|warp_group_dot) .*? : tensor<(?:\d+x)+(\w+)\b", ir)
    if not any(dtype != "f32" for dtype in products) and "inputPrecision = tf32" not in ir:
        return None
    kind = TENSOR_CORE[launch.arch]
    if not any(re.match(kind, instruction) for instruction in used):
        return f"multiplies in half precision or tf32 without {kind}"
    if launch.arch != 90:
        return None
    ends, possible = _columns_of_layers(launch)
    columns = {int(shape.split("x")[1]) for shape in used if shape.startswith("HGMMA")}
    narrow = {each for each in columns - ends if each < possible}
    return f"HGMMA of {min(narrow)} columns, {possible} are possible" if narrow else None


def _columns_of_layers(launch: Launch) -> tuple[set[int], int]:
    """Returns the columns that a product may have at the ends of a network, and that others need.

    A first or last layer may be narrow itself.
    """
    constants = launch.constants.values()
    chunks = [value for value in constants if isinstance(value, ChunkLayout)]
    if chunks:  # layers are multiplied in parts, the last hidden one of a guide in slices
        ends = {net.points for net in chunks} | {net.outputs[-1] for net in chunks}
        for net in chunks:
            if isinstance(net, GuideLayout):
                ends |= {SLICE, 2 * net.points}
        return ends, min(net.part for net in chunks)
    layouts = [value for value in constants if isinstance(value, Layout)]
    # Warpgroups take 64 rows each; those that are left share the columns.
    configs = [value for value in constants if isinstance(value, Config)]
    rows = max((config.rows for config in configs), default=64)
    warpgroups = max(1, launch.options.get("num_warps", 4) // 4 * 64 // rows)
    ends = {layout.padded[end] // warpgroups for layout in layouts for end in (0, -1)}
    if launch.kernel == "weight_gradient_kernel":
        # Here they share the rows of a product, and leave it the columns of a narrow layer. A bias
        # has 16 columns, the fewest that there are.
        ends |= {16, *(layout.padded[end] for layout in layouts for end in (0, -1))}
    hidden = [width // warpgroups for layout in layouts for width in layout.padded[1:-1]]
    return ends, min([64, *hidden])
