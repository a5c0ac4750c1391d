"""Jitted functions are short enough to be read: few names, few levels, fields by name."""

import ast
import importlib
import pkgutil

import pytest

import kfc_numba.kernels.cpu as cpu

MOST_NAMES = 32
MOST_LEVELS = 4
JITTED = {"parallel", "serial", "inlined"}
# Vector code in LLVM's language is behind these; their arguments are those of one instruction.
PRIMITIVES = {"_compiled_tile", "_compiled_mean", "_compiled_largest", "_compiled_copy"}


# The only record of an array, the only number, and the first of many alike.
NO_FIELDS = {"plans[0]", "positive[0]", "strides[0]", "row[0]", "dx[n, 0, c]"}


def jitted(tree):
    """Functions of a file with one of the decorators that compile."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name in PRIMITIVES:
            continue
        if JITTED & {ast.unparse(decorator) for decorator in node.decorator_list}:
            yield node


def names(function):
    """Arguments and variables."""
    given = function.args
    arguments = {a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
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


def is_number(node):
    """Whether an expression is a number, with or without a sign."""
    return isinstance(node.operand if isinstance(node, ast.UnaryOp) else node, ast.Constant)


def numbered_fields(function):
    """Entries of tuples and tables that are read by a number in the code."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Subscript):
            continue
        if isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            continue
        places = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        text = ast.unparse(node)
        if any(map(is_number, places)) and text not in NO_FIELDS:
            yield text


def choices(function):
    """Loops of `prange` with a choice among the arguments: Numba leaves them to one thread."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "prange":
            chosen = (ast.IfExp, ast.BoolOp)
            if any(
                isinstance(part, chosen) for argument in node.args for part in ast.walk(argument)
            ):
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


@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_are_shared_out(name):
    assert not list(choices(FUNCTIONS[name]))


def test_reader_of_functions():
    text = """
@serial
def f(a, /, plan, *, more):
    for i in range(3):
        if a[i]:
            b = plan[3] + plan[i, 2] + a.shape[1] + plans[0].rows + plan[i]
            b += plan[-1] + plan[0] + plan[0, i] + plan[-i] + plan[i, -2]
    for i in prange(2 + (a if b else 0)):
        for j in prange(a):
            pass
"""
    (function,) = jitted(ast.parse(text))
    assert names(function) == {"a", "plan", "more", "i", "b", "j"}
    assert levels(function) == 2
    assert list(choices(function)) == ["prange(2 + (a if b else 0))"]
    found = set(numbered_fields(function))
    assert found == {"plan[3]", "plan[i, 2]", "plan[-1]", "plan[0]", "plan[0, i]", "plan[i, -2]"}
    assert len(FUNCTIONS) > 50
