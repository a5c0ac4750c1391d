"""Each kind of error turns red on the equipment of this folder; code without errors is right."""

import math

import numpy as np
import pytest
from device_code import DeviceError, Processor
from host_array import on_device
from llvmlite import ir
from numba import cuda, float32, float64, int32, int64, types, uint8
from numba.cuda.extending import intrinsic
from small_kernels import RNG, X, launched, load4, pointer_to

from kfc_numba.kernels.cuda.launch import device_kernel, executed_by


def reversal(barrier=True, read=0, write=0, first=0):
    """Kernel that turns a block around, with errors on demand."""

    @device_kernel
    def reverse(x, y):
        kept = cuda.shared.array(256, float32)
        t = cuda.threadIdx.x
        kept[t + first] = x[t + read]
        if barrier:
            cuda.syncthreads()
        y[t + write] = kept[255 - t]

    return reverse


def test_a_kernel_without_errors():
    for seed in range(3):
        np.testing.assert_array_equal(launched(reversal(), X, X, seed=seed)[1], X[::-1])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({"barrier": False}, r"reverse: thread .* shared array 1 .*: a race with thread"),
        (
            {"read": 1},
            r"thread \(255, 0, 0\) .* reads 4 bytes at number 256 of array 'x'.*: outside",
        ),
        ({"read": -1}, r"thread \(0, 0, 0\) .* reads 4 bytes at number -1 of array 'x'.*: outside"),
        ({"write": 1}, r"writes 4 bytes at number 256 of array 'y' \(256 numbers\): outside"),
        ({"write": -1}, r"writes 4 bytes at number -1 of array 'y'.*: outside"),
        ({"read": 1 << 40}, "array 'x'.*outside|in no array"),
        ({"first": 1}, r"writes 4 bytes at number 256 of shared array 1 .*: outside"),
    ],
)
def test_an_error_turns_red(error, message):
    with pytest.raises(DeviceError, match=message):
        launched(reversal(**error), X, np.zeros_like(X))


def test_from_one_array_into_another():
    """However the two lie: here the place that is read belongs to the second."""
    both = np.arange(512, dtype=np.float32)
    device = on_device(both)
    halves = device[:256], device[256:]

    @device_kernel
    def wrong(x, y):
        y[cuda.threadIdx.x] = x[256 + cuda.threadIdx.x]

    with pytest.raises(DeviceError, match=r"number 256 of array 'x'"), executed_by(Processor()):
        wrong(1, 1, *halves)


@pytest.mark.parametrize(("first", "right"), [(0, True), (4, True), (1, False), (2, False)])
def test_alignment(first, right):
    @device_kernel
    def loads(x, y):
        a, b, c, d = load4(x, 4 * cuda.threadIdx.x + first)
        y[cuda.threadIdx.x] = a + b * c - d

    if right:
        found = launched(loads, X, np.zeros(8, np.float32), block=8)[1]
        a, b, c, d = X[first : first + 32].reshape(8, 4).T
        np.testing.assert_allclose(found, a + b * c - d, rtol=1e-5)
    else:
        with pytest.raises(DeviceError, match=r"reads 16 bytes .* not aligned"):
            launched(loads, X, np.zeros(8, np.float32), block=8)


@pytest.mark.parametrize("alignment", [16, 8])
def test_alignment_of_shared_arrays(alignment):
    """A shared array has the alignment that it asks for, and no more."""

    @device_kernel
    def loads(x, y):
        kept = cuda.shared.array(256, float32, alignment=alignment)
        t = cuda.threadIdx.x
        kept[t] = x[t]
        cuda.syncthreads()
        if t < 64:
            y[t] = load4(pointer_to(kept), 4 * t)[2]

    if alignment == 16:
        y = launched(loads, X, np.zeros(64, np.float32))[1]
        np.testing.assert_array_equal(y, X[2::4])
    else:
        with pytest.raises(DeviceError, match=r"shared array 1 .* not aligned"):
            launched(loads, X, np.zeros(64, np.float32))


def test_overlap_in_shared_memory():
    """Two threads that take one place for their own, with barriers where they belong."""

    @device_kernel
    def overlap(x, y):
        kept = cuda.shared.array(256, float32)
        t = cuda.threadIdx.x
        kept[t // 2] = x[t]
        cuda.syncthreads()
        y[t] = kept[t // 2]

    with pytest.raises(DeviceError, match=r"writes .* a race with thread"):
        launched(overlap, X, X)


@pytest.mark.parametrize("where", ["once", "loop", "two places"])
def test_barriers_that_only_some_reach(where):
    @device_kernel
    def once(x, y):
        if cuda.threadIdx.x < 100:
            cuda.syncthreads()

    @device_kernel
    def loop(x, y):
        for _ in range(1 + cuda.threadIdx.x // 128):
            cuda.syncthreads()

    @device_kernel
    def places(x, y):
        if cuda.threadIdx.x < 128:
            cuda.syncthreads()
            y[cuda.threadIdx.x] = 1
        else:
            cuda.syncthreads()
            y[cuda.threadIdx.x] = 2

    kernel = {"once": once, "loop": loop, "two places": places}[where]
    with pytest.raises(DeviceError, match=r"wait for each other: .* at a barrier"):
        launched(kernel, X, X)


def test_races_between_blocks():
    @device_kernel
    def race(x, y):
        y[cuda.threadIdx.x] = x[cuda.threadIdx.x]

    @device_kernel
    def neighbours(x, y):
        i = cuda.grid(1)
        y[i] = x[i]
        if i > 0:
            y[i] += y[i - 1]

    assert launched(race, X, X)
    with pytest.raises(DeviceError, match=r"array 'y' .* a race with another block"):
        launched(race, X, X, grid=2, block=128)
    with pytest.raises(DeviceError, match=r"array 'y' .* a race"):
        launched(neighbours, X, X, grid=256, block=1)


def test_one_array_given_twice():
    @device_kernel
    def twice(x, y):
        y[cuda.grid(1)] = 2 * x[cuda.grid(1)]

    @device_kernel
    def shift(x, y):
        y[cuda.grid(1)] = x[cuda.grid(1) ^ 1]

    for kernel in (twice, shift):
        x = on_device(X)
        with executed_by(Processor()):
            if kernel is twice:
                kernel(2, 128, x, x)
                np.testing.assert_array_equal(x.get(), 2 * X)
            else:
                with pytest.raises(DeviceError, match=r"a race with thread"):
                    kernel(2, 128, x, x)


def test_an_exception_of_python():
    @device_kernel
    def steps(x, y, n):
        for i in range(0, n, cuda.threadIdx.x - 3):
            y[cuda.threadIdx.x] = i

    with pytest.raises(DeviceError, match=r"thread \(3, 0, 0\) .* raised an exception"):
        launched(steps, X, np.zeros(256, np.int32), 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8])
def test_types_of_shared_memory(dtype):
    kind = {np.float32: float32, np.float64: float64, np.int32: int32, np.int64: int64}
    kind = kind.get(dtype, uint8)

    @device_kernel
    def turned(x, y):
        kept = cuda.shared.array((16, 8), kind)
        i, j = cuda.threadIdx.x, cuda.threadIdx.y
        kept[i, j] = x[i * 8 + j]
        cuda.syncthreads()
        y[j * 16 + i] = kept[i, j]

    x = RNG.integers(0, 200, size=(16, 8)).astype(dtype)
    found = launched(turned, x, np.zeros_like(x), block=(16, 8))[1]
    np.testing.assert_array_equal(found.reshape(8, 16), x.T)


def test_dynamic_shared_memory():
    """As many bytes as the launch gives, and no more."""

    def made(bytes_given):
        @device_kernel
        def turned(x, y):
            kept = cuda.shared.array(0, float32)
            t = cuda.threadIdx.x
            kept[t] = x[t]
            cuda.syncthreads()
            y[t] = kept[kept.size - 1 - t]

        turned.dynamic_shared = bytes_given
        return turned

    np.testing.assert_array_equal(launched(made(1024), X, X)[1], X[::-1])
    with pytest.raises(DeviceError, match=r"number 255 of shared array 1 \(255 numbers\)"):
        launched(made(1020), X, X)


def test_shared_memory_that_nobody_wrote():
    @device_kernel
    def reads(x, y):
        kept = cuda.shared.array(256, float32)
        y[cuda.threadIdx.x] = kept[cuda.threadIdx.x]

    assert np.isnan(launched(reads, X, X)[1]).all()


def test_scalars():
    @device_kernel
    def scalars(y, a, b, c, d):
        y[0] = a
        y[1] = b
        y[2] = c
        y[3] = d

    given = (-7, np.int64(1 << 40), np.float32(0.5), np.float64(1e-9))
    np.testing.assert_array_equal(launched(scalars, np.zeros(4), *given, block=1)[0], given)


def test_local_arrays_and_functions():
    @cuda.jit(device=True, inline="always")
    def summed(numbers):
        cuda.syncthreads()
        total = float32(0)
        for k in range(4):
            total += numbers[k]
        return total

    @device_kernel
    def local(x, y):
        numbers = cuda.local.array(4, float32)
        t = cuda.threadIdx.x
        for k in range(4):
            numbers[k] = x[(t + k) % 256]
        y[t] = summed(numbers)

    expected = sum(np.roll(X, -k) for k in range(4))
    np.testing.assert_allclose(launched(local, X, X)[1], expected, atol=1e-6)


FUNCTIONS = ["exp", "log1p", "tanh", "sqrt", "fabs", "floor", "cos", "erf"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_libdevice(name, dtype):
    function = getattr(math, name)

    @device_kernel
    def applied(x, y):
        y[cuda.threadIdx.x] = function(x[cuda.threadIdx.x])

    x = np.abs(X).astype(dtype)
    expected = np.array([function(float(v)) for v in x])
    found = launched(applied, x, np.zeros_like(x))[1]
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype).eps)


def test_nan_and_infinity():
    @device_kernel
    def classes(x, y):
        t = cuda.threadIdx.x
        y[t] = math.isnan(x[t]) + 2 * math.isinf(x[t]) + 4 * math.isfinite(x[t])

    x = np.array([1, np.nan, np.inf, -np.inf, 0], np.float32)
    found = launched(classes, x, np.zeros(5, np.int32), block=5)[1]
    np.testing.assert_array_equal(found, [4, 1, 2, 2, 4])


def test_a_null_pointer():
    @intrinsic
    def null(typingctx, pointer):
        def codegen(context, builder, signature, args):
            return context.get_constant_null(signature.return_type)

        return pointer(pointer), codegen

    @device_kernel
    def nowhere(x):
        x[0] = null(x)[cuda.threadIdx.x]

    with pytest.raises(DeviceError, match=r"reads at a place in no array"):
        launched(nowhere, X)


def test_a_block_has_1024_threads_at_most():
    with pytest.raises(DeviceError, match=r"1056 threads"):
        launched(reversal(), X, X, block=1056)


def test_kernels_that_close_over_different_functions_are_kept_apart():
    """Of one name, but made for different numbers, several functions deep."""

    def made(number):
        def constant():
            @intrinsic
            def given(typingctx):
                def codegen(context, builder, signature, args):
                    return ir.Constant(ir.IntType(32), number)

                return types.int32(), codegen

            return given

        value = constant()

        @cuda.jit(device=True, inline="always")
        def function():
            return value()

        @device_kernel
        def kernel(y):
            y[0] = function()

        return kernel

    for number in (3, 4):
        kernel = made(number)
        assert launched(kernel, np.zeros(1, np.int32), block=1)[0] == number
    kinds = (types.CPointer(types.int32),)
    assert made(3)._file(kinds, (9, 0)) != made(4)._file(kinds, (9, 0))
    assert made(3)._file(kinds, (9, 0)) == made(3)._file(kinds, (9, 0))
