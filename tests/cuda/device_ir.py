"""The LLVM module of a kernel, written anew for this processor.

numba-cuda hands NVVM a module of LLVM's language. Here its special registers become loads from the
state of `device_memory.py`, its shared arrays zones of memory there, and each load and store goes
by way of `checked`. A kernel with barriers, or with operations of a warp, becomes a coroutine of
LLVM, which is suspended at each of them: a thread is left and entered in nanoseconds.
"""

import ctypes
import ctypes.util
import re

import device_memory as memory
import llvmlite.binding as llvm

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

AXES = [f"{what}.{axis}" for what in ("tid", "ctaid", "ntid", "nctaid") for axis in "xyz"]
BARRIER, WARP = 1, 2  # what a suspended thread waits for
SIZES = {"float": 4, "double": 8, "half": 2, "bfloat": 2, "ptr": 8}
RUNTIME = {
    "checked": ("i64", 5),
    "warp_result": ("i64", 4),
    "copy_begun": ("void", 3),
    "copies_committed": ("void", 0),
    "copies_arrived": ("void", 1),
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


def translated(texts, name, dynamic_bytes=0):
    """One module for this processor, of those of a kernel and of what it calls.

    Also its shared arrays, as (bytes, bytes of a number, alignment), and whether it suspends.
    """
    whole, *called = map(llvm.parse_assembly, texts)
    for other in called:
        whole.link_in(other)
    text, shared = _without_device(str(whole), name, dynamic_bytes)
    module = llvm.parse_assembly(text)
    _simplify(module)
    text = re.sub(r"^declare .*@(register|nvvm)\..*$", "", str(module), flags=re.M)
    head, arguments, body, tail = _function(text, name)
    lines = _with_checks([line for line in body if ", ptr %.ret," not in line])
    lines, suspends = _with_suspensions(lines)
    text = "\n".join(
        [head, *_thread(arguments, lines, suspends), tail, _support(arguments, suspends)]
    )
    return text, shared, suspends


def _without_device(text, name, dynamic_bytes):
    """Without what only a card has: address spaces, shared variables, registers, libdevice."""
    text = re.sub(
        r"^(target (triple|datalayout)|!\S+ = !{|source_filename).*$", "", text, flags=re.M
    )
    text = re.sub(r", !\w+ !\d+", "", text)
    text = re.sub(r" addrspace\(\d\)", "", text)
    text = text.replace("= addrspacecast ptr", "= bitcast ptr").replace(
        "addrspacecast (ptr", "bitcast (ptr"
    )
    shared = []

    def zone(match):
        count, kind = int(match[3]), match[4]
        size = count * size_of(kind)
        size = dynamic_bytes if match[2] == "external" else size
        shared.append((match[1], size, size_of(kind), int(match[5] or size_of(kind))))
        return ""

    text = re.sub(
        r'^(@"?[\w.$]*smem[\w.$]*"?) = (\w*) ?(?:\w+ )*?global \[(\d+) x (.+?)\](?: undef| poison)?'
        r"(?:, align (\d+))?$",
        zone,
        text,
        flags=re.M,
    )
    for i, (variable, *_) in enumerate(shared):
        address = memory.pointer(memory.FIRST_SHARED + i)
        text = re.sub(
            re.escape(variable) + r'(?![\w.$"])', f"inttoptr (i64 {address} to ptr)", text
        )
    text = text.replace(
        'call i32 asm sideeffect "mov.u32 $0, %dynamic_smem_size;", "=r"()',
        f"add i32 0, {dynamic_bytes}",
    )
    text = re.sub(r"^declare .*@llvm\.nvvm\.(read\.ptx\.sreg|membar)\..*$", "", text, flags=re.M)
    text = re.sub(r"call .*@llvm\.nvvm\.membar\S*\(.*$", "", text, flags=re.M)
    text = re.sub(
        r"call (?:range\(.*?\) )?i32 @llvm\.nvvm\.read\.ptx\.sreg\.warpsize\(\)",
        "add i32 0, 32",
        text,
    )
    # LLVM knows the operations of a card as such, and refuses them on a processor.
    text = text.replace("@llvm.nvvm.", "@nvvm.")
    used = set(re.findall(r"@nvvm\.read\.ptx\.sreg\.(\w+(?:\.[xyz])?)\(", text))
    text = re.sub(r"@nvvm\.read\.ptx\.sreg\.(\w+(?:\.[xyz])?)\(", r"@register.\1(", text)
    for register in used:
        text += f"\ndeclare i32 @register.{register}() #900\n"
    text += "attributes #900 = { nounwind willreturn memory(none) }\n"
    # Other functions of device code are inlined: a barrier in one suspends its caller.
    text = re.sub(
        r"^define (?:linkonce_odr |internal |private )?(?!.*@\"?"
        + re.escape(name)
        + r"\"?\()(.*) \{$",
        r"define internal \1 alwaysinline {",
        text,
        flags=re.M,
    )
    text = re.sub(r"^(define .*) \{$", r"\1 null_pointer_is_valid {", text, flags=re.M)
    return _with_library(text), [entry[1:] for entry in shared]


def _with_library(text):
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


def _simplify(module):
    """What makes checks few: locals in registers, short loops unrolled. No access is invented."""
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_module_pass_manager()
    passes.add_always_inliner_pass()
    for _ in range(2):
        passes.add_sroa_pass()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
        passes.add_sccp_pass()
        passes.add_loop_simplify_pass()
        passes.add_lcssa_pass()
        passes.add_loop_rotate_pass()
        passes.add_loop_unroll_pass()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.add_aggressive_dce_pass()
    passes.add_instruction_namer_pass()
    passes.run(module, builder)


def _function(text, name):
    """Text before the kernel, its arguments (type, name), its lines, and the text behind."""
    start = re.search(r"^define [^@]*@\"?" + re.escape(name) + r"\"?\((.*)\) ?[^)]*\{$", text, re.M)
    end = text.index("\n}\n", start.end())
    arguments = []
    for part in re.split(r", (?![^()]*\))", start[1]):
        arguments.append((part.split()[0], part.split()[-1]))
    head, tail = text[: start.start()], text[end + 3 :]
    return head, arguments[1:], text[start.end() + 1 : end].splitlines(), tail


def size_of(kind):
    """Bytes of a type of LLVM."""
    kind = kind.strip()
    if kind in SIZES:
        return SIZES[kind]
    if match := re.fullmatch(r"i(\d+)", kind):
        return max(1, int(match[1]) // 8)
    if match := re.fullmatch(r"[<\[](\d+) x (.+)[>\]]", kind):
        return int(match[1]) * size_of(match[2])
    raise NotImplementedError(f"size of {kind}")


LOAD = re.compile(r"  (%\S+) = load (volatile )?(.+), ptr (.+), align (\d+)(.*)")
STORE = re.compile(r"  store (volatile )?(<.+?>|\[.+?\]|{.+?}|\S+) (.+), ptr (.+), align (\d+)(.*)")
UPDATE = re.compile(r"  (%\S+) = (atomicrmw \w+|cmpxchg) ptr (.+?), (\w+) (.*), align (\d+)(.*)")
DERIVED = re.compile(r"  (%\S+) = (?:getelementptr|bitcast) .*?ptr (%[\w.$-]+|%\".*?\")(,| to).*")


def _with_checks(lines):
    """Each access to memory behind a look-up of the place."""
    result, local, number = [], set(), 0
    for line in lines:
        if (match := re.match(r"  (%\S+) = alloca ", line)) or (
            (match := DERIVED.fullmatch(line)) and match[2] in local
        ):
            local.add(match[1])
        found = LOAD.fullmatch(line)
        if found:
            place, size, align, kind = found[4], size_of(found[3]), found[5], memory.READ
        elif found := STORE.fullmatch(line):
            place, size, align, kind = found[4], size_of(found[2]), found[5], memory.WRITE
        elif found := UPDATE.fullmatch(line):
            place, size, align, kind = found[3], size_of(found[4]), found[6], memory.ATOMIC
        elif re.match(r"  (%\S+ = )?(load|store|atomicrmw|cmpxchg|fence) ", line):
            raise NotImplementedError(line)
        if found and place not in local:
            number += 1
            result += [
                f"  %place.{number} = call ptr @checked"
                f"(ptr {place}, i64 {size}, i64 {align}, i64 {kind}, i64 {number})"
            ]
            before, _, after = line.rpartition(f"ptr {place}, ")
            line = f"{before}ptr %place.{number}, {after}"
        result.append(line)
    return result


CALL = re.compile(r"  (?:(%\S+) = )?(?:tail )?call (.*?)@nvvm\.([\w.]+)\((.*)\).*")
ASYNC = re.compile(r'  (?:tail )?call void asm sideeffect "(.*?);?", "(.*?)"\((.*)\).*')


def _with_suspensions(lines):
    """Barriers and operations of warps; whether there are any."""
    result, number, block, last = [], 0, None, {}
    for line in lines:
        if label := re.match(r'("[^"]*"|[\w.$-]+):', line):
            block = label[1]
        if match := ASYNC.fullmatch(line):
            result += _copy(match[1], match[3])
            continue
        if " asm " in line:
            raise NotImplementedError(f"inline PTX does not run on a processor: {line.strip()}")
        match = CALL.fullmatch(line)
        if not match:
            result.append(line)
            continue
        number += 1
        target, _, operation, operands = match.groups()
        operands = [part.split()[-1] for part in operands.split(", ")]
        result += _suspended(number, operation, operands)
        last[block] = f"resumed.{number}"
        if target:
            result += _result(number, target, operation, operands)
    # A block that is suspended has another name at its end, which is what phis refer to.
    for old, new in last.items():
        for i, line in enumerate(result):
            if " = phi " in line:
                result[i] = line.replace(f", %{old} ]", f", %{new} ]")
    return result, number > 0


def _suspended(number, operation, operands):
    if operation in ("barrier.cta.sync.aligned.all", "barrier0"):
        if operands[0] not in ("0", ""):
            raise NotImplementedError("barriers other than 0")
        code, lanes, value = BARRIER, "0", "0"
    else:
        code, lanes, value = WARP, operands[0], "0"
        if operation.startswith(("shfl", "vote")):
            value = operands[2]
        elif operation.startswith("match"):
            value = operands[1]
        elif operation != "bar.warp.sync":
            raise NotImplementedError(f"llvm.nvvm.{operation}")
    kind = "i1" if operation.startswith("vote") else "i32"
    kind = "i64" if operation.endswith("i64") else "float" if operation.endswith("f32") else kind
    lines = []
    if kind == "float":
        lines.append(f"  %bits.{number} = bitcast float {value} to i32")
        kind, value = "i32", f"%bits.{number}"
    if kind != "i64":
        lines.append(f"  %given.{number} = zext {kind} {value} to i64")
        value = f"%given.{number}"
    lines.append(f"  call void @waits(i64 {4 * number + code}, i32 {lanes}, i64 {value})")
    return [
        *lines,
        f"  %suspended.{number} = call i8 @llvm.coro.suspend(token none, i1 false)",
        f"  switch i8 %suspended.{number}, label %coro.return "
        f"[i8 0, label %resumed.{number} i8 1, label %coro.destroy]",
        f"resumed.{number}:",
    ]


def _result(number, target, operation, operands):
    which = ["shfl", "vote", "match.any", "match.all"]
    code = next(i for i, begin in enumerate(which) if operation.startswith(begin))
    mode, value, clamp = "0", "0", "0"
    if code == 0:
        mode, value, clamp = operands[1], operands[3], operands[4]
    elif code == 1:
        mode = operands[1]
    n = f"{number}"
    lines = []
    for name, operand in (("mode", mode), ("value", value), ("clamp", clamp)):
        lines.append(f"  %{name}.{n} = zext i32 {operand} to i64")
    lines += [
        f"  %result.{n} = call i64 @warp_result"
        f"(i64 {code}, i64 %mode.{n}, i64 %value.{n}, i64 %clamp.{n})",
    ]
    if code == 2:
        return [*lines, f"  {target} = trunc i64 %result.{n} to i32"]
    kind = "float" if operation.endswith("f32") else "i32"
    lines += [
        f"  %low.{n} = trunc i64 %result.{n} to i32",
        f"  %number.{n} = bitcast i32 %low.{n} to {kind}",
        f"  %high.{n} = lshr i64 %result.{n}, 32",
        f"  %predicate.{n} = trunc i64 %high.{n} to i1",
        f"  %pair.{n} = insertvalue {{ {kind}, i1 }} poison, {kind} %number.{n}, 0",
        f"  {target} = insertvalue {{ {kind}, i1 }} %pair.{n}, i1 %predicate.{n}, 1",
    ]
    return lines


def _copy(text, operands):
    """Asynchronous copies, which NVVM knows as PTX alone; both places are 64-bit operands."""
    text = text.strip()
    if text == "cp.async.commit_group":
        return ["  call void @copies_committed()"]
    if match := re.fullmatch(r"cp\.async\.wait_group (\d+)", text):
        return [f"  call void @copies_arrived(i64 {match[1]})"]
    if text == "cp.async.wait_all":
        return ["  call void @copies_arrived(i64 -1)"]
    if match := re.fullmatch(r"cp\.async\.c[ag]\.shared\.global \[\$0\], \[\$1\], (\d+)", text):
        kinds = [part.split()[0] for part in operands.split(", ")]
        if set(kinds) <= {"i64", "ptr"}:
            call = "copy_from" if kinds[0] == "ptr" else "copy_between"
            return [f"  call void @{call}({operands}, i64 {match[1]})"]
    raise NotImplementedError(f"inline PTX does not run on a processor: {text} ({operands})")


def _thread(arguments, lines, suspends):
    """The kernel: a function that returns its status, or a coroutine that notes it."""
    given = ", ".join(f"{kind} {name}" for kind, name in arguments)
    if not suspends:
        return [f"define internal i32 @thread({given}) {{", *lines, "}"]
    entry = re.match(r"[\w.$-]+(?=:)", lines[0])[0]
    lines = [
        re.sub(r"^  ret i32 (.*)$", r"  call void @ends(i32 \1)\n  br label %coro.end", line)
        for line in lines
    ]
    return [
        f"define internal ptr @thread({given}) presplitcoroutine {{",
        "coro.begin:",
        "  %coro.id = call token @llvm.coro.id(i32 0, ptr null, ptr null, ptr null)",
        "  %coro.size = call i64 @llvm.coro.size.i64()",
        "  %coro.memory = call ptr @malloc(i64 %coro.size)",
        "  %coro.handle = call noalias ptr @llvm.coro.begin(token %coro.id, ptr %coro.memory)",
        f"  br label %{entry}",
        *lines,
        "coro.end:",
        "  %coro.last = call i8 @llvm.coro.suspend(token none, i1 true)",
        "  switch i8 %coro.last, label %coro.return "
        "[i8 0, label %coro.never i8 1, label %coro.destroy]",
        "coro.never:",
        "  unreachable",
        "coro.destroy:",
        "  %coro.frame = call ptr @llvm.coro.free(token %coro.id, ptr %coro.handle)",
        "  call void @free(ptr %coro.frame)",
        "  br label %coro.return",
        "coro.return:",
        "  call void @llvm.coro.end(ptr %coro.handle, i1 false, token none)",
        "  ret ptr %coro.handle",
        "}",
    ]


def _place(index):
    """Constant address of a number of the state."""
    return f"inttoptr (i64 {memory.state.ctypes.data + 8 * index} to ptr)"


def _support(arguments, suspends):
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
}

_CALLED = """
define internal ptr @checked(ptr %p, i64 %size, i64 %align, i64 %kind, i64 %site) alwaysinline {{
  %i = ptrtoint ptr %p to i64
  %a = call i64 @checked_of(i64 %i, i64 %size, i64 %align, i64 %kind, i64 %site)
  %q = inttoptr i64 %a to ptr
  ret ptr %q
}}
define internal void @copy_between(i64 %to, i64 %from, i64 %size) alwaysinline {{
  %t = call i64 @checked_of(i64 %to, i64 %size, i64 %size, i64 1, i64 0)
  %f = call i64 @checked_of(i64 %from, i64 %size, i64 %size, i64 0, i64 0)
  call void @copy_begun(i64 %t, i64 %f, i64 %size)
  ret void
}}
define internal void @copy_from(ptr %to, ptr %from, i64 %size) alwaysinline {{
  %t = ptrtoint ptr %to to i64
  %f = ptrtoint ptr %from to i64
  call void @copy_between(i64 %t, i64 %f, i64 %size)
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
