"""The machine and the software that a result was computed with."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

from kfc_numba.devices import PACKAGES
from kfc_numba.variables import VariableError, load_openmp

#: Instruction sets of vectors, by the beginning of their names in LLVM.
_VECTOR_FEATURES = ("sse", "avx", "fma", "neon", "sve")
_PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, processor, threads, and CUDA or why not.

    Numba's threads are started, if they were not: how many there are, and by which layer, is known
    only then. Nothing is compiled.

    Returns
    -------
    dict
        What JSON can hold: ``kfc_numba``, ``python`` and the versions of the packages behind it;
        ``platform``; ``cpu`` and ``cpu_features``, the vector instruction sets that kernels are
        compiled for; ``vector_bits``; ``cpus``, those that this process may run on; ``threads``
        in use and ``most_threads``, Numba's limit; ``threading_layer``; ``blas``, a list of names,
        versions and threads; ``cuda``.
    """
    # Numba takes long to import; commands that compute nothing do without.
    import numba

    from kfc_numba.kernels.cpu import vector

    start_threads()
    threads = numba.get_num_threads()
    return {
        "kfc_numba": version("kfc_numba"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        **{name: version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_features": sorted(f for f in vector.FEATURES if f.startswith(_VECTOR_FEATURES)),
        "vector_bits": 8 * vector.VECTOR_BYTES,
        "cpus": _cpus(),
        "threads": threads,
        "most_threads": most_threads(),
        "threading_layer": numba.threading_layer(),
        "blas": _blas(),
        "cuda": cuda_status(),
    }


def start_threads() -> None:
    """Start Numba's threads.

    Raises
    ------
    VariableError
        The layer that ``NUMBA_THREADING_LAYER`` names is not there.
    """
    import numba

    load_openmp()
    try:
        numba.get_num_threads()
    except ValueError as error:
        asked = numba.config.THREADING_LAYER  # type: ignore[attr-defined]
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise VariableError(
            f"NUMBA_THREADING_LAYER (={asked!r}) must be a layer that is there, such as "
            f"'workqueue', or unset: {first}"
        ) from None


def version(package: str) -> str | None:
    """Version of an installed package, None where it is not installed.

    Parameters
    ----------
    package : str

    Returns
    -------
    str or None
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def most_threads() -> int:
    """Numba's limit on the number of threads, from its start on."""
    import numba

    return numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def cuda_status() -> str:
    """Whether kernels can run on an NVIDIA GPU, or why not.

    Returns
    -------
    str
        Beginning with ``"yes"`` or ``"no"``.
    """
    driver = _driver_status()
    for module, package in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return f"no: {package} is not installed ({driver})"
    return f"{'yes' if driver.startswith('GPUs: ') else 'no'}: {driver}"


def _driver_status() -> str:
    # Asked through the driver's own library: no package for CUDA need be there.
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver found"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return f"the NVIDIA driver reports error {code}"
    names = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return f"GPUs: {', '.join(names)}" if names else "the NVIDIA driver sees no GPU"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _blas() -> list[dict[str, Any]]:
    from threadpoolctl import threadpool_info

    return [
        {key: pool.get(key) for key in ("internal_api", "version", "num_threads")}
        for pool in threadpool_info()
        if pool.get("user_api") == "blas"
    ]
