"""Environment variables with values that are none: one line, from the program and on import."""

import os
import subprocess
import sys
import warnings

import llvmlite.binding as llvm
import pytest

import kfc_numba
from kfc_numba.variables import SPINS, VariableError, check, openmp_takes

#: Name, value, and what is required of it.
WRONG = [
    ("NUMBA_NUM_THREADS", "0", "an integer from 1 to 1024"),
    ("NUMBA_NUM_THREADS", "-1", "an integer from 1 to 1024"),
    ("NUMBA_NUM_THREADS", "abc", "an integer from 1 to 1024"),
    ("NUMBA_NUM_THREADS", "100000", "an integer from 1 to 1024"),
    ("NUMBA_NUM_THREADS", "", "an integer from 1 to 1024"),
    ("NUMBA_THREADING_LAYER", "nonsense", "one of workqueue, omp, tbb, safe, threadsafe"),
    ("NUMBA_THREADING_LAYER_PRIORITY", "omp nonsense", "tbb, omp and workqueue, in any order"),
    ("NUMBA_CPU_NAME", "nonsense", "a processor that LLVM knows, such as 'generic'"),
    ("NUMBA_CPU_NAME", "help", "a processor that LLVM knows, such as 'generic'"),
    ("NUMBA_CPU_FEATURES", "+nonsense", "features that LLVM knows, such as '+avx2"),
    ("NUMBA_CPU_FEATURES", "avx2", "features that LLVM knows, such as '+avx2"),
    ("NUMBA_CPU_FEATURES", "+", "features that LLVM knows, such as '+avx2"),
]
FINE = [
    ("NUMBA_NUM_THREADS", "1"),
    ("NUMBA_NUM_THREADS", "1024"),
    ("NUMBA_THREADING_LAYER", "workqueue"),
    ("NUMBA_THREADING_LAYER", "OMP"),
    ("NUMBA_THREADING_LAYER_PRIORITY", "omp  workqueue tbb"),
    ("NUMBA_CPU_NAME", "generic"),
    ("NUMBA_CPU_NAME", llvm.get_host_cpu_name()),
    ("NUMBA_CPU_FEATURES", ""),
    ("NUMBA_CPU_FEATURES", llvm.get_host_cpu_features().flatten()),
    ("OMP_NUM_THREADS", "4"),
    ("OMP_NUM_THREADS", " 4, 2"),
]


@pytest.fixture(autouse=True)
def many_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


@pytest.mark.parametrize(("name", "value", "required"), WRONG)
def test_wrong_values_are_refused(name, value, required, capfd):
    with pytest.raises(VariableError) as caught:
        check({name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} (={value!r}) must be {required}")
    assert message.endswith(", or unset")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("name", "value"), FINE)
def test_values_that_can_be_used_are_taken(name, value, capfd):
    check({name: value})
    assert capfd.readouterr() == ("", "")


def test_a_machine_may_have_more_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4096)
    check({"NUMBA_NUM_THREADS": "4096"})
    with pytest.raises(VariableError, match="an integer from 1 to 4096"):
        check({"NUMBA_NUM_THREADS": "4097"})


@pytest.mark.parametrize("value", ["0", "-1", "abc", "", "4,", "4,0", "1_0", "٣", "9" * 20])
def test_what_openmp_ignores_is_warned_of(value):
    assert not openmp_takes(value)
    with pytest.warns(RuntimeWarning, match="OMP_NUM_THREADS") as found:
        check({"OMP_NUM_THREADS": value})
    assert str(found[0].message) == (
        f"OMP_NUM_THREADS (={value!r}) is ignored: it must be an integer of at least 1, or unset"
    )


def test_nothing_is_said_of_usual_environments():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check({"PATH": "/bin"})


def test_a_closed_standard_error_is_no_error():
    code = "import os; os.close(2); import kfc_numba; print('imported')"
    environment = os.environ | {"NUMBA_CPU_NAME": "generic"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"imported\n")


def test_nor_is_a_full_disk():
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY));"
        "import kfc_numba.variables as v; v.check(); print('imported')"
    )
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"imported\n"), done.stderr


def python(*words, **variables):
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | variables, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("NUMBA_NUM_THREADS", "0"), ("NUMBA_THREADING_LAYER", "nonsense")]
)
def test_the_program_says_it_in_one_line(name, value):
    status, out, err = python("-m", "kfc_numba", "train", **{name: value})
    assert (status, out) == (2, "")
    assert err.startswith(f"kfc-numba train: {name} (={value!r}) must be ")
    assert err.count("\n") == 1
    assert python("-m", "kfc_numba", "--version", **{name: value})[0] == 0  # needs no threads


def test_importing_raises_it():
    status, _, err = python("-c", "import kfc_numba", NUMBA_NUM_THREADS="0")
    assert status == 1
    last = err.splitlines()[-1]
    assert last.startswith("kfc_numba.variables.VariableError: NUMBA_NUM_THREADS (='0') must be ")
    assert "numba/core" not in err


def test_openmp_itself_is_silent():
    status, out, err = python("-m", "kfc_numba", "info", OMP_NUM_THREADS="0")
    assert status == 0
    assert "threading layer" in out
    assert err == (
        "kfc-numba: warning: OMP_NUM_THREADS (='0') is ignored: it must be an integer of at least "
        "1, or unset\n"
    )
    code = "import os, kfc_numba.kernels.cpu; print(os.environ['OMP_NUM_THREADS'])"
    status, out, err = python("-W", "ignore", "-c", code, OMP_NUM_THREADS="0")
    assert (status, out, err) == (0, "0\n", "")  # and what was set stays set


def test_threads_of_the_program_soon_sleep():
    """Starting them is what loads OpenMP, whose settings are read then."""
    code = """
import os, sys
sys.argv = ["kfc-numba", "info"]
def see(event, arguments):
    if event == "import" and arguments[0].endswith("omppool"):
        sys.stderr.write(os.environ.get("GOMP_SPINCOUNT", "unset"))
sys.addaudithook(see)
from kfc_numba.cli import main
sys.exit(main())
"""
    given = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, str(SPINS))


# Numba's file of settings, which it reads where the program was started.


def settings_file(folder, content):
    (folder / ".numba_config.yaml").write_bytes(content)


@pytest.mark.parametrize(
    ("content", "required"),
    [
        (b"num_threads: [1", "must be YAML: while parsing a flow sequence"),
        (b"\xff\xfe\xfa", "must be YAML: "),
        (b"a: !!python/object:os.system {}", "must be YAML: could not determine a constructor"),
        (b"- num_threads", "must have lines such as 'num_threads: 2'"),
        (b"text", "must have lines such as 'num_threads: 2'"),
        (b"3: 4", "must have lines such as 'num_threads: 2'"),
        (b"threading_layer: nonsense", "NUMBA_THREADING_LAYER (='nonsense') must be one of"),
        (b"num_threads: 0", "NUMBA_NUM_THREADS (=0) must be an integer from 1 to 1024, or unset"),
    ],
)
def test_a_settings_file_that_numba_could_not_read(content, required, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings_file(tmp_path, content)
    with pytest.raises(VariableError) as caught:
        check({})
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/.numba_config.yaml: ")
    assert required in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_settings_file_that_can_be_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (b"", b"# nothing", b"num_threads: 2\nthreading_layer: workqueue", b"opt:"):
        settings_file(tmp_path, content)
        check({})
    settings_file(tmp_path, b"num_threads: 0")
    check({"NUMBA_NUM_THREADS": "1"})  # as Numba does, the variable counts
    monkeypatch.setitem(sys.modules, "yaml", None)  # Numba leaves it alone then, and says so
    check({})


def test_the_program_says_in_one_line_what_is_wrong_with_the_file(tmp_path):
    settings_file(tmp_path, b"num_threads: [1")
    words = [sys.executable, "-m", "kfc_numba", "info"]
    package = os.path.dirname(os.path.dirname(kfc_numba.__file__))
    environment = os.environ | {"PYTHONPATH": package}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"kfc-numba info: {tmp_path}/.numba_config.yaml: must be YAML")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["1", "2"])
def test_without_compilation_all_is_slow(value):
    with pytest.warns(RuntimeWarning, match="NUMBA_DISABLE_JIT") as found:
        check({"NUMBA_DISABLE_JIT": value})
    assert str(found[0].message) == (
        f"NUMBA_DISABLE_JIT (={value!r}): kernels are not compiled, and thousands of times slower"
    )


@pytest.mark.parametrize("value", ["0", "", "nonsense"])
def test_numba_compiles_unless_it_is_told_not_to_by_a_number(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check({"NUMBA_DISABLE_JIT": value})
