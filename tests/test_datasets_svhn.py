"""SVHN's MATLAB files: right content, and one clear error, never a crash, on damaged ones."""

import re
import struct
import zlib

import dataset_files as files
import numpy as np
import pytest
import scipy.io

from kfc_numba.datasets import (
    DatasetError,
    DatasetNotFoundError,
    load,
    read_svhn_mat,
    svhn_folder,
)
from kfc_numba.datasets.matfile import read_mat


def refuses(path, expected):
    """The one error that names `path` and says what was expected."""
    return pytest.raises(DatasetError, match=re.escape(str(path)) + ".*" + expected)


@pytest.fixture
def digits():
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    return images, np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0])


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path, digits, compressed, monkeypatch):
    # Small enough that this file, like the official ones, is decompressed in several pieces.
    monkeypatch.setattr("kfc_numba.datasets.matfile.PIECE", 1000)
    images, labels = digits
    files.write_svhn(tmp_path / "train_32x32.mat", images, labels, compressed=compressed)
    files.write_svhn(tmp_path / "test_32x32.mat", images[:4], labels[:4], compressed=compressed)
    data = svhn_folder(tmp_path)
    np.testing.assert_array_equal(data.x_train, images)
    np.testing.assert_array_equal(data.y_train, labels)
    np.testing.assert_array_equal(data.x_test, images[:4])
    np.testing.assert_array_equal(data.y_test, labels[:4])
    assert data.x_train.flags.c_contiguous
    assert load("svhn", tmp_path).classes[0] == "0"
    (tmp_path / "test_32x32.mat").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"test_32x32\.mat: no such file"):
        svhn_folder(tmp_path)


X = np.zeros((32, 32, 3, 2), dtype=np.uint8)
Y = np.array([[1], [10]], dtype=np.uint8)
BAD_SVHN = {
    "no X": ({"y": Y}, "'X'"),
    "no y": ({"X": X}, "'y'"),
    "X is a structure": ({"X": {"a": X}, "y": Y}, "'X' is not an array of real numbers"),
    "X is complex": ({"X": X * 1j, "y": Y}, "'X' is not an array of real numbers"),
    "format 1": ({"digitStruct": X}, "SVHN format 2"),
    "images first": ({"X": X.transpose(3, 0, 1, 2), "y": Y}, r"\(32, 32, 3, N\)"),
    "floats": ({"X": X.astype(float), "y": Y}, "uint8"),
    "one image": ({"X": X[..., 0], "y": Y[:1]}, r"\(32, 32, 3, N\)"),
    "label too few": ({"X": X, "y": Y[:1]}, r"2 numbers, shape \(N, 1\)"),
    "label texts": ({"X": X, "y": np.array(["a", "b"], dtype=object)}, "'y' is not an array"),
    "no image": ({"X": X[..., :0], "y": Y[:0]}, "some numbers"),
    "label 0": ({"X": X, "y": Y - 1}, "labels from 1 to 10"),
    "label 11": ({"X": X, "y": Y + 1}, "labels from 1 to 10"),
    "label 1.5": ({"X": X, "y": Y + 0.5}, "labels from 1 to 10"),
    "label nan": ({"X": X, "y": Y * np.nan}, "labels from 1 to 10"),
}


@pytest.mark.parametrize("case", BAD_SVHN)
def test_bad_svhn(tmp_path, case):
    content, expected = BAD_SVHN[case]
    path = tmp_path / "train_32x32.mat"
    scipy.io.savemat(path, content)
    with refuses(path, expected):
        read_svhn_mat(path)


def test_svhn_labels_of_another_number_type(tmp_path):
    path = tmp_path / "train_32x32.mat"
    scipy.io.savemat(path, {"X": X, "y": Y.astype(float)})
    assert read_svhn_mat(path)[1].tolist() == [1, 0]


@pytest.mark.parametrize("compressed", [True, False])
def test_cut_svhn_is_refused(tmp_path, digits, compressed):
    path = tmp_path / "test_32x32.mat"
    files.write_svhn(path, *digits, compressed=compressed)
    whole = path.read_bytes()
    for length in [
        *range(300),
        *range(300, len(whole) - 40, 997),
        *range(len(whole) - 40, len(whole)),
    ]:
        path.write_bytes(whole[:length])
        with refuses(path, "expected"):
            read_svhn_mat(path)


def test_no_damaged_byte_of_a_compressed_svhn_file_changes_the_data(tmp_path, digits):
    images, labels = digits
    path = tmp_path / "test_32x32.mat"
    files.write_svhn(path, images, labels)
    whole = path.read_bytes()
    end = len(whole)
    # Beyond the header's text every byte counts.
    for position in [*range(124, 400), *range(400, end - 400, 173), *range(end - 400, end)]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        path.write_bytes(damaged)
        with refuses(path, "expected"):
            read_svhn_mat(path)
    path.write_bytes(whole + b"surplus")
    with refuses(path, "ends inside a tag"):
        read_svhn_mat(path)


def test_a_damaged_uncompressed_svhn_file_raises_nothing_but_the_one_error(tmp_path):
    # Such a file has no checksum: a changed pixel goes unseen, a changed structure must not.
    path = tmp_path / "test_32x32.mat"
    files.write_svhn(path, X.transpose(3, 0, 1, 2), [1, 0], compressed=False)
    whole = path.read_bytes()
    pixels = range(192, 192 + X.size)
    errors = []
    for position in set(range(124, len(whole))) - set(pixels[1:]):
        for change in (0x01, 0x0F, 0x41, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= change
            path.write_bytes(damaged)
            try:
                x, y = read_svhn_mat(path)
            except DatasetError as error:
                errors.append(str(error))
            else:
                assert x.shape == (2, 32, 32, 3)
                assert y.shape == (2,)
    assert len(errors) > 400
    assert all(str(path) in error for error in errors)


def test_svhn_file_of_another_format(tmp_path):
    path = tmp_path / "train_32x32.mat"
    later = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(512)
    for content in (later, b"", bytes(1000), files.idx_bytes(np.zeros(500))):
        path.write_bytes(content)
        with refuses(path, "MATLAB file of version 5"):
            read_svhn_mat(path)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", "bBhHiIqQfd")
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 1, 3), (0, 2)])
def test_numeric_arrays_of_matlab_files(tmp_path, dtype, shape, compressed):
    rng = np.random.default_rng(3)
    array = rng.integers(0, 100, shape).astype(dtype)
    path = tmp_path / "arrays.mat"
    content = {"a": np.ones((5, 5)), "wanted": array, "text": "text", "s": {"wanted": 1.0}}
    scipy.io.savemat(path, content, do_compression=compressed)
    found = read_mat(path, {"wanted", "absent"})
    assert list(found) == ["wanted"]
    assert found["wanted"].dtype == array.dtype
    np.testing.assert_array_equal(found["wanted"], array)


def element(kind, payload):
    return struct.pack("<2I", kind, len(payload)) + payload + bytes(-len(payload) % 8)


def variable(name=b"y", array_class=9, shape=(1, 3), stored=2, numbers=b"\1\2\3", rest=b""):
    """An array element: by default y = [[1, 2, 3]] of unsigned bytes."""
    content = element(6, struct.pack("<2I", array_class, 0))
    content += element(5, struct.pack(f"<{len(shape)}i", *shape))
    content += element(1, name) + element(stored, numbers) + rest
    return element(14, content)


def compressed(content, before_end=b"", cut=0):
    stream = zlib.compress(content)
    stream = stream[: len(stream) - cut] + before_end
    return struct.pack("<2I", 15, len(stream)) + stream


DOUBLES = struct.pack("<3d", 1, 2, 3)
BAD_ELEMENTS = {
    "stream longer than its end": (compressed(variable(), before_end=b"junk"), "wrong length"),
    "stream without its checksum": (compressed(variable(), cut=4), "wrong length"),
    "two arrays in a stream": (compressed(variable() + variable(b"z")), "surplus of"),
    "no array in a stream": (compressed(element(2, b"12345678")), "type 2 where an array"),
    "the same name twice": (variable() + variable(), "two variables 'y'"),
    "bytes stored as doubles": (variable(stored=9, numbers=DOUBLES), "stored as type 9"),
    "unknown storage": (variable(stored=99), "stored as type 99"),
    "unknown class": (variable(array_class=99), "not an array of real numbers"),
    "too few numbers": (variable(shape=(1, 4)), r"shape \(1, 4\)"),
    "negative shape": (variable(shape=(-1, -3)), r"shape \(-1, -3\)"),
    "one dimension": (variable(shape=(3,)), "without dimensions"),
    "imaginary part": (variable(rest=element(2, b"\1\2\3")), "in 3 bytes"),
}


@pytest.mark.parametrize("case", BAD_ELEMENTS)
def test_malformed_elements_of_matlab_files(tmp_path, case):
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    path = tmp_path / "array.mat"
    for good in (variable(), compressed(variable()), variable(array_class=6)):
        path.write_bytes(header + good)
        assert read_mat(path, ["y"])["y"].tolist() == [[1, 2, 3]]
    content, expected = BAD_ELEMENTS[case]
    path.write_bytes(header + content)
    with refuses(path, expected):
        read_mat(path, ["y"])


def test_matlab_file_of_the_other_byte_order_with_numbers_in_a_smaller_type(tmp_path):
    # A 1x3 array of doubles as MATLAB writes it on a big-endian machine: stored in 16 bits.
    elements = struct.pack(">4I", 6, 8, 6, 0)
    elements += struct.pack(">2I2i", 5, 8, 1, 3)
    elements += struct.pack(">2H4s", 1, 1, b"y")
    elements += struct.pack(">2I4h", 3, 6, 1, -2, 300, 0)
    path = tmp_path / "big.mat"
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    path.write_bytes(header + struct.pack(">2I", 14, len(elements)) + elements)
    array = read_mat(path, ["y"])["y"]
    assert array.tolist() == [[1.0, -2.0, 300.0]]
    assert array.dtype == np.float64
