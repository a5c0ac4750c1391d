"""The data set type, its normalisation, and the set that ships with the package."""

import hashlib
import importlib.util
import io
import os
import sys
from pathlib import Path

import dataset_files as files
import numpy as np
import pytest

from kfc_numba.datasets import (
    Dataset,
    DatasetError,
    DatasetNotFoundError,
    fashion_mnist_10k,
    load,
    names,
)
from kfc_numba.datasets.bundled import BUNDLED_FILE

CONTENT_SHA256 = {
    "x_train": "01c408beb66a60d556683d8ec69ea386d2b15db57fdb9bb99cc2a4e0d7e640b7",
    "y_train": "3f6dbb36c9d5b4be30bd3e1d1354d33b46372eac1c98d6296c251745f0712e73",
    "x_test": "f7724f9d573454859dcc221467acc926607f478782763736103991e8e04b17f5",
    "y_test": "261b8a767e92741a1e4a7f6d59a42f0de1ce57c9146bd3d81bed703bf90c4f84",
}


def make(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "name": "made up",
        "x_train": rng.integers(0, 200, (1030, 3, 2, 3), dtype=np.uint8),
        "y_train": rng.integers(0, 2, 1030),
        "x_test": rng.integers(100, 256, (7, 3, 2, 3), dtype=np.uint8),
        "y_test": rng.integers(0, 2, 7),
        "classes": ("cat", "dog"),
    }
    return Dataset(**{**fields, **changes})


# ------------------------------------------------------------------- the type, normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_uses_the_training_set_alone(channels):
    data = make()
    data = make(x_train=data.x_train[..., :channels], x_test=data.x_test[..., :channels])
    mean, std = data.channel_statistics()
    x_train, x_test = data.normalized(np.float64)
    for c in range(channels):
        values = [float(v) for v in data.x_train[..., c].ravel()]
        m = sum(values) / len(values)
        s = (sum((v - m) ** 2 for v in values) / len(values)) ** 0.5
        np.testing.assert_allclose([mean[c], std[c]], [m, s], rtol=1e-12)
        np.testing.assert_allclose(
            x_test[..., c], (data.x_test[..., c].astype(float) - m) / s, rtol=1e-11
        )
    # Sums of 6,180 rounded values: a few times 1e-16 each.
    np.testing.assert_allclose(x_train.mean(axis=(0, 1, 2)), 0, atol=1e-13)
    np.testing.assert_allclose(x_train.var(axis=(0, 1, 2)), 1, rtol=1e-13)
    single_train, single_test = data.normalized()
    np.testing.assert_array_equal(single_train, x_train.astype(np.float32))
    np.testing.assert_array_equal(single_test, x_test.astype(np.float32))
    assert single_train.dtype == np.float32
    assert single_train.flags.c_contiguous


def test_normalisation_refuses_a_constant_channel_and_other_types():
    x = make().x_train.copy()
    x[..., 1] = 7
    with pytest.raises(ValueError, match="channel 1 of 'made up' is 7 at every training pixel"):
        make(x_train=x).normalized()
    with pytest.raises(ValueError, match="dtype is int32; required: float32 or float64"):
        make().normalized(np.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x_train": np.zeros((4, 3, 2, 3))}, TypeError, "x_train is float64; .* uint8"),
        ({"y_test": np.zeros(7, np.uint8)}, TypeError, "y_test is uint8; .* int64"),
        ({"y_test": [0] * 7}, TypeError, "y_test is list; .* int64"),
        ({"x_test": np.zeros((7, 3, 2), np.uint8)}, ValueError, r"x_test has shape \(7, 3, 2\)"),
        ({"x_test": np.zeros((0, 3, 2, 3), np.uint8)}, ValueError, "none of them 0"),
        ({"y_train": np.zeros(1029, np.int64)}, ValueError, r"y_train .*required: \(1030,\)"),
        ({"y_test": np.arange(7)}, ValueError, "y_test .* 0 to 6; required: 0 to 1"),
        ({"y_test": np.arange(7) - 6}, ValueError, "y_test .* -6 to 0; required: 0 to 1"),
        ({"x_test": np.zeros((7, 3, 3, 3), np.uint8)}, ValueError, r"x_test .*\(3, 2, 3\)"),
    ],
)
def test_dataset_checks_its_fields(changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


def test_dataset_says_what_it_is():
    data = make()
    assert data.image_shape == (3, 2, 3)
    assert repr(data) == ("Dataset('made up': 1030 training and 7 test images of 3x2x3, 2 classes)")
    with pytest.raises(AttributeError):
        data.name = "other"


# -------------------------------------------------------------------------- the bundled set


def test_bundled_set_is_balanced_and_unaltered():
    data = load("fashion-mnist-10k")
    assert data.x_train.shape == (10_000, 28, 28, 1)
    assert data.x_test.shape == (2_000, 28, 28, 1)
    assert np.bincount(data.y_train).tolist() == [1000] * 10
    assert np.bincount(data.y_test).tolist() == [200] * 10
    assert data.classes[1] == "Trouser"
    for key, expected in CONTENT_SHA256.items():
        assert hashlib.sha256(getattr(data, key).tobytes()).hexdigest() == expected, key
    # Mean and deviation of all of Fashion-MNIST are 72.94 and 90.02 (0.2860 and 0.3530 of 255).
    mean, std = data.channel_statistics()
    assert abs(mean[0] - 72.94) < 1
    assert abs(std[0] - 90.02) < 1


def test_bundled_file_is_small_and_has_its_licence_beside_it():
    assert BUNDLED_FILE.stat().st_size < 6_000_000
    licence = BUNDLED_FILE.with_name("fashion_mnist_10k.LICENSE.txt").read_text()
    for part in ("MIT License", "Copyright (c) 2017 Zalando SE", "AS IS", "copyright notice"):
        assert part in licence


def test_altered_bundled_file_is_refused(tmp_path):
    whole = BUNDLED_FILE.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    pickled = io.BytesIO()
    np.savez(pickled, x_train=np.array([{"any": "object"}], dtype=object))
    path = tmp_path / "fashion_mnist_10k.npz"
    for content in (whole[:-1], whole + b"\0", flipped, pickled.getvalue(), b""):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=f"{path}: .*expected the file that ships"):
            fashion_mnist_10k(path)
    path.unlink()
    with pytest.raises(DatasetNotFoundError, match=f"{path}: no such file; expected the file"):
        fashion_mnist_10k(path)
    path.write_bytes(whole)
    assert len(fashion_mnist_10k(path).x_train) == 10_000


def test_bundled_set_takes_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"folder is .* ships with the package"):
        load("fashion-mnist-10k", tmp_path)
    assert load("fashion-mnist-10k", download=True).name == names()[0] == "fashion-mnist-10k"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name is 'cifar'; .*'cifar-10', 'cifar-10-heldout'"):
        load("cifar")


# ----------------------------------------------------------- the script that cut the subset


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[1] / "scripts" / "make_fashion_mnist_subset.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def full_set(train=60, test=40):
    """A set in which the first pixels of an image spell its number."""
    numbers = np.arange(train + test)
    x = np.zeros((train + test, 28, 28, 1), dtype=np.uint8)
    x[:, 0, 0, 0], x[:, 0, 1, 0] = numbers // 256, numbers % 256
    y = np.random.default_rng(4).permutation(numbers % 10)
    return Dataset("full", x[:train], y[:train], x[train:], y[train:], tuple("0123456789"))


def test_cut_is_balanced_ordered_and_repeatable(script):
    full = full_set(600, 400)
    part = script.cut(full, 5, 3)
    for split, per_class, first in (("train", 5, 0), ("test", 3, 600)):
        x, y = part[f"x_{split}"].astype(int), part[f"y_{split}"]
        numbers = x[:, 0, 0, 0] * 256 + x[:, 0, 1, 0] - first
        assert (np.diff(numbers) > 0).all()
        np.testing.assert_array_equal(y, getattr(full, f"y_{split}")[numbers])
        assert np.bincount(y).tolist() == [per_class] * 10
    assert script.pack(script.cut(full, 5, 3)) == script.pack(part)
    with np.load(io.BytesIO(script.pack(part)), allow_pickle=False) as packed:
        for key, array in part.items():
            np.testing.assert_array_equal(packed[key], array)
            assert packed[key].dtype == np.uint8
    with pytest.raises(ValueError, match=r"class \d has \d+ images; required: at least 99"):
        script.cut(full, 99, 3)


def test_script_writes_its_file_whole(script, tmp_path, monkeypatch, capsys):
    blank = {
        "x_train": np.zeros((10_000, 28, 28)),
        "y_train": np.arange(10_000) % 10,
        "x_test": np.zeros((2_000, 28, 28)),
        "y_test": np.arange(2_000) % 10,
    }
    files.write_mnist(tmp_path / "full", blank, compressed=False)
    output = tmp_path / "subset.npz"
    arguments = ["make", str(tmp_path / "full"), "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert hashlib.sha256(output.read_bytes()).hexdigest() in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["full", "subset.npz"]
    with np.load(output, allow_pickle=False) as packed:
        np.testing.assert_array_equal(packed["y_test"], blank["y_test"])


def test_cutting_a_full_set_gives_the_bundled_images_in_their_order(script, tmp_path):
    """The bundled images as a full set, as an operating system's package would install them."""
    data = load("fashion-mnist-10k")
    arrays = {key: np.squeeze(getattr(data, key)) for key in CONTENT_SHA256}
    files.write_mnist(tmp_path, arrays)
    part = script.cut(load("fashion-mnist", tmp_path))
    for key in CONTENT_SHA256:
        assert part[key].dtype == np.uint8
        np.testing.assert_array_equal(part[key], getattr(data, key))
