"""Numba's compiler, without machine code that nobody calls.

Numba makes a library of every function it compiles, with machine code and a wrapper for Python. But
a function that a kernel calls is copied into the kernel's library, and so is the body of a
`prange`, by way of two wrappers more: the same code is optimised and generated up to four times.
Here what is only linked into others stays in LLVM's form. Of the time to compile a kernel that
leaves about two thirds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering, NativeParforLowering
from numba.parfors.parfor import Parfor

#: Numba's name for libraries of the last wrapper of a `prange`. It is inlined once more, and the
#: code of all kernels is the same whether it was optimised before.
_LAST_WRAPPER = "parallelgufuncwrapper"


class _Linked(JITCodeLibrary):
    """A library that is linked into others, and has machine code if somebody asks for it."""

    _has_code = False

    def _optimize_final_module(self) -> None:
        if self.name != _LAST_WRAPPER:
            super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        if not self._has_code:
            self._has_code = True
            super()._finalize_final_module()
        return super().get_pointer_to_function(name)


@register_pass(mutates_CFG=True, analysis_only=False)
class _KernelLowering(NativeParforLowering):
    """Machine code of a kernel, and none of the libraries that it is put together from."""

    _name = "kernel_lowering"

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            for statement in block.body:
                if isinstance(statement, Parfor):
                    statement.flags = _never_called(statement.flags)
        codegen = state.targetctx.codegen()
        state.library = codegen.create_library(state.func_id.func_qualname)
        state.library.enable_object_caching()
        codegen._library_class = _Linked  # nobody else compiles now: this thread has Numba's lock
        try:
            return super().run_pass(state)
        finally:
            del codegen._library_class


@register_pass(mutates_CFG=True, analysis_only=False)
class _InlinedLowering(NativeLowering):
    """LLVM's form of a function that kernels call."""

    _name = "inlined_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _Linked(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags = _never_called(state.flags)
        super().run_pass(state)
        entry = _no_entry(state.func_id.func_name)
        state.targetctx.insert_user_function(entry, state["cr"].fndesc, [state.library])
        state["cr"] = state["cr"]._replace(cfunc=entry)
        return True


class KernelCompiler(CompilerBase):
    """Compiles kernels."""

    instead: ClassVar[dict[type, type]] = {NativeParforLowering: _KernelLowering}

    def define_pipelines(self) -> list:
        """Numba's passes, with another one to lower."""
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.passes[:] = [(self.instead.get(kind, kind), text) for kind, text in manager.passes]
        return [manager]


class InlinedCompiler(KernelCompiler):
    """Compiles functions that kernels call, and Python never."""

    instead: ClassVar[dict[type, type]] = {NativeLowering: _InlinedLowering}


def _never_called(flags: Any) -> Any:
    flags = flags.copy()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    return flags


def _no_entry(name: str) -> Callable:
    """What Python calls in place of a function without machine code.

    Numba wants a function in C, an object of its own for each. This one misses a field of its text,
    which says what is wrong.
    """
    return f"{{{name} is called by kernels only}}".format
