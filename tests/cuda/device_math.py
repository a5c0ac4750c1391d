"""Functions of NVIDIA's libdevice that device code calls, by those of the C library."""

import ctypes
import ctypes.util

import llvmlite.binding as llvm

_library = ctypes.CDLL(ctypes.util.find_library("m"))

for name in ("exp", "log", "log1p", "tanh", "sqrt", "pow", "fabs"):
    for suffix in ("", "f"):
        function = getattr(_library, name + suffix)
        place = ctypes.cast(function, ctypes.c_void_p).value
        llvm.add_symbol(f"__nv_{name}{suffix}", place)
