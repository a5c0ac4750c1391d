"""What the compilers made of every kernel: no spills, nothing in float64 that need not be."""

import functools
import inspect
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import machine_code
import numpy as np
import pytest
from kernel_calls import calls
from machine_code import CAPABILITIES, SHOWN, Instructions, on, recorded, report
from numba import cuda as device
from numba import types

from kfc_numba.kernels import cuda
from kfc_numba.kernels.cuda import launch
from kfc_numba.kernels.cuda.launch import DeviceKernel
from kfc_numba.kernels.cuda.vector import guarded_read, wide_store

NAME = re.compile(r"`([\w.]+)`")
TESTED = SHOWN  # in full; others, in full, by scripts/cuda_table.py
#: Kernels of the package that compute nothing on arrays.
NO_ARRAYS = {"pool_index_dtype"}
#: Why a kernel for float32 has instructions for float64: a name of one that is launched, or of the
#: exported one where many share that.
_SUMS = "sums of many numbers, in float64 and rounded once, as on the CPU"
_LOSS = "values of a loss, and what they are normalised by, as on the CPU"
_VECTORS = "a few operations a channel on such sums, as on the CPU"
FLOAT64 = {
    "row_sums": _SUMS,
    "segment_sums": _SUMS,
    "sum_parts": _SUMS,
    "sums_of_many": _SUMS,
    "sum_rows": _SUMS,
    "sum_columns": _SUMS,
    "rounded": _SUMS,
    "moments": _SUMS,
    "norm_terms": _VECTORS,
    "norm_gradients": _VECTORS,
    "norm_slopes": _VECTORS,
    "norm_running": _VECTORS,
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
                found.setdefault(key, (name, kernel, kinds, math.prod(block)))
    return list(found.values())


def _cases(dtype):
    return [
        pytest.param(name, kernel, kinds, threads, id=f"{name}-{kernel.__name__}-{i}")
        for i, (name, kernel, kinds, threads) in enumerate(launches(dtype))
    ]


def test_every_kernel_is_called():
    exported = {name for name, value in vars(cuda).items() if inspect.isfunction(value)}
    exported |= {
        f"many.{name}"
        for name, value in vars(cuda.many).items()
        if inspect.isfunction(value) and value.__module__ == cuda.many.__name__ and name[0] != "_"
    }
    assert exported == set(calls()) | (NO_ARRAYS & exported)


def _excused(name, kernel):
    return {name, kernel.__name__.strip("_")} & set(FLOAT64)


def _check(name, kernel, kinds, threads, capability):
    code = report(kernel, kinds, capability)
    assert not code.problems(threads)
    if not _excused(name, kernel):
        assert code.whole.float64 == 0


@pytest.mark.parametrize(("name", "kernel", "kinds", "threads"), _cases(np.float32))
def test_float32(name, kernel, kinds, threads):
    _check(name, kernel, kinds, threads, TESTED)


@functools.cache
def _by_file():
    """Launches by the file that the kernel is in."""
    found = {}
    for launched in launches(np.float32):
        found.setdefault(Path(launched[1].function.__code__.co_filename).stem, []).append(launched)
    return found


@pytest.mark.parametrize("file", sorted(_by_file()))
def test_the_longest_kernel_of_a_file_for_other_capabilities(file):
    name, kernel, kinds, threads = max(
        _by_file()[file], key=lambda launched: report(*launched[1:3], TESTED).whole.count
    )
    for capability in CAPABILITIES:  # one after the other: they share a run of numba-cuda
        _check(name, on(kernel, capability), kinds, threads, capability)


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


def test_what_was_read_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(DeviceKernel, "_file", lambda *_: tmp_path / "code.cubin")

    def kernel(x, y, n):
        for i in range(n):
            y[i] = x[i] * x[i] + y[i]

    first = report(_made(kernel), _TYPES, TESTED)
    monkeypatch.setattr(machine_code, "disassembled", None)
    assert report(_made(kernel), _TYPES, TESTED) == first
    assert first.main_loop.fused
    # But not of other code, nor if it is not whole.
    for text in ("{}", '{"made of": "another"}', '{"made'):
        (tmp_path / "code.json").write_text(text)
        with pytest.raises(TypeError, match="NoneType"):
            report(_made(kernel), _TYPES, TESTED)


def test_problems_are_told():
    none = machine_code.Instructions()
    fine = machine_code.Report("f", (7, 5), 64, 1024, 0, none, None, [])
    assert fine.problems(256) == []
    assert fine.blocks(256) == 4
    worse = {
        "24 bytes of stack": {"stack": 24},
        "1 accesses of local memory": {"whole": Instructions(accesses=Counter({"LDL.32": 1}))},
        "need no permission": {"shared": 50000},
        "1 blocks of 256 threads": {"registers": 255},
        "asynchronous copy": {"whole": Instructions(accesses=Counter({"LDGSTS.128": 1}))},
        "div_u64 in a loop": {"loops": [Instructions(calls=["__internal_div_u64"])]},
    }
    for text, changes in worse.items():
        assert any(text in problem for problem in replace(fine, **changes).problems(256)), text
    assert not replace(fine, capability=(8, 0), **worse["asynchronous copy"]).problems(256)


def test_few_threads_where_blocks_are_small():
    """A multiprocessor of capability 7.5 holds 16 blocks."""
    small = machine_code.Report("f", (7, 5), 16, 0, 0, Instructions(), None, [])
    assert small.blocks(16) == 16
    assert small.problems(16) == []


def test_wide_accesses_are_counted(capability):
    read, store = guarded_read(4), wide_store(4)

    def kernel(x, y, n):
        kept = device.local.array(4, types.float32)
        for i in range(n):
            read(kept, 0, x, i * 4, i < n)
            kept[0] += np.float32(1)
            store(y, i * 4, kept, 0)

    loop = max(report(_made(kernel), _TYPES, capability).loops, key=lambda found: found.count)
    assert loop.moved["LDG.128"] == loop.moved["STG.128"] > 0
    assert loop.wide("LDG")
    assert not loop.wide("LDS")


def test_all_tools_are_there():
    for name in ("nvdisasm", "ptxas"):
        assert machine_code.tool(name)


def test_the_page_names_every_kernel():
    page = (Path(__file__).parents[2] / "docs" / "cuda.md").read_text()
    table = page.partition("written by scripts/cuda_table.py")[2].partition("<!-- end -->")[0]
    assert re.findall(r"^\| (\d+)\.(\d) ", table, re.M) == [
        tuple(map(str, c)) for c in CAPABILITIES
    ]
    named = {name for row in re.findall(r"^\| `.*", table, re.M) for name in NAME.findall(row)}
    assert named >= set(calls()), "run scripts/cuda_table.py"
