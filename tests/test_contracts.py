"""Rules of the code base: documentation of arguments, direction of imports, what importing does."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import kfc_numba
from kfc_numba.kernels import cpu

PACKAGE = Path(kfc_numba.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]
LONGEST = 450  # lines: beyond, a file has more than one subject

# A part imports from those before it, and from itself.
ORDER = [
    *("importing", "variables", "interrupts", "checks", "progress", "schema", "foreign_names"),
    "precision",
    *("random", "normalization", "workspace", "kernels", "arrays", "devices"),
    *("input_scale", "memory"),
    *("layers", "topology", "targets"),
    *("losses", "trace", "summary", "graph", "sequential", "evaluation", "curvature", "laplace"),
    *("optim", "history", "description", "checkpoint", "runs", "saving", "limits", "feeding"),
    *("batches", "averaged", "warming", "train", "model", "datasets", "networks"),
    *("environment", "plot", "process", "commands", "cli", "__main__"),
]


# Documentation of arguments.


def documented(docstring, section="Parameters"):
    """Names in a section of a numpydoc docstring."""
    lines = docstring.splitlines()
    names, inside = [], False
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if below and not below.strip("-"):
            inside = line == section
        elif inside and line.strip("-") and not line.startswith(" "):
            names += [name.strip() for name in line.split(" : ")[0].split(",")]
    return names


def members(name, value):
    """A public function, or a class and its public methods, or what a public module names."""
    if inspect.ismodule(value):
        for inner in getattr(value, "__all__", []):
            yield from members(f"{name}.{inner}", getattr(value, inner))
    elif inspect.isclass(value):
        yield name, value
        for base in value.__mro__:
            if base.__module__.startswith("kfc_numba"):
                for method, function in vars(base).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{name}.{method}", function
    elif callable(value):
        yield name, value


def public():
    """Everything public that takes arguments, by name."""
    found = dict(members("kfc_numba", kfc_numba))
    for name, value in vars(cpu).items():
        if inspect.isfunction(value):
            found[f"kernels.cpu.{name}"] = value
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_documented(name):
    value = PUBLIC[name]
    docstring = inspect.getdoc(value)
    assert docstring
    if inspect.isclass(value) and issubclass(value, Exception):
        return
    kinds = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    expected = [
        kinds.get(parameter.kind, "") + parameter.name
        for parameter in inspect.signature(value).parameters.values()
        if parameter.name != "self"
    ]
    names = documented(docstring)
    if dataclasses.is_dataclass(value):  # its arguments are its attributes
        names = documented(docstring, "Attributes") or names
    if not names and inspect.isfunction(value) and "." in value.__qualname__:
        return  # methods that many classes share are described in prose, once, in the base class
    assert sorted(names) == sorted(expected)


def test_reader_of_docstrings():
    text = "Sum.\n\nParameters\n----------\na, b : int\n    Of c : d.\n*rest : int\nplain\n"
    assert documented(text) == ["a", "b", "*rest", "plain"]
    assert documented(text + "\nReturns\n-------\nint\n") == ["a", "b", "*rest", "plain"]
    assert documented("Nothing.\n\nReturns\n-------\nint") == []


# Imports.


def imports(path):
    """Modules of this package that a file imports at run time, with the function they stand in."""
    parts = ("kfc_numba", *path.relative_to(PACKAGE).with_suffix("").parts)
    folder = parts[:-1]
    found = []

    def visit(node, function):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        if isinstance(node, ast.Import):
            found.extend((alias.name, function) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *(node.module.split(".") if node.module else ())))
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                found.append((f"{module}.{alias.name}" if is_module else module, function))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text()), None)
    return [(name.split("."), function) for name, function in found]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_point_downward(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return  # the public names
    assert own in ORDER, f"{own} has no place in the order of imports"
    for name, _ in imports(path):
        if name[0] != "kfc_numba":
            continue
        assert len(name) > 1, "imports the public names, which lie above everything"
        assert ORDER.index(name[1]) <= ORDER.index(own), f"imports {'.'.join(name)}"
        if name[1] == "kernels" and len(name) > 2 and own not in ("kernels", "environment"):
            assert name[2] in ("backend", "geometry"), "backend.py alone chooses the kernels"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_pickle_and_no_fast_math(path):
    for name, _ in imports(path):
        assert name[0] not in {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword):
            assert node.arg not in ("allow_pickle", "fastmath") or (
                isinstance(node.value, ast.Constant) and node.value.value is False
            )


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_have_one_subject(path):
    lines = path.read_text().count("\n")
    assert lines <= LONGEST


def test_reader_of_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "kfc_numba")
    folder = tmp_path / "kfc_numba" / "optim"
    folder.mkdir(parents=True)
    (folder / "base.py").touch()
    path = folder / "kfc.py"
    path.write_text(
        "import pickle, numpy.linalg\n"
        "from typing import TYPE_CHECKING\n"
        "from kfc_numba.train import Trainer\n"
        "from kfc_numba.optim import base\n"
        "from .base import Optimizer\n"
        "from .. import cli\n"
        "if TYPE_CHECKING:\n    import jax\n"
        "def step():\n    import torch\n"
    )
    assert [(".".join(name), function) for name, function in imports(path)] == [
        ("pickle", None),
        ("numpy.linalg", None),
        ("typing", None),
        ("kfc_numba.train", None),
        ("kfc_numba.optim.base", None),
        ("kfc_numba.optim.base", None),
        ("kfc_numba", None),
        ("torch", "step"),
    ]


def test_importing_compiles_nothing_and_stays_small():
    code = """
import sys
import numba
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import kfc_numba
    print("kfc_numba.kernels.cpu" in sys.modules)
    import kfc_numba.kernels.cpu
    for name in kfc_numba.kernels.cpu.__dict__:
        getattr(kfc_numba.kernels.cpu, name)
assert not recorder.buffer, recorder.buffer
try:
    numba.threading_layer()
except ValueError:
    pass
else:
    raise SystemExit("threads were started")
unwanted = {"torch", "jax", "tensorflow", "numba_cuda", "cupy", "matplotlib", "pooch", "sklearn",
            "mpi4py", "pandas", "scipy.io"}
print(*sorted(unwanted & set(sys.modules)))
print(*(name for name in sys.modules if name.startswith("numba.cuda.cudadrv")))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1:] == ["", ""]


def test_public_names_exist():
    names = getattr(kfc_numba, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        assert hasattr(kfc_numba, name)
