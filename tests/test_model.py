"""From a run to what predicts, and to a trainer that goes on, without a setting repeated."""

import json
import os
from pathlib import Path

import dataset_files
import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import checkpoint
from kfc_numba.cli import main
from kfc_numba.datasets import Dataset

LOSS = kfc.SoftmaxCrossEntropy()


@pytest.fixture(scope="module")
def stored():
    """Images as they are stored, of three channels."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(30, 8, 8, 3), dtype=np.uint8), rng.integers(3, size=30)
    return Dataset(
        name="few", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10], classes=("a", "bc", "d")
    )


def network(seed=0):
    layers = [kfc.Conv2d(4, 3), kfc.BatchNorm(), kfc.ReLU(), kfc.Dropout(0.2), kfc.Flatten()]
    return kfc.Sequential([*layers, kfc.Dense(3)], input_shape=(8, 8, 3), seed=seed)


def fit(trainer, stored, steps, **more):
    x, _ = stored.normalized()
    options = {"batch_size": 8, "evaluate_every": 3, "progress": False, "max_steps": steps}
    trainer.fit(x, stored.y_train, **options, **more)
    return trainer


@pytest.fixture(scope="module", params=["KFC", "SGD", "Adam", "no average"])
def trained(request, stored, tmp_path_factory):
    """A trainer in the middle of a pass, and its file."""
    path = tmp_path_factory.mktemp("model") / "run.safetensors"
    optimizer = {
        "KFC": kfc.KFC(num_burnin_steps=2, momentum=kfc.CosineDecay(initial=0.9, steps=20)),
        "SGD": kfc.SGD(learning_rate=kfc.ExponentialDecay(initial=0.1, rate=0.9)),
        "Adam": kfc.Adam(),
        "no average": kfc.SGD(averaging=None),
    }[request.param]
    trainer = kfc.Trainer(network(seed=3), LOSS, optimizer, seed=5)
    trainer.normalization = kfc.Normalization(*stored.channel_statistics())
    trainer.classes = stored.classes
    trainer.notes = {"of mine": [1, {"two": None}]}
    fit(trainer, stored, 5)
    trainer.save(path)
    return trainer, path


def test_the_trainer_goes_on_to_the_same_bits(trained, stored):
    trainer, path = trained
    model, loaded = kfc.load(path)
    assert repr(loaded.optimizer) == repr(trainer.optimizer)
    assert repr(loaded.loss) == repr(trainer.loss)
    assert checkpoint.describe(loaded.net) == checkpoint.describe(trainer.net)
    assert (loaded.seed, loaded.steps, loaded.notes) == (5, 5, trainer.notes)
    assert loaded.history.rows == trainer.history.rows
    before = {name: value.copy() for name, value in model.net.params.items()}
    before |= {name: value.copy() for name, value in model.net.buffers.items()}
    fit(loaded, stored, 11)
    other = kfc.Trainer.load(path, network(), LOSS, trainer.optimizer)
    fit(other, stored, 11)
    for one, two in (
        (loaded.net.params, other.net.params),
        (loaded.net.buffers, other.net.buffers),
        (loaded.optimizer_state, other.optimizer_state),
    ):
        assert one.keys() == two.keys()
        for name, value in one.items():
            np.testing.assert_array_equal(value, two[name], err_msg=name)
    # The model is what was loaded, whatever the trainer has done since.
    for name, value in (model.net.params | model.net.buffers).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_the_model_predicts_what_the_trained_network_does(trained, stored):
    trainer, path = trained
    _, x = stored.normalized()
    expected = trainer.evaluation_net().predict(x)
    for model in (kfc.load(path)[0], kfc.load_model(path)):
        outputs = model.predict(stored.x_test)
        assert outputs.dtype == np.float32
        np.testing.assert_array_equal(outputs, expected)
        np.testing.assert_array_equal(model.predict(stored.x_test, batch_size=3), expected)
        probabilities = model.predict_proba(stored.x_test)
        np.testing.assert_array_equal(probabilities, LOSS.predictive_mean(expected))
        names = [stored.classes[number] for number in expected.argmax(axis=1)]
        assert model.predict_class(stored.x_test).tolist() == names
        assert model.classes == ("a", "bc", "d")
        assert "3 classes" in repr(model)


def test_averaged_parameters_are_those_of_the_model(trained):
    trainer, path = trained
    model, loaded = kfc.load(path)
    averaged = trainer.optimizer.averaging is not None
    for name, value in model.net.params.items():
        raw = checkpoint.load(path)[0][f"params/{name}"]
        np.testing.assert_array_equal(loaded.raw_params[name], raw)
        assert np.array_equal(value, raw) == (not averaged)


def test_a_file_of_the_network_alone(trained, stored, tmp_path):
    _, path = trained
    model = kfc.load_model(path)
    model.save(tmp_path / "model.safetensors")
    size = sum(value.nbytes for value in (model.net.params | model.net.buffers).values())
    assert os.path.getsize(tmp_path / "model.safetensors") < size + 4096
    found = kfc.load_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(found.predict(stored.x_test), model.predict(stored.x_test))
    assert repr(found) == repr(model)
    assert found.normalization == model.normalization
    with pytest.raises(ValueError, match=r"model\.safetensors is not .* holds a network alone"):
        kfc.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not .* holds a network alone"):
        kfc.Trainer.load(tmp_path / "model.safetensors", network(), LOSS, kfc.SGD())


def test_of_a_checkpoint_the_model_alone_is_read(trained, monkeypatch):
    _, path = trained
    read = []
    usual = checkpoint.CheckpointFile.read

    def spy(file, names):
        names = list(names)
        read.extend(names)
        return usual(file, names)

    monkeypatch.setattr(checkpoint.CheckpointFile, "read", spy)
    kfc.load_model(path)
    own = [name for name in read if not name.startswith(("params/", "buffers/"))]
    assert all(name.startswith("optimizer/average") for name in own)
    assert len(read) <= 4 + 2 + 2 + 1 + 1


def test_a_model_of_a_network(tmp_path):
    net = network()
    kfc.Model(net).save(tmp_path / "m")
    model = kfc.load_model(tmp_path / "m")
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(x), net.predict(x))
    assert model.predict_class(x).tolist() == net.predict(x).argmax(axis=1).tolist()
    with pytest.raises(ValueError, match="predict_proba needs the loss"):
        model.predict_proba(x)
    with pytest.raises(ValueError, match="x has shape"):
        model.predict(x[0])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"net": 3}, TypeError, "net must be a network, got int"),
        ({"loss": "softmax"}, TypeError, "loss must be a loss such as"),
        ({"normalization": 255}, TypeError, "normalization must be a Normalization, got int"),
        ({"classes": "abc"}, TypeError, r"classes \(='abc'\) must be a sequence of names"),
        ({"classes": [1, 2, 3]}, TypeError, "must be a sequence of names"),
        ({"classes": ["a"]}, ValueError, "a name for each output, got 1 for outputs of"),
    ],
)
def test_what_a_model_is_not_made_of(given, error, message):
    with pytest.raises(error, match=message):
        kfc.Model(**({"net": network()} | given))


def test_normalization_is_that_of_the_data_set(stored):
    normalization = kfc.Normalization(*stored.channel_statistics())
    for dtype in (np.float32, np.float64):
        expected, _ = stored.normalized(dtype)
        found = normalization(stored.x_train, dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)
    assert kfc.Normalization(3, 2) == kfc.Normalization([3.0], [2.0])
    np.testing.assert_array_equal(kfc.Normalization(3, 2)([[5, 7]]), [[1, 2]])


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0, 0], [1], "one number for each channel"),
        ([], [], "one number for each channel"),
        ([0], [0], r"std\[0\] \(=0\) must be"),
        ([0], [np.inf], r"std\[0\] \(=inf\) must be"),
        ([np.nan], [1], r"mean\[0\] \(=nan\) must be a finite number"),
    ],
)
def test_what_is_no_normalization(mean, std, message):
    with pytest.raises(ValueError, match=message):
        kfc.Normalization(mean, std)


def test_inputs_that_a_normalization_does_not_take():
    normalization = kfc.Normalization([0, 1], [1, 2])
    with pytest.raises(ValueError, match="last axis must have 2 channels"):
        normalization(np.zeros((3, 3)))
    with pytest.raises(TypeError, match="x must hold real numbers"):
        normalization(np.array(["a", "b"]))


# A run folder.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    dataset_files.write_mnist(folder / "mnist", dataset_files.mnist_arrays(0, 40, 20))
    words = ["--data", str(folder), "--output", str(folder / "run"), "--batch-size", "16"]
    assert main(["train", "--dataset", "mnist", "--epochs", "2", "--quiet", *words]) == 0
    return folder


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_a_normalization_of_data_gives_each_channel_mean_0_and_variance_1(dtype, monkeypatch):
    monkeypatch.setattr("kfc_numba.normalization._PIECE", 100)  # three examples, and a rest
    x = np.random.default_rng(0).integers(0, 256, (31, 4, 3, 2)).astype(dtype)
    x[..., 1] //= 7
    normalization = kfc.Normalization.of(x)
    np.testing.assert_allclose(normalization.mean, x.mean(axis=(0, 1, 2), dtype=float), rtol=1e-12)
    np.testing.assert_allclose(normalization.std, x.std(axis=(0, 1, 2), dtype=float), rtol=1e-12)
    normalised = normalization(x, np.float64)
    np.testing.assert_allclose(normalised.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(normalised.var(axis=(0, 1, 2)), 1, rtol=1e-12)


def test_a_normalization_of_a_data_set_is_that_of_its_statistics(stored):
    found, counted = kfc.Normalization.of(stored.x_train), stored.channel_statistics()
    np.testing.assert_allclose((found.mean, found.std), counted, rtol=1e-12)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3), r"x has shape \(3,\); required"),
        (np.zeros((0, 3)), r"x has shape \(0, 3\); required"),
        ([[1.0, 2.0], [0.1, np.nan]], "channel 1 of x has the standard deviation nan"),
        ([[1.0, 0.1], [2.0, 0.1], [3.0, 0.1]], "channel 1 of x is 0.1 everywhere"),
    ],
)
def test_no_normalization_of_data_without_variance(x, message):
    with pytest.raises(ValueError, match=message):
        kfc.Normalization.of(x)


def test_a_run_folder(run, tmp_path):
    model, trainer = kfc.load(run / "run")
    data = kfc.datasets.load("mnist", run)
    _, error = kfc.evaluate(model.net, LOSS, data.normalized()[1], data.y_test)
    row = json.loads((run / "run" / "history.json").read_text())["history"][-1]
    assert row["validation_error"] == error
    right = model.predict_class(data.x_test) == np.array(data.classes)[data.y_test]
    assert 1 - right.mean() == pytest.approx(error)
    assert isinstance(trainer.optimizer, kfc.KFC)
    assert trainer.history.rows[-1]["step"] == trainer.steps == 6
    x, x_test = data.normalized()
    trainer.fit(
        x,
        data.y_train,
        batch_size=trainer.notes["run"]["batch_size"],
        total_epochs=3,
        validation=(x_test, data.y_test),
        progress=False,
    )
    (tmp_path / "run").mkdir()
    for path in (run / "run").iterdir():
        (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    words = ["train", "--resume", "--output", str(tmp_path / "run"), "--epochs", "3", "--quiet"]
    assert main(words) == 0
    found = kfc.load(tmp_path / "run")[1]
    assert found.steps == trainer.steps == 9
    for name, value in found.optimizer_state.items():
        np.testing.assert_array_equal(value, trainer.optimizer_state[name], err_msg=name)


def test_what_is_no_run_folder(tmp_path):
    for load in (kfc.load, kfc.load_model):
        with pytest.raises(FileNotFoundError, match=r"holds no checkpoint\.safetensors: give a fo"):
            load(tmp_path)
        with pytest.raises(FileNotFoundError, match="gone does not exist: give a folder"):
            load(tmp_path / "gone")
        Path(tmp_path / "text").write_text("text")
        with pytest.raises(ValueError, match="text must be a whole kfc_numba checkpoint"):
            load(tmp_path / "text")


def test_public_names():
    assert {"networks", "evaluate", "load", "load_model", "Model"} <= set(kfc.__all__)
    assert kfc.networks.names()


def places_to_load_from():
    net, loss, optimizer = network(), kfc.SoftmaxCrossEntropy(), kfc.SGD()
    return [kfc.load, kfc.load_model, lambda path: kfc.Trainer.load(path, net, loss, optimizer)]


@pytest.mark.parametrize("load", places_to_load_from(), ids=["load", "load_model", "Trainer.load"])
def test_what_is_missing_is_said_with_what_is_needed(load, tmp_path):
    need = r": give a folder that kfc-numba train wrote, or a file of Trainer\.save$"
    for name in ("runs/none", "gone.safetensors", "file/inside"):
        (tmp_path / "file").write_text("text")
        with pytest.raises(FileNotFoundError, match=rf"^\S*{name} does not exist{need}"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path} holds no checkpoint.*s{need}"):
        load(tmp_path)
    for name in ("b", "a", "empty"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        (tmp_path / name / "checkpoint.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/a and {tmp_path}/b have one$"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"file must be a whole kfc_numba checkpoint, "):
        load(tmp_path / "file")


def test_a_trainer_is_loaded_from_a_folder(tmp_path):
    trainer = kfc.Trainer(network(), kfc.SoftmaxCrossEntropy(), kfc.SGD(), seed=3)
    trainer.save(tmp_path / "checkpoint.safetensors")
    for load in places_to_load_from():
        load(tmp_path)
