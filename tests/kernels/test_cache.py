"""The cache of compiled kernels: whatever becomes of it, kernels run, and it mends itself.

Each check is a process of its own with a small package, whose kernel is compiled in a second.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from small_package import CALL, process, write_package

from kfc_numba.kernels.cpu.linear_combination import combination

COMPILED, LOADED = ["3.0", "0", "1"], ["3.0", "1", "0"]


@pytest.fixture
def package(tmp_path):
    write_package(tmp_path / "package")
    return tmp_path / "package"


def call(package, cache, **more):
    """What the package's kernel gives, how often it was loaded and compiled, and the warnings."""
    done = process(CALL, package, NUMBA_CACHE_DIR=str(cache), **more)
    return done.stdout.split(), done.stderr.count("RuntimeWarning"), done.stderr


def files(cache):
    return sorted(path for path in cache.rglob("*") if path.is_file())


DAMAGE = {
    "empty": lambda content: b"",
    "a few bytes": lambda content: content[:10],
    "without its last byte": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-2000] + bytes([content[-2000] ^ 1]) + content[-1999:],
    "other bytes behind the key": lambda content: content[:64] + bytes(len(content) - 64),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A package, and a cache of its kernels for tests to copy."""
    package, cache = (tmp_path_factory.mktemp(name) for name in ("package", "cache"))
    write_package(package)
    assert call(package, cache)[:2] == (COMPILED, 0)
    return package, cache


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_replaced(kept, tmp_path, damage):
    package, whole = kept
    cache = shutil.copytree(whole, tmp_path / "cache")
    before = {path: path.read_bytes() for path in files(cache)}
    assert len(before) == 2  # the kernel and what it calls
    for path, content in before.items():
        path.write_bytes(damage(content))
    numbers, warnings, text = call(package, cache)
    assert numbers == COMPILED
    assert warnings == 1, text
    assert "compiled kernel " in text
    assert " is compiled anew: " in text
    assert files(cache) == list(before)
    assert call(package, cache)[:2] == (LOADED, 0)


def test_files_of_other_sources_are_replaced_in_silence(package, tmp_path):
    cache = tmp_path / "cache"
    assert call(package, cache)[:2] == (COMPILED, 0)
    before = files(cache)
    write_package(package, constant=5)
    assert call(package, cache)[:2] == (["15.0", "0", "1"], 0)
    assert files(cache) == before


def full_disk():
    """No file can grow, as on a disk that is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def test_a_full_disk_is_no_reason_to_stop(package, tmp_path):
    cache = tmp_path / "cache"
    numbers, warnings, text = call(package, cache, before=full_disk, PYTHONDONTWRITEBYTECODE="1")
    assert numbers == COMPILED
    assert warnings == 1, text
    assert f"compiled kernels cannot be kept in {cache}" in text
    assert "NUMBA_CACHE_DIR names another folder" in text
    assert files(cache) == []  # not even the beginning of one
    assert call(package, cache)[:2] == (COMPILED, 0)
    assert call(package, cache)[:2] == (LOADED, 0)


def test_a_folder_that_vanishes_is_made_again(package, tmp_path):
    cache = tmp_path / "cache"
    vanishing = CALL.replace(
        "print(caller", f"import shutil; shutil.rmtree({str(cache)!r})\nprint(caller"
    )
    done = process(vanishing, package, NUMBA_CACHE_DIR=str(cache))
    assert (done.stdout.split(), done.stderr) == (COMPILED, "")
    assert call(package, cache)[:2] == (LOADED, 0)


def test_a_folder_that_becomes_a_file_is_no_reason_to_stop(package, tmp_path):
    cache = tmp_path / "cache"
    blocked = CALL.replace(
        "print(caller",
        f"import pathlib, shutil; shutil.rmtree({str(cache)!r})\n"
        f"pathlib.Path({str(cache)!r}).touch()\nprint(caller",
    )
    done = process(blocked, package, NUMBA_CACHE_DIR=str(cache))
    assert done.stdout.split() == COMPILED
    assert done.stderr.count("RuntimeWarning") == 2  # it can neither be read nor written
    cache.unlink()
    assert call(package, cache)[:2] == (COMPILED, 0)


def test_two_processes_that_compile_at_once_keep_both(package, tmp_path):
    """An index that both write would have lost one of them."""
    cache = tmp_path / "cache"
    code = CALL.replace("caller.total(3)", "caller.total(3, sys.argv[2])")
    (package / "caller.py").write_text(
        (package / "caller.py")
        .read_text()
        .replace("def total(n)", "def total(n, dtype=float)")
        .replace("np.zeros(n)", "np.zeros(n, dtype)")
    )
    dtypes = ["f4", "f8", "i4", "i8"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(package), dtype],
            env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for dtype in dtypes
    ]
    for one in processes:
        assert one.communicate(timeout=120)[0].split()[1:] == ["0", "1"]
    for dtype in dtypes:
        done = process(code, package, dtype, NUMBA_CACHE_DIR=str(cache))
        assert done.stdout.split()[1:] == ["1", "0"]
        assert done.stderr == ""


def test_functions_made_for_other_numbers_have_other_names():
    """The linker takes functions of one name for each other, whichever process compiled them."""
    names = set()
    for matrices, start in (
        ([((1, 2),)], False),
        ([((1, 2),)], True),
        ([((1, 3),)], False),
        ([((1, 2),), ((1, 3),)], False),
    ):
        names.add(combination(matrices, start=start).py_func.__qualname__)
    assert len(names) == 4
    again = combination([((1, 2),)]).py_func.__qualname__
    assert again in names


CONVOLVED = """
import sys
import numpy as np
from kfc_numba.kernels import cpu

rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 12, 10, 16)), rng.normal(size=(8, 12, 10, 16))
w = rng.normal(size=(5, 5, 16, 16))
padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
taps = {(i, j): padded[:, i : i + 12, j : j + 10] for i in range(5) for j in range(5)}
if "forward" in sys.argv:
    found = cpu.conv2d_forward(x, w, None, padding="same")
    expected = sum(taps[k] @ w[k] for k in taps)
    print(abs(found - expected).max() < 1e-10, end=" ")
if "gradient" in sys.argv:
    found = cpu.conv2d_grad_weight(x, y, 5, padding="same")
    error = max(abs(found[k] - np.einsum("nhwi,nhwo->io", taps[k], y)).max() for k in taps)
    print(error < 1e-10, end=" ")
"""


def test_kernels_of_two_programs_do_not_take_each_others_functions(tmp_path):
    """Each process numbers what it compiles, and numbers are parts of symbols."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert process(CONVOLVED, "forward", **cache).stdout.split() == ["True"]
    assert process(CONVOLVED, "gradient", **cache).stdout.split() == ["True"]
    assert process(CONVOLVED, "forward", "gradient", **cache).stdout.split() == ["True"] * 2
