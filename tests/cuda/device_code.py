"""Run the real device code of a kernel on the processor: no card, no driver, no Python semantics.

numba-cuda hands NVVM a module of LLVM's language. Here that module is given another target: its
special registers become loads from an array, its barrier a call that switches to another thread,
and LLVM compiles it for this processor. What runs has the integer widths, float types, addressing
and shared memory of the code that a card would run, and finds what a card shows only now and then:

- threads of a block take turns in an order that a seed draws, so that a missing barrier changes
  results between seeds;
- shared memory is NaN at the start of a block, so that reading what nobody wrote shows;
- a barrier that only some threads of a block reach is an error.
"""

import ctypes
import re

import greenlet
import llvmlite.binding as llvm
import numpy as np

from kfc_numba.kernels.cuda.launch import compiled

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

REGISTERS = [f"{what}_{axis}" for what in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
C_TYPES = {"int32": ctypes.c_int32, "int64": ctypes.c_int64, "float32": ctypes.c_float}
C_TYPES["float64"] = ctypes.c_double
SHARED = {"float": ctypes.c_float, "double": ctypes.c_double, "i32": ctypes.c_int32}
SHARED |= {"i64": ctypes.c_int64, "i8": ctypes.c_uint8, "i16": ctypes.c_int16}
registers = (ctypes.c_int32 * len(REGISTERS))()


class _Turn:
    scheduler = None
    given_up = False


@ctypes.CFUNCTYPE(None)
def _at_barrier():
    if not _Turn.given_up:
        _Turn.scheduler.switch(True)


llvm.add_symbol("at_barrier", ctypes.cast(_at_barrier, ctypes.c_void_p).value)
llvm.add_symbol("registers", ctypes.addressof(registers))


def retargeted(text):
    """The module for this processor."""
    text = re.sub(r"^target (triple|datalayout).*$", "", text, flags=re.M)
    text = re.sub(
        r'^declare [^@]*@"?llvm\.nvvm\.(read\.ptx\.sreg|barrier)[^\n]*$', "", text, flags=re.M
    )
    text = re.sub(r'@"?llvm\.nvvm\.barrier0"?\(', "@at_barrier(", text)
    text = re.sub(r'@"?llvm\.nvvm\.read\.ptx\.sreg\.(\w+)\.(\w)"?\(', r"@register_\1_\2(", text)
    text += "\ndeclare void @at_barrier()\n@registers = external global [12 x i32]\n"
    for i, name in enumerate(REGISTERS):
        text += (
            f"define internal i32 @register_{name}() alwaysinline {{\n"
            f"  %p = getelementptr [12 x i32], ptr @registers, i64 0, i64 {i}\n"
            "  %v = load volatile i32, ptr %p\n  ret i32 %v\n}\n"
        )
    return text


class DeviceCode:
    """One kernel for one list of types, compiled for this processor."""

    def __init__(self, kernel, types, capability=(8, 0)):
        made = compiled(kernel, types, capability)
        module = llvm.parse_assembly(retargeted(made.library.get_llvm_str()))
        module.verify()
        machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        self.engine = llvm.create_mcjit_compiler(module, machine)
        self.engine.finalize_object()
        self.address = self.engine.get_function_address(made.fndesc.llvm_func_name)
        self.types = types
        self.shared = []
        for variable in module.global_variables:
            if "addrspace(3)" in str(variable):
                count, kind = re.search(r"\[(\d+) x (\w+)", str(variable)).groups()
                place = self.engine.get_global_value_address(variable.name)
                self.shared.append((SHARED[kind] * int(count)).from_address(place))

    def __call__(self, grid, block, arguments, seed=0):
        result = ctypes.create_string_buffer(8)
        values, kinds = [ctypes.addressof(result)], [ctypes.c_void_p]
        for argument, kind in zip(arguments, self.types, strict=True):
            pointer = not isinstance(argument, np.generic)
            values.append(argument.data.ptr if pointer else argument.item())
            kinds.append(ctypes.c_void_p if pointer else C_TYPES[str(kind)])
        call = ctypes.CFUNCTYPE(ctypes.c_int32, *kinds)(self.address)
        rng = np.random.default_rng(seed)
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        _Turn.scheduler, _Turn.given_up = greenlet.getcurrent(), False
        for bz, by, bx in np.ndindex(*reversed(grid)):
            for array in self.shared:
                ctypes.memset(array, 0xFF, ctypes.sizeof(array))  # NaN, and -1
            self._block(lambda: call(*values) and None, (bx, by, bz), block, grid, rng)

    def _block(self, run, place, block, grid, rng):
        threads = {
            (x, y, z): greenlet.greenlet(run) for z, y, x in np.ndindex(*reversed(block))
        }
        waiting = list(threads)
        while waiting:
            arrived = []
            for i in rng.permutation(len(waiting)):
                registers[:] = [*waiting[i], *place, *block, *grid]
                if threads[waiting[i]].switch():
                    arrived.append(waiting[i])
            if arrived and len(arrived) < len(threads):
                _Turn.given_up = True  # a greenlet inside C cannot be dropped: let each end
                for key in arrived:
                    threads[key].switch()
                raise RuntimeError(
                    f"block {place}: {len(arrived)} of {len(threads)} threads at a barrier"
                )
            waiting = arrived


class Processor:
    """Executor for `kfc_numba.kernels.cuda.launch.executed_by`."""

    known: dict = {}

    def __init__(self, seed=0):
        self.seed = seed

    def __call__(self, kernel, grid, block, arguments):
        arguments = [np.int32(a) if type(a) is int else a for a in arguments]
        types = kernel.types(tuple(arguments))
        code = self.known.get((kernel, types))
        if code is None:
            code = self.known[kernel, types] = DeviceCode(kernel, types)
        code(grid, block, arguments, self.seed)
