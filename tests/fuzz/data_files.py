"""Data files: IDX, plain and by gzip, CIFAR-10's batches, MATLAB files, the bundled archive."""

import gzip
import io
import os
import random
import struct
import zlib

import numpy as np
import scipy.io

from kfc_numba import datasets
from kfc_numba.datasets.bundled import BUNDLED_FILE
from kfc_numba.datasets.cifar10 import CLASSES

from .mutate import INTEGERS, change_bytes
from .oracle import check_error, measured, require

#: Bytes that a bomb becomes.
BOMB = 192 * 2**20
#: Times the size of what is returned that may be needed on the way.
COPIES = 6

_IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def idx(array):
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


def read_idx(content):
    """The array of an IDX file by the definition of the format, None where it is none."""
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:3] != b"\0\0\x08":
        return None
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    return np.frombuffer(content[start:], np.uint8).reshape(shape)


def mat(variables, *, compressed):
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables, do_compression=compressed)
    return stream.getvalue()


class DataFiles:
    """Every reader of data, on files that were good before."""

    name = "data files"

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        arrays = {
            "x_train": rng.integers(0, 256, (20, 28, 28)),
            "y_train": rng.integers(0, 10, 20),
            "x_test": rng.integers(0, 256, (10, 28, 28)),
            "y_test": rng.integers(0, 10, 10),
        }
        self.files = {_IDX[name]: idx(array) for name, array in arrays.items()}
        records = [bytes([label]) + rng.bytes(3072) for label in (3, 0, 9)]
        self.cifar = b"".join(records)
        images = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
        labels = np.array([[1], [10], [5], [2]], np.uint8)
        self.svhn = {"X": images, "y": labels}
        self.mat = {
            compressed: mat(self.svhn, compressed=compressed) for compressed in (True, False)
        }
        self.bundled = BUNDLED_FILE.read_bytes()
        self.bombs = _bombs()

    def case(self, number):
        rng = random.Random(f"{self.name} {number}")
        kind = rng.choice(_KINDS)
        self.description = kind.__name__
        return kind(self, rng)

    def judge(self, path, read, sound, what, *, names=(), repeated=0):
        """Read a file; `sound` judges what was made of it, and returns its size in bytes."""
        self.description = what
        size = path.stat().st_size if path.exists() and not path.is_dir() else 0
        error = found = None
        with measured() as peak:
            try:
                found = read()
            except Exception as caught:
                error = caught
        if error is not None:
            peak.require(10 * size, f"a file of {size:,} bytes")
            kinds = (datasets.DatasetError, datasets.DatasetNotFoundError)
            check_error(error, kinds, [str(path), *names])
        else:
            peak.require(10 * size + COPIES * sound(found), f"a file of {size:,} bytes")
        return error is None, peak.bytes


def _bombs():
    """Small files that grow: by what a header says, by what a stream holds, and by both."""
    stream = gzip.compress(idx(np.zeros((1, 1, 1))) + bytes(BOMB), 9)
    images = struct.pack(">4B3I", 0, 0, 8, 3, BOMB // 784, 28, 28)
    short = gzip.compress(images + bytes(BOMB // 2), 9)
    labels = gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, BOMB) + bytes(BOMB - 1), 9)
    claims = b"".join((bytes([0, 0, 8, 4]), struct.pack(">4I", 2**31, 2**31, 28, 28), b"few"))
    dimensions = bytes([0, 0, 8, 65]) + struct.pack(">65I", *[1] * 65) + b"\0"
    header = mat({"X": np.zeros(1)}, compressed=False)[:128]
    wide = zlib.compress(struct.pack("<2I", 14, BOMB) + bytes(BOMB), 9)
    element = header + struct.pack("<2I", 15, len(wide)) + wide
    large = np.zeros((32, 32, 3, BOMB // 2 // 3072), np.uint8)
    other = mat({"skipped": large, "X": large[..., :1], "y": np.ones((1, 1))}, compressed=True)
    return {
        "more than the header says": ("idx", stream),
        "less than the header says": ("idx", short),
        "labels of no images": ("idx", labels),
        "a header that claims too much": ("idx", claims),
        "65 dimensions": ("idx", dimensions),
        "a wide element": ("mat", element),
        "a wide variable that is not wanted": ("mat", other),
    }


def _read_idx(target, rng):
    content = target.files[rng.choice(tuple(target.files))]
    packed = rng.random() < 0.5
    inside = rng.random() < 0.5
    what = "nothing"
    if inside:
        content, what = change_bytes(rng, content)
    if packed:
        content = gzip.compress(content, rng.choice((1, 9)), mtime=0)
    if not inside:
        content, what = change_bytes(rng, content)
    path = target.folder / "images"
    path.write_bytes(content)

    def sound(found):
        require(found.dtype == np.uint8, f"dtype {found.dtype}")
        expected = read_idx(content)
        require(expected is not None, "accepted what is not IDX")
        require(found.shape == expected.shape, f"shape {found.shape}, it is {expected.shape}")
        require((found == expected).all(), "other bytes than those of the file")
        return found.nbytes

    gz = " gzip" * packed
    return target.judge(path, lambda: datasets.read_idx(path), sound, f"IDX{gz}: {what}")


def _bomb(target, rng):
    name = rng.choice(tuple(target.bombs))
    kind, content = target.bombs[name]
    path = target.folder / "bomb"
    path.write_bytes(content)
    read = datasets.read_idx if kind == "idx" else datasets.read_svhn_mat

    def sound(found):
        arrays = found if isinstance(found, tuple) else (found,)
        return sum(array.nbytes for array in arrays)

    return target.judge(path, lambda: read(path), sound, f"bomb: {name}")


def _mnist(target, rng):
    folder = target.folder / "mnist"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    damaged = rng.choice(tuple(target.files))
    for name, content in target.files.items():
        changed, packed = content, rng.random() < 0.5
        if name == damaged:
            changed, what = _changed_idx(rng, content)
        if packed:
            changed = gzip.compress(changed, 1, mtime=0)
        (folder / (name + ".gz" * packed)).write_bytes(changed)
    if rng.random() < 0.05:
        what = "a folder in place of the file"
        for path in folder.glob(f"{damaged}*"):
            path.unlink()
        (folder / damaged).mkdir()

    def sound(found):
        _dataset(found, (28, 28, 1), 10)
        return found.x_train.nbytes + found.x_test.nbytes

    return target.judge(
        folder,
        lambda: datasets.mnist_folder(folder),
        sound,
        f"MNIST: {what} in {damaged}",
    )


def _changed_idx(rng, content):
    if rng.random() < 0.5:
        return change_bytes(rng, content)
    array = read_idx(content)
    shapes = [array.shape[:1], (0, *array.shape[1:]), (*array.shape, 1), (len(array), 1, 1)]
    shape = rng.choice([*shapes, (rng.choice(INTEGERS) % 1000, *array.shape[1:])])
    values = np.resize(array, shape) if array.size else array
    if rng.random() < 0.3:
        values = values + np.uint8(rng.randrange(256))
    return idx(values), f"shape {shape}"


def _cifar(target, rng):
    content, what = change_bytes(rng, target.cifar)
    if rng.random() < 0.4:
        count = rng.randrange(4)
        content, what = target.cifar[: 3073 * count], f"{count} records"
        if content and rng.random() < 0.5:
            label = rng.randrange(256)
            content, what = bytes([label]) + content[1:], f"label {label}"
    path = target.folder / "data_batch_1.bin"
    path.write_bytes(content)
    records = rng.choice((None, 3))

    def sound(found):
        images, labels = found
        table = np.frombuffer(content, np.uint8).reshape(-1, 3073)
        require(records in (None, len(table)), f"{len(table)} records")
        require((labels == table[:, 0]).all() and labels.max() < len(CLASSES), "other labels")
        require(images.shape == (len(table), 32, 32, 3), f"shape {images.shape}")
        for channel in range(3):
            plane = table[:, 1 + 1024 * channel : 1025 + 1024 * channel]
            require((images[..., channel].reshape(len(table), -1) == plane).all(), "other pixels")
        return images.nbytes

    read = datasets.read_cifar10_batch
    return target.judge(path, lambda: read(path, records=records), sound, f"CIFAR-10: {what}")


def _svhn(target, rng):
    compressed = rng.random() < 0.6
    unaltered = True
    if rng.random() < 0.6:
        content, what = change_bytes(rng, target.mat[compressed])
    else:
        variables, what = _other_variables(rng, dict(target.svhn))
        content, unaltered = mat(variables, compressed=compressed), False
    path = target.folder / "train_32x32.mat"
    path.write_bytes(content)

    def sound(found):
        images, labels = found
        require(images.dtype == np.uint8, f"dtype {images.dtype}")
        require(images.shape == (len(labels), 32, 32, 3) and len(labels), "other shapes")
        require(labels.min() >= 0 and labels.max() <= 9, "other labels")
        if compressed and unaltered:
            expected = target.svhn["X"].transpose(3, 0, 1, 2)
            same = np.array_equal(images, expected)
            require(same and (labels == target.svhn["y"].ravel() % 10).all(), "not noticed")
        return images.nbytes

    packed = " compressed" * compressed
    return target.judge(path, lambda: datasets.read_svhn_mat(path), sound, f"mat{packed}: {what}")


def _other_variables(rng, variables):
    name = rng.choice(("X", "y"))
    value = variables[name]
    how = rng.choice(("absence", "name", "dtype", "shape", "text", "struct", "number", "more"))
    if how == "absence":
        del variables[name]
    elif how == "name":
        variables[name + "x"] = variables.pop(name)
    elif how == "dtype":
        kinds = (np.float64, np.int16, np.float32, np.complex128, np.int64, bool)
        variables[name] = value.astype(rng.choice(kinds))
    elif how == "shape":
        shapes = (value.T, value[:0], value.reshape(-1), value[..., None, None], value[:1])
        variables[name] = rng.choice(shapes)
    elif how == "text":
        variables[name] = "text"
    elif how == "struct":
        variables[name] = {"a": value}
    elif how == "number":
        changed = value.astype(np.float64)
        changed.flat[0] = rng.choice((-1, 0, 0.5, 11, 1e300, np.nan, np.inf))
        variables[name] = changed
    else:
        variables["more"] = np.arange(10.0)
    return variables, f"{how} of {name}"


def _bundled(target, rng):
    """A few bytes of seven megabytes, which the reader has whole in memory before it judges."""
    content = bytearray(target.bundled)
    at = rng.choice((rng.randrange(len(content)), rng.randrange(64), len(content) - 1))
    what = rng.choice(("a flipped bit", "an end", "a surplus", "nothing"))
    if what == "a flipped bit":
        content[at] ^= 1 << rng.randrange(8)
    elif what == "an end":
        content = content[:at]
    elif what == "a surplus":
        content += b"\0"
    path = target.folder / "fashion_mnist_10k.npz"
    path.write_bytes(content)

    def sound(found):
        require(what == "nothing", "altered, and not noticed")
        _dataset(found, (28, 28, 1), 10)
        return found.x_train.nbytes + found.x_test.nbytes

    read = datasets.fashion_mnist_10k
    return target.judge(path, lambda: read(path), sound, f"bundled: {what} at {at}")


def _missing(target, rng):
    path = target.folder / rng.choice(("absent", "naïve", "x" * 300, "a/b", "folder"))
    if path.name == "folder":
        path.mkdir(exist_ok=True)
    read = rng.choice(
        (
            *(datasets.read_idx, datasets.read_cifar10_batch, datasets.read_svhn_mat),
            *(datasets.fashion_mnist_10k, datasets.mnist_folder, datasets.svhn_folder),
            datasets.cifar10_batches,
        )
    )

    def sound(found):
        require(False, "accepted what is not there")

    if os.fspath(path).endswith("x" * 300):
        path = target.folder / ("x" * 300)
    what = f"no file: {path.name[:20]} for {read.__name__}"
    exists = path.name == "folder"
    return target.judge(path if exists else _Nowhere(path), lambda: read(path), sound, what)


class _Nowhere:
    """A path that cannot even be looked for, as its name may be too long."""

    def __init__(self, path):
        self.path = path

    def __str__(self):
        return str(self.path)

    def exists(self):
        return False


def _dataset(found, shape, classes):
    for x, y in ((found.x_train, found.y_train), (found.x_test, found.y_test)):
        require(x.dtype == np.uint8 and y.dtype == np.int64, "other dtypes")
        require(x.shape == (len(y), *shape) and len(y) > 0, f"shape {x.shape}")
        require(y.min() >= 0 and y.max() < classes, "other labels")


_KINDS = (
    *(_read_idx,) * 6,
    *(_mnist,) * 4,
    *(_cifar,) * 4,
    *(_svhn,) * 5,
    _missing,
    _bomb,
    _bundled,
)
