"""The tile in the assembly of several processors, which is read and not run.

LLVM's back ends for x86-64 and for AArch64 come with llvmlite. In the innermost loop nothing may
be stored and nothing read from the stack: then the accumulators are in registers.
"""

import re
from typing import NamedTuple

import llvmlite.binding as llvm
import pytest
from llvmlite import ir
from numba import types

from kfc_numba.kernels.cpu.tile import FULL_1, FULL_2, PART_1, PART_2, TileEmitter, tile_rows
from kfc_numba.kernels.cpu.vector import I64, Processor, processor_with

X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


class Target(NamedTuple):
    triple: str
    cpu: str
    features: frozenset[str]


TARGETS = {
    "NEON": Target(ARM, "generic", frozenset({"neon"})),
    "SSE2": Target(X86, "x86-64", frozenset({"sse", "sse2"})),
    "AVX2": Target(X86, "haswell", frozenset({"avx", "avx2", "fma"})),
    "AVX-512": Target(X86, "skylake-avx512", frozenset({"avx", "avx2", "fma", "avx512f"})),
}
PROCESSORS = {
    "NEON": Processor(16, 32, fused=True),
    "SSE2": Processor(16, 16, fused=False),
    "AVX2": Processor(32, 16, fused=True),
    "AVX-512": Processor(64, 32, fused=True),
}
POINTERS = ("a", "b", "start", "c")
NUMBERS = ("a_x", "a_i", "a_j", "b_i", "b_j", "start_x", "c_x", "rows", "columns", "lanes")

MULTIPLY = re.compile(r"vfn?madd\d+p[sd]|v?mulp[sd]|fmla|fmul")
LABEL = re.compile(r"(\.LBB\w+):")
JUMP = re.compile(r"\.LBB\w+$")


def assembly(target, dtype, rows, kind):
    """The lines of a function that is one tile."""
    module = ir.Module()
    module.triple = target.triple
    scalar = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
    arguments = [scalar.as_pointer()] * len(POINTERS) + [I64] * len(NUMBERS)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), "tile")
    builder = ir.IRBuilder(function.append_basic_block())
    values = dict(zip(POINTERS + NUMBERS, function.args, strict=True))
    TileEmitter(builder, dtype, values, processor_with(target.features)).body(rows, kind)
    builder.ret_void()

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    features = ",".join(f"+{name}" for name in sorted(target.features))
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=features, opt=3
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.data_layout = str(machine.target_data)
    parsed.verify()
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return [line.strip() for line in machine.emit_assembly(parsed).splitlines()]


def basic_blocks(lines):
    """Instructions of each block, and the blocks that may follow it."""
    blocks, following, names = [[]], [set()], {}
    ended = goes_on = False  # the block by a jump or return; whether the next may follow it
    for line in lines:
        label = LABEL.match(line)
        if not label and (not line or line.startswith(".") or line.endswith(":")):
            continue
        if label or ended:
            if goes_on:
                following[-1].add(len(blocks))
            blocks.append([])
            following.append(set())
            ended, goes_on = False, True
        if label:
            names[label[1]] = len(blocks) - 1
            continue
        blocks[-1].append(line)
        goes_on = line.split()[0] not in ("jmp", "b", "ret", "retq")
        ended = not goes_on or JUMP.search(line) is not None
    for block, after in zip(blocks, following, strict=True):
        if block and (jump := JUMP.search(block[-1])):
            after.add(names[jump[0]])
    return blocks, following


def reached(start, following, among):
    """Blocks to which a path of at least one step leads, all of it `among` those given."""
    if start not in among:
        return set()
    found, new = set(), {start}
    while new:
        new = {after for block in new for after in following[block]} & among - found
        found |= new
    return found


def innermost_loop(lines):
    """Instructions of the innermost loop that multiplies."""
    blocks, following = basic_blocks(lines)
    places = [n for n, block in enumerate(blocks) if any(map(MULTIPLY.match, block))]
    assert len(places) == 1, "products in more than one place"
    among, loop = set(range(len(blocks))), set()
    while True:
        forward = reached(places[0], following, among)
        around = {n for n in forward if places[0] in reached(n, following, among)}
        if not around:
            return [line for n in sorted(loop) for line in blocks[n]]
        # A loop inside this one does without the block where this one is entered.
        loop = around
        outside = set(range(len(blocks))) - loop
        among = loop - {after for n in outside for after in following[n]}


def is_store(line):
    name = line.split()[0]
    if name.startswith(("cmp", "test")):
        return False
    return name.startswith("st") or re.sub(r"\{[^}]*\}", "", line).rstrip().endswith(")")


def spills(loop):
    """Stores, and loads from the stack."""
    return [line for line in loop if is_store(line) or "(%rsp" in line or "[sp" in line]


@pytest.mark.parametrize("name", TARGETS)
def test_processors_are_known_by_their_features(name):
    assert processor_with(TARGETS[name].features) == PROCESSORS[name]


@pytest.mark.parametrize("dtype", [types.float32, types.float64], ids=str)
@pytest.mark.parametrize(
    "kind", [FULL_2, PART_2, FULL_1, PART_1], ids=["full2", "part2", "full1", "part1"]
)
@pytest.mark.parametrize("name", TARGETS)
def test_accumulators_stay_in_registers(name, kind, dtype):
    rows = tile_rows(PROCESSORS[name])
    loop = innermost_loop(assembly(TARGETS[name], dtype, rows, kind))
    assert spills(loop) == []
    products = [line for line in loop if MULTIPLY.match(line)]
    assert len(products) == rows * (2 if kind in (FULL_2, PART_2) else 1)
    fused = [line for line in products if line.startswith(("vfmadd", "fmla"))]
    assert len(fused) == (len(products) if PROCESSORS[name].fused else 0)
    width = {"NEON": r"v\d+\.[42][sd]", "SSE2": "%xmm", "AVX2": "%ymm", "AVX-512": "%zmm"}[name]
    assert all(re.search(width, line) for line in products)


@pytest.mark.parametrize("name", TARGETS)
def test_too_tall_a_tile_is_found_to_spill(name):
    rows = 12 if PROCESSORS[name].registers == 16 else 18
    loop = innermost_loop(assembly(TARGETS[name], types.float32, rows, FULL_2))
    assert any(map(is_store, loop))
    assert any("(%rsp" in line or "[sp" in line for line in loop)


def test_innermost_loop_leaves_out_the_loop_around_it():
    lines = """
        xorl %eax, %eax
    .LBB0_1:
        movq %rdx, 8(%rsp)
    .LBB0_2:
        mulps %xmm0, %xmm1
        testb $1, %dl
        jne .LBB0_4
        decq %rdx
        jne .LBB0_2
        decq %rcx
        jne .LBB0_1
        retq
    .LBB0_4:
        incq (%rdi)
        jmp .LBB0_2
    """
    loop = innermost_loop([line.strip() for line in lines.splitlines()])
    assert [line.split()[0] for line in loop] == [
        "mulps",
        "testb",
        "jne",
        "decq",
        "jne",
        "incq",
        "jmp",
    ]
    assert spills(loop) == ["incq (%rdi)"]
