"""Run the real device code of a kernel on the processor: no card, no driver, no Python semantics.

numba-cuda hands NVVM a module of LLVM's language. Here that module is given another target
(`device_ir.py`), and LLVM compiles it for this processor. What runs has the integer widths, float
types, addressing and shared memory of the code that a card would run, and finds what a card shows
only now and then, or not at all:

- a read or write outside an array, given or shared, and a null pointer;
- a vector load or store that is not aligned;
- a race: two threads that touch one number with no barrier between, or two blocks
  (`device_memory.py`);
- a barrier, or an operation of a warp, that only some threads reach;
- shared memory, which is NaN at the start of a block, read before anybody wrote it;
- an exception of Python, which on a card ends its thread in silence.

Blocks, and the threads of a block between barriers, take turns in an order that a seed draws.

Unlike a card, it rounds each product before it is added: NVVM contracts the two to one operation.
Functions of libdevice are those of the C library, whose last bits may differ. Inline PTX does not
run but for asynchronous copies with 64-bit operands, and tensor cores' products in TF32.
"""

import ctypes

import device_memory as memory
import llvmlite.binding as llvm
import numpy as np
from device_ir import BARRIER, WARP, translated

from kfc_numba.kernels.cuda import launch
from kfc_numba.kernels.rates import H200

LIMIT = 48 * 1024  # bytes of shared memory of a block, on every card
FILLED = 0xFF  # bytes of shared memory at the start: NaN, and -1


class DeviceError(RuntimeError):
    """What a kernel did that it may not do."""


class DeviceCode:
    """One kernel for one list of types, compiled for this processor."""

    def __init__(self, kernel, types, capability=(8, 0)):
        self.kernel, self.types = kernel, types
        name, *texts = _language(kernel, types, capability)
        dynamic = getattr(kernel, "dynamic_shared", 0)
        text, shared, self.suspends = translated(texts, name, dynamic)
        module = llvm.parse_assembly(text)
        module.verify()
        # Tests take longer to compile code than to run it: to make it fast does not pay.
        machine = llvm.Target.from_default_triple().create_target_machine(opt=0)
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        self._engine = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        address = self._engine.get_function_address("turn")
        self._turn = ctypes.CFUNCTYPE(
            None, *[ctypes.c_void_p] * 3, ctypes.c_int64, ctypes.c_void_p
        )(address)
        self._destroy = None
        if self.suspends:
            address = self._engine.get_function_address("destroy")
            self._destroy = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        # On a boundary of what they ask for, and of no more.
        self._shared = [
            (memory.aligned(align + size, np.uint8)[align:], item) for size, item, align in shared
        ]
        used = sum(array.size for array, _ in self._shared)
        if used > LIMIT + dynamic:
            raise DeviceError(
                f"{kernel.__name__} uses {used} bytes of shared memory, {LIMIT} exist"
            )

    def __call__(self, grid, block, arguments, seed=0, blocks_run=None):
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        self._names, arguments = _flat(self.kernel, arguments)
        self._place_zones(arguments)
        packed = self._packed(arguments)
        rng = np.random.default_rng(seed)
        threads = int(np.prod(block))
        if not 0 < threads <= memory.THREADS:
            raise DeviceError(f"{self.kernel.__name__}: {threads} threads in a block")
        places = np.array(list(np.ndindex(*reversed(block))), np.int64)[:, ::-1].copy()
        state = memory.state
        state[memory.FAULT] = 0
        state[memory.EPOCH] += 1
        state[memory.LAUNCH_EPOCH] = state[memory.EPOCH]
        registers = state[memory.REGISTERS : memory.REGISTERS + 12]
        registers[6:12] = [*block, *grid]
        blocks = list(np.ndindex(*reversed(grid)))
        for index in rng.permutation(len(blocks))[:blocks_run]:
            where = blocks[index][::-1]
            registers[3:6] = where
            for array, _ in self._shared:
                array[:] = FILLED
            self._block(packed, places, where, rng)
        state[memory.ZONE : memory.ZONE + memory.ZONES * memory.FIELDS] = 0

    def _block(self, packed, places, where, rng):
        state = memory.state
        threads = len(places)
        handles = np.zeros(threads, np.int64)
        waiting = memory.waiting[:threads]
        state[memory.EPOCH] += 1
        state[memory.BLOCK_EPOCH] = state[memory.EPOCH]
        state[memory.WARP_EPOCH : memory.WARP_EPOCH + memory.WARPS] = 0
        state[memory.COPY_COUNT : memory.COPY_COUNT + 2 * memory.THREADS] = 0
        ready = np.arange(threads)
        try:
            while ready.size:
                order = rng.permutation(ready)
                self._turn(
                    packed.ctypes.data, handles.ctypes.data, order.ctypes.data,
                    order.size, places.ctypes.data,
                )  # fmt: skip
                if state[memory.FAULT]:
                    raise DeviceError(self._fault(where, places))
                if not self.suspends:
                    break
                ready = self._released(waiting, where, places)
        finally:
            for handle in handles[handles != 0]:
                self._destroy(int(handle))

    def _released(self, waiting, where, places):
        """Threads that can go on after each has run until it waits, or ended."""
        if not waiting.any():
            return np.array([], np.int64)
        if (waiting == waiting[0]).all() and waiting[0] & 3 == BARRIER:
            memory.state[memory.EPOCH] += 1
            return np.arange(waiting.size)
        ready = []
        for first in range(0, waiting.size, 32):
            lanes = np.arange(first, min(first + 32, waiting.size))
            asking = lanes[waiting[lanes] & 3 == WARP]
            for what in {(waiting[i], memory.mask[i]) for i in asking}:
                named = lanes[(what[1] >> (lanes - first)) & 1 == 1]
                named = named[waiting[named] != 0]
                same = (waiting[named] == what[0]) & (memory.mask[named] == what[1])
                if same.all() and named.size:
                    memory.valid[first : first + 32] = 0
                    memory.valid[named] = 1
                    memory.shown[named] = memory.given[named]
                    memory.factors_shown[named] = memory.factors_given[named]
                    memory.state[memory.WARP_EPOCH + first // 32] += 1
                    ready.append(named)
                    break
        if ready:
            return np.concatenate(ready)
        kinds, counts = np.unique(waiting, return_counts=True)
        names = {0: "at the end", BARRIER: "at a barrier", WARP: "at an operation of the warp"}
        found = ", ".join(f"{n} {names[k & 3]}" for k, n in zip(kinds, counts, strict=True))
        raise DeviceError(
            f"{self.kernel.__name__}: threads of block {_plain(where)} wait for each other: {found}"
        )

    def _place_zones(self, arguments):
        """Each array its zone; arrays that overlap share the record of who touched what."""
        zones = memory.zones
        zones[:] = 0
        spans = []
        for i, argument in enumerate(arguments):
            if not isinstance(argument, np.generic):
                spans.append((argument.data.ptr, argument.nbytes, argument.itemsize, i + 1))
        for i, (array, item) in enumerate(self._shared):
            spans.append((array.ctypes.data, array.size, item, memory.FIRST_SHARED + i))
        spans.sort()
        end, start, shadow, used = 0, 0, 0, 0
        for address, size, _, zone in spans:
            if address >= end:
                group = [s for s in spans if address <= s[0]]
                shift = _shift(group, address)
                start, shadow = address, used
            zones[zone] = address, size, shadow + ((address - start) >> shift), shift
            end = max(end, address + size)
            used = shadow + ((end - start) >> shift) + 16
            if used > memory.MOST_NUMBERS:
                raise DeviceError(f"arrays of more than {memory.MOST_NUMBERS} numbers in a launch")

    def _packed(self, arguments):
        """Arguments as the code reads them: 8 bytes each."""
        packed = np.zeros(max(1, len(arguments)), np.int64)
        for i, argument in enumerate(arguments):
            if isinstance(argument, np.generic):
                value = np.array([argument]).view(np.uint8)
                packed[i : i + 1].view(np.uint8)[: value.size] = value
            else:
                packed[i] = memory.pointer(i + 1)
        return packed

    def _fault(self, where, places):
        state = memory.state
        fault = state[memory.FAULT]
        zone, offset, size = state[memory.FAULT_ZONE : memory.FAULT_ZONE + 3]
        who = places[state[memory.FAULT_THREAD]]
        head = f"{self.kernel.__name__}: thread {_plain(who)} of block {_plain(where)}"
        other = int(state[memory.FAULT_OTHER])
        if fault == memory.RAISED:
            return f"{head} raised an exception (status {other})"
        if fault == memory.LANE:
            return f"{head} asks for a value of thread {other}, which takes no part"
        if fault == memory.TOO_MANY:
            return f"{head} has more than {memory.COPIES_MOST} asynchronous copies under way"
        verb = ("reads", "writes", "updates")[state[memory.FAULT_KIND]]
        if fault == memory.NOWHERE:
            return f"{head} {verb} at a place in no array"
        bytes_of, item = memory.zones[zone][1], 1 << memory.zones[zone][3]
        if zone >= memory.FIRST_SHARED:
            name = f"shared array {zone - memory.FIRST_SHARED + 1}"
        else:
            name = f"array '{self._names[zone - 1]}'"
        place = (
            f"{verb} {size} bytes at number {offset // item} of {name} ({bytes_of // item} numbers)"
        )
        if fault == memory.OUTSIDE:
            return f"{head} {place}: outside"
        if fault == memory.MISALIGNED:
            return f"{head} {place}: not aligned"
        by = "another block" if other < 0 else "another thread"
        if 0 <= other < len(places):
            by = f"thread {_plain(places[other])}"
        return f"{head} {place}: a race with {by}"


def _language(kernel, types, capability):
    """Name of a kernel in LLVM's language, and its modules, which numba-cuda takes seconds for.

    They are kept where machine code is, under the same key: what would make a card run old code
    makes tests run old code.
    """
    file = kernel._file(types, ("llvm", *capability))
    kept = launch._read(file)
    if kept is None:
        made = launch.compiled(kernel, types, capability, launchable=False)
        parts = [made.fndesc.llvm_func_name, *made.library.llvm_strs]
        kept = "\0".join(parts).encode()
        launch._write(file, kept)
    return kept.decode().split("\0")


def _flat(kernel, arguments):
    """Names and values of arguments as machine code takes them: records field by field."""
    names, flat = [], []
    for name, argument in zip(kernel.function.__code__.co_varnames, arguments, strict=False):
        fields = argument if isinstance(argument, tuple) else (argument,)
        names += [name] * len(fields)
        flat += [np.int32(field) if type(field) is int else field for field in fields]
    return names, flat


def _plain(place):
    return tuple(int(i) for i in place)


def _shift(spans, start):
    """Logarithm of the smallest size of a number in a run of arrays that overlap."""
    end, smallest = start, 8
    for address, size, item, _ in spans:
        if address > end:
            break
        end, smallest = max(end, address + size), min(smallest, item)
    return smallest.bit_length() - 1


_known: dict = {}


class Processor:
    """Executor for `kfc_numba.kernels.cuda.launch.executed_by`."""

    def __init__(self, seed=0):
        self.seed = seed

    def capability(self):
        return 8, 0

    def rates(self):
        return H200

    def __call__(self, kernel, grid, block, arguments):
        types = kernel.types(arguments)
        code = _known.get((kernel, types))
        if code is None:
            code = _known[kernel, types] = DeviceCode(kernel, types)
        code(grid, block, arguments, self.seed)
