"""Kernels compiled before training: which are found, who compiles them, what stays as it was."""

import sys
import textwrap

import numpy as np
import pytest
from small_package import process

from kfc_numba import (
    KFC,
    SGD,
    BatchNorm,
    Conv2d,
    Dense,
    Dropout,
    Flatten,
    ReLU,
    Sequential,
    SoftmaxCrossEntropy,
    Trainer,
    networks,
    warming,
)
from kfc_numba.cli import main
from kfc_numba.kernels.cpu import ahead, jit
from kfc_numba.optim import OPTIMIZERS

SHAPES = {"small": (28, 28, 1)}


def images(shape, count=48):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, *shape), np.float32)
    return x, rng.integers(0, 10, count)


@pytest.fixture
def forgotten(monkeypatch):
    """Nothing is known to be compiled."""
    monkeypatch.setattr(ahead, "is_remembered", lambda description: False)
    monkeypatch.setattr(ahead, "remember", lambda description: None)


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", sorted({*networks.names()} - {"resnet18"}))
def test_a_rehearsal_finds_what_training_launches(network, optimizer, monkeypatch):
    # "resnet18" has the layers of "resnet-small", and factors that take minutes.
    shape = SHAPES.get(network, (32, 32, 3))
    x, y = images(shape)
    found, launched = set(), set()
    usual = ahead.Ahead._launch

    def note(self, dispatcher, arguments):
        found.add((dispatcher, tuple(map(dispatcher.typeof_pyval, arguments))))
        return usual(self, dispatcher, arguments)

    def launch(dispatcher, arguments):
        launched.add((dispatcher, tuple(map(dispatcher.typeof_pyval, arguments))))
        return dispatcher(*arguments)

    monkeypatch.setattr(ahead.Ahead, "_launch", note)
    net = networks.build(network, shape, 10)
    trainer = Trainer(net, SoftmaxCrossEntropy(), OPTIMIZERS[optimizer]())
    warming.warm(net, trainer.loss, trainer.optimizer, x, y, batch_size=24, progress=False)
    monkeypatch.setattr(ahead, "possible", lambda: False)  # fit is not to rehearse in its turn
    with jit.observed(launch):
        trainer.fit(x, y, batch_size=24, epochs=2, validation=(x, y), progress=False)
    assert launched
    assert {(d.py_func.__name__, types) for d, types in launched - found} == set()


def network():
    layers = [Conv2d(4, 3), BatchNorm(), ReLU(), Dropout(0.5), Flatten(), Dense(10)]
    return Sequential(layers, input_shape=(8, 8, 2))


def trained(x, y):
    trainer = Trainer(network(), SoftmaxCrossEntropy(), KFC(num_burnin_steps=2))
    trainer.fit(x, y, batch_size=16, epochs=2, progress=False)
    return trainer


@pytest.mark.usefixtures("forgotten")
def test_nothing_that_is_used_later_is_changed(monkeypatch):
    x, y = images((8, 8, 2))
    given = x.copy(), y.copy()
    calls = []
    usual = warming._rehearse
    monkeypatch.setattr(warming, "_rehearse", lambda *a: calls.append(1) or usual(*a))
    net = network()
    before = {name: value.copy() for name, value in (net.params | net.buffers).items()}
    warming.warm(net, SoftmaxCrossEntropy(), KFC(), x, y, batch_size=16, progress=False)
    for name, value in (net.params | net.buffers).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    for array, kept in zip((x, y), given, strict=True):
        np.testing.assert_array_equal(array, kept)
    with_rehearsal = trained(x, y)
    assert len(calls) == 2
    monkeypatch.setattr(ahead, "possible", lambda: False)
    without = trained(x, y)
    assert len(calls) == 2
    for name, value in without.net.params.items():
        np.testing.assert_array_equal(with_rehearsal.net.params[name], value, err_msg=name)
    for name, value in without.optimizer_state.items():
        np.testing.assert_array_equal(with_rehearsal.optimizer_state[name], value, err_msg=name)


@pytest.mark.usefixtures("forgotten")
def test_attributes_of_an_optimizer_are_not_touched():
    class Remembering(SGD):
        def prepare(self, net, loss, batches, state, *, seed=0):
            self.prepared = True

    optimizer = Remembering()
    x, y = images((8, 8, 2))
    warming.warm(network(), SoftmaxCrossEntropy(), optimizer, x, y, batch_size=16)
    assert not hasattr(optimizer, "prepared")


@pytest.mark.usefixtures("forgotten")
def test_a_bar_is_for_terminals(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for progress in (False, True):
        bar = warming._Bar(progress)
        bar.show(0, 2)
        bar.show(1, 3)
        shown = capsys.readouterr().err
        bar.close()
        assert ("compiling kernels" in shown, "1/3" in shown) == (progress, progress)


def test_elsewhere_it_is_a_line_before_anything_is_compiled(capsys, monkeypatch):
    for progress in (True, False):
        bar = warming._Bar(progress)
        bar.show(0, 1)
        said = capsys.readouterr()
        bar.show(1, 3)
        bar.close()
        assert said == ("", f"{LINE}\n" * progress)
        assert capsys.readouterr() == ("", "")
    for stream in (None, Closed()):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = warming._Bar(True)
        bar.show(0, 1)
        bar.close()


class Closed:
    def write(self, text):
        raise ValueError("I/O operation on closed file")

    def isatty(self):
        raise ValueError("I/O operation on closed file")


LINE = (
    "compiling kernels for this network, which may take a minute; they are kept for the next time"
)


@pytest.mark.usefixtures("forgotten")
def test_nothing_is_said_where_nothing_is_compiled(capsys):
    x, y = images((8, 8, 2))
    arguments = network(), SoftmaxCrossEntropy(), SGD(), x, y
    warming.warm(*arguments, batch_size=16, progress=False)
    assert capsys.readouterr() == ("", "")
    assert warming.warm(*arguments, batch_size=16) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("forgotten")
def test_a_rehearsal_that_fails_is_no_error(monkeypatch):
    def fail(*arguments):
        raise np.linalg.LinAlgError("of numbers that make no sense")

    monkeypatch.setattr(warming, "_rehearse", fail)
    x, y = images((8, 8, 2))
    assert trained(x, y).steps == 6


def test_an_interrupt_of_a_rehearsal_is_one(monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ahead, "is_remembered", lambda description: False)
    monkeypatch.setattr(warming, "_rehearse", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained(*images((8, 8, 2)))
    assert not jit._Launch.observers


def test_what_was_compiled_is_not_rehearsed_again(monkeypatch):
    calls = []
    monkeypatch.setattr(warming, "_rehearse", lambda *arguments: calls.append(1))
    monkeypatch.setattr(ahead, "_remembered", set())
    x, y = images((8, 8, 2))
    seed = np.random.default_rng().integers(1 << 30)  # a network that no cache knows
    layers = [Flatten(), Dense(10), Dropout(seed / (1 << 31)), Dense(10)]
    net = Sequential(layers, input_shape=(8, 8, 2))
    for again in (False, True):
        monkeypatch.setattr(ahead, "_remembered", set())  # as in another process
        warming.warm(net, SoftmaxCrossEntropy(), KFC(), x, y, batch_size=16, progress=False)
        assert len(calls) == 1, again
    more = KFC(learning_rate=0.5), KFC(momentum=0.7)
    for optimizer in more:  # other numbers are no other kernels
        warming.warm(net, SoftmaxCrossEntropy(), optimizer, x, y, batch_size=16, progress=False)
    assert len(calls) == 1
    optimizer = KFC(structure="diagonal")
    warming.warm(net, SoftmaxCrossEntropy(), optimizer, x, y, batch_size=16, progress=False)
    assert len(calls) == 2
    ahead._note(warming._describe(net, SoftmaxCrossEntropy(), KFC(), x, y, 16)).unlink()
    ahead._note(warming._describe(net, SoftmaxCrossEntropy(), optimizer, x, y, 16)).unlink()


# Who compiles: processes of their own, with three kernels of a second each and an empty cache.

KERNELS = """
import numpy as np
from numba import prange
from kfc_numba.kernels.cpu.jit import parallel

@parallel
def kernel(x, out):
    for i in prange(x.size):
        out[i] = x[i] + 1

def total(dtype):
    x = np.zeros(3, dtype)
    out = np.empty_like(x)
    kernel(x, out)
    return out.sum()
"""
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import three
from kfc_numba.kernels.cpu import ahead
shown = []
def totals():
    return [float(three.total(dtype)) for dtype in ("f4", "f8", "i8")]
{}
with ahead.Ahead(lambda *counts: shown.append(counts), int(sys.argv[2])) as work:
    work.rehearse(totals)
    work.finish()
    helpers = work._helpers
print(*totals())
print(work.done, work.needed, shown[-1] if shown else None)
stats = three.kernel.dispatcher.stats
print(len(helpers), sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
assert all(helper._process is None or helper._process.poll() is not None for helper in helpers)
"""


def compiled(tmp_path, helpers, change="", **environment):
    (tmp_path / "three.py").write_text(KERNELS)
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | environment
    program = textwrap.dedent(PROGRAM).format(change)
    done = process(program, tmp_path, helpers, **environment)
    assert done.stderr == ""
    totals, counts, last = done.stdout.splitlines()
    assert totals == "3.0 3.0 3.0"
    return counts, tuple(map(int, last.split()))


def test_helpers_compile_into_the_cache(tmp_path):
    # This process begins only when the helpers have ended: all is theirs.
    late = """
import time
def finish(self, usual=ahead.Ahead.finish):
    while self.done < 3:
        time.sleep(0.01)
    usual(self)
ahead.Ahead.finish = finish
"""
    counts, (helpers, loaded, missed) = compiled(tmp_path, 2, late)
    assert counts == "3 3 (3, 3)"
    assert (helpers, loaded, missed) == (2, 3, 0)
    assert compiled(tmp_path, 2) == ("0 0 None", (0, 3, 0))


def test_without_helpers_this_process_compiles(tmp_path):
    assert compiled(tmp_path, 0) == ("3 3 (3, 3)", (0, 0, 3))


@pytest.mark.parametrize(
    "change",
    [
        "ahead._START = 'raise SystemExit(3)'",
        # The same, gone for certain before it is written to.
        "ahead._START = 'raise SystemExit(3)'; one = ahead._Helper._one; "
        "ahead._Helper._one = lambda self, process: process.wait() and one(self, process)",
        "ahead._START = 'import sys; [print(1, flush=True) for line in sys.stdin]'",
        "sys.executable = '/no/such/program'",
    ],
)
def test_helpers_that_are_of_no_use(tmp_path, change):
    change = change.replace("/no/such", str(tmp_path))
    counts, (_, loaded, missed) = compiled(tmp_path, 2, change)
    assert counts.split()[1] == "3"
    assert (loaded, missed) == (0, 3)


def test_an_interrupt_ends_the_helpers(tmp_path):
    interrupt = """
def finish(self):
    global helpers
    helpers = self._helpers
    raise KeyboardInterrupt
ahead.Ahead.finish = finish
def leave(kind, error, trace):
    assert kind is KeyboardInterrupt
    assert helpers
    print("ended", [helper._process.poll() is not None for helper in helpers])
sys.excepthook = leave
"""
    (tmp_path / "three.py").write_text(KERNELS)
    program = textwrap.dedent(PROGRAM).format(interrupt)
    program += "\n"
    code = f"import os, sys\ntry:\n{textwrap.indent(program, '    ')}\nexcept KeyboardInterrupt:\n"
    code += "    leave(*sys.exc_info())\n"
    done = process(code, tmp_path, 1, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert done.stdout == "ended [True]\n"


@pytest.mark.parametrize("weight", [ahead._weight])
def test_what_calls_more_is_heavier(weight):
    from kfc_numba.kernels.cpu import direct, elementwise

    light = weight(elementwise._add.dispatcher)
    assert light > 0
    assert weight(direct._convolve.dispatcher) > 10 * light


def test_the_command(capsys):
    words = ["warm", "--networks", "small", "--optimizers", "sgd", "--batch-size", "32"]
    for _ in range(2):
        assert main(words) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("small by sgd: ")
    assert second == "small by sgd: nothing to compile"
