"""Operations of a warp, atomic ones and asynchronous copies, on the processor."""

import numpy as np
import pytest
from device_code import DeviceError
from llvmlite import ir
from numba import cuda, float32, int32, types
from numba.cuda.extending import intrinsic
from small_kernels import RNG, X, launched, pointer_to

from kfc_numba.kernels.cuda.launch import device_kernel


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_shuffles(dtype):
    @device_kernel
    def shuffles(x, y, n):
        t = cuda.threadIdx.x
        v = x[t]
        y[t] = cuda.shfl_sync(0xFFFFFFFF, v, 5)
        y[n + t] = cuda.shfl_up_sync(0xFFFFFFFF, v, 3)
        y[2 * n + t] = cuda.shfl_down_sync(0xFFFFFFFF, v, 3)
        y[3 * n + t] = cuda.shfl_xor_sync(0xFFFFFFFF, v, 12)

    x = (100 * RNG.normal(size=64)).astype(dtype)
    found = launched(shuffles, x, np.zeros((4, 64), dtype), 64, block=64)[1]
    lanes = np.arange(32)
    for k, lane in enumerate(
        [0 * lanes + 5, np.where(lanes < 3, lanes, lanes - 3),
         np.where(lanes > 28, lanes, lanes + 3), lanes ^ 12]
    ):  # fmt: skip
        np.testing.assert_array_equal(found[k].reshape(2, 32), x.reshape(2, 32)[:, lane])


def test_votes():
    @device_kernel
    def votes(x, y):
        t = cuda.threadIdx.x
        y[t] = cuda.ballot_sync(0xFFFFFFFF, x[t] > 0)
        y[64 + t] = cuda.all_sync(0xFFFFFFFF, x[t] > -9)
        y[128 + t] = cuda.any_sync(0xFFFFFFFF, x[t] > 9)
        y[192 + t] = cuda.match_any_sync(0xFFFFFFFF, int32(x[t] > 0))

    y = launched(votes, X[:64], np.zeros((4, 64), np.uint32), block=64)[1].reshape(4, 2, 32)
    bits = np.array([sum(1 << k for k in range(32) if w[k] > 0) for w in X[:64].reshape(2, 32)])
    np.testing.assert_array_equal(y[0], np.repeat(bits, 32).reshape(2, 32))
    assert (y[1] == 1).all()
    assert (y[2] == 0).all()
    positive = X[:64].reshape(2, 32) > 0
    np.testing.assert_array_equal(
        y[3], np.where(positive, bits[:, None], 0xFFFFFFFF - bits[:, None])
    )


def test_operations_of_a_warp_order_its_accesses():
    """Within a warp they stand for a barrier, between warps they do not."""

    def made(distance):
        @device_kernel
        def warps(x, y):
            kept = cuda.shared.array(64, float32)
            t = cuda.threadIdx.x
            kept[t] = x[t]
            cuda.syncwarp()
            y[t] = kept[t ^ distance]

        return warps

    y = launched(made(1), X[:64], X[:64], block=64)[1]
    np.testing.assert_array_equal(y, X[:64].reshape(-1, 2)[:, ::-1].ravel())
    with pytest.raises(DeviceError, match=r"a race"):
        launched(made(32), X[:64], X[:64], block=64)


def test_a_shuffle_that_only_some_reach():
    @device_kernel
    def partial(x, y):
        t = cuda.threadIdx.x
        if t < 8:
            y[t] = cuda.shfl_xor_sync(0xFFFFFFFF, x[t], 1)
        else:
            cuda.syncthreads()

    @device_kernel
    def absent(x, y):
        t = cuda.threadIdx.x
        if t < 8:
            y[t] = cuda.shfl_sync(0xFF, x[t], 9)

    with pytest.raises(DeviceError, match=r"wait for each other: .*8 at an operation of the warp"):
        launched(partial, X, X, block=32)
    with pytest.raises(DeviceError, match=r"thread 9, which takes no part"):
        launched(absent, X, X, block=32)


def test_atomic_operations():
    @device_kernel
    def atomics(x, y):
        total = cuda.shared.array(1, int32)
        if cuda.threadIdx.x == 0:
            total[0] = 0
        cuda.syncthreads()
        cuda.atomic.add(total, 0, int32(x[cuda.grid(1)] > 0))
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            y[cuda.blockIdx.x] = total[0]

    y = launched(atomics, X, np.zeros(4, np.int32), grid=4, block=64)[1]
    np.testing.assert_array_equal(y, (X.reshape(4, 64) > 0).sum(1))


def _copy(given):
    @intrinsic
    def copy(typingctx, target, source, some):
        """Asynchronous copy of 16 bytes from global to shared memory, or of `some`."""

        def codegen(context, builder, signature, args):
            wide, word = ir.IntType(64), ir.IntType(32)
            shared = builder.addrspacecast(args[0], ir.PointerType(ir.FloatType(), 3))
            far = builder.addrspacecast(args[1], ir.PointerType(ir.FloatType(), 1))
            places = [builder.ptrtoint(shared, wide), builder.ptrtoint(far, wide)]
            more = [builder.trunc(args[2], word)] if given else []
            builder.asm(
                ir.FunctionType(ir.VoidType(), [wide, wide, *[word] * given]),
                "cp.async.cg.shared.global [$0], [$1], 16" + (", $2;" if given else ";"),
                "l,l" + ",r" * given,
                [*places, *more],
                side_effect=True,
            )
            return context.get_dummy_value()

        return types.void(target, source, types.int64), codegen

    return copy


copy16, copy_some = _copy(False), _copy(True)


def _statement(text):
    @intrinsic
    def statement(typingctx):
        def codegen(context, builder, signature, args):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.asm(kind, text, "", [], side_effect=True)
            return context.get_dummy_value()

        return types.void(), codegen

    return statement


commit, wait_one, wait_none, other_ptx = map(
    _statement,
    (
        "cp.async.commit_group;",
        "cp.async.wait_group 1;",
        "cp.async.wait_group 0;",
        "nanosleep.u32 1;",
    ),
)


@intrinsic
def moved(typingctx, pointer, i):
    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), codegen


def double_buffer(wait, barrier=True):
    @device_kernel
    def pipeline(x, y, rounds):
        kept = cuda.shared.array((2, 128), float32, alignment=16)
        t = cuda.threadIdx.x
        copy16(moved(pointer_to(kept), 4 * t), moved(x, 4 * t), 16)
        commit()
        total = float32(0)
        for r in range(rounds):
            if r + 1 < rounds:
                copy16(
                    moved(pointer_to(kept), (r + 1) % 2 * 128 + 4 * t),
                    moved(x, (r + 1) * 128 + 4 * t),
                    16,
                )
            commit()
            wait()
            cuda.syncthreads()
            total += kept[r % 2, 127 - t]
            if barrier:
                cuda.syncthreads()
        y[t] = total

    return pipeline


def test_asynchronous_copies():
    x = RNG.normal(size=(6, 128)).astype(np.float32)
    y = launched(double_buffer(wait_one), x, np.zeros(32, np.float32), 6, block=32)[1]
    np.testing.assert_allclose(y, x[:, :95:-1].sum(0), rtol=1e-5)


def test_asynchronous_copies_that_are_not_awaited():
    x = RNG.normal(size=(6, 128)).astype(np.float32)
    y = launched(double_buffer(commit), x, np.zeros(32, np.float32), 6, block=32)[1]
    assert np.isnan(y).all()


def test_asynchronous_copies_onto_what_is_read():
    x = RNG.normal(size=(6, 128)).astype(np.float32)
    with pytest.raises(DeviceError, match=r"shared array 1 .* a race with thread"):
        launched(double_buffer(wait_none, barrier=False), x, np.zeros(32, np.float32), 6, block=32)


def partial_copies(sizes):
    @device_kernel
    def copied(x, y):
        kept = cuda.shared.array(16, float32, alignment=16)
        t = cuda.threadIdx.x
        copy_some(moved(pointer_to(kept), 4 * t), moved(x, 4 * t), sizes[t])
        commit()
        wait_none()
        cuda.syncthreads()
        for i in range(4):
            y[4 * t + i] = kept[4 * t + i]

    return copied


def test_what_is_not_copied_is_zero():
    """And is not read: the last thread copies nothing of what lies behind the array."""
    x = RNG.normal(size=12).astype(np.float32)
    y = launched(partial_copies((16, 4, 12, 0)), x, np.zeros(16, np.float32), block=4)[1]
    expected = np.zeros(16, np.float32)
    for first, count in ((0, 4), (4, 1), (8, 3)):
        expected[first : first + count] = x[first : first + count]
    np.testing.assert_array_equal(y, expected)
    with pytest.raises(DeviceError, match="outside"):
        launched(partial_copies((16, 4, 12, 4)), x, np.zeros(16, np.float32), block=4)


def test_other_inline_ptx_is_refused():
    @device_kernel
    def sleeps(x):
        other_ptx()

    with pytest.raises(NotImplementedError, match=r"inline PTX .* nanosleep"):
        launched(sleeps, X)
