"""What the compilers made of every kernel: no spills, nothing in float64 that need not be."""

import inspect
import math
import re
from pathlib import Path

import machine_code
import numpy as np
import pytest
from kernel_calls import calls
from machine_code import CAPABILITIES, recorded, report
from numba import cuda as device
from numba import types

from kfc_numba.kernels import cuda
from kfc_numba.kernels.cuda import launch
from kfc_numba.kernels.cuda.launch import DeviceKernel

NAME = re.compile(r"`(\w+)`")
TESTED = (9, 0)  # all others: scripts/cuda_table.py
#: Kernels of the package that compute nothing on arrays.
NO_ARRAYS = {"pool_index_dtype"}
#: Why a kernel for float32 has instructions for float64: a name of one that is launched, or of the
#: exported one where many share that.
_SUMS = "sums of many numbers, in float64 and rounded once, as on the CPU"
_LOSS = "values of a loss, and what they are normalised by, as on the CPU"
FLOAT64 = {
    "row_sums": _SUMS,
    "segment_sums": _SUMS,
    "sum_parts": _SUMS,
    "sum_rows": _SUMS,
    "sum_columns": _SUMS,
    "add": _SUMS,
    "rounded": _SUMS,
    "moments": _SUMS,
    "combine": "distances from a mean, which cancel, as on the CPU",
    "softmax": _LOSS,
    "softmax_loss": _LOSS,
    "softmax_fisher": _LOSS,
    "softmax_sample": _LOSS,
    "sigmoid_sample": "comparisons with uniform numbers, which have 53 bits",
}


def launches(dtype):
    """Each kernel that is launched by some call, once for each list of types."""
    found = {}
    for name, cases in calls(dtype).items():
        for _, call in cases:
            for kernel, kinds, _, block, _ in recorded(call):
                key = (kernel, kinds)
                found.setdefault(key, (name, kernel, kinds, block))
    return list(found.values())


def _cases(dtype):
    return [
        pytest.param(name, kernel, kinds, block, id=f"{name}-{kernel.__name__}-{i}")
        for i, (name, kernel, kinds, block) in enumerate(launches(dtype))
    ]


def test_every_kernel_is_called():
    exported = {name for name, value in vars(cuda).items() if inspect.isfunction(value)}
    assert exported == set(calls()) | (NO_ARRAYS & exported)


def _excused(name, kernel):
    return {name, kernel.__name__.strip("_")} & set(FLOAT64)


@pytest.mark.parametrize(("name", "kernel", "kinds", "block"), _cases(np.float32))
def test_float32(name, kernel, kinds, block):
    code = report(kernel, kinds, TESTED)
    assert code.whole.local == 0, "spilled registers, or arrays in local memory"
    assert code.stack == 0
    assert code.shared <= 48 * 1024
    assert code.blocks(int(np.prod(block))) >= 1
    if not _excused(name, kernel):
        assert code.whole.float64 == 0
    for loop in code.loops:
        assert not any(re.search(r"(div|rem)_[su]64", call) for call in loop.calls)


def test_exceptions_are_needed():
    """A kernel that is excused from float32 needs the excuse."""
    used = set()
    for name, kernel, kinds, _ in launches(np.float32):
        if report(kernel, kinds, TESTED).whole.float64:
            used |= _excused(name, kernel)
    assert used == set(FLOAT64)


# The reading of machine code itself.

_FLOATS = types.CPointer(types.float32)
_TYPES = (_FLOATS, _FLOATS, types.int32)


def _made(function):
    return DeviceKernel(function)


@pytest.fixture(scope="module", params=[(7, 5), (9, 0), (12, 0)])
def capability(request):
    return request.param


def test_the_module_is_the_same_for_all_capabilities():
    """By which the reports of all share one run of numba-cuda."""

    def kernel(x, y, n):
        kept = device.shared.array(64, types.float32)
        t = device.threadIdx.x
        kept[t] = math.exp(x[t]) / n
        device.syncthreads()
        y[t] = device.shfl_xor_sync(0xFFFFFFFF, kept[63 - t], 1)

    texts = []
    for capability in CAPABILITIES:
        made = launch.compiled(_made(kernel), _TYPES, capability)
        name = made.fndesc.llvm_func_name
        text = made.library.get_llvm_str().replace(name, "NAME")
        # Names have a number that counts compilations.
        texts.append(re.sub(r'ModuleID = .*|@"_ZN08NumbaEnv\S*|smem_\d+', "", text))
    assert len(set(texts)) == 1


def test_a_plain_loop(capability):
    def dot(x, y, n):
        total = types.float32(0)
        for i in range(n):
            total += x[i] * y[i]
        y[0] = total

    found = report(_made(dot), _TYPES, capability)
    assert found.main_loop.fused > 0
    assert found.main_loop.bytes["global read"] == 8 * found.main_loop.fused
    assert found.whole.float64 == found.whole.local == found.stack == found.shared == 0
    assert 0 < found.registers <= 64


def test_float64_is_found(capability):
    def doubled(x, y, n):
        y[device.grid(1)] = x[device.grid(1)] * 0.3

    assert report(_made(doubled), _TYPES, capability).whole.float64 > 0


def test_local_memory_is_found(capability):
    def local(x, y, n):
        numbers = device.local.array(64, types.float32)
        for i in range(64):
            numbers[i] = x[i]
        for i in range(n):
            y[i] = numbers[(i * 7 + n) % 64]

    found = report(_made(local), _TYPES, capability)
    assert found.whole.local > 0
    assert found.stack >= 256


def test_spilled_registers_are_found(capability):
    def crowded(x, y, n):
        numbers = device.local.array(96, types.float32)
        for i in range(96):
            numbers[i] = x[i]
        device.syncthreads()
        for i in range(96):
            y[95 - i] = numbers[i]

    found = report(DeviceKernel(crowded, max_registers=32), _TYPES, capability)
    assert found.whole.local > 0


def test_shared_memory_is_counted(capability):
    def shared(x, y, n):
        numbers = device.shared.array(1000, types.float32)
        numbers[device.threadIdx.x] = x[device.threadIdx.x]
        device.syncthreads()
        y[device.threadIdx.x] = numbers[n]

    found = report(_made(shared), _TYPES, capability)
    assert found.shared == 4000
    assert found.whole.bytes["shared read"] == found.whole.bytes["shared written"] == 4
    assert found.blocks(128) >= 8


def test_division_in_a_loop_is_found(capability):
    def divides(x, y, n):
        for i in range(n):
            y[i] = x[(i << 20) // n]

    found = report(_made(divides), _TYPES, capability)
    assert any(re.search("(div|rem)_[su]64", call) for loop in found.loops for call in loop.calls)


def test_all_tools_are_there():
    for name in ("nvdisasm", "ptxas"):
        assert machine_code.tool(name)


def test_the_page_names_every_kernel():
    page = (Path(__file__).parents[2] / "docs" / "cuda.md").read_text()
    table = page.partition("written by scripts/cuda_table.py")[2].partition("<!-- end -->")[0]
    named = {name for row in re.findall(r"^\| `.*", table, re.M) for name in NAME.findall(row)}
    assert named >= set(calls()), "run scripts/cuda_table.py"
