"""Compilation, the cache on disk, and launches from threads and forked children.

Each check runs in processes of its own, whose exit codes and output are read.
"""

import os
import subprocess
import sys
import textwrap

import naive
import numba
import numpy as np
import pytest
from numba import prange
from small_package import CALL, process, run, write_package

from kfc_numba.kernels.cpu import conv, jit, winograd
from kfc_numba.variables import SPINS


@pytest.mark.parametrize("kind", ["serial", "inlined"])
def test_kernel_is_compiled_anew_when_a_file_it_calls_changes(tmp_path, kind):
    package, cache = tmp_path / "package", str(tmp_path / "cache")
    write_package(package, kind=kind)
    assert run(CALL, package, NUMBA_CACHE_DIR=cache) == ["3.0", "0", "1"]
    assert run(CALL, package, NUMBA_CACHE_DIR=cache) == ["3.0", "1", "0"]
    write_package(package, constant=5, kind=kind)
    assert run(CALL, package, NUMBA_CACHE_DIR=cache) == ["15.0", "0", "1"]


def cubes(x, out):
    for i in prange(x.size):
        out[i] = x[i] ** 3


@pytest.mark.skipif(numba.get_num_threads() == 1, reason="there is one thread")
def test_small_work_wakes_no_other_thread():
    """And the number of threads is what it was, also after an error."""
    kernel, before, seen = jit.parallel(cubes), numba.get_num_threads(), []
    kernel._parallel = lambda: seen.append(numba.get_num_threads())
    for by_work, limit in (
        (kernel.for_products, jit.FEW_PRODUCTS),
        (kernel.for_numbers, jit.FEW_NUMBERS),
    ):
        for count in (0, limit, limit + 1):
            by_work(count)()
            assert numba.get_num_threads() == before
    assert seen == 2 * [1, 1, before]
    with pytest.raises(TypeError):
        kernel.alone("an argument too many")
    assert numba.get_num_threads() == before


def test_key_holds_sources_and_options(monkeypatch):
    kernels = jit.parallel(cubes)._parallel, jit.serial(cubes)
    for kernel in kernels:
        out = np.empty(1)
        kernel(np.full(1, 2.0), out)
        assert out[0] == 8
    signature, codegen = kernels[1].signatures[0], kernels[1].targetctx.codegen()
    keys = [kernel._cache._key(signature, codegen) for kernel in kernels]
    assert keys[0] != keys[1]
    assert keys[1] == kernels[1]._cache._key(signature, codegen)
    monkeypatch.setattr(jit, "sources", lambda path: "another text")
    assert keys[1] != kernels[1]._cache._key(signature, codegen)


def test_folder_that_cannot_be_written_means_no_cache(tmp_path):
    package = tmp_path / "package"
    write_package(package)
    # A file where Numba would make its folder refuses even the superuser.
    blocked = tmp_path / "file"
    blocked.touch()
    (package / "__pycache__").touch()
    environment = {
        "NUMBA_CACHE_DIR": "",
        "HOME": str(blocked / "home"),
        "XDG_CACHE_HOME": str(blocked / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for _ in range(2):
        done = process(CALL, package, **environment)
        assert done.stdout.split()[0] == "3.0"
        assert done.stderr.count("RuntimeWarning: no folder can keep compiled kernels") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "package"]
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".nbi", ".nbc")]


def test_workqueue_from_two_threads_at_once(tmp_path):
    """Without a lock the first collision ends the process."""
    code = """
    import sys, threading
    import numpy as np
    from kfc_numba.kernels.cpu import conv

    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(20, 12, 12, 8)), rng.normal(size=(3, 3, 8, 8))
    expected = conv.conv2d_forward(x, weight)
    import numba
    assert numba.threading_layer() == "workqueue"
    wrong, done = [], []

    def work():
        for _ in range(200):
            if not np.array_equal(conv.conv2d_forward(x, weight), expected):
                wrong.append(1)
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(len(done), len(wrong))
    """
    assert run(code, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2") == ["3", "0"]


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_children_forked_after_a_launch(layer):
    """They compute, and end by themselves with code 0; so do their own children."""
    code = """
    import multiprocessing, os, sys, warnings
    import numpy as np
    from kfc_numba.kernels.cpu import conv

    warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: what is tested
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(5, 6, 6, 3)), rng.normal(size=(3, 3, 3, 4))
    expected = conv.conv2d_forward(x, weight)
    import numba
    assert numba.threading_layer() == sys.argv[1], numba.threading_layer()

    def child(depth):
        assert np.array_equal(conv.conv2d_forward(x, weight), expected)
        if depth:
            fork(depth - 1)
        assert np.array_equal(conv.conv2d_forward(x, weight), expected)

    def fork(depth):
        process = multiprocessing.get_context("fork").Process(target=child, args=(depth,))
        process.start()
        process.join(120)
        if process.exitcode is None:
            process.kill()
        assert process.exitcode == 0, process.exitcode

    fork(1)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            child(0)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(conv.conv2d_forward(x, weight), expected)
    print("done")
    """
    environment = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2"}
    assert run(code, layer, **environment) == ["done"]


def test_fork_while_another_thread_computes():
    """The child's lock must not be held by a thread that it does not have."""
    code = """
    import os, threading, warnings
    import numpy as np
    from kfc_numba.kernels.cpu import conv

    warnings.simplefilter("ignore", DeprecationWarning)
    x, weight = np.ones((64, 16, 16, 16)), np.ones((3, 3, 16, 16))
    conv.conv2d_forward(x, weight)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            conv.conv2d_forward(x, weight)

    thread = threading.Thread(target=work)
    thread.start()
    codes = []
    for _ in range(5):
        pid = os.fork()
        if not pid:
            y = conv.conv2d_forward(x[:2], weight)
            os._exit(0 if (y == 144).all() else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    stop.set()
    thread.join()
    print(*codes)
    """
    environment = {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2"}
    assert run(code, **environment, timeout=120) == ["0"] * 5


def test_number_of_threads_of_the_caller_stays():
    code = """
    import numba, numpy as np
    from kfc_numba.kernels.cpu import conv, dense, moment
    x, weight = np.ones((5, 6, 6, 3)), np.ones((3, 3, 3, 4))
    for threads in (1, 3, 4):
        numba.set_num_threads(threads)
        y = conv.conv2d_forward(x, weight)
        conv.conv2d_grad_weight(x, y, 3)
        moment.patch_second_moment(x, 3)
        dense.matmul(x[0, 0], weight[0, 0])
        print(numba.get_num_threads())
    """
    assert run(code, NUMBA_NUM_THREADS="4") == ["1", "3", "4"]


def plain(code, *arguments):
    """Run a program without compilation."""
    run(code, *arguments, NUMBA_DISABLE_JIT="1")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_jit_the_numbers_are_the_same(dtype, tmp_path):
    """The plain loops of the tile against its vector code."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 6, 4)).astype(dtype)
    weight = rng.normal(size=(3, 2, 2, 38)).astype(dtype)
    window = {"stride": (1, 2), "padding": ((1, 0), (0, 2)), "groups": 2}
    y = conv.conv2d_forward(x, weight, **window)
    np.savez(tmp_path / "arrays.npz", x=x, weight=weight, y=y)
    code = """
    import sys
    import numba, numpy as np
    from kfc_numba.kernels.cpu import conv, dense, moment
    assert numba.config.DISABLE_JIT
    arrays = np.load(sys.argv[1] + "/arrays.npz")
    x, weight, y = arrays["x"], arrays["weight"], arrays["y"]
    window = dict(stride=(1, 2), padding=((1, 0), (0, 2)), groups=2)
    np.savez(
        sys.argv[1] + "/results.npz",
        conv.conv2d_forward(x, weight, **window),
        conv.conv2d_grad_input(y, weight, x.shape, **window),
        conv.conv2d_grad_weight(x, y, (3, 2), **window),
        conv.conv2d_grad_bias(y),
        moment.patch_second_moment(x, (3, 2), **window),
        moment.patch_second_moment(x, (3, 2), padding=1),
        moment.output_second_moment(y),
        dense.matmul(x.reshape(-1, 4), weight.reshape(-1, 4), transpose_b=True),
    )
    """
    plain(code, tmp_path)
    references = []
    for a, w, d in ((x, weight, y), tuple(map(np.abs, (x, weight, y)))):
        references.append(
            [
                naive.conv2d(a, w, **window),
                naive.conv2d_grad_input(d, w, x.shape, **window),
                naive.conv2d_grad_weight(a, d, (3, 2), **window),
                naive.conv2d_grad_bias(d),
                naive.patch_second_moment(a, (3, 2), **window),
                naive.patch_second_moment(a, (3, 2), padding=1),
                naive.output_second_moment(d),
                naive.matmul(a.reshape(-1, 4), w.reshape(-1, 4).T),
            ]
        )
    results = list(np.load(tmp_path / "results.npz").values())
    assert len(results) == len(references[0])
    for result, expected, magnitudes in zip(results, *references, strict=True):
        assert result.dtype == dtype
        naive.assert_sums(result, expected, magnitudes)
    naive.assert_sums(y, references[0][0], references[1][0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_jit_combinations_and_windows_are_the_same(dtype, tmp_path, monkeypatch):
    """The plain forms of the other primitives against the vector code."""
    code = """
    import sys
    import numpy as np
    from kfc_numba.kernels.cpu import conv, pool, winograd
    winograd.pays = lambda rows, columns, images, depth, filters: winograd.possible(rows, images[1])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 5, 18)).astype(sys.argv[2])
    weight = rng.normal(size=(5, 3, 18, 20)).astype(sys.argv[2])
    y = conv.conv2d_forward(x, weight, weight[0, 0, 0], padding=(2, 1))
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": ((1, 0), (0, 1))}
    np.savez(
        sys.argv[1],
        y,
        conv.conv2d_grad_input(y, weight, x.shape, padding=(2, 1)),
        *conv.conv2d_grad_parameters(x, y, (5, 3), padding=(2, 1)),
        *pool.max_pool_forward(x, **window),
        pool.avg_pool_forward(x, **window),
    )
    """
    words = [str(tmp_path / "results.npz"), np.dtype(dtype).name]
    monkeypatch.setattr(winograd, "pays", winograd.pays)  # the code puts another in its place
    monkeypatch.setattr(sys, "argv", ["-c", *words])
    results = []
    for execute in (lambda: exec(textwrap.dedent(code), {}), lambda: plain(code, *words)):
        execute()
        with np.load(words[0]) as arrays:
            results.append([arrays[name] for name in arrays.files])
    eps = np.finfo(dtype).eps
    for compiled, expected in zip(*results, strict=True):
        assert compiled.dtype == expected.dtype
        largest = np.abs(expected.astype(float)).max()
        np.testing.assert_allclose(compiled, expected, rtol=0, atol=100 * eps * largest)


def test_systems_without_fork():
    # Windows has no os.register_at_fork; importing must not fail for it.
    found = run(
        """
        import os
        import numba, scipy.linalg, tqdm  # which look for os.fork themselves
        import numpy as np
        del os.register_at_fork
        from kfc_numba.kernels import cpu
        print(cpu.add(np.ones(3), np.ones(3)).sum())
        """
    )
    assert found == ["6.0"]


@pytest.mark.parametrize("name", [None, "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_threads_of_openmp_soon_sleep(name):
    # The library reads the variable when it is loaded: what it was then, and what is left of it.
    code = """
import importlib, os
seen, usual = [], importlib.import_module
def watched(module, *rest):
    if module.endswith("omppool"):
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
    return usual(module, *rest)
importlib.import_module = watched
import kfc_numba.kernels.cpu
print(seen, os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""
    variables = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {key: value for key, value in os.environ.items() if key not in variables}
    if name is not None:
        environment[name] = "passive" if name == "OMP_WAIT_POLICY" else "7"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if name is None:
        assert done.stdout.split() == [f"['{SPINS}']", "None", "None"]
    else:  # the user's own setting stays, and nothing is loaded before it is needed
        kept = [environment.get("GOMP_SPINCOUNT"), environment.get("OMP_WAIT_POLICY")]
        assert done.stdout.split() == ["[]", *map(str, kept)]


@pytest.mark.parametrize("changed", ["own", "beside", "late", "further"])
def test_sources_are_those_of_all_files_that_are_imported(tmp_path, changed):
    texts = {
        "own": "from package.beside import name\ndef f():\n    from package import late\n",
        "beside": "import package.further\nname = 1\n",
        "late": "x = 1\n",
        "further": "y = 1\n",
        "other": "z = 1\n",
    }
    found = []
    for folder in ("before", "same", "after"):
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            more = {changed: "# changed\n"} if folder == "after" else {"other": f"# {folder}\n"}
            (tmp_path / folder / f"{name}.py").write_text(text + more.get(name, ""))
        found.append(jit.sources(tmp_path / folder / "own.py"))
    assert found[0] == found[1] != found[2]
