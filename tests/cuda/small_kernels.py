"""Launches of kernels written for a test, and what these have in common."""

import numpy as np
from device_code import Processor
from host_array import on_device
from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from kfc_numba.kernels.cuda.launch import executed_by

RNG = np.random.default_rng(0)
X = RNG.normal(size=256).astype(np.float32)


def launched(kernel, *arrays, grid=1, block=256, seed=0):
    """Copies of the arrays after a launch."""
    arrays = [on_device(a) if isinstance(a, np.ndarray) else a for a in arrays]
    with executed_by(Processor(seed)):
        kernel(grid, block, *arrays)
    return [a.get() if hasattr(a, "get") else a for a in arrays]


@intrinsic
def load4(typingctx, pointer, i):
    """Four numbers in one load of 16 bytes."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.FloatType(), 4)
        place = builder.bitcast(builder.gep(args[0], [args[1]]), vector.as_pointer())
        loaded = builder.load(place)
        loaded.align = 16
        lanes = [builder.extract_element(loaded, ir.Constant(ir.IntType(32), k)) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return types.UniTuple(types.float32, 4)(pointer, types.int64), codegen


@intrinsic
def pointer_to(typingctx, array):
    """First number of a shared array."""

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen
