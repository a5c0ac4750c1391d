"""What a step asks of a card, recorded without one: launches of kernels, and CuPy's operations.

The real layers and optimizers train on arrays that stand for a device's, those of `tests/cuda`, at
the real batch. No kernel runs, no matrix is multiplied or decomposed, and an array that nobody
writes takes no memory; so a network of any size is recorded in seconds. What the host reads is 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

import kfc_numba as kfc
from kfc_numba.kernels import backend
from kfc_numba.kernels.rates import H200, Rates
from kfc_numba.optim import exact_forms, saturation

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "cuda"))

try:
    import host_array
    import pytest
    from host_array import HostArray, untouched
    from stand_in import in_cupys_place

    from kfc_numba.kernels.cuda import launch, taps
except ImportError as error:  # asv looks at all files here, also where there are no compilers
    MISSING: str | None = f'{error}: pip install -e ".[cuda-test]"'
else:
    MISSING = None


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, and how often it goes through its main loop."""

    kernel: Any
    types: tuple
    grid: tuple[int, ...]
    block: tuple[int, ...]
    bytes: int
    trips: float | None

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def threads(self) -> int:
        return math.prod(self.block)


@dataclass(frozen=True)
class Operation:
    """One operation of CuPy on arrays of the size of parameters."""

    bytes: int
    multiplications: int = 0  # of a product of matrices
    matrices: tuple[int, ...] = ()  # shape of what is decomposed, or inverted


#: What is recorded, by the name of the exported kernel, or of CuPy's function after "cupy.".
Found = list[tuple[str, Launch | Operation]]


class _Recorder:
    """Executor of launches, and stands in the place of the package of kernels."""

    def __init__(self, found: Found, package: ModuleType, card: Rates):
        self._found = found
        self._package = package
        self._card = card
        self._inside: list[str] = []

    def __call__(self, kernel: Any, grid: Any, block: Any, arguments: tuple) -> None:
        name = self._inside[0] if self._inside else kernel.__name__
        made = _launch(kernel, kernel.types(arguments), grid, block, arguments)
        self._found.append((name, made))

    def capability(self) -> tuple[int, int]:
        """Of a card that has tensor cores, for those who ask for them."""
        return 9, 0

    def rates(self) -> Rates:
        return self._card

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._package, name)
        if isinstance(value, ModuleType):
            inner = _Recorder(self._found, value, self._card)
            inner._inside = self._inside
            return inner
        return self.named(name, value) if callable(value) else value

    def named(self, name: str, function: Callable) -> Callable:
        """The function, whose launches and operations have its name."""

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._inside.append(name)
            try:
                return function(*arguments, **keywords)
            finally:
                self._inside.pop()

        return call

    def note(self, name: str, operation: Operation) -> None:
        self._found.append((f"cupy.{name}", operation))


def _launch(kernel: Any, types: tuple, grid: tuple, block: tuple, values: tuple) -> Launch:
    arrays = {array.data.ptr: array.nbytes for array in _arrays(values)}
    plans = [value for value in values if hasattr(value, "_fields")]
    if plans and isinstance(plans[-1], (taps.Taps, taps.Classes)):
        plan, found = plans
        source, target = values[0], values[3]
        classes = _classes(found)
        arrays[source.data.ptr] *= min(1.0, sum(_share_gathered(plan, one) for one in classes))
        pixels = plan.rows * len(classes)
        arrays[target.data.ptr] = pixels * plan.target_channels * target.dtype.itemsize
    elif plans and hasattr(plans[0], "step_y"):
        source, *_ = _arrays(values)
        arrays[source.data.ptr] *= _share_read(plans[0], kernel)
    return Launch(kernel, types, grid, block, int(sum(arrays.values())), _trips(kernel, plans))


def _classes(given: Any) -> list[taps.Taps]:
    """Of each class of positions that a launch computes."""
    if isinstance(given, taps.Taps):
        return [given]
    find = taps.finding(True).py_func
    return [find(np.int32(block), given)[1] for block in range(taps.count(given))]


def _share_gathered(plan: Any, one: taps.Taps) -> float:
    """Of the pixels of the source, those that some tap of some position reads."""
    below = one.depth // plan.channels // one.beside
    rows = _touched(
        *(one.source_y, plan.step_y, plan.positions // plan.width),
        *(plan.tap_y, below, plan.source_height),
    )
    columns = _touched(
        *(one.source_x, plan.step_x, plan.width, plan.tap_x, one.beside, plan.source_width)
    )
    return rows * columns / (plan.source_height * plan.source_width)


def _share_read(plan: Any, kernel: Any) -> float:
    """The same of the images of which patches are summed."""
    height, width = plan.source_height, plan.source_width
    form = kernel.settings[-1]
    if form.gather_right or not form.gather_left:
        return 1.0  # each pixel once, or a plain matrix
    below = (plan.rows - form.ones_left) // plan.channels // plan.taps
    rows = _touched(
        *(plan.left_y, plan.step_y, plan.positions // plan.width, plan.tap_y, below, height)
    )
    columns = _touched(plan.left_x, plan.step_x, plan.width, plan.tap_x, plan.taps, width)
    return rows * columns / (height * width)


def _touched(first: int, step: int, positions: int, tap: int, taps: int, size: int) -> int:
    places = {first + p * step + t * tap for p in range(positions) for t in range(taps)}
    return len(places & set(range(size)))


def _arrays(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, HostArray):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _arrays(value)


def _trips(kernel: Any, plans: list[Any]) -> float | None:
    """How often a block of a product goes through its main loop, in the mean; else None."""
    for plan in plans:
        if isinstance(plan, (taps.Taps, taps.Classes)):
            trips = [math.ceil(one.depth / kernel.settings[1].step) for one in _classes(plan)]
            return sum(trips) / len(trips)
        if hasattr(plan, "pixels"):
            return math.ceil(min(plan.part, plan.pixels) / kernel.settings[1].step)
    return None


@contextmanager
def recording(found: Found, card: Rates) -> Iterator[None]:
    """Within the context what device arrays are asked for is appended to `found`, and not done."""
    backend.add_device_type(HostArray)
    recorder = _Recorder(found, backend.device_kernels(), card)
    with ExitStack() as stack:
        stack.enter_context(in_cupys_place(pytest.MonkeyPatch))
        stack.enter_context(launch.executed_by(recorder))
        stack.enter_context(mock.patch.dict(backend._packages, {HostArray: recorder}))
        stack.enter_context(mock.patch.object(HostArray, "fills", False))
        stack.enter_context(np.errstate(all="ignore"))
        _count_operations(stack, recorder.note)
        yield


_METHODS = "sum prod mean std var min max any all argmin argmax cumsum dot clip take repeat round "
_METHODS += "trace astype copy fill get item __getitem__ __setitem__ __neg__ __abs__ __invert__"
_OPERATORS = "add sub mul truediv floordiv mod pow and or xor lshift rshift"
_COMPARISONS = "eq ne lt le gt ge"


def _count_operations(stack: ExitStack, note: Callable[[str, Operation], None]) -> None:
    """Let all that computes with `HostArray` say so."""
    names = [*_METHODS.split(), *(f"__{name}__" for name in _COMPARISONS.split())]
    for name in _OPERATORS.split():
        names += [f"__{name}__", f"__r{name}__", f"__i{name}__"]
    for name in names:
        function = _counted(name.strip("_"), getattr(HostArray, name), note)
        stack.enter_context(mock.patch.object(HostArray, name, function))
    product = _product(note)
    for name in ("__matmul__", "matmul"):
        stack.enter_context(mock.patch.object(HostArray, name, product, create=True))
    kind = type(host_array.namespace)
    original = kind.__getattr__

    def attribute(self: Any, name: str) -> Any:
        value = original(self, name)
        if name == "matmul":
            return product
        if name == "eigh":
            return _decomposition(note)
        if name == "inv":
            return _inversion(note)
        return _counted(name, value, note) if hasattr(value, "__code__") else value

    stack.enter_context(mock.patch.object(kind, "__getattr__", attribute))
    for name in ("asarray", "zeros"):
        function = _counted(name, getattr(host_array.namespace, name), note)
        stack.enter_context(mock.patch.object(host_array.namespace, name, function))


def _counted(name: str, function: Callable, note: Callable) -> Callable:
    def operate(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        given = list(_arrays(arguments))
        made = list(_arrays([result]))
        in_place = name in ("setitem", "fill") or any(new is old for new in made for old in given)
        view = any(np.may_share_memory(new._values, old._values) for new in made for old in given)
        if name in ("get", "item") or in_place or (made and not view):
            note(name, Operation(sum(array.nbytes for array in given + made)))
        return result

    return operate


def _product(note: Callable) -> Callable:
    def matmul(a: Any, b: Any) -> Any:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        result = untouched((*batch, a.shape[-2], b.shape[-1]), np.result_type(a.dtype, b.dtype))
        count = math.prod(result.shape) * a.shape[-1]
        note("matmul", Operation(a.nbytes + b.nbytes + result.nbytes, count))
        return result

    return matmul


def _decomposition(note: Callable) -> Callable:
    def eigh(matrix: Any) -> Any:
        note("eigh", Operation(2 * matrix.nbytes, matrices=matrix.shape))
        return untouched(matrix.shape[:-1], matrix.dtype), untouched(matrix.shape, matrix.dtype)

    return eigh


def _inversion(note: Callable) -> Callable:
    def inv(matrix: Any) -> Any:
        count = (
            math.prod(matrix.shape) * matrix.shape[-1]
        )  # of an LU factorisation and what follows
        note("inv", Operation(2 * matrix.nbytes, count, matrix.shape))
        return untouched(matrix.shape, matrix.dtype)

    return inv


def recorded(function: Callable[[], Any], card: Rates = H200) -> Found:
    """What a function asks of a card."""
    found: Found = []
    with recording(found, card):
        function()
    return found


@contextmanager
def expected_steps() -> Iterator[None]:
    """Within the context steps of KFC are about as long as expected: looked at once, over a part.

    Where zeros are read nothing changes along a step: a difference says something all the same.
    """
    with (
        mock.patch.object(exact_forms, "_is_seen", return_value=True),
        mock.patch.object(saturation, "settled", lambda form, *given: form(1.0)),
    ):
        yield


def recorded_steps(
    build: Callable[[], kfc.Graph],
    optimizer: Any,
    classes: int,
    batch: int,
    warm: int,
    steps: int,
    card: Rates = H200,
) -> list[Found]:
    """What each of `steps` steps asks, after `warm` others; the data lies on the card."""
    found: Found = []
    parts: list[Found] = []
    with recording(found, card), expected_steps():
        net = build().to("cuda")
        x = untouched((batch, *net.input_shape))
        y = np.zeros(batch, np.int64)
        y[: min(batch, classes)] = np.arange(min(batch, classes))
        trainer = kfc.Trainer(net, kfc.SoftmaxCrossEntropy(), optimizer, seed=0)
        for _ in range(warm + steps):
            found.clear()
            trainer.step(x, y)
            parts.append(list(found))
    return parts[warm:]


def memory_on_card(build: Callable[[], kfc.Graph], batch: int, optimizer: Any) -> dict[str, int]:
    """What `Graph.memory` says of a network that lies on a card."""
    with recording([], H200):
        return build().to("cuda").memory(batch, optimizer)
