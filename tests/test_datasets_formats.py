"""Readers of official formats on small files: right content, and one clear error on bad files."""

import gzip
import re

import dataset_files as files
import numpy as np
import pytest

from kfc_numba.datasets import (
    DatasetError,
    DatasetNotFoundError,
    cifar10_batches,
    load,
    mnist_folder,
    read_cifar10_batch,
    read_idx,
    read_svhn_mat,
)


def refuses(path, expected):
    """The one error that names `path` and says what was expected."""
    return pytest.raises(DatasetError, match=re.escape(str(path)) + ".*" + expected)


# ------------------------------------------------------------------------------------- IDX


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", ["file", "file.gz"])
def test_idx_of_known_bytes(tmp_path, compress, name):
    content = b"\0\0\x08\x03" + b"\0\0\0\2" + b"\0\0\0\1" + b"\0\0\0\3" + b"\1\2\3\4\5\xff"
    path = tmp_path / name
    path.write_bytes(compress(content))
    array = read_idx(path)
    assert array.tolist() == [[[1, 2, 3]], [[4, 5, 255]]]
    assert array.dtype == np.uint8
    assert array.flags.writeable


GOOD = files.idx_bytes(np.arange(6).reshape(2, 3))
BAD_IDX = {
    "empty": (b"", "zero bytes"),
    "two bytes": (GOOD[:2], "zero bytes"),
    "other format": (b"\x89PNG" + GOOD[4:], "zero bytes"),
    "floats": (files.idx_bytes([1, 2], kind=0x0D), "unsigned bytes"),
    "no dimension": (b"\0\0\x08\0", "whole header"),
    "cut header": (GOOD[:9], "whole header"),
    "header alone": (GOOD[:12], r"expected 6, for the stated shape \(2, 3\)"),
    "one byte short": (GOOD[:-1], "only 5.*expected 6"),
    "one byte more": (GOOD + b"\0", "more bytes.*expected 6"),
    "absurd size": (b"\0\0\x08\4" + b"\xff" * 16 + b"\0", "which is more than 32 times the 2"),
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx(tmp_path, case, compress):
    content, expected = BAD_IDX[case]
    path = tmp_path / "labels"
    path.write_bytes(compress(content))
    with refuses(path, expected):
        read_idx(path)


@pytest.fixture(params=[7, 200, 1 << 24])
def piece(request, monkeypatch):
    """Files are read in pieces of so many bytes; 200 is the whole of the files below."""
    monkeypatch.setattr("kfc_numba.datasets.idx.PIECE", request.param)


@pytest.mark.usefixtures("piece")
def test_gzip_is_refused_wherever_it_is_cut(tmp_path):
    whole = gzip.compress(files.idx_bytes(np.arange(200)))
    path = tmp_path / "images.gz"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with refuses(path, "expected"):
            read_idx(path)


@pytest.mark.usefixtures("piece")
def test_no_damaged_byte_of_a_gzip_file_changes_the_data(tmp_path):
    array = np.arange(200, dtype=np.uint8)
    whole = gzip.compress(files.idx_bytes(array))
    path = tmp_path / "images.gz"
    errors = []
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        try:
            # Date, operating system and the like may differ without harm.
            np.testing.assert_array_equal(read_idx(path), array)
        except DatasetError as error:
            errors.append(str(error))
    assert len(errors) >= len(whole) - 8
    assert all(str(path) in error for error in errors)
    path.write_bytes(whole + b"surplus")
    with refuses(path, "gzip"):
        read_idx(path)


def test_missing_file_and_folder_in_place_of_a_file(tmp_path):
    for read in (read_idx, read_cifar10_batch, read_svhn_mat):
        with pytest.raises(DatasetNotFoundError, match="nowhere: no such file; expected") as info:
            read(tmp_path / "nowhere")
        assert isinstance(info.value, FileNotFoundError)
        assert isinstance(info.value, ValueError)
        with refuses(tmp_path, "expected"):
            read(tmp_path)


# ------------------------------------------------------------------ MNIST and Fashion-MNIST


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_folder(tmp_path, name, compressed):
    arrays = files.write_mnist(tmp_path, compressed=compressed)
    data = mnist_folder(tmp_path, name)
    for split in ("train", "test"):
        np.testing.assert_array_equal(getattr(data, f"x_{split}")[..., 0], arrays[f"x_{split}"])
        np.testing.assert_array_equal(getattr(data, f"y_{split}"), arrays[f"y_{split}"])
    assert data.image_shape == (28, 28, 1)
    assert data.name == name
    assert data.classes[9] == {"mnist": "9", "fashion-mnist": "Ankle boot"}[name]


def test_mnist_files_with_a_dot_in_the_name(tmp_path):
    arrays = files.write_mnist(tmp_path, compressed=False)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    np.testing.assert_array_equal(mnist_folder(tmp_path).y_test, arrays["y_test"])


@pytest.mark.parametrize("key", files.IDX_FILES)
def test_each_missing_mnist_file_is_named(tmp_path, key):
    files.write_mnist(tmp_path)
    (tmp_path / f"{files.IDX_FILES[key]}.gz").unlink()
    with pytest.raises(DatasetNotFoundError, match=files.IDX_FILES[key]):
        mnist_folder(tmp_path)


def change_to(key, change):
    arrays = files.mnist_arrays()
    arrays[key] = change(arrays[key])
    return key, arrays


BAD_MNIST = {
    "label 10": (*change_to("y_test", lambda y: np.where(y == 9, 10, y)), "labels from 0 to 9"),
    "label too few": (*change_to("y_train", lambda y: y[1:]), r"shape \(40,\)"),
    "label too many": (*change_to("y_test", lambda y: np.append(y, 0)), r"shape \(20,\)"),
    "labels as images": (*change_to("x_train", lambda x: x[:, 0, 0]), r"\(N, 28, 28\)"),
    "images as labels": (*change_to("y_train", lambda y: np.zeros((40, 28, 28))), r"\(40,\)"),
    "narrow images": (*change_to("x_test", lambda x: x[:, :, 1:]), r"\(N, 28, 28\)"),
    "no image": (*change_to("x_test", lambda x: x[:0]), r"\(N, 28, 28\)"),
}


@pytest.mark.parametrize("case", BAD_MNIST)
def test_bad_mnist_folder(tmp_path, case):
    key, arrays, expected = BAD_MNIST[case]
    files.write_mnist(tmp_path, arrays)
    with refuses(tmp_path / f"{files.IDX_FILES[key]}.gz", f"expected.*{expected}"):
        mnist_folder(tmp_path)


@pytest.mark.parametrize(
    ("holds", "asked", "labels"),
    [
        ("fashion-mnist", "mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9, 1, 0, 6, 4]),
        ("mnist", "fashion-mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7, 2, 8, 6, 9]),
    ],
)
def test_the_two_sets_of_the_same_file_names_are_not_confused(tmp_path, holds, asked, labels):
    arrays = files.mnist_arrays()
    arrays["y_train"] = np.array([*labels, *arrays["y_train"][20:]])
    files.write_mnist(tmp_path, arrays)
    with refuses(tmp_path / "train-labels-idx1-ubyte.gz", f"'{holds}'; expected those of '{asked}"):
        mnist_folder(tmp_path, asked)
    assert mnist_folder(tmp_path, holds).y_train[:20].tolist() == labels


def test_mnist_folder_knows_two_names(tmp_path):
    with pytest.raises(ValueError, match="name is 'emnist'; required: one of 'mnist'"):
        mnist_folder(tmp_path, "emnist")


# -------------------------------------------------------------------------------- CIFAR-10


@pytest.fixture
def cifar_folder(tmp_path):
    rng = np.random.default_rng(1)
    batches = {}
    for name in [*files.CIFAR_TRAINING, "test_batch.bin"]:
        images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        labels = rng.integers(0, 10, 3)
        (tmp_path / name).write_bytes(files.cifar_bytes(images, labels))
        batches[name] = images, labels
    return tmp_path, batches


def test_cifar10_batch(cifar_folder):
    folder, batches = cifar_folder
    images, labels = batches["data_batch_2.bin"]
    for records in (3, None):
        x, y = read_cifar10_batch(folder / "data_batch_2.bin", records=records)
        np.testing.assert_array_equal(x, images)
        np.testing.assert_array_equal(y, labels)
        assert x.flags.c_contiguous
        assert y.dtype == np.int64


def test_bad_cifar10_batch(cifar_folder):
    folder, _ = cifar_folder
    path = folder / "data_batch_1.bin"
    whole = path.read_bytes()
    for cut in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(cut)
        for records, expected in ((3, "3 records of 3,073"), (None, "whole number of records")):
            with refuses(path, expected):
                read_cifar10_batch(path, records=records)
    # A cut between two records shows only in the number of records.
    path.write_bytes(whole[:-3073])
    with refuses(path, r"3 records of 3,073 bytes \(9,219 bytes\)"):
        read_cifar10_batch(path, records=3)
    with refuses(path, r"10,000 records of 3,073 bytes \(30,730,000 bytes\)"):
        read_cifar10_batch(path)
    path.write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    with refuses(path, "label 10 in record 1; expected labels from 0 to 9"):
        read_cifar10_batch(path, records=3)


@pytest.mark.parametrize(
    ("split", "train", "test", "name"),
    [
        ({}, files.CIFAR_TRAINING, ["test_batch.bin"], "cifar-10"),
        (
            {"train": (1, 2, 3, 4), "test": (5,)},
            files.CIFAR_TRAINING[:4],
            ["data_batch_5.bin"],
            "cifar-10-heldout",
        ),
        (
            {"train": [3, "test"], "test": [2]},
            ["data_batch_3.bin", "test_batch.bin"],
            ["data_batch_2.bin"],
            "cifar-10 (3+test / 2)",
        ),
    ],
)
def test_cifar10_splits(cifar_folder, split, train, test, name):
    folder, batches = cifar_folder
    for unused in {*batches} - {*train, *test}:
        (folder / unused).unlink()
    data = cifar10_batches(folder, records=3, **split)
    for x, y, used in ((data.x_train, data.y_train, train), (data.x_test, data.y_test, test)):
        np.testing.assert_array_equal(x, np.concatenate([batches[file][0] for file in used]))
        np.testing.assert_array_equal(y, np.concatenate([batches[file][1] for file in used]))
    assert data.name == name
    assert data.classes[6] == "frog"


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": (1, 2), "test": (2,)}, r"train is \(1, 2\).*no file twice"),
        ({"train": (1, 1)}, "no file twice"),
        ({"train": ()}, r"train is \(\); required: at least one of"),
        ({"test": (6,)}, r"test is \(6,\); required: at least one of 1, 2, 3, 4, 5, 'test'"),
    ],
)
def test_cifar10_bad_splits(cifar_folder, split, message):
    with pytest.raises(ValueError, match=message):
        cifar10_batches(cifar_folder[0], records=3, **split)


def test_cifar10_by_name_in_official_size(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    files.write_blank_cifar(folder, files.CIFAR_TRAINING)
    heldout = load("cifar-10-heldout", folder)
    assert heldout.x_train.shape == (40_000, 32, 32, 3)
    assert heldout.y_train[::10_000].tolist() == [0, 1, 2, 3]
    assert heldout.x_test.shape == (10_000, 32, 32, 3)
    assert heldout.y_test[0] == 4
    with pytest.raises(DatasetNotFoundError, match=r"lacks test_batch\.bin .*'cifar-10-heldout'"):
        load("cifar-10", folder)
    # The first 1,000 records in place of the whole test batch are no test set.
    with open(folder / "test_batch.bin", "wb") as file:
        file.truncate(1000 * 3073)
    with refuses(folder / "test_batch.bin", "10,000 records"):
        load("cifar-10", folder)
    files.write_blank_cifar(folder, ["test_batch.bin"])
    data = load("cifar-10", tmp_path)
    assert data.x_train.shape == (50_000, 32, 32, 3)
    assert data.y_train[::10_000].tolist() == [0, 1, 2, 3, 4]
    assert data.name == "cifar-10"
