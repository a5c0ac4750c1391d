"""How much memory files may ask for: small ones that claim or hold much, and ones that lie."""

import gzip
import io
import struct
import tracemalloc
import zlib

import dataset_files
import numpy as np
import pytest

from kfc_numba.datasets import (
    DatasetError,
    fashion_mnist_10k,
    mnist_folder,
    read_idx,
    read_svhn_mat,
)
from kfc_numba.datasets.base import implausible, received
from kfc_numba.datasets.matfile import read_mat

MB = 1 << 20
MOST = 70 * MB  # in use at once, whatever a file of less than 2 MB says


class peak_below:
    """A block that uses no more memory than this at any time."""

    def __init__(self, most):
        self.most = most

    def __enter__(self):
        tracemalloc.start()

    def __exit__(self, *error):
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < self.most, f"{peak / MB:.0f} MB"


def refused(read, path, words):
    with peak_below(MOST), pytest.raises(DatasetError, match=words) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_bound_itself():
    with pytest.raises(AssertionError), peak_below(MOST):
        np.ones(2 * MOST, np.uint8)
    assert implausible(64 * MB, 100) is None
    assert implausible(64 * MB + 1, 100) is not None
    assert implausible(3200 * MB, 100 * MB) is None
    assert implausible(3200 * MB + 1, 100 * MB) is not None
    # The official sets.
    assert implausible(60_000 * 28 * 28, 9_912_422) is None
    assert implausible(73_257 * 32 * 32 * 3, 182_040_794) is None


def zeros(size, before=b""):
    """A zlib stream of zeros, made in pieces."""
    stream = zlib.compressobj()
    parts = [stream.compress(before)]
    parts += [stream.compress(bytes(MB)) for _ in range(size // MB)]
    return b"".join((*parts, stream.flush()))


def idx_header(*shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def test_a_gzip_file_that_holds_a_hundred_times_more(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        file.write(idx_header(128, MB))
        for _ in range(128):
            file.write(bytes(MB))
    assert path.stat().st_size < MB
    refused(read_idx, path, "which is more than 32 times the 1")


def test_a_gzip_file_that_holds_much_more_than_it_says(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as file:
        file.write(idx_header(10))
        for _ in range(256):
            file.write(bytes(MB))
    refused(read_idx, path, "holds more bytes after its header; expected 10,")


@pytest.mark.parametrize("dimensions", [33, 65, 255])
def test_idx_files_of_many_dimensions(tmp_path, dimensions):
    path = tmp_path / "many"
    path.write_bytes(idx_header(*[1] * dimensions) + b"\7")
    refused(read_idx, path, f"header of {dimensions} dimensions; expected at most 32 dimensions")


@pytest.mark.parametrize(
    "shape", [(0, *[(1 << 32) - 1] * 3), ((1 << 32) - 1, 0, (1 << 32) - 1, (1 << 32) - 1)]
)
def test_idx_files_without_elements_whose_shape_no_array_has(tmp_path, shape):
    path = tmp_path / "nothing"
    path.write_bytes(idx_header(*shape))
    refused(read_idx, path, "one that an array can have")


def test_a_sparse_idx_file_is_not_read_if_its_shape_is_wrong(tmp_path):
    """40 GB of nothing, which take no place on the disk."""
    dataset_files.write_mnist(tmp_path, compressed=False)
    path = tmp_path / "train-images-idx3-ubyte"
    with open(path, "wb") as file:
        file.write(idx_header(40, 1 << 15, 1 << 15))
        file.truncate(40 << 30)
    refused(lambda path: mnist_folder(tmp_path), path, "expected images of shape")
    path = tmp_path / "train-labels-idx1-ubyte"
    dataset_files.write_mnist(tmp_path, compressed=False)
    with open(path, "wb") as file:
        file.write(idx_header(4 << 28))
        file.truncate(40 << 30)
    refused(lambda path: mnist_folder(tmp_path), path, "one label for each image")


def mat(*elements):
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements)


def matrix_header(name, shape, size, *, array_class=9, stored=2):
    """All of an array element of bytes that comes before its numbers."""
    content = struct.pack("<4I", 6, 8, array_class, 0)
    content += struct.pack("<2I", 5, 4 * len(shape)) + struct.pack(f"<{len(shape)}i", *shape)
    content += bytes(4 * (len(shape) % 2))
    content += struct.pack("<2I", 1, len(name)) + name + bytes(-len(name) % 8)
    content += struct.pack("<2I", stored, size)
    return struct.pack("<2I", 14, len(content) + size) + content


def packed(stream):
    return struct.pack("<2I", 15, len(stream)) + stream


def test_variables_that_are_not_wanted_are_not_inflated(tmp_path):
    path = tmp_path / "skipped.mat"
    large = packed(zeros(1 << 27, matrix_header(b"other", (128, MB), 1 << 27)))
    wanted = zlib.compress(matrix_header(b"y", (1, 8), 8) + bytes(range(8)))
    path.write_bytes(mat(large, packed(wanted)))
    with peak_below(4 * MB):
        found = read_mat(path, ["y"])
    assert found["y"].tolist() == [list(range(8))]


def test_a_wanted_variable_that_is_too_large_for_its_file(tmp_path):
    path = tmp_path / "train_32x32.mat"
    count = 43690
    size = 32 * 32 * 3 * count
    path.write_bytes(mat(packed(zeros(size, matrix_header(b"X", (32, 32, 3, count), size)))))
    assert path.stat().st_size < 2 * MB
    refused(read_svhn_mat, path, "variable 'X' of 134,215,680 bytes, which is more than 32 times")


def test_a_stream_that_holds_much_more_than_its_shape(tmp_path):
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(mat(packed(zeros(1 << 28, matrix_header(b"X", (1, 8), 8)))))
    refused(read_svhn_mat, path, "surplus of bytes in a compressed element")


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (packed(zlib.compress(struct.pack("<4I", 14, 1 << 31, 6, 1 << 30))), "1,073,741,824 bytes"),
        (packed(zeros(1 << 28)), "element of type 0"),
        (matrix_header(b"X", [1] * 65, 1) + bytes(8), "element of 260 bytes"),
        (matrix_header(b"X" * 5000, (1, 1), 1) + bytes(8), "element of 5,000 bytes"),
    ],
)
def test_elements_that_claim_more_than_belongs_there(tmp_path, elements, words):
    path = tmp_path / "claims.mat"
    path.write_bytes(mat(elements))
    refused(read_svhn_mat, path, words)


def test_a_large_file_in_place_of_the_bundled_one(tmp_path):
    path = tmp_path / "fashion_mnist_10k.npz"
    with open(path, "wb") as file:
        file.truncate(40 << 30)
    refused(fashion_mnist_10k, path, "42,949,672,960 bytes with SHA-256")


def test_what_a_header_claims_costs_nothing_before_it_comes(tmp_path):
    path = tmp_path / "images"
    header = idx_header(63, 1 << 10, 1 << 10)
    for content in (header + b"few", gzip.compress(header + b"few")):
        path.write_bytes(content)
        with peak_below(4 * MB), pytest.raises(DatasetError, match="holds only 3 bytes"):
            read_idx(path)
    path = tmp_path / "train_32x32.mat"
    element = matrix_header(b"X", (63, MB), 63 * MB) + b"few"
    for content in (element, packed(zlib.compress(element))):
        path.write_bytes(mat(content))
        with peak_below(4 * MB), pytest.raises(DatasetError):
            read_svhn_mat(path)


@pytest.mark.parametrize("count", [0, 1, MB - 1, MB, MB + 1, 3 * MB + 5])
def test_bytes_as_they_come(count):
    numbers = np.random.default_rng(0).integers(0, 256, count, np.uint8)
    for size in (count, count + 7):
        stream = io.BytesIO(numbers)
        with peak_below(max(2 * count, MB) + 10_000):
            found = received(size, stream.readinto)
        np.testing.assert_array_equal(found, numbers)
        assert found.flags.writeable
