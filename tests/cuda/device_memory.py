"""What device code may touch: every access of a kernel is looked up here before it is made.

Code of a kernel sees no address. A pointer is the number of its array (its zone) in the high bits
and an offset below, so that an index that runs from one array into another is found however the two
lie. Functions here are compiled by Numba and called by the device code (`device_ir.py`). An access
that may not be made is noted, the first of a launch only, and sent to a place where it does no
harm: the launch goes on, and `DeviceCode` raises.

A race is two accesses of one number, one of them a write, by two threads with no barrier between
(for threads of one warp: no operation of the warp), or by two blocks. Whether the values happen to
be right does not matter. Atomic operations do not count.
"""

import numpy as np
from llvmlite import ir
from numba import cfunc, types
from numba.extending import intrinsic

# One array of int64 holds all that compiled code and Python share.
FAULT, FAULT_ZONE, FAULT_OFFSET, FAULT_SIZE, FAULT_KIND, FAULT_THREAD, FAULT_OTHER = range(7)
EPOCH, BLOCK_EPOCH, LAUNCH_EPOCH, THREAD, NOWHERE_ADDRESS, STATE_ADDRESS = range(8, 14)
NOTES, NOTED = 14, 15  # address of the notes of accesses or 0, and how many there are
REGISTERS = 16  # tid, ctaid, ntid, nctaid
THREADS, WARPS, ZONES = 1024, 32, 128
WAITING, MASK, GIVEN, SHOWN, VALID = (32 + THREADS * i for i in range(5))
WARP_EPOCH = 32 + THREADS * 5
ZONE = WARP_EPOCH + WARPS
ADDRESS, BYTES, SHADOW, SHIFT, FIELDS = range(5)
COPIES = ZONE + ZONES * FIELDS  # asynchronous copies that a thread began
COPIES_MOST = 64
COPY_TARGET, COPY_BYTES, COPY_GROUP, COPY_NUMBERS = range(4)
COPY_FIELDS = COPY_NUMBERS + 2
COPY_COUNT = COPIES + THREADS * COPIES_MOST * COPY_FIELDS
COPY_GROUPS = COPY_COUNT + THREADS
FACTORS = 6  # of a thread, in a product of its warp
FACTORS_GIVEN = COPY_GROUPS + THREADS
FACTORS_SHOWN = FACTORS_GIVEN + THREADS * FACTORS
SCRATCH = FACTORS_SHOWN + THREADS * FACTORS  # 64 bytes or more on a boundary of 64
STATE_SIZE = SCRATCH + 64
assert SCRATCH % 8 == 0

READ, WRITE, ATOMIC = range(3)
OUTSIDE, MISALIGNED, RACE, NOWHERE, RAISED, LANE, TOO_MANY = range(1, 8)

ZONE_BITS = 48
ORIGIN = 1 << 44
FIRST_SHARED = 64
MOST_NUMBERS = 1 << 25
MOST_NOTES, NOTE_FIELDS = 1 << 22, 6  # site, thread, zone, offset, bytes, kind
_MANY = 2048  # and the warp, for readers of one warp; else
_ALL = 4095


def aligned(size, dtype, alignment=512):
    """Zeros that begin at a multiple of `alignment` bytes."""
    size *= np.dtype(dtype).itemsize
    room = np.zeros(size + alignment, np.uint8)
    first = -room.ctypes.data % alignment
    return room[first : first + size].view(dtype)


state = aligned(STATE_SIZE, np.int64)
writes = np.zeros(MOST_NUMBERS, np.int64)  # who wrote a number last, and when: see _stamp
reads = np.zeros(MOST_NUMBERS, np.int64)
waiting, mask, given, shown, valid = (
    state[first : first + THREADS] for first in (WAITING, MASK, GIVEN, SHOWN, VALID)
)
factors_given, factors_shown = (
    state[first : first + THREADS * FACTORS].reshape(THREADS, FACTORS)
    for first in (FACTORS_GIVEN, FACTORS_SHOWN)
)
state[STATE_ADDRESS] = state.ctypes.data
state[NOWHERE_ADDRESS] = state.ctypes.data + 8 * SCRATCH
zones = state[ZONE : ZONE + ZONES * FIELDS].reshape(ZONES, FIELDS)

_integers = types.CPointer(types.int64)


def pointer(zone):
    """What device code gets for the first byte of a zone."""
    return (zone << ZONE_BITS) + ORIGIN


def _compiled(arguments, result=types.int64):
    return cfunc(result(*[_integers] * 3, *[types.int64] * arguments), cache=True)


@intrinsic
def _integers_at(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(address), codegen


@_compiled(5)
def checked(state, writes, reads, pointer, size, align, kind, site):
    """Address of `size` bytes that a thread is about to read or write at a site of the code."""
    zone = pointer >> ZONE_BITS
    thread = state[THREAD]
    nowhere = state[NOWHERE_ADDRESS]
    fault = 0
    other = -1
    place = offset = pointer
    if zone == 0:
        if pointer >= 65536:
            return pointer  # the stack of a thread
        fault = NOWHERE
    elif zone < 0 or zone >= ZONES:
        fault = NOWHERE
    else:
        field = ZONE + zone * FIELDS
        offset = pointer - (zone << ZONE_BITS) - ORIGIN
        place = state[field + ADDRESS] + offset
        if offset < 0 or offset + size > state[field + BYTES]:
            fault = OUTSIDE
        elif place % align != 0:
            fault = MISALIGNED
        elif kind != ATOMIC:
            epoch = state[EPOCH]
            warp = thread >> 5
            since = state[WARP_EPOCH + warp]
            stamp = (epoch << 26) | ((since & 16383) << 12) | thread
            first = state[BLOCK_EPOCH] if zone < FIRST_SHARED else epoch
            start = state[LAUNCH_EPOCH] if zone < FIRST_SHARED else epoch
            shift = state[field + SHIFT]
            number = state[field + SHADOW] + (offset >> shift)
            last = state[field + SHADOW] + ((offset + size - 1) >> shift)
            while number <= last:
                for which in range(1 + kind):
                    seen = reads[number] if which else writes[number]
                    then = seen >> 26
                    who = seen & 4095
                    if then < start or (who == thread and then >= first):
                        continue
                    if then < first:
                        fault = RACE  # another block
                    elif then == epoch:
                        theirs = who - _MANY if who >= _MANY else who >> 5
                        before = (seen >> 12) & 16383
                        if theirs != warp or before == since & 16383:
                            fault = RACE
                            other = who
                if kind == WRITE:
                    writes[number] = stamp
                else:
                    seen = reads[number]
                    who = seen & 4095
                    if seen >> 26 == epoch and who != thread:
                        theirs = who - _MANY if who >= _MANY else who >> 5
                        reads[number] = (stamp & ~4095) | (_MANY + warp if theirs == warp else _ALL)
                    else:
                        reads[number] = stamp
                number += 1
    if fault == 0:
        if state[NOTES] != 0 and state[NOTED] < MOST_NOTES:
            note = _integers_at(state[NOTES] + 8 * NOTE_FIELDS * state[NOTED])
            note[0], note[1], note[2], note[3] = site, thread, zone, offset
            note[4], note[5] = size, kind
            state[NOTED] += 1
        return place
    if state[FAULT] == 0:
        state[FAULT] = fault
        state[FAULT_ZONE] = zone
        state[FAULT_OFFSET] = offset
        state[FAULT_SIZE] = size
        state[FAULT_KIND] = kind
        state[FAULT_THREAD] = thread
        state[FAULT_OTHER] = other
    return place if fault == RACE else nowhere


@_compiled(4)
def warp_result(state, writes, reads, operation, mode, value, clamp):
    """What a lane gets: 0 shuffle, 1 vote, 2 match any, 3 match all; bit 32 is the predicate."""
    thread = state[THREAD]
    lane = thread & 31
    first = thread - lane
    if operation == 0:
        segment = (clamp >> 8) & 31
        bound = (lane & segment) | (clamp & 31 & ~segment)
        if mode == 0:
            source = (lane & segment) | (value & 31 & ~segment)
        elif mode == 1:
            source = lane - (value & 31)
        elif mode == 2:
            source = lane + (value & 31)
        else:
            source = lane ^ (value & 31)
        inside = source >= bound if mode == 1 else source <= bound
        if not inside:
            source = lane
        if state[VALID + first + source] == 0 and state[FAULT] == 0:
            state[FAULT] = LANE
            state[FAULT_THREAD] = thread
            state[FAULT_OTHER] = first + source
        return (state[SHOWN + first + source] & 0xFFFFFFFF) | (np.int64(inside) << 32)
    own = state[SHOWN + thread]
    present = 0
    equal = 0
    nonzero = 0
    for other in range(32):
        if state[VALID + first + other]:
            bit = 1 << other
            present |= bit
            if state[SHOWN + first + other] == own:
                equal |= bit
            if state[SHOWN + first + other] != 0:
                nonzero |= bit
    if operation == 1:
        if mode == 3:
            return nonzero
        true = nonzero == present
        if mode == 1:
            true = nonzero != 0
        elif mode == 2:
            true = nonzero == present or nonzero == 0
        return np.int64(true) << 32
    if operation == 2:
        return equal
    same = equal == present
    return (present if same else 0) | (np.int64(same) << 32)


@intrinsic
def _float_of(typingctx, bits):
    """A float32 by its bits, which are the low ones."""

    def codegen(context, builder, signature, args):
        low = builder.trunc(args[0], ir.IntType(32))
        return builder.bitcast(low, ir.FloatType())

    return types.float32(types.int64), codegen


@intrinsic
def _bits_of(typingctx, number):
    def codegen(context, builder, signature, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(32)), ir.IntType(64))

    return types.int64(types.float32), codegen


@_compiled(2)
def tensor_sum(state, writes, reads, which, start):
    """Bits of one of a thread's four sums after m16n8k8, of factors in TF32: PTX, "Fragments".

    Of factors the last 13 bits are ignored. Products are summed in float64 and rounded once, which
    is better than any card.
    """
    thread = state[THREAD]
    lane = thread & 31
    first = thread - lane
    row, column = lane >> 2, 2 * (lane & 3) + (which & 1)
    total = np.float64(_float_of(start))
    for k in range(8):
        left, right = first + 4 * row + (k & 3), first + 4 * column + (k & 3)
        for other in (left, right):
            if state[VALID + other] == 0 and state[FAULT] == 0:
                state[FAULT] = LANE
                state[FAULT_THREAD] = thread
                state[FAULT_OTHER] = other
        a = state[FACTORS_SHOWN + FACTORS * left + (which >> 1) + 2 * (k >> 2)] & ~0x1FFF
        b = state[FACTORS_SHOWN + FACTORS * right + 4 + (k >> 2)] & ~0x1FFF
        total += np.float64(_float_of(a)) * np.float64(_float_of(b))
    return _bits_of(np.float32(total))


@intrinsic
def _bytes_at(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.CPointer(types.uint8)(address), codegen


@_compiled(4, types.void)
def copy_begun(state, writes, reads, target, source, size, given):
    """Begin an asynchronous copy: what was there is lost, what comes is not there yet.

    Behind the `given` bytes come zeros.
    """
    thread = state[THREAD]
    count = state[COPY_COUNT + thread]
    if count == COPIES_MOST:
        state[FAULT] = TOO_MANY
        return
    place = COPIES + (thread * COPIES_MOST + count) * COPY_FIELDS
    old, new = _bytes_at(target), _bytes_at(source)
    for i in range(size):
        old[i] = 255
    state[place + COPY_TARGET] = target
    state[place + COPY_BYTES] = size
    state[place + COPY_GROUP] = state[COPY_GROUPS + thread]
    kept = _bytes_at(state[STATE_ADDRESS] + 8 * (place + COPY_NUMBERS))
    for i in range(size):
        kept[i] = new[i] if i < given else 0
    state[COPY_COUNT + thread] = count + 1


@_compiled(0, types.void)
def copies_committed(state, writes, reads):
    """The copies that the thread began since the last call are a group."""
    state[COPY_GROUPS + state[THREAD]] += 1


@_compiled(1, types.void)
def copies_arrived(state, writes, reads, groups):
    """Wait for all copies but those of the last `groups` groups (-1: uncommitted ones as well)."""
    thread = state[THREAD]
    committed = state[COPY_GROUPS + thread]
    left = 0
    for i in range(state[COPY_COUNT + thread]):
        place = COPIES + (thread * COPIES_MOST + i) * COPY_FIELDS
        if groups < 0 or state[place + COPY_GROUP] < committed - groups:
            target = _bytes_at(state[place + COPY_TARGET])
            kept = _bytes_at(state[STATE_ADDRESS] + 8 * (place + COPY_NUMBERS))
            for byte in range(state[place + COPY_BYTES]):
                target[byte] = kept[byte]
        else:
            to = COPIES + (thread * COPIES_MOST + left) * COPY_FIELDS
            for field in range(COPY_FIELDS):
                state[to + field] = state[place + field]
            left += 1
    state[COPY_COUNT + thread] = left
