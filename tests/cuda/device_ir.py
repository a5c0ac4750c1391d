"""The LLVM module of a kernel, written anew for this processor.

numba-cuda hands NVVM a module of LLVM's language. Here its special registers become loads from the
state of `device_memory.py`, its shared arrays zones of memory there, and each load and store goes
by way of `checked`. A kernel with barriers, or with operations of a warp, becomes a coroutine of
LLVM, which is suspended at each of them: a thread is left and entered in nanoseconds.
"""

import re

import device_memory as memory
import llvmlite.binding as llvm
from device_support import support, with_library

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

BARRIER, WARP = 1, 2  # what a suspended thread waits for
SIZES = {"float": 4, "double": 8, "half": 2, "bfloat": 2, "ptr": 8}


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
        [head, *_thread(arguments, lines, suspends), tail, support(arguments, suspends)]
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
    # Numbers that are asked for anew are the same here.
    text = re.sub(
        r'call i32 asm sideeffect "mov\.u32 \$0, %((?:tid|ctaid)\.[xyz]);", "=r"\(\)',
        r"call i32 @llvm.nvvm.read.ptx.sreg.\1()",
        text,
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
    return with_library(text), [entry[1:] for entry in shared]


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
TENSOR = re.compile(
    r'  (%\S+) = (?:tail )?call ({.*?}) asm sideeffect "mma\.(.*?);?", ".*?"\((.*)\).*'
)


def _with_suspensions(lines):
    """Barriers and operations of warps; whether there are any."""
    result, number, block, last = [], 0, None, {}
    for line in lines:
        if label := re.match(r'("[^"]*"|[\w.$-]+):', line):
            block = label[1]
        if match := ASYNC.fullmatch(line):
            result += _copy(len(result), match[1], match[3])
            continue
        if match := TENSOR.fullmatch(line):
            number += 1
            result += _tensor_product(number, *match.groups())
            last[block] = f"resumed.{number}"
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
    return lines + _waiting(number, code, lanes, value)


def _waiting(number, code, lanes, value):
    """Leave the thread until all that are named are here."""
    return [
        f"  call void @waits(i64 {4 * number + code}, i32 {lanes}, i64 {value})",
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


def _tensor_product(number, target, kind, text, operands):
    """Products of TF32 on tensor cores: six factors of a thread, and four sums."""
    form = "sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
    form += "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13}"
    kinds, values = zip(*(part.split() for part in operands.split(", ")), strict=True)
    if text != form or kinds != ("i32",) * 6 + ("float",) * 4:
        raise NotImplementedError(f"inline PTX does not run on a processor: mma.{text}")
    lines = [f"  call void @gives(i64 {i}, i32 {value})" for i, value in enumerate(values[:6])]
    lines += _waiting(number, WARP, -1, 0)
    made = "poison"
    for i, start in enumerate(values[6:]):
        name = target if i == 3 else f"%sums.{number}.{i}"
        lines += [
            f"  %sum.{number}.{i} = call float @tensor_sum_of(i64 {i}, float {start})",
            f"  {name} = insertvalue {kind} {made}, float %sum.{number}.{i}, {i}",
        ]
        made = name
    return lines


_COPIES = 1 << 32  # sites of other loads and stores have smaller numbers
_COPY = r"cp\.async\.c[ag]\.shared\.global \[\$0\], \[\$1\], (\d+)(, \$2)?"


def _copy(number, text, operands):
    """Asynchronous copies, which NVVM knows as PTX alone; both places are 64-bit operands.

    A third one says how many bytes there are; zeros come in place of the others.
    """
    text = text.strip()
    if text == "cp.async.commit_group":
        return ["  call void @copies_committed()"]
    if match := re.fullmatch(r"cp\.async\.wait_group (\d+)", text):
        return [f"  call void @copies_arrived(i64 {match[1]})"]
    if text == "cp.async.wait_all":
        return ["  call void @copies_arrived(i64 -1)"]
    if match := re.fullmatch(_COPY, text):
        kinds, values = zip(*(part.split() for part in operands.split(", ")), strict=True)
        if kinds[:2] in (("i64", "i64"), ("ptr", "ptr")) and kinds[2:] == ("i32",) * bool(match[2]):
            call = "copy_from" if kinds[0] == "ptr" else "copy_between"
            lines, given = [], match[1]
            if match[2]:
                given = f"%bytes.{number}"
                lines.append(f"  {given} = zext i32 {values[2]} to i64")
            places = ", ".join(f"{kinds[0]} {value}" for value in values[:2])
            site = _COPIES + 2 * number  # of the writing; that of the reading is the next
            return [
                *lines,
                f"  call void @{call}({places}, i64 {match[1]}, i64 {given}, i64 {site})",
            ]
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
