"""What is compiled for a kernel, and what is not."""

import re

import numba
import numpy as np
import pytest
from numba import prange
from numba.core.codegen import JITCodeLibrary
from numba.core.typed_passes import NativeParforLowering
from numba.extending import overload

from kfc_numba.kernels.cpu import jit

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")

#: Libraries of the loop of a `prange`, of its wrappers, and of what it calls.
OURS = re.compile("parfor|gufunc|Gufunc|term")


@jit.inlined
def term(x):
    return 3 * x + 1


def values(x, out):
    for i in prange(x.size):
        out[i] = min(term(x[i]), 50)


@pytest.fixture
def generated(monkeypatch):
    """Names of the libraries that machine code is generated for."""
    names = []
    usual = JITCodeLibrary._finalize_specific

    def note(library):
        names.append(library.name)
        usual(library)

    monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", note)
    return names


def test_machine_code_is_generated_for_kernels_alone(generated):
    kernel = jit._compile(values, parallel=True, nogil=True)
    kernel._cache = numba.core.caching.NullCache()
    x, out = np.arange(5.0), np.empty(5)
    kernel(x, out)
    np.testing.assert_array_equal(out, 3 * x + 1)
    assert "values" in generated
    assert not [name for name in generated if OURS.search(name)]
    generated.clear()
    usual = numba.njit(parallel=True, cache=False)(values)
    usual(np.arange(5, dtype=np.float32), np.empty(5, np.float32))
    assert "values" in generated
    assert len([name for name in generated if OURS.search(name)]) == 3  # which is what is saved


def test_a_function_for_kernels_refuses_python():
    term.compile((numba.float64,))
    with pytest.raises(KeyError, match="term is called by kernels only"):
        term(1.0)


def test_compiled_for_two_types_and_called_by_two_kernels():
    def doubled(x, out):
        for i in prange(x.size):
            out[i] = 2 * term(x[i])

    kernels = [jit._compile(f, parallel=True, nogil=True) for f in (values, doubled)]
    for dtype in (np.float32, np.float64):
        x = np.arange(4, dtype=dtype)
        for kernel, factor in zip(kernels, (1, 2), strict=True):
            kernel._cache = numba.core.caching.NullCache()
            out = np.empty_like(x)
            kernel(x, out)
            np.testing.assert_array_equal(out, factor * (3 * x + 1))


def ninth(x):
    return x[8]


@overload(ninth)
def _ninth(x):
    return lambda x: x[8]


def test_numba_compiles_for_others_as_before(generated):
    """Functions of Numba's that were first needed by a kernel have code when somebody asks."""

    def first(x, out):
        for i in prange(x.size):
            out[i] = max(x[i], ninth(x))

    kernel = jit._compile(first, parallel=True, nogil=True)
    kernel._cache = numba.core.caching.NullCache()
    x, out = np.arange(9.0), np.empty(9)
    kernel(x, out)
    np.testing.assert_array_equal(out, np.full(9, 8.0))
    codegen = kernel.targetctx.codegen()
    assert type(codegen.create_library("any")) is JITCodeLibrary

    @numba.njit
    def others(x):
        return max(x[0], ninth(x))

    generated.clear()
    assert others(x) == 8
    assert any("others" in name for name in generated)


def test_the_library_of_others_comes_back_after_a_failure(monkeypatch):
    kernel = jit._compile(values, parallel=True, nogil=True)
    kernel._cache = numba.core.caching.NullCache()
    codegen, seen = kernel.targetctx.codegen(), []

    def fail(lowering, state):
        seen.append(type(codegen.create_library("any")))
        raise MemoryError

    monkeypatch.setattr(NativeParforLowering, "run_pass", fail)
    with pytest.raises(MemoryError):
        kernel(np.zeros(3), np.zeros(3))
    assert seen != [JITCodeLibrary]
    assert len(seen) == 1
    assert type(codegen.create_library("any")) is JITCodeLibrary
