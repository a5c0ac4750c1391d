"""What the compilers for cards made of a kernel: resources, and instructions by class.

The code is what a card would load (`DeviceKernel.machine_code`); `nvdisasm` writes it out. Both
come from the packages of the extra ``cuda-test``, without a card. What was read is kept beside the
code, for other runs.
"""

import functools
import hashlib
import inspect
import json
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from host_array import HostArray

from kfc_numba.kernels import backend
from kfc_numba.kernels.cuda import launch, outer_products
from kfc_numba.kernels.cuda.product import COPYING
from kfc_numba.kernels.rates import H200

CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
SHOWN = (9, 0)  # of the card whose launches are recorded
#: Of a multiprocessor, by capability: threads, blocks, kilobytes of shared memory, and bytes of it
#: that each block takes besides its own. CUDA C++ Programming Guide, "Technical Specifications".
LIMITS = {
    (7, 5): (1024, 16, 64, 0),
    (8, 0): (2048, 32, 164, 1024),
    (8, 6): (1536, 16, 100, 1024),
    (8, 9): (1536, 24, 100, 1024),
    (9, 0): (2048, 32, 228, 1024),
    (10, 0): (2048, 32, 228, 1024),
    (12, 0): (1536, 24, 100, 1024),
}
_REGISTERS = 65536  # of 32 bits, of a multiprocessor of each of them
_SHARED = 48 * 1024  # bytes that a block may have without asking the driver
_AT_ONCE = 384  # threads of a multiprocessor, at least; or all blocks that it can hold
_DIVISION = re.compile(r"(div|rem)_[su]64")
_LISTED = (9, 0)  # from here on `nvdisasm` lists what blocks take besides their own


@dataclass
class Instructions:
    """Instructions of a stretch of code, by class."""

    count: int = 0
    float32: int = 0  # arithmetic; a packed pair is two
    fused: int = 0  # of these, multiply-adds
    tensor: int = 0  # products of tensor cores in TF32
    float64: int = 0
    integer: int = 0
    special: int = 0  # reciprocals, exponentials and the like
    control: int = 0
    other: int = 0
    calls: list = field(default_factory=list)
    bytes: Counter = field(default_factory=Counter)  # moved by a thread, by memory and direction
    accesses: Counter = field(default_factory=Counter)  # by name and width: "LDG.128"

    @property
    def local(self):
        """Accesses to the stack or to spilled registers."""
        return sum(n for name, n in self.accesses.items() if name.startswith(("LDL", "STL")))

    def wide(self, name):
        """Whether all accesses of a kind ("LDS") are of 16 bytes, and there are some."""
        widths = [key for key in self.accesses if key.startswith(name + ".")]
        return bool(widths) and all(width.endswith(".128") for width in widths)

    @property
    def moved(self):
        """Accesses of 16 bytes by a thread, by name: those that were made wide."""
        return {name: n for name, n in sorted(self.accesses.items()) if name.endswith(".128")}

    @classmethod
    def of(cls, kept):
        """What was kept of it as JSON."""
        counters = {name: Counter(kept[name]) for name in ("bytes", "accesses")}
        return cls(**(kept | counters))


@dataclass
class Report:
    """One kernel for one list of types and one compute capability."""

    name: str
    capability: tuple
    registers: int
    shared: int
    stack: int
    whole: Instructions
    main_loop: Instructions | None  # the innermost loop with the most products
    loops: list

    @property
    def spills(self):
        """Accesses of local memory: saved registers, or arrays that are not in registers."""
        return self.whole.local

    def blocks(self, threads):
        """Blocks that a multiprocessor holds at once."""
        most_threads, blocks, kilobytes, besides = LIMITS[self.capability]
        by_warp = -(-self.registers * 32 // 256) * 256
        warps = -(-threads // 32)
        return min(
            _REGISTERS // (by_warp * warps),
            most_threads // (32 * warps),
            kilobytes * 1024 // max(self.shared + besides, 1),
            blocks,
        )

    def problems(self, threads):
        """What must not be, in words, of a kernel launched with so many threads a block."""
        found = []
        in_loop = self.main_loop.local if self.main_loop else 0
        if self.spills or self.stack:
            found.append(
                f"{self.spills} accesses of local memory, {in_loop} of them in the main loop, "
                f"{self.stack} bytes of stack"
            )
        if self.shared > _SHARED:
            found.append(f"{self.shared} bytes of shared memory, {_SHARED} need no permission")
        if self.blocks(threads) * threads < min(_AT_ONCE, 16 * threads):
            found.append(f"{self.blocks(threads)} blocks of {threads} threads at once")
        if self.capability < (8, 0) and any(n.startswith("LDGSTS") for n in self.whole.accesses):
            found.append("an asynchronous copy, which the card does not have")
        divisions = {name for loop in self.loops for name in loop.calls if _DIVISION.search(name)}
        return found + [f"{name} in a loop" for name in sorted(divisions)]

    @classmethod
    def of(cls, kept):
        """What was kept of it as JSON."""
        loops = [Instructions.of(loop) for loop in kept["loops"]]
        main = kept["main_loop"] and Instructions.of(kept["main_loop"])
        whole = Instructions.of(kept["whole"])
        changed = {"whole": whole, "main_loop": main, "loops": loops}
        return cls(**(kept | changed | {"capability": tuple(kept["capability"])}))


@functools.cache
def tool(name):
    """Path of a program of the CUDA toolkit, from the installed packages."""
    from cuda import pathfinder

    found = pathfinder.find_nvidia_binary_utility(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed: pip install nvidia-cuda-{name}")
    return found


@functools.cache
def report(kernel, types, capability):
    """Compile a kernel, or take its code from the cache, and read the machine code."""
    _keep_code(kernel, types, capability)
    code, entry = kernel.machine_code(types, capability)
    file = kernel._file(types, capability)
    file = file and file.with_suffix(".json")
    made_of = hashlib.sha256(code + _reader()).hexdigest()
    kept = _kept(file)
    if kept.pop("made of", None) == made_of:
        return Report.of(kept)
    found = read(kernel.__name__, entry, capability, disassembled(code))
    if file is not None:
        file.write_text(json.dumps({"made of": made_of} | vars(found), default=vars))
    return found


@functools.cache
def _reader():
    """How machine code is read, as text: what another reader kept is not taken."""
    text = Path(__file__).read_text()
    reading = text[text.index("\ndef disassembled") : text.index("\nclass Recorder")]
    return (inspect.getsource(Instructions) + reading).encode()


def _kept(file):
    try:
        return json.loads(file.read_text())
    except (AttributeError, OSError, ValueError):  # no folder, no file, or half of one
        return {}


def disassembled(code):
    """What `nvdisasm` writes about a file that a card would load."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(code)
        # Where loops begin and end is written without an analysis of the flow, too.
        command = [tool("nvdisasm"), "--no-dataflow", file]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _keep_code(kernel, types, capability):
    """Put code where the kernel finds it, with one run of numba-cuda for all capabilities.

    Its module is the same for all of them; what differs is made of that by NVIDIA's compiler.
    """
    file = kernel._file(types, capability)
    if file is None or launch._read(file) is not None:
        return
    made = module(kernel, types)
    code = made.library.get_cubin(cc=capability).code
    launch._write(file, made.fndesc.llvm_func_name.encode() + b"\n" + code)


@functools.lru_cache(maxsize=1)
def module(kernel, types):
    """What numba-cuda makes of a kernel."""
    return launch.compiled(kernel, types, CAPABILITIES[0])


def read(name, entry, capability, listing):
    """Report of what `nvdisasm` wrote about a function."""
    lines = _section(listing, f".text.{entry}")
    loops = [_counted(lines[first : last + 1]) for first, last in _innermost(lines)]
    main = max(loops, key=lambda loop: (loop.tensor, loop.fused), default=None)
    shared = _section(listing, f".nv.shared.{entry}")
    return Report(
        name=name,
        capability=capability,
        registers=_attribute(listing, "REGCOUNT"),
        shared=sum(int(n) for n in re.findall(r"\.zero\s+(\d+)", "\n".join(shared)))
        - (LIMITS[capability][3] if shared and capability >= _LISTED else 0),
        stack=max(_attribute(listing, "FRAME_SIZE"), _attribute(listing, "MIN_STACK_SIZE")),
        whole=_counted(lines),
        main_loop=main if main is not None and main.fused + main.tensor else None,
        loops=loops,
    )


def _section(listing, name):
    start = re.search(r"^\t\.section\t" + re.escape(name) + r",.*$", listing, re.M)
    if start is None:
        return []
    rest = listing[start.end() :]
    end = re.search(r"^\t\.section\t", rest, re.M)
    return rest[: end.start() if end else None].splitlines()


def _attribute(listing, name):
    """Largest value of an attribute of all functions."""
    parts = re.findall(
        rf"EIATTR_{name}\n.*?index@\(.*?\)\n\s+/\*\w+\*/\s+\.word\s+0x(\w+)", listing, re.S
    )
    return max((int(part, 16) for part in parts), default=0)


_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_LABEL = re.compile(r"^(\.L_x_\d+|\$\S+):")


def _innermost(lines):
    """First and last line of each loop without another one in it."""
    labels = {m[1]: i for i, line in enumerate(lines) if (m := _LABEL.match(line))}
    loops = set()
    for i, line in enumerate(lines):
        match = re.search(r"\bBRA(?:\.\w+)* .*`\((\S+?)\)", line)
        # A branch to itself stands behind the end of each function.
        if match and labels.get(match[1], i) < i and _counted(lines[labels[match[1]] : i]).count:
            loops.add((labels[match[1]], i))
    return [
        (a, b)
        for a, b in sorted(loops)
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)
    ]


_INTEGER = re.compile(
    r"U?(IMAD|IADD|IADD3|ISETP|LOP3|SHF|LEA|IMNMX|VIMNMX|IABS|POPC|FLO|SEL|PRMT|I2F|F2I|I2I|"
    r"ISCADD|BREV|BMSK|SGXT|VIADD|I2FP|PLOP3|ULOP|MOV|VIADDMNMX|IDP|IMMA)(\.|$)"
)
_CONTROL = {"BRA", "BAR", "EXIT", "BSSY", "BSYNC", "RET", "CALL", "NOP", "BRX", "WARPSYNC"}
_NEVER = " @!PT "  # the predicate of instructions that only take time
_MEMORY = {
    "LDG": ["global read"],
    "STG": ["global written"],
    "LDS": ["shared read"],
    "STS": ["shared written"],
    "LDL": ["local read"],
    "STL": ["local written"],
    "LDGSTS": ["global read", "shared written"],
    "LD": ["generic read"],
    "ST": ["generic written"],
}
_WIDTHS = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}


def _counted(lines):
    found = Instructions()
    for line in lines:
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        name, *modifiers = match[1].split(".")
        found.count += 1
        if _NEVER in line:
            found.other += 1
        elif name in _MEMORY:
            width = next((m for m in modifiers if m in _WIDTHS), "32")
            for way in _MEMORY[name]:
                found.bytes[way] += _WIDTHS.get(width, 4)
            found.accesses[f"{name}.{width}"] += 1
        elif name.startswith(("ATOM", "RED")):
            found.accesses[name] += 1
        elif _is_float64(name, modifiers):
            found.float64 += 1
        elif name in ("FFMA", "FADD", "FMUL", "FFMA2", "FADD2", "FMUL2", "FFMA32I", "FMUL32I"):
            pair = 2 if name.endswith("2") and not name.endswith("32") else 1
            found.float32 += pair
            found.fused += pair if name.startswith("FFMA") else 0
        elif name in ("FSETP", "FMNMX", "FSEL", "FCHK", "FMNMX3", "FADD32I", "FSET", "FSWZADD"):
            found.float32 += 1
        elif name == "HMMA" and "TF32" in modifiers:
            found.tensor += 1
        elif name == "MUFU":
            found.special += 1
        elif name in _CONTROL:
            found.control += 1
            if name == "CALL":
                found.calls.append(re.sub(r".*\(|\).*", "", match[2]))
        elif _INTEGER.match(match[1]):
            found.integer += 1
        else:
            found.other += 1
    return found


def _is_float64(name, modifiers):
    return (
        name in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "DMMA")
        or "F64" in modifiers
        or "RCP64H" in modifiers
        or "RSQ64H" in modifiers
    )


class Recorder:
    """Executor that notes launches and runs nothing: results are whatever the arrays held."""

    def __init__(self):
        self.launches = []

    def __call__(self, kernel, grid, block, arguments):
        self.launches.append((kernel, kernel.types(arguments), grid, block, arguments))

    def capability(self):
        return SHOWN

    def rates(self):
        return H200


def on(kernel, capability):
    """What a card of some capability launches in place of a kernel that was `recorded`."""
    form = kernel.settings[-1] if kernel.settings else None
    if isinstance(form, outer_products.Form) and capability < COPYING:
        dtype, tile, _ = kernel.settings
        return outer_products.outer_products(np.dtype(dtype), tile, form._replace(copied=False))
    return kernel


def recorded(function):
    """Launches of a function that calls kernels on arrays of `host_array`."""
    backend.add_device_type(HostArray)
    recorder, HostArray.fills = Recorder(), False
    try:
        with launch.executed_by(recorder):
            function()
    finally:
        HostArray.fills = True
    return recorder.launches
