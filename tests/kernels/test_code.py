"""Jitted functions are short enough to be read: few names, few levels, fields by name."""

import ast
import importlib
import pkgutil

import pytest

import kfc_numba.kernels.cpu as cpu

MOST_NAMES = 32
MOST_LEVELS = 4
JITTED = {"parallel", "serial"}
# Vector code in LLVM's language is behind these; their arguments are those of one instruction.
PRIMITIVES = {"_compiled_tile", "_compiled_mean", "_compiled_largest", "_compiled_copy"}


def jitted(tree):
    """Functions of a file with one of the decorators that compile."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name in PRIMITIVES:
            continue
        if JITTED & {ast.unparse(decorator) for decorator in node.decorator_list}:
            yield node


def names(function):
    """Arguments and variables."""
    arguments = {argument.arg for argument in function.args.args}
    stored = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return arguments | stored


def levels(node):
    """Depth of nested loops and conditions, within the loop that threads share out."""
    inner = max((levels(child) for child in ast.iter_child_nodes(node)), default=0)
    if isinstance(node, ast.For) and ast.unparse(node.iter).startswith("prange"):
        return inner
    return inner + isinstance(node, (ast.For, ast.While, ast.If))


def numbered_fields(function):
    """Entries of tuples and tables that are read by a number in the code."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Subscript):
            continue
        if isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            continue
        index = node.slice.elts[-1] if isinstance(node.slice, ast.Tuple) else node.slice
        whole = isinstance(node.slice, ast.Constant) and node.slice.value == 0
        if isinstance(index, ast.Constant) and not whole:  # the only record of an array
            yield ast.unparse(node)


def sources():
    for module in pkgutil.iter_modules(cpu.__path__):
        path = importlib.import_module(f"{cpu.__name__}.{module.name}").__file__
        with open(path) as file:
            yield module.name, ast.parse(file.read())


FUNCTIONS = {f"{name}.{f.name}": f for name, tree in sources() for f in jitted(tree)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_jitted_function_can_be_read(name):
    function = FUNCTIONS[name]
    assert len(names(function)) <= MOST_NAMES
    assert levels(function) <= MOST_LEVELS
    assert not list(numbered_fields(function))


def test_reader_of_functions():
    text = """
@serial
def f(a, plan):
    for i in range(3):
        if a[i]:
            b = plan[3] + plan[i, 2] + a.shape[1] + plan[0].rows + plan[i]
"""
    (function,) = jitted(ast.parse(text))
    assert names(function) == {"a", "plan", "i", "b"}
    assert levels(function) == 2
    assert list(numbered_fields(function)) == ["plan[3]", "plan[i, 2]"]
    assert len(FUNCTIONS) > 50
