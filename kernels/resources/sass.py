"""Analysis of the matrix products in a kernel's machine code (SASS).

It counts the tensor-core instructions and finds accesses to registers that a product may still be
using. On sm_90 an HGMMA, PTX's ``wgmma.mma_async``, runs on while its warps do other work. Until
they have waited for it, they must not write the registers of its left operand, nor read or write
its accumulators: otherwise its result is undefined (PTX ISA, asynchronous warpgroup-level matrix
instructions). No compiler reports this, and a test on a device may pass by luck.

In the output of ``cuobjdump -sass``::

    /*5930*/  HGMMA.64x128x16.F32 R88, R28, gdesc[UR12], R88, gsb0 ;
    /*6210*/  WARPGROUP.DEPBAR.LE gsb0, 0x3 ;

the first line is a product of 64 rows and 128 columns, summed over 16, with its accumulators from
R88 on and its left operand in R28 to R31; ``gdesc`` in place of these means shared memory. ``gsb0``
closes a group of products, and the second line waits until at most the newest three groups are
unfinished.
"""

import math
import re
import subprocess
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import triton

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
_TENSOR_CORE = re.compile(r"HMMA\.\d+|HGMMA\.[\dx]+|UTC\w*MMA")
_REGISTER = re.compile(r"(?<![A-Z])R(\d+)")
_PREDICATE = re.compile(r"!?U?P(\d|T)")
# Instructions without a result in a register, although their first operand may be a register.
_WITHOUT_RESULT = {"ISETP", "FSETP", "DSETP", "HSETP2", "R2P", "FCHK", "BAR"}
_LEFT_REGISTERS = 4


class Instruction(NamedTuple):
    """One line of SASS."""

    address: int
    conditional: bool  # True if a predicate decides about its execution
    opcode: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.opcode} {', '.join(self.operands)} at {self.address:#x}"

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def columns(self) -> int:
        """Number of columns that an HGMMA computes."""
        return int(self.opcode.split("x")[1])


def disassembled(cubin: bytes) -> str:
    """Returns the SASS of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(text: str) -> list[Instruction]:
    """Returns the instructions of one function.

    Args:
        text: SASS as :func:`disassembled` returns it.

    Raises:
        ValueError: the addresses do not ascend, because there are several functions.
    """
    code = [
        Instruction(int(address, 16), bool(predicate), opcode, tuple(operands.split(", ")))
        for address, predicate, opcode, operands in _LINE.findall(text)
    ]
    if any(a.address >= b.address for a, b in pairwise(code)):
        raise ValueError("text must be the SASS of one function, got addresses out of order")
    return code


def tensor_core(code: list[Instruction]) -> dict[str, int]:
    """Returns the number of tensor-core instructions of each kind and shape."""
    kinds = (_TENSOR_CORE.match(instruction.opcode) for instruction in code)
    return dict(sorted(Counter(kind[0] for kind in kinds if kind).items()))


def clashes(code: list[Instruction]) -> list[str]:
    """Returns a sentence for each access to a register of an HGMMA that may be in flight.

    It follows every path through the code, even those whose predicates exclude each other.

    Raises:
        ValueError: a jump leads to an address without an instruction.
    """
    found = []
    for instruction, flying in zip(code, _in_flight(code), strict=True):
        for place in sorted(flying):
            touch = _touch(instruction, code[place])
            if touch is not None:
                found.append(f"{instruction} {touch} of {code[place]}")
    return found


def _in_flight(code: list[Instruction]) -> list[dict[int, int]]:
    """Returns the HGMMAs that may be in flight before each instruction, by their places.

    Each has the number of groups that have been closed since it was issued, its own included, and
    the smallest on any path: that path keeps it in flight longest, so the others do not matter.
    """
    successors = _successors(code)
    before: list[dict[int, int]] = [{} for _ in code]
    todo = [place for place, instruction in enumerate(code) if instruction.name == "HGMMA"]
    while todo:
        place = todo.pop()
        after = _after(code[place], place, before[place])
        for successor in successors[place]:
            known = before[successor]
            changed = {p: closed for p, closed in after.items() if closed < known.get(p, math.inf)}
            if changed:
                known.update(changed)
                todo.append(successor)
    return before


def _after(instruction: Instruction, place: int, before: dict[int, int]) -> dict[int, int]:
    """Returns the HGMMAs in flight after the instruction at a place."""
    if instruction.name == "HGMMA":
        closes = "gsb0" in instruction.operands
        aged = closes and not instruction.conditional
        return {p: closed + aged for p, closed in before.items()} | {place: int(closes)}
    if instruction.opcode.startswith("WARPGROUP.DEPBAR") and not instruction.conditional:
        left = int(instruction.operands[1], 16)
        return {p: closed for p, closed in before.items() if closed <= left}
    return before


def _successors(code: list[Instruction]) -> list[list[int]]:
    """Returns the places that may be executed after each place."""
    places = {instruction.address: place for place, instruction in enumerate(code)}
    after_calls = [place + 1 for place, each in enumerate(code) if each.name == "CALL"]
    successors = []
    for place, instruction in enumerate(code):
        conditional, next_ones = instruction.conditional, []
        match instruction.name:
            case "BRA" | "CALL":
                target = int(instruction.operands[-1], 16)
                if target not in places:
                    raise ValueError(f"{instruction} leads out of the function")
                next_ones = [places[target]]
                conditional |= len(instruction.operands) > 1  # a predicate or a mask comes first
            case "RET":
                next_ones = after_calls
            case "BRX":  # its target comes from a table
                next_ones = list(range(len(code)))
            case "EXIT":
                pass
            case _:
                conditional = True
        if conditional and place + 1 < len(code):
            next_ones = [*next_ones, place + 1]
        successors.append(next_ones)
    return successors


def _touch(instruction: Instruction, product: Instruction) -> str | None:
    """Returns how an instruction touches the registers of a product in flight, or None.

    Results and operands of several registers start at a multiple of their number, and so do the
    four registers of a left operand and the accumulators. Checking the first register is enough.
    """
    accumulators, left = _accumulators(product), _left_operand(product)
    if instruction.name == "HGMMA":
        written = _accumulators(instruction)
        if _overlap(written, left):
            return "writes the left operand"
        # Products of one shape may add to the same accumulators, one after the other.
        same = written == accumulators and instruction.columns == product.columns
        if _overlap(written, accumulators) and not same:
            return "writes accumulators"
        return "reads accumulators" if _overlap(_left_operand(instruction), accumulators) else None
    result, sources = _registers(instruction)
    if result is not None and result in left:
        return "writes the left operand"
    if result is not None and result in accumulators:
        return "writes accumulators"
    return "reads accumulators" if any(r in accumulators for r in sources) else None


def _accumulators(product: Instruction) -> range:
    """Returns the registers of its accumulators."""
    start = int(product.operands[0].removeprefix("R"))
    # 64 rows of fp32 are spread over the 128 threads of a warpgroup.
    return range(start, start + product.columns // 2)


def _left_operand(product: Instruction) -> range:
    """Returns the registers of its left operand, none if that is in shared memory."""
    register = _REGISTER.match(product.operands[1])
    return range(int(register[1]), int(register[1]) + _LEFT_REGISTERS) if register else range(0)


def _overlap(a: range, b: range) -> bool:
    return bool(a and b) and a[0] <= b[-1] and b[0] <= a[-1]


def _registers(instruction: Instruction) -> tuple[int | None, list[int]]:
    """Returns the register of an instruction's result, or None, and the registers that it reads."""
    operands = list(instruction.operands)
    while operands and _PREDICATE.fullmatch(operands[0]):
        del operands[0]
    result = None
    if operands and instruction.name not in _WITHOUT_RESULT:
        register = _REGISTER.match(operands[0])
        if register:
            result = int(register[1])
            del operands[0]
    return result, [int(number) for operand in operands for number in _REGISTER.findall(operand)]
