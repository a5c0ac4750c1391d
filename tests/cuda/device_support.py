"""What a translated kernel calls and is called by, in LLVM's language.

Functions of `device_memory.py` and of libdevice, special registers, and `turn`, which lets threads
run until they wait.
"""

import ctypes
import ctypes.util
import re

import device_memory as memory
import llvmlite.binding as llvm

AXES = [f"{what}.{axis}" for what in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
RUNTIME = {
    "checked": ("i64", 5),
    "warp_result": ("i64", 4),
    "copy_begun": ("void", 4),
    "copies_committed": ("void", 0),
    "copies_arrived": ("void", 1),
    "tensor_sum": ("i64", 2),
}
for name in RUNTIME:
    llvm.add_symbol(f"device_{name}", getattr(memory, name).address)


# Functions of libdevice that are not the C library's of the same name, by what they compute of %x.
_CLASS = (
    "%c = fcmp {} {} %x, {}\n  %r = zext i1 %c to i32",
    "%a = call {1} @llvm.fabs.{2}({1} %x)\n  %c = fcmp {0} {1} %a, 0x7FF0000000000000\n"
    "  %r = zext i1 %c to i32",
)
LIBDEVICE = {
    "isnanf": _CLASS[0].format("uno", "float", "0.0"),
    "isnand": _CLASS[0].format("uno", "double", "0.0"),
    "isinff": _CLASS[1].format("oeq", "float", "f32"),
    "isinfd": _CLASS[1].format("oeq", "double", "f64"),
    "finitef": _CLASS[1].format("olt", "float", "f32"),
    "isfinited": _CLASS[1].format("olt", "double", "f64"),
    "rsqrtf": "%s = call float @llvm.sqrt.f32(float %x)\n  %r = fdiv float 1.0, %s",
    "rsqrt": "%s = call double @llvm.sqrt.f64(double %x)\n  %r = fdiv double 1.0, %s",
    "float_as_int": "%r = bitcast float %x to i32",
    "int_as_float": "%r = bitcast i32 %x to float",
}
_C = ctypes.CDLL(ctypes.util.find_library("m"))


def with_library(text):
    """Functions of libdevice by those of the C library."""
    for declared in re.findall(r"^declare .*@__nv_.*$", text, flags=re.M):
        result, name, given = re.match(
            r"declare (?:\w+ )*?(\w+) @__nv_(\w+)\((.*?)\)", declared
        ).groups()
        if name in LIBDEVICE:
            body = f"define internal {result} @__nv_{name}({given.split()[0]} %x) alwaysinline {{"
            text = text.replace(declared, f"{body}\n  {LIBDEVICE[name]}\n  ret {result} %r\n}}")
        elif hasattr(_C, name):
            text = re.sub(rf"@__nv_{name}(?=\()", f"@{name}", text)
        else:
            raise NotImplementedError(f"libdevice's __nv_{name}")
    return text


def _place(index):
    """Constant address of a number of the state."""
    return f"inttoptr (i64 {memory.state.ctypes.data + 8 * index} to ptr)"


def support(arguments, suspends):
    """What the kernel calls, and `turn`, which lets threads run until they wait."""
    shared = [f"ptr inttoptr (i64 {a.ctypes.data} to ptr)" for a in _SHARED]
    parts = []
    for name, (result, count) in RUNTIME.items():
        kinds = ", ".join(["ptr"] * 3 + ["i64"] * count)
        given = [f"i64 %a{i}" for i in range(count)]
        parts.append(f"declare {result} @device_{name}({kinds})")
        end = "ret void" if result == "void" else f"ret {result} %r"
        call = f"call {result} @device_{name}({', '.join(shared + given)})"
        call = call if result == "void" else f"%r = {call}"
        inner = f"{name}_of" if name == "checked" else name
        parts.append(
            f"define internal {result} @{inner}({', '.join(given)}) alwaysinline "
            f"{{\n  {call}\n  {end}\n}}"
        )
    parts.append(_CALLED.format(**{k: _place(v) for k, v in _PLACES.items()}))
    for i, axis in enumerate(AXES):
        parts.append(_register(axis, f"%v = load volatile i64, ptr {_place(memory.REGISTERS + i)}"))
    parts.append(
        _register(
            "laneid", f"%t = load volatile i64, ptr {_place(memory.THREAD)}\n  %v = and i64 %t, 31"
        )
    )
    loads = "".join(
        f"  %p{i} = getelementptr i64, ptr %arguments, i64 {i}\n  %v{i} = load {kind}, ptr %p{i}\n"
        for i, (kind, _) in enumerate(arguments)
    )
    values = ", ".join(f"{kind} %v{i}" for i, (kind, _) in enumerate(arguments))
    run = _RUN_COROUTINE if suspends else _RUN
    turn = _TURN.format(
        loads=loads,
        run=run.format(values=values, waiting=_place(memory.WAITING)),
        thread=_place(memory.THREAD),
        x=_place(memory.REGISTERS),
        y=_place(memory.REGISTERS + 1),
        z=_place(memory.REGISTERS + 2),
    )
    return "\n".join([*parts, turn, _COROUTINE if suspends else ""])


def _register(axis, load):
    return (
        f"define internal i32 @register.{axis}() alwaysinline {{\n  {load}\n"
        "  %r = trunc i64 %v to i32\n  ret i32 %r\n}"
    )


_SHARED = (memory.state, memory.writes, memory.reads)
_PLACES = {
    "thread": memory.THREAD,
    "fault": memory.FAULT,
    "fault_thread": memory.FAULT_THREAD,
    "fault_other": memory.FAULT_OTHER,
    "waiting": memory.WAITING,
    "mask": memory.MASK,
    "given": memory.GIVEN,
    "factors": memory.FACTORS_GIVEN,
}

_CALLED = """
define internal ptr @checked(ptr %p, i64 %size, i64 %align, i64 %kind, i64 %site) alwaysinline {{
  %i = ptrtoint ptr %p to i64
  %a = call i64 @checked_of(i64 %i, i64 %size, i64 %align, i64 %kind, i64 %site)
  %q = inttoptr i64 %a to ptr
  ret ptr %q
}}
define internal void @copy_between(i64 %to, i64 %from, i64 %size, i64 %given, i64 %site)
    alwaysinline {{
begin:
  %t = call i64 @checked_of(i64 %to, i64 %size, i64 %size, i64 1, i64 %site)
  %some = icmp ne i64 %given, 0
  br i1 %some, label %look, label %copy
look:
  %next = add i64 %site, 1
  %f = call i64 @checked_of(i64 %from, i64 %given, i64 %size, i64 0, i64 %next)
  br label %copy
copy:
  %g = phi i64 [ 0, %begin ], [ %f, %look ]
  call void @copy_begun(i64 %t, i64 %g, i64 %size, i64 %given)
  ret void
}}
define internal void @copy_from(ptr %to, ptr %from, i64 %size, i64 %given, i64 %site)
    alwaysinline {{
  %t = ptrtoint ptr %to to i64
  %f = ptrtoint ptr %from to i64
  call void @copy_between(i64 %t, i64 %f, i64 %size, i64 %given, i64 %site)
  ret void
}}
define internal void @waits(i64 %for, i32 %lanes, i64 %value) alwaysinline {{
  %t = load volatile i64, ptr {thread}
  %w = getelementptr i64, ptr {waiting}, i64 %t
  store volatile i64 %for, ptr %w
  %m = getelementptr i64, ptr {mask}, i64 %t
  %l = zext i32 %lanes to i64
  store volatile i64 %l, ptr %m
  %g = getelementptr i64, ptr {given}, i64 %t
  store volatile i64 %value, ptr %g
  ret void
}}
define internal void @gives(i64 %which, i32 %bits) alwaysinline {{
  %t = load volatile i64, ptr {thread}
  %first = mul i64 %t, 6
  %i = add i64 %first, %which
  %p = getelementptr i64, ptr {factors}, i64 %i
  %b = zext i32 %bits to i64
  store volatile i64 %b, ptr %p
  ret void
}}
define internal float @tensor_sum_of(i64 %which, float %start) alwaysinline {{
  %i = bitcast float %start to i32
  %s = zext i32 %i to i64
  %w = call i64 @tensor_sum(i64 %which, i64 %s)
  %l = trunc i64 %w to i32
  %r = bitcast i32 %l to float
  ret float %r
}}
define internal void @ends(i32 %status) alwaysinline {{
  %t = load volatile i64, ptr {thread}
  %w = getelementptr i64, ptr {waiting}, i64 %t
  store volatile i64 0, ptr %w
  %none = icmp eq i32 %status, 0
  br i1 %none, label %good, label %check
check:
  %before = load volatile i64, ptr {fault}
  %first = icmp eq i64 %before, 0
  br i1 %first, label %bad, label %good
bad:
  store volatile i64 5, ptr {fault}
  store volatile i64 %t, ptr {fault_thread}
  %s = zext i32 %status to i64
  store volatile i64 %s, ptr {fault_other}
  br label %good
good:
  ret void
}}
"""

_TURN = """
define void @turn(ptr %arguments, ptr %handles, ptr %order, i64 %count, ptr %places) {{
begin:
{loads}
  br label %loop
loop:
  %i = phi i64 [ 0, %begin ], [ %next, %ran ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %one, label %end
one:
  %o = getelementptr i64, ptr %order, i64 %i
  %t = load i64, ptr %o
  store volatile i64 %t, ptr {thread}
  %f = mul i64 %t, 3
  %px = getelementptr i64, ptr %places, i64 %f
  %x = load i64, ptr %px
  store volatile i64 %x, ptr {x}
  %py = getelementptr i64, ptr %px, i64 1
  %y = load i64, ptr %py
  store volatile i64 %y, ptr {y}
  %pz = getelementptr i64, ptr %px, i64 2
  %z = load i64, ptr %pz
  store volatile i64 %z, ptr {z}
{run}
ran:
  %next = add i64 %i, 1
  br label %loop
end:
  ret void
}}
"""

_RUN = """  %status = call i32 @thread({values})
  call void @ends(i32 %status)
  br label %ran"""

_RUN_COROUTINE = """  %ph = getelementptr ptr, ptr %handles, i64 %t
  %h = load ptr, ptr %ph
  %new = icmp eq ptr %h, null
  br i1 %new, label %start, label %resume
start:
  %s = call ptr @thread({values})
  store ptr %s, ptr %ph
  br label %after
resume:
  call void @llvm.coro.resume(ptr %h)
  br label %after
after:
  %handle = phi ptr [ %s, %start ], [ %h, %resume ]
  %pw = getelementptr i64, ptr {waiting}, i64 %t
  %w = load volatile i64, ptr %pw
  %done = icmp eq i64 %w, 0
  br i1 %done, label %remove, label %ran
remove:
  call void @llvm.coro.destroy(ptr %handle)
  store ptr null, ptr %ph
  br label %ran"""

_COROUTINE = """
define void @destroy(ptr %handle) {
  call void @llvm.coro.destroy(ptr %handle)
  ret void
}
declare token @llvm.coro.id(i32, ptr, ptr, ptr)
declare i64 @llvm.coro.size.i64()
declare ptr @llvm.coro.begin(token, ptr)
declare i8 @llvm.coro.suspend(token, i1)
declare ptr @llvm.coro.free(token, ptr)
declare void @llvm.coro.end(ptr, i1, token)
declare void @llvm.coro.resume(ptr)
declare void @llvm.coro.destroy(ptr)
declare ptr @malloc(i64)
declare void @free(ptr)
"""
