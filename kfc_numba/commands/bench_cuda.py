"""``kfc-numba bench-cuda``: whether the card computes what the processor does, and how fast."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tabulate import tabulate

from kfc_numba import networks
from kfc_numba.commands import CommandError
from kfc_numba.commands.cuda_cases import Case, cases
from kfc_numba.commands.pytorch_twin import pytorch_twin
from kfc_numba.devices import DeviceError, check_device, cupy, to_host, upload
from kfc_numba.graph import Graph
from kfc_numba.kernels.backend import kernels
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.optim import KFC, SGD, Optimizer
from kfc_numba.precision import uses_tensor_cores
from kfc_numba.random import generator
from kfc_numba.train import Trainer

#: What is done, in this order.
PARTS = ("results", "training", "kernels", "steps")
#: Largest error of a result, in units of the precision of its dtype times its largest number.
TOLERANCE = 2000
#: The same for products of factors in TF32, whose precision is 2^-11 and not 2^-24.
TF32_TOLERANCE = 2**14
PRODUCTS = ("conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight", "conv2d_grad_parameters",
            "matmul")  # fmt: skip
_ROUNDS = 20
_ROWS = 5
ROW = 10  # calls
_CYCLES = 3


def command(arguments: argparse.Namespace) -> None:
    """Compare and time, print tables, and write them as JSON where it is asked for.

    Parameters
    ----------
    arguments : argparse.Namespace
        With ``json``, a file or None, and ``only``, a part of the names of kernels.
    """
    try:
        check_device("cuda")
    except DeviceError as error:
        raise CommandError(str(error), 1) from None
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "results": lambda: compared(arguments.only),
        "training": trained,
        "kernels": lambda: timed(arguments.only),
        "steps": steps,
    }
    found: dict[str, Any] = {"card": card()} | {name: [] for name in PARTS}
    try:
        for name in arguments.parts:
            for row in parts[name]():
                found[name].append(row)
    finally:
        if arguments.json is not None:
            Path(arguments.json).write_text(json.dumps(found, indent=1))
    print(_tables(found))
    wrong = [row for row in found["results"] + found["training"] if not row["right"]]
    if wrong:
        raise CommandError(f"{len(wrong)} results differ from the processor's", 1)


def card() -> dict[str, Any]:
    """What the card is, and what it reaches in a copy and in a product of matrices."""
    properties = _properties()
    xp = cupy()
    a = xp.ones(1 << 28, xp.float32)
    b = xp.empty_like(a)
    copying = seconds(lambda: xp.copyto(b, a))
    m = xp.random.standard_normal((8192, 8192), dtype=xp.float32)
    out = xp.empty_like(m)
    product = seconds(lambda: xp.matmul(m, m, out=out))
    return {
        "name": name_of_card(),
        "capability": f"{properties['major']}.{properties['minor']}",
        "tf32": uses_tensor_cores(),
        "multiprocessors": properties["multiProcessorCount"],
        "clock_mhz": cupy().cuda.Device().attributes["ClockRate"] / 1000,
        "copy_bytes_per_second": 2 * a.nbytes / copying,
        "cublas_operations_per_second": 2 * 8192**3 / product,
    }


def _properties() -> dict[str, Any]:
    return cupy().cuda.runtime.getDeviceProperties(cupy().cuda.Device().id)


def name_of_card() -> str:
    """As the driver has it."""
    return _properties()["name"].decode()


def seconds(function: Callable[[], Any]) -> float:
    """Time of a call on the card, by events, after two calls to warm up.

    The median of calls alone, or of a call of some in a row, if that is less: alone the card may
    wait for the host between the launches of a call, and in a row before each call.
    """
    for _ in range(2):
        function()
    alone = statistics.median(elapsed(function, 1) for _ in range(_ROUNDS))
    return min(alone, statistics.median(elapsed(function, ROW) for _ in range(_ROWS)))


def elapsed(function: Callable[[], Any], calls: int) -> float:
    """Seconds of one of some calls."""
    start, end = cupy().cuda.Event(), cupy().cuda.Event()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return cupy().cuda.get_elapsed_time(start, end) / 1000 / calls


def compared(
    only: str, dtypes: tuple[type, ...] = (np.float32, np.float64)
) -> Iterator[dict[str, Any]]:
    """The largest error of each kernel on small shapes, against the kernels of the processor."""
    for dtype in dtypes:
        yield from _compared(only, dtype)


def _compared(only: str, dtype: type) -> Iterator[dict[str, Any]]:
    cpu, cuda = _packages()
    for case in cases(large=False, dtype=dtype):
        if only not in case.kernel or not hasattr(cuda, case.kernel):
            continue
        arguments, settings = case.make()
        expected = flat(getattr(cpu, case.kernel)(*arguments, **settings))
        row: dict[str, Any] = {
            "kernel": case.kernel,
            "shape": case.shape,
            "dtype": np.dtype(dtype).name,
        }
        try:
            got = flat(getattr(cuda, case.kernel)(*uploaded(arguments), **settings))
            errors = [error(one, two, dtype) for one, two in zip(got, expected, strict=True)]
            rounded = uses_tensor_cores() and dtype == np.float32 and case.kernel in PRODUCTS
            most = TF32_TOLERANCE if rounded else TOLERANCE
            row |= {"error": max(errors), "right": max(errors) <= most}
        except Exception as problem:  # a wrong kernel is a row, and the others go on
            row |= {"error": f"{type(problem).__name__}: {problem}"[:300], "right": False}
        yield row


def _packages() -> tuple[ModuleType, ModuleType]:
    """The kernels of the processor, and those of the card."""
    number = np.zeros(1)
    return kernels(number), kernels(upload(number))


def error(got: np.ndarray, expected: np.ndarray, dtype: type) -> float:
    """Largest difference, in units of the precision times the largest number."""
    if got.shape != expected.shape:
        return np.inf
    size = np.abs(expected).max(initial=0.0) or 1.0
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    return float(difference / size / np.finfo(dtype).eps)


def uploaded(value: Any) -> Any:
    """Arrays, also within lists, on the card."""
    if isinstance(value, np.ndarray):
        return upload(value)
    return [uploaded(entry) for entry in value] if isinstance(value, list) else value


def flat(value: Any) -> list[np.ndarray]:
    """All arrays and numbers of a result, in the memory of the host."""
    if isinstance(value, (tuple, list)):
        return [array for entry in value for array in flat(entry)]
    return [np.asarray(to_host(value))]


def timed(only: str) -> Iterator[dict[str, Any]]:
    """Time of each kernel on the shapes of real networks."""
    _, cuda = _packages()
    for case in cases(large=True):
        if only not in case.kernel or not hasattr(cuda, case.kernel):
            continue
        yield time_of(case, getattr(cuda, case.kernel))


def time_of(case: Case, kernel: Callable) -> dict[str, Any]:
    """Time of one call, with what it reads and writes at least."""
    arguments, settings = case.make()
    on_card = uploaded(arguments)
    row: dict[str, Any] = {"kernel": case.kernel, "shape": case.shape}
    try:
        result = kernel(*on_card, **settings)
        moved = sum(array.nbytes for array in flat(arguments) + flat(result) if array.ndim)
        taken = seconds(lambda: kernel(*on_card, **settings))
    except Exception as problem:  # the others are timed all the same
        return row | {"error": f"{type(problem).__name__}: {problem}"[:300]}
    row |= {"seconds": taken, "bytes_per_second": moved / taken}
    if case.operations:
        row["operations_per_second"] = case.operations / taken
    return row


def trained() -> Iterator[dict[str, Any]]:
    """Training on the card and on the processor, a few steps from the same parameters."""
    rng = generator(0, "data of bench-cuda")
    for name, shape in (("small", (28, 28, 1)), ("resnet-small", (16, 16, 3))):
        x = rng.standard_normal((64, *shape), np.float32)
        y = rng.integers(0, 10, 64)
        for optimizer in (SGD(learning_rate=0.01), KFC()):
            losses = {}
            for device in ("cpu", "cuda"):
                net = networks.build(name, shape, 10, seed=0, dtype=np.float64).to(device)
                trainer = Trainer(net, SoftmaxCrossEntropy(), optimizer)
                losses[device] = [trainer.step(x, y) for _ in range(5)]
            gap = float(np.abs(np.subtract(losses["cpu"], losses["cuda"])).max())
            yield {
                "network": name,
                "optimizer": type(optimizer).__name__,
                "losses": losses,
                "error": gap,
                "right": gap < 1e-6,
            }


def steps() -> Iterator[dict[str, Any]]:
    """Seconds a step of whole trainings, the data on the card, beside PyTorch's."""
    rng = generator(1, "data of bench-cuda")
    runs = (
        ("quick", (32, 32, 3), 128),
        ("quick", (32, 32, 3), 512),
        ("small", (28, 28, 1), 128),
        ("resnet-small", (32, 32, 3), 256),
        ("resnet18", (32, 32, 3), 256),
    )
    for name, shape, batch in runs:
        x = upload(rng.standard_normal((batch, *shape), np.float32))
        y = rng.integers(0, 10, batch)
        row: dict[str, Any] = {"network": name, "batch": batch, "card": {}}
        for optimizer in (
            SGD(learning_rate=1e-3, averaging=None),
            KFC(period_growth=0, averaging=None),
        ):
            net, kind = networks.build(name, shape, 10, seed=0).to("cuda"), type(optimizer).__name__
            step, cycle = cycle_of_steps(net, optimizer, x, y)
            row[kind] = seconds_a_step(step, cycle)
            row["card"][kind] = work_of_card(step, cycle)
        row["PyTorch SGD"] = pytorch_sgd(networks.build(name, shape, 10, seed=0), batch)
        yield row


def cycle_of_steps(
    net: Graph, optimizer: Optimizer, x: Any, y: np.ndarray
) -> tuple[Callable[[], Any], int]:
    """A function that makes a step, and steps of a cycle of statistics and decompositions.

    The next step begins one.
    """
    trainer = Trainer(net, SoftmaxCrossEntropy(), optimizer)
    cycle = getattr(optimizer, "inverse_update_period", 100)
    for _ in range(3):
        trainer.step(x, y)
    while trainer.steps % cycle:
        trainer.step(x, y)
    return lambda: trainer.step(x, y), cycle


def seconds_a_step(step: Callable[[], Any], cycle: int) -> float:
    """Mean time of a step over a whole cycle, the median of some."""
    times = []
    for _ in range(_CYCLES):
        cupy().cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(cycle):
            step()
        cupy().cuda.Device().synchronize()
        times.append((time.perf_counter() - start) / cycle)
    return statistics.median(times)


def work_of_card(step: Callable[[], Any], cycle: int) -> dict[str, float] | None:
    """Kernels of a step, of whatever library, and seconds that they work, by PyTorch's profiler.

    Means over a cycle; None without PyTorch.
    """
    try:
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return None
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as found:
        for _ in range(cycle):
            step()
        cupy().cuda.Device().synchronize()
    events = [e for e in found.key_averages() if e.self_device_time_total > 0]
    kernels = sum(e.count for e in events if not e.key.startswith(("Memcpy", "Memset")))
    work = sum(e.self_device_time_total for e in events) / 1e6
    return {"kernels": kernels / cycle, "seconds": work / cycle}


def pytorch_sgd(net: Graph, batch: int) -> float | None:
    """Seconds a step of PyTorch's SGD on the same network, if PyTorch is installed.

    In float32 with channels last, as `kernels` has them, and the fastest of cuDNN's ways.
    """
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    tf32 = uses_tensor_cores()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    twin = pytorch_twin(net).cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9)
    height, width, channels = net.input_shape
    x = torch.randn(batch, channels, height, width, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (batch,), device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(x), y)
        loss.backward()
        optimizer.step()
        loss.item()

    for _ in range(10):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(100):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / 100


def _tables(found: dict[str, Any]) -> str:
    """What was found, to read."""
    card = found["card"]
    tf32 = ", products in TF32" if card["tf32"] else ""
    parts = [
        f"{card['name']}, capability {card['capability']}, {card['multiprocessors']} "
        f"multiprocessors; copy {card['copy_bytes_per_second'] / 1e12:.2f} TB/s, cuBLAS float32 "
        f"{card['cublas_operations_per_second'] / 1e12:.1f} TFLOP/s{tf32}"
    ]
    wrong = [row for row in found["results"] if not row["right"]]
    parts.append(f"{len(found['results'])} results compared, {len(wrong)} wrong")
    parts += [f"  {r['kernel']}, {r['shape']}, {r['dtype']}: {r['error']}" for r in wrong]
    parts += [
        f"{r['network']}, {r['optimizer']}: losses differ by {r['error']:.1e}"
        for r in found["training"]
    ]
    rows = [
        (
            r["kernel"],
            r["shape"],
            r.get("error") or f"{1e6 * r['seconds']:.0f}",
            f"{r.get('operations_per_second', 0) / 1e12:.1f}",
            f"{r.get('bytes_per_second', 0) / 1e12:.2f}",
        )
        for r in found["kernels"]
    ]
    parts.append(tabulate(rows, ("kernel", "shape", "microseconds", "TFLOP/s", "TB/s")))
    named = [
        {k: f"{1e3 * v:.3f} ms" if isinstance(v, float) else v for k, v in r.items() if k != "card"}
        for r in found["steps"]
    ]
    parts.append(tabulate(named, "keys"))
    return "\n\n".join(parts)
