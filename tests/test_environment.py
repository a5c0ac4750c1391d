"""What is told about the machine, against what the libraries themselves say."""

import json
import os
import platform
import subprocess
import sys

import llvmlite
import numba
import numpy as np
import pytest
import scipy
from threadpoolctl import threadpool_info

from kfc_numba import environment as module
from kfc_numba.cli import main
from kfc_numba.environment import cuda_status, environment, version


def test_it_agrees_with_the_libraries():
    found = environment()
    for package in (np, numba, llvmlite, scipy):
        assert found[package.__name__] == package.__version__
    assert found["python"].startswith(platform.python_version())
    assert found["threads"] == numba.get_num_threads()
    assert found["most_threads"] == numba.config.NUMBA_NUM_THREADS
    assert found["threading_layer"] == numba.threading_layer()
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert [b["num_threads"] for b in found["blas"]] == [b["num_threads"] for b in blas]
    assert found["blas"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_vectors_are_those_of_the_processor():
    found = environment()
    features = found["cpu_features"]
    if platform.machine() in ("x86_64", "AMD64"):
        assert "sse2" in features
        widest = 512 if "avx512f" in features else 256 if "avx" in features else 128
        assert found["vector_bits"] == widest
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        text = file.read()
    for feature in ("avx", "avx2", "fma", "avx512f"):
        there = f" {feature} " in text.replace("\n", " \n")
        assert (feature in features) <= there
        if "NUMBA_CPU_FEATURES" not in os.environ:  # which may forbid some
            assert (feature in features) == there
    assert found["cpu"] in text


def test_nothing_is_compiled():
    code = """
import numba
from numba.core import event
from kfc_numba.environment import environment
with event.install_recorder("numba:compile") as recorder:
    layer = environment()["threading_layer"]
assert layer == numba.threading_layer(), layer
assert not recorder.buffer
"""
    command = [sys.executable, "-W", "error", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_versions():
    assert version("numpy") == np.__version__
    assert version("no-such-package") is None


@pytest.mark.parametrize(
    ("driver", "found", "status"),
    [
        ("no NVIDIA driver found", [], "no: CuPy is not installed (no NVIDIA driver found)"),
        ("GPUs: A", [], "no: CuPy is not installed (GPUs: A)"),
        ("GPUs: A", ["cupy"], "no: numba-cuda is not installed (GPUs: A)"),
        ("no NVIDIA driver found", ["cupy", "numba_cuda"], "no: no NVIDIA driv"),
        ("GPUs: A", ["cupy", "numba_cuda"], "yes: GPUs: A"),
        ("the NVIDIA driver sees no GPU", ["cupy", "numba_cuda"], "no: the NVI"),
    ],
)
def test_reasons_why_there_is_no_cuda(monkeypatch, driver, found, status):
    monkeypatch.setattr(module, "_driver_status", lambda: driver)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name in found or None)
    assert cuda_status().startswith(status)


class Driver:
    """Stands in for libcuda.so.1."""

    def __init__(self, code, names):
        self.code, self.names = code, names

    def cuInit(self, flags):
        return self.code

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = self.names[device.value].encode()
        return 0


@pytest.mark.parametrize(
    ("driver", "status"),
    [
        (Driver(0, ["First", "Second"]), "GPUs: First, Second"),
        (Driver(0, []), "the NVIDIA driver sees no GPU"),
        (Driver(100, []), "the NVIDIA driver reports error 100"),
    ],
)
def test_what_the_driver_says(monkeypatch, driver, status):
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: driver)
    assert module._driver_status() == status


def test_a_machine_without_the_driver(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(module.ctypes, "CDLL", missing)
    assert module._driver_status() == "no NVIDIA driver found"


def test_info_prints_all_of_it(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    found = environment()
    for name in ("kfc_numba", "python", "numpy", "numba", "platform", "cpu", "cuda"):
        assert str(found[name]) in out
    assert f"{found['threads']} of at most {found['most_threads']}" in out
    lines = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in out.splitlines()}
    assert lines["threading layer"] == numba.threading_layer()
    assert lines["vector width (bits)"] == str(found["vector_bits"])
    start, end = out.index("vector instructions"), out.index("vector width")
    assert out[start:end].split()[2:] == found["cpu_features"]
    assert max(map(len, out.splitlines())) <= 100
    assert lines["BLAS"].startswith("openblas") or found["blas"][0]["internal_api"] in lines["BLAS"]
