"""Checkpoints that are well formed and wrong: refused by one line that names the file, at once."""

import copy
import json
import os
import re
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

import kfc_numba as kfc
from kfc_numba import checkpoint, description, saving
from kfc_numba.layers.base import Layer
from kfc_numba.train import Trainer

LOSS = kfc.SoftmaxCrossEntropy()
OPTIMIZERS = {
    "usual": kfc.KFC,
    "KFC": lambda: kfc.KFC(structure={"dense1": "ekfac"}, max_loss_increase=1.0),
    "full": lambda: kfc.KFC(structure={"dense1": "full"}, use_adaptive_damping=True),
    "Adam": kfc.Adam,
    "SGD": kfc.SGD,
}


def network(seed=0):
    layers = [kfc.Dense(4), kfc.BatchNorm(), kfc.ReLU(), kfc.Dense(3)]
    return kfc.Sequential(layers, input_shape=(5,), seed=seed)


def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((12, 5)).astype(np.float32), rng.integers(3, size=12)


@pytest.fixture(scope="module", params=OPTIMIZERS)
def trained(request, tmp_path_factory):
    """A checkpoint in the middle of a pass, by each optimizer."""
    folder = tmp_path_factory.mktemp(request.param)
    trainer = Trainer(network(), LOSS, OPTIMIZERS[request.param](), seed=3)
    trainer.fit(*data(), batch_size=5, max_steps=4, evaluate_every=2, progress=False)
    trainer.save(folder / "run.safetensors")
    return request.param, folder / "run.safetensors"


def everything(net):
    return {name: value.copy() for name, value in (net.params | net.buffers).items()}


def refuses(path, optimizer, message):
    """Each way of loading says `message` behind the file's name, and changes nothing."""
    net = network(seed=9)
    before = everything(net)
    for call in (
        lambda: Trainer.load(path, net, LOSS, OPTIMIZERS[optimizer]()),
        lambda: kfc.load(path),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        text = str(caught.value)
        assert text.startswith(str(path))
        assert "\n" not in text
        assert len(text) < 1000 + len(str(path))
        assert re.search(message, text), text
    for name, value in everything(net).items():
        np.testing.assert_array_equal(value, before[name])


def rewritten(path, change):
    """The checkpoint with its header and arrays changed, and right sums."""
    arrays, header = checkpoint.load(path)
    header = copy.deepcopy(header)
    change(header, arrays)
    target = path.with_name("changed.safetensors")
    checkpoint.save(target, arrays, header)
    return target


def put(*place):
    *where, last, value = place

    def change(header, arrays):
        for key in where:
            header = header[key]
        header[last] = value

    return change


def drop(*place):
    def change(header, arrays):
        *where, last = place
        for key in where:
            header = header[key]
        del header[last]

    return change


HEADERS = [
    (put("content", 3), "content must be one of network, trainer, it is 3"),
    (put("content", "network"), "holds a network alone"),
    (put("unknown", 1), "header has 'unknown', which is none"),
    (drop("trainer"), "header lacks trainer"),
    (drop("history"), "header lacks history"),
    (put("trainer", []), r"header.trainer must be a mapping from names, it is \[\]"),
    (drop("trainer", "seed"), "header.trainer lacks seed"),
    (put("trainer", "seed", -1), "trainer.seed must be an integer"),
    (put("trainer", "seed", "1"), "trainer.seed must be an integer"),
    (put("trainer", "epoch", 1.5), "trainer.epoch must be an integer of at least 0, it is 1.5"),
    (put("trainer", "epoch", True), "trainer.epoch must be an integer of at least 0, it is True"),
    (put("trainer", "epoch", 10**400), "trainer.epoch must be an integer of at least 0"),
    (put("trainer", "position", -1), "trainer.position must be an integer"),
    (put("trainer", "position", 12), r"trainer.position must be below trainer.examples \(=12\)"),
    (put("trainer", "position", 10**6), "trainer.position must be below trainer.examples"),
    (put("trainer", "examples", None), "trainer.examples must be an integer"),
    (put("trainer", "seconds", -0.5), "trainer.seconds must be a finite number of at least 0"),
    (put("trainer", "seconds", 10**400), "trainer.seconds must be a finite number"),
    (put("trainer", "prepared", 1), "trainer.prepared must be true or false, it is 1"),
    (put("history", {}), "history must be a list"),
    (put("history", [[]]), r"history\[0\] must be a mapping"),
    (put("history", 0, "step", -1), r"history\[0\].step must be an integer"),
    (put("history", 0, "training_loss", "1"), r"training_loss must be a finite number, it is '1'"),
    (put("history", 0, "training_loss", None), "training_loss must be a finite number, it is None"),
    (put("history", 0, "training_loss", []), r"training_loss must be a finite number, it is \[\]"),
    (put("history", 0, "more", {}), r"history\[0\]\['more'\] must be a finite number"),
    (drop("history", 0, "epoch"), r"history\[0\] lacks epoch"),
    (put("history", 0, "step", 3), r"history, step must be at least 3, the one before, it is 2"),
    (put("history", 2, "step", 5), "history must end at step 4 at the latest, it ends at 5"),
    (put("loss", "SoftmaxCrossEntropy()"), "header.loss must be a mapping"),
    (put("loss", None), "header.loss must be a mapping"),
    (put("loss", "loss", "NoLoss"), "NoLoss"),
    (put("loss", "arguments", {"a": 1}), "loss"),
    (put("optimizer", {}), "header.optimizer lacks optimizer"),
    (put("optimizer", "optimizer", "LBFGS"), "LBFGS"),
    (put("network", "dtype", "int8"), "network.dtype must be one of float32, float64, it is 'int8"),
    (put("network", "dtype", "float64"), "float"),
    (put("network", "input_shape", [5.5]), r"input_shape\[0\] must be an integer"),
    (put("network", "input_shape", [6]), r"\(6,\)|parameters that the file"),
    (put("network", "input_shape", []), "input_shape must be a list of at least 1"),
    (put("network", "layers", []), "layers must be a list of at least 1 entries"),
    (put("network", "layers", 0, "layer", "Conv3d"), "Conv3d"),
    (put("network", "layers", 0, "name", "conv1"), "conv1|their names"),
    (put("network", "layers", 0, "arguments", []), "arguments must be a mapping"),
    (put("network", "layers", 0, "arguments", "units", 10**12), "10\\*\\*12|1000000000000"),
    (put("network", "layers", 0, "arguments", "units", 5), "5"),
    (put("network", "layers", 0, "arguments", "bias", 0), "bias"),
    (put("network", "layers", 0, "arguments", {"seed": 3}), "dense1: Dense|Dense, cannot be built"),
    (put("network", "layers", 0, "arguments", "bias", {"program": "x"}), "bias"),
    (put("network", "layers", 0, "arguments", "bias", {"float": []}), "bias"),
    (put("network", "layers", 0, "inputs", [0]), "order of computation|inputs must be an integer"),
    (put("network", "layers", 0, "inputs", [99]), "order of computation|inputs must be an integer"),
    (put("network", "layers", 0, "inputs", [-2]), "inputs"),
    (put("network", "layers", 0, "inputs", []), "inputs must be a list of at least 1"),
    (put("network", "layers", 0, "shape", [9]), "shape|order of computation"),
    (put("network", "layers", 1, "layer", "Dropout"), "norm1|BatchNorm|Dropout"),
    (put("normalization", {"mean": [0], "std": [0]}), r"std\[0\]"),
    (put("normalization", {"mean": [0], "std": [1, 2]}), "one number for each channel"),
    (put("normalization", {"mean": "0", "std": [1]}), "normalization.mean must be a list"),
    (put("normalization", {"mean": [], "std": []}), "normalization.mean must be a list of at le"),
    (put("classes", "abc"), "classes must be a list"),
    (put("classes", ["a", "b"]), "classes must be .*3.* names, it has 2"),
    (put("classes", ["a", "b", 3]), r"classes\[2\] must be a text"),
    (put("notes", []), "notes must be a mapping"),
]


def test_a_header_that_is_wrong(trained):
    optimizer, path = trained
    for change, message in HEADERS if optimizer == "KFC" else HEADERS[::7]:
        refuses(rewritten(path, change), optimizer, message)


def test_the_checkpoint_itself_is_good(trained):
    optimizer, path = trained
    changed = rewritten(path, lambda header, arrays: None)
    loaded = Trainer.load(changed, network(9), LOSS, OPTIMIZERS[optimizer]())
    _, trainer = kfc.load(changed)
    assert trainer.steps == loaded.steps == 4
    for name, value in loaded.optimizer_state.items():
        np.testing.assert_array_equal(trainer.optimizer_state[name], value)


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("place", [("notes", "a"), ("network", "layers", 0, "arguments", "units")])
def test_a_header_that_is_nested_deeply(trained, place):
    optimizer, path = trained
    refuses(rewritten(path, put(*place, nested(40))), optimizer, "nested more than 16 levels deep")


def with_header_text(path, text):
    """The checkpoint with any text in the place of its header, and right sums."""
    arrays, _ = checkpoint.load(path)
    sums = json.dumps({name: checkpoint._sum_of_array(name, arrays[name]) for name in arrays})
    total = checkpoint._sum_of_texts(text, sums)
    metadata = {"kfc_numba": text, "arrays": sums, "crc32": str(total)}
    target = path.with_name("text.safetensors")
    target.write_bytes(safetensors.numpy.save(arrays, metadata))
    return target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its header is not one"),
        ("[]", "its header is not one: header must be a mapping"),
        ("{}", "its header is not one: header lacks format"),
        ('{"format": "2"}', "header.format must be an integer"),
        ('{"format": 2, "format": 2}', "names something twice"),
        ('{"format": 2, "content": NaN}', "the number NaN"),
        ('{"format": 2, "notes": 1e999}', "the number 1e999, which float64 does not hold"),
        ('{"format": ' + "9" * 5000 + "}", "its header is not one"),
        ('{"format": 99}', "has checkpoint format 99"),
        ('{"format": 2, "content": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"format": 2}', "content must be one of"),
    ],
)
def test_a_header_that_is_no_header(trained, text, message):
    optimizer, path = trained
    refuses(with_header_text(path, text), optimizer, message)


def test_a_header_that_is_too_long(trained, monkeypatch, tmp_path):
    optimizer, path = trained
    monkeypatch.setattr(checkpoint, "LONGEST_HEADER", 100)
    refuses(path, optimizer, "must be a kfc_numba checkpoint, its header has .* bytes$")
    with safetensors.safe_open(path, framework="numpy") as file:
        length = len(file.metadata()["kfc_numba"])
    monkeypatch.setattr(checkpoint, "LONGEST_HEADER", length - 1)
    refuses(path, optimizer, "its header has .* bytes(, more than .*)?$")
    monkeypatch.setattr(checkpoint, "LONGEST_HEADER", 100)
    with pytest.raises(ValueError, match="at most 100 are read again"):
        checkpoint.save(tmp_path / "f", {}, {"notes": "x" * 200})
    assert not list(tmp_path.iterdir())


# Arrays.


def entry(name, value):
    def change(header, arrays):
        new = np.asarray(value(arrays[name]) if callable(value) else value)
        arrays[name] = new

    return change


def first(number):
    def changed(value):
        value = value.copy()
        value.reshape(-1)[0] = number
        return value

    return changed


ANY = [
    ("params/dense1.weight", first(np.nan), "params/dense1.weight must be finite"),
    ("params/dense1.weight", first(-np.inf), "params/dense1.weight must be finite"),
    ("params/dense1.weight", lambda v: v.T.copy(), r"is float32 \(4, 5\) in the checkpoint"),
    ("params/dense1.weight", lambda v: v[:1], r"is float32 \(1, 4\) in the checkpoint|parameters"),
    ("params/dense1.weight", lambda v: v.astype(np.float64), "is float64"),
    ("params/dense1.bias", lambda v: v[:1], r"\(1,\) in the checkpoint|parameters that the file"),
    ("buffers/norm1.variance", first(-1e-3), "buffers/norm1.variance must be at least 0, it has"),
    ("buffers/norm1.variance", first(np.nan), "buffers/norm1.variance must be finite"),
    ("buffers/norm1.mean", lambda v: v[:1], r"norm1.mean is float32 \(1,\)"),
    ("optimizer/step", np.array(-5), "optimizer/step must be at least 0, it has -5"),
    ("optimizer/step", np.array(2**60), r"optimizer/step must be at most 2\*\*53"),
    ("optimizer/step", np.array(1), "history must end at step 1 at the latest, it ends at 4"),
    ("optimizer/step", np.array(4.0), r"step is float64 \(\) in the checkpoint, int64 \(\)"),
    ("optimizer/step", np.array([4]), r"step is int64 \(1,\) in the checkpoint"),
    ("optimizer/average_weight", np.array(-1.0), "average_weight must be at least 0, it has -1"),
    ("optimizer/average_weight", np.array(np.nan), "average_weight must be finite"),
    ("optimizer/average/dense1.weight", first(np.inf), "average/dense1.weight must be finite"),
]
OWN = {
    "usual": [
        ("loss_average", np.array(-1.0), "loss_average must be at least 0"),
        ("steps_that_lasted", np.array(-1.0), "steps_that_lasted must be at least 0"),
        ("bound_factor", np.array(-1.0), "bound_factor must be at least 0"),
        ("layer_scale/dense1", np.array(-1.0), "layer_scale/dense1 must be at least 0"),
        ("layer_ratio_weight", np.array(-1.0), "layer_ratio_weight must be at least 0"),
        ("form_ratio", np.array(-1.0), "form_ratio must be at least 0"),
    ],
    "KFC": [
        ("omega_values/dense1", first(-1e-3), "omega_values/dense1 must be at least 0, it has -0"),
        ("gamma_values/dense2", first(-1), "gamma_values/dense2 must be at least 0"),
        ("second_moments/dense1", first(-1), "second_moments/dense1 must be at least 0"),
        ("second_moments/dense1", first(np.nan), "second_moments/dense1 must be finite"),
        ("diagonal/norm1.weight", first(-1), "diagonal/norm1.weight must be at least 0"),
        ("factor_weight", np.array(-1.0), "factor_weight must be at least 0"),
        ("factor_batches", np.array(-1), "factor_batches must be at least 0"),
        ("rejected_steps", np.array(-1), "rejected_steps must be at least 0"),
        ("omega_vectors/dense1", first(np.inf), "omega_vectors/dense1 must be finite"),
    ],
    "full": [
        ("full_values/dense1", first(-1), "full_values/dense1 must be at least 0"),
        ("damping", np.array(-1.0), "optimizer/damping must be above 0, it has -1"),
        ("preconditioner_damping", np.array(0.0), "preconditioner_damping must be above 0"),
        ("preconditioner_damping", np.array(np.nan), "preconditioner_damping must be finite"),
    ],
    "Adam": [
        ("second/dense1.weight", first(-1), "second/dense1.weight must be at least 0"),
        ("second_weight", np.array(-1.0), "second_weight must be at least 0"),
    ],
    "SGD": [("momentum/dense1.weight", first(np.nan), "momentum/dense1.weight must be finite")],
}


def test_an_array_with_values_that_it_cannot_have(trained):
    optimizer, path = trained
    own = [(f"optimizer/{name}", *rest) for name, *rest in OWN[optimizer]]
    for name, value, message in [*ANY, *own]:
        refuses(rewritten(path, entry(name, value)), optimizer, message)


@pytest.mark.parametrize("name", ["params/more", "junk/more", "more", "optimizer/more"])
def test_an_array_too_many(trained, name):
    optimizer, path = trained

    def change(header, arrays):
        arrays[name] = np.zeros(2, np.float32)

    refuses(rewritten(path, change), optimizer, r"only the checkpoint has |parameters that the f")


def test_an_array_too_few(trained):
    optimizer, path = trained
    for name in checkpoint.load(path)[0]:

        def change(header, arrays, name=name):
            del arrays[name]

        refuses(rewritten(path, change), optimizer, "the checkpoint lacks |parameters that the f")


def test_sums_of_other_arrays(trained):
    optimizer, path = trained
    arrays, _ = checkpoint.load(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    arrays["optimizer/step"] = np.array(9)
    path = path.with_name("sums.safetensors")
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
    refuses(path, optimizer, "its checksum does not match its content")
    del arrays["optimizer/step"]
    path.write_bytes(safetensors.numpy.save(arrays, metadata))
    refuses(path, optimizer, "its checksum does not match its content")


# Memory.


def sparse(path, name, shape):
    """A checkpoint one array of which is a hole of that shape, and its size."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    layout = json.loads(content[8 : 8 + length])
    metadata = layout.pop("__metadata__")
    end, start = 0, 8 + length
    new = {}
    data = b""
    for key, value in sorted(layout.items(), key=lambda item: item[0] == name):
        begin, stop = value["data_offsets"]
        size = stop - begin
        if key == name:
            size = int(np.prod(shape)) * 4
            value = {"dtype": "F32", "shape": list(shape)}
        else:
            data += content[start + begin : start + stop]
        new[key] = value | {"data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": metadata} | new).encode()
    target = path.with_name("sparse.safetensors")
    with open(target, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
        file.truncate(8 + len(text) + end)
    return target


@pytest.mark.parametrize("gigabytes", [2, 4000])
def test_a_sparse_file_is_refused_without_its_memory(trained, gigabytes):
    optimizer, path = trained
    target = sparse(path, "params/dense1.weight", (gigabytes, 250_000_000))
    try:
        tracemalloc.start()
        refuses(target, optimizer, "in the checkpoint|parameters that the file|twice the size of a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        target.unlink()
    assert peak < 50e6


HUGE = [
    ("Dense", {"units": 10**9, "bias": True}, [10**9]),
    ("Dense", {"units": 10**9, "bias": False}, [10**9]),
    ("Dense", {"units": 10**15, "bias": True}, [10**15]),
]


@pytest.mark.parametrize(("layer", "arguments", "shape"), HUGE)
def test_a_network_larger_than_its_file_is_not_built(trained, layer, arguments, shape):
    _, path = trained
    last = {"layer": layer, "arguments": arguments, "shape": shape}
    norm = {"name": "norm2", "layer": "BatchNorm", "arguments": {"momentum": 0.9, "epsilon": 1e-5}}

    def change(header, arrays):
        header["network"]["layers"][3] |= last
        header["network"]["layers"].append(norm | {"inputs": [3], "shape": shape})

    target = rewritten(path, change)
    tracemalloc.start()
    try:
        for load in (kfc.load, kfc.load_model):
            with pytest.raises(ValueError, match=r"cannot be built|parameters that the file has"):
                load(target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50e6


# What a program alone knows.


class Mine(Layer):
    """A layer of a program."""

    def __init__(self, table):
        self.table = table

    def forward(self, arrays, inputs, context):
        return inputs[0], ()


class Dense(kfc.Dense):
    """Has the name of a layer of the library."""


@pytest.mark.parametrize("layer", [Mine({1: object}), Dense(3)])
def test_layers_of_a_program(layer, tmp_path):
    def build():
        return kfc.Sequential([kfc.Dense(3), layer], input_shape=(5,), seed=1)

    Trainer(build(), LOSS, kfc.SGD()).save(tmp_path / "c")
    Trainer.load(tmp_path / "c", build(), LOSS, kfc.SGD())
    with pytest.raises(ValueError, match=r"c is not .*test_loading\.(Mine|Dense).*Trainer\.load"):
        kfc.load(tmp_path / "c")


def test_functions_of_a_program(tmp_path):
    optimizer = kfc.SGD(learning_rate=lambda step: 0.1 / (1 + step))
    Trainer(network(), LOSS, optimizer).save(tmp_path / "c")
    with pytest.raises(ValueError, match=r"learning_rate was '<function .*Trainer\.load"):
        kfc.load(tmp_path / "c")
    Trainer.load(tmp_path / "c", network(), LOSS, optimizer)


def test_settings_that_json_lacks(tmp_path):
    optimizer = kfc.KFC(
        use_adaptive_damping=True,
        adaptation={"max_damping": float("inf")},
        momentum=kfc.LinearWarmup(after=kfc.CosineDecay(initial=0.5, steps=9), steps=3),
        loss_bound=kfc.PiecewiseConstant(values=[1, 2.5], boundaries=[3]),
        structure={"dense1": "ekfac"},
    )
    Trainer(network(), LOSS, optimizer).save(tmp_path / "c")
    _, trainer = kfc.load(tmp_path / "c")
    assert repr(trainer.optimizer) == repr(optimizer)


# Every public layer is built again.

IMAGE = (8, 8, 4)
LAYERS = {
    "Conv2d": kfc.Conv2d(6, (3, 2), stride=(1, 2), padding=((1, 0), (0, 1)), groups=2, bias=False),
    "Dense": kfc.Dense(3, bias=False),
    "MaxPool2d": kfc.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    "AvgPool2d": kfc.AvgPool2d((2, 3), padding="same", count_include_pad=True),
    "GlobalAvgPool2d": kfc.GlobalAvgPool2d(),
    "ReLU": kfc.ReLU(),
    "LeakyReLU": kfc.LeakyReLU(0.2),
    "Tanh": kfc.Tanh(),
    "Sigmoid": kfc.Sigmoid(),
    "BatchNorm": kfc.BatchNorm(momentum=0.7, epsilon=1e-3),
    "LocalResponseNorm": kfc.LocalResponseNorm(3, alpha=0.1, region="within_channel"),
    "Dropout": kfc.Dropout(0.3),
    "Flatten": kfc.Flatten(),
    "Add": kfc.Add(),
    "Concat": kfc.Concat(),
}


def test_every_layer_is_listed():
    assert LAYERS.keys() == description.LAYERS.keys()
    assert set(description.LOSSES) == {"SoftmaxCrossEntropy", "SquaredError", "SigmoidCrossEntropy"}
    assert set(description.OPTIMIZERS) == {"KFC", "SGD", "Adam"}
    assert len(description.SCHEDULES) == 4


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_comes_back(name, dtype, tmp_path):
    image = kfc.Input(IMAGE)
    layer = LAYERS[name]
    before = kfc.Conv2d(4, 3, padding="same")(image)
    node = layer(before, image, before) if layer.arity is None else layer(before)
    net = kfc.Graph(image, kfc.Dense(3)(kfc.Flatten()(node)), seed=4, dtype=dtype)
    kfc.Model(net).save(tmp_path / "m")
    found = kfc.load_model(tmp_path / "m").net
    assert checkpoint.describe(found) == checkpoint.describe(net)
    assert [repr(placed.layer) for placed in found.layers] == [repr(p.layer) for p in net.layers]
    assert found.params.keys() == net.params.keys()
    x = np.random.default_rng(0).standard_normal((5, *IMAGE))
    np.testing.assert_array_equal(found.predict(x), net.predict(x))


@pytest.mark.parametrize("name", kfc.networks.names())
def test_networks_by_name_come_back(name, tmp_path):
    net = kfc.networks.build(name, (32, 32, 3), 10, seed=2)
    kfc.Model(net).save(tmp_path / "m")
    found = kfc.load_model(tmp_path / "m").net
    assert checkpoint.describe(found) == checkpoint.describe(net)
    for part in ("params", "buffers"):
        assert list(getattr(found, part)) == list(getattr(net, part))
        for key, value in getattr(found, part).items():
            np.testing.assert_array_equal(value, getattr(net, part)[key])


def test_lines_are_those_of_the_layers():
    net = network()
    expected = [
        "input: float32, shape (5,)",
        f"dense1: {net.layers[0].layer!r} of input, shape (4,)",
        f"norm1: {net.layers[1].layer!r} of dense1, shape (4,)",
        f"relu1: {net.layers[2].layer!r} of norm1, shape (4,)",
        f"dense2: {net.layers[3].layer!r} of relu1, shape (3,)",
    ]
    assert checkpoint.describe(net) == expected
    pool = kfc.Sequential([LAYERS["Conv2d"], LAYERS["AvgPool2d"]], input_shape=IMAGE)
    for line, placed in zip(checkpoint.describe(pool)[1:], pool.layers, strict=True):
        assert repr(placed.layer) in line


def test_disk_errors_name_the_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/c'"):
        saving.save_network(tmp_path / "c", network())
    assert not list(tmp_path.iterdir())
