"""Checkpoints: altered bytes, other layouts, and well-formed ones that say something impossible."""

import json
import math
import os
import random
from unittest import mock

import numpy as np

import kfc_numba as kfc
from kfc_numba import checkpoint
from kfc_numba.commands import CommandError
from kfc_numba.commands.curvature import read_parameters
from kfc_numba.commands.train import history_table

from .mutate import TEXTS, change_bytes, change_json
from .oracle import check_error, measured, require

LOSS = kfc.SoftmaxCrossEntropy()
OPTIMIZERS = {
    "sgd": lambda: kfc.SGD(averaging=5),
    "adam": kfc.Adam,
    "kfc": lambda: kfc.KFC(num_burnin_steps=2, use_adaptive_damping=True),
}
#: Bytes of an array that a file says it has, and of the hole in the file that is there for it.
HOLE = 256 * 2**20
PLACEHOLDER = "replaced"


def network(seed=0):
    layers = [kfc.Dense(4), kfc.BatchNorm(), kfc.ReLU(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(5,), seed=seed)


def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((12, 5)).astype(np.float32), rng.integers(3, size=12)


def everything(net):
    return {name: value.copy() for name, value in {**net.params, **net.buffers}.items()}


def same(one, other):
    return one.keys() == other.keys() and all(
        value.dtype == other[name].dtype and np.array_equal(value, other[name], equal_nan=True)
        for name, value in one.items()
    )


def write(path, arrays, header, text=None):
    """A file that is well formed, sums included; `text` stands where `PLACEHOLDER` was."""

    class Writer:
        @staticmethod
        def dumps(*values, **more):
            found = json.dumps(*values, **(more | {"allow_nan": True}))
            return found if text is None else found.replace(f'"{PLACEHOLDER}"', text)

    usual = checkpoint.json
    writer = mock.Mock(wraps=usual)
    writer.dumps = Writer.dumps
    with mock.patch.object(checkpoint, "json", writer), mock.patch("os.fsync"):
        checkpoint.save(path, arrays, header)


class Checkpoints:
    """`Trainer.load`, the same for a command that takes parameters, and `load` for what is there.

    The bases are runs by three optimizers, saved in the middle of a pass.
    """

    name = "checkpoints"

    def __init__(self, folder):
        self.path = folder / "run.safetensors"
        self.again = folder / "again.safetensors"
        self.bases = {}
        for name, optimizer in OPTIMIZERS.items():
            trainer = kfc.Trainer(network(), LOSS, optimizer(), seed=3)
            trainer.fit(*data(), batch_size=5, max_steps=4, evaluate_every=2, progress=False)
            trainer.save(self.path)
            arrays, header = checkpoint.load(self.path)
            self.bases[name] = self.path.read_bytes(), arrays, header

    def case(self, number):
        rng = random.Random(f"{self.name} {number}")
        self.base = rng.choice(tuple(self.bases))
        kind = "hole" if rng.random() < 0.04 else rng.choice(tuple(_KINDS))
        load = rng.choice((self._trainer, self._trainer, self._parameters, self._whole))
        self.description = kind
        self.path.unlink(missing_ok=True)
        what = (_KINDS | {"hole": _hole})[kind](self, rng, *self.bases[self.base])
        self.description = f"{kind}: {what} ({self.base}, {load.__name__[1:]})"
        return load(unaltered=kind in ("bytes", "layout"))

    # Ways to load.

    def _trainer(self, unaltered):
        net = network(seed=9)
        before = everything(net)
        return self._judge(
            lambda: kfc.Trainer.load(self.path, net, LOSS, OPTIMIZERS[self.base]()),
            self._sound,
            unaltered,
            (ValueError, OSError),
            lambda: same(everything(net), before),
        )

    def _parameters(self, unaltered):
        net = network(seed=9)
        before = everything(net)

        def sound(_, unaltered):
            _finite(everything(net))
            if unaltered:
                expected = network()
                self.path.write_bytes(self.bases[self.base][0])
                read_parameters(expected, str(self.path))
                require(same(everything(net), everything(expected)), "altered, and not noticed")

        return self._judge(
            lambda: read_parameters(net, str(self.path)),
            sound,
            unaltered,
            (CommandError, ValueError),
            lambda: same(everything(net), before),
        )

    def _whole(self, unaltered):
        """All from the file alone, in versions that have it."""
        if not hasattr(kfc, "load"):
            return self._trainer(unaltered)

        def sound(found, unaltered):
            model, trainer = found
            self._sound(trainer, unaltered)
            require(np.isfinite(model.net.predict(data()[0])).all(), "predictions are not finite")

        return self._judge(
            lambda: kfc.load(self.path), sound, unaltered, (ValueError, OSError), lambda: True
        )

    # What came of it.

    def _judge(self, load, sound, unaltered, kinds, unchanged):
        size = min(self.path.stat().st_size, 2**20)  # a hole in a file is not worth its memory
        error = found = None
        with measured() as peak:
            try:
                found = load()
            except Exception as caught:
                error = caught
        peak.require(10 * size, f"a file of {size:,} bytes")
        if error is not None:
            require(unchanged(), f"the network is changed after {type(error).__name__}")
            check_error(error, kinds, [str(self.path)])
        else:
            sound(found, unaltered)
        return error is None, peak.bytes

    def _sound(self, trainer, unaltered):
        with mock.patch("os.fsync"):
            trainer.save(self.again)
        arrays, header = checkpoint.load(self.again)
        _, expected, expected_header = self.bases[self.base]
        if unaltered:
            require(same(arrays, expected), "altered, and not noticed")
            require(repr(header) == repr(expected_header), "another header, and not noticed")
        shapes = {name: (value.shape, value.dtype) for name, value in arrays.items()}
        usual = {name: (value.shape, value.dtype) for name, value in expected.items()}
        require(shapes == usual, "other names, shapes or dtypes")
        _finite({n: v for n, v in arrays.items() if n.startswith(("params/", "buffers/"))})
        for name, value in arrays.items():
            if any(part in name for part in ("values/", "var", "second", "batches", "step")):
                require((value >= 0).all(), f"{name} is negative")
            if name.endswith("weight") and value.ndim == 0:
                require(0 <= value < math.inf, f"{name} is {value}")
        require(0 <= trainer.steps <= 2**53, f"step is {trainer.steps}")
        place = header["trainer"]
        for name in ("seed", "epoch", "position", "examples"):
            value = place[name]
            require(type(value) is int and value >= 0, f"{name} is {value!r}")
        require(place["position"] < max(place["examples"], 1), "the position is beyond the pass")
        require(type(place["prepared"]) is bool, f"prepared is {place['prepared']!r}")
        seconds = place["seconds"]
        require(type(seconds) in (int, float) and 0 <= seconds < math.inf, f"{seconds!r} seconds")
        _rows(trainer.history)
        before = everything(trainer.net)
        try:
            require(math.isfinite(trainer.step(*data())), "a loss that is not finite")
        except FloatingPointError:
            require(same(everything(trainer.net), before), "a failed step changed the network")


def _finite(arrays):
    for name, value in arrays.items():
        require(np.isfinite(value).all(), f"{name} is not finite")


def _rows(history):
    for row in history.rows:
        require(isinstance(row, dict), f"a row is {row!r}")
        for name in ("step", "epoch", "seconds", "training_loss"):
            value = row.get(name)
            require(type(value) in (int, float), f"{name} of a row is {value!r}")
        require(row["step"] >= 0 and row["epoch"] >= 0 and row["seconds"] >= 0, "a negative row")
        for name in ("validation_loss", "validation_error"):
            value = row.get(name)
            require(value is None or type(value) in (int, float), f"{name} is {value!r}")
    history.to_json()
    history_table(history)


# Kinds of damage. Each writes the file and says what it did.


def _bytes(target, rng, content, arrays, header):
    changed, what = change_bytes(rng, content)
    target.path.write_bytes(changed)
    return what


def _layout(target, rng, content, arrays, header):
    """The header of the safetensors format itself, which has offsets, shapes and dtypes."""
    end = 8 + int.from_bytes(content[:8], "little")
    changed, what = change_json(rng, json.loads(content[8:end]))
    text = json.dumps(changed).encode()
    target.path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    return what


def _hole(target, rng, content, arrays, header):
    """An array that is much larger, for which there is a hole in the file."""
    end = 8 + int.from_bytes(content[:8], "little")
    layout = json.loads(content[8:end])
    tensors = {name: entry for name, entry in layout.items() if name != "__metadata__"}
    name = max(tensors, key=lambda name: tensors[name]["data_offsets"][1])
    start, stop = layout[name]["data_offsets"]
    each = (stop - start) // max(math.prod(layout[name]["shape"]), 1)
    layout[name] |= {"shape": [HOLE // each], "data_offsets": [start, start + HOLE]}
    text = json.dumps(layout).encode()
    target.path.write_bytes(len(text).to_bytes(8, "little") + text + content[end : end + start])
    os.truncate(target.path, 8 + len(text) + start + HOLE)
    return f"a hole for {name}"


def _header(target, rng, content, arrays, header):
    changed, what = change_json(rng, header)
    write(target.path, arrays, changed)
    return what


def _text(target, rng, content, arrays, header):
    """What no program writes, in a place of the header, with right sums."""
    changed, what = header, None
    while PLACEHOLDER not in json.dumps(changed):
        key = rng.choice(tuple(header))
        changed, what = change_json(rng, header, (key,))
        if key in changed:
            changed[key] = rng.choice((PLACEHOLDER, {"a": PLACEHOLDER}, [PLACEHOLDER]))
    text = rng.choice(TEXTS)
    write(target.path, arrays, changed, text)
    return f"{text[:20]!r} in {what}"


def _arrays(target, rng, content, arrays, header):
    changed = dict(arrays)
    name = rng.choice(tuple(arrays))
    how = rng.choice(tuple(_ARRAYS))
    _ARRAYS[how](rng, changed, name)
    write(target.path, changed, header)
    return f"{how} of {name}"


def _rename(rng, arrays, name):
    arrays[rng.choice((name + "x", "x", "other/" + name, name.upper()))] = arrays.pop(name)


def _number(rng, arrays, name):
    value = arrays[name].copy()
    numbers = (-1, -5, 0, 1e30, math.nan, math.inf, -math.inf, 2**62)
    number = rng.choice(numbers if value.dtype.kind == "f" else (-1, -5, 2**62, -(2**63)))
    value[...] = number
    if rng.random() < 0.5 and value.size > 1:
        value = arrays[name].copy()
        value.flat[rng.randrange(value.size)] = number
    arrays[name] = value


def _dtype(rng, arrays, name):
    kinds = (np.float64, np.float32, np.int64, np.int32, np.float16, np.uint8, bool)
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(rng.choice(kinds))


_ARRAYS = {
    "the absence": lambda rng, arrays, name: arrays.pop(name),
    "another name": _rename,
    "numbers": _number,
    "a dtype": _dtype,
    "a transpose": lambda rng, a, name: a.update({name: a[name].T[..., None]}),
    "a slice": lambda rng, a, name: a.update({name: a[name].reshape(-1)[:1]}),
    "no axis": lambda rng, a, name: a.update({name: np.zeros((), a[name].dtype)}),
    "another array": lambda rng, a, name: a.update({name: a[rng.choice(tuple(a))]}),
    "no numbers": lambda rng, a, name: a.update({name: np.zeros((0, 3), a[name].dtype)}),
}

_KINDS = {
    "bytes": _bytes,
    "layout": _layout,
    "header": _header,
    "header again": _header,
    "text": _text,
    "arrays": _arrays,
}
