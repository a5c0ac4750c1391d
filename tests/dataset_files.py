"""Small files in official formats, written without the package."""

import gzip
import struct

import numpy as np
import scipy.io

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
CIFAR_TRAINING = [f"data_batch_{batch}.bin" for batch in range(1, 6)]
CIFAR_BATCH_BYTES = 10_000 * 3073


def idx_bytes(array, kind=0x08):
    array = np.asarray(array, dtype=np.uint8)
    header = bytes([0, 0, kind, array.ndim])
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_arrays(seed=0, train=40, test=20):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (train, 28, 28), dtype=np.uint8),
        "y_train": rng.permutation(np.arange(train, dtype=np.uint8) % 10),
        "x_test": rng.integers(0, 256, (test, 28, 28), dtype=np.uint8),
        "y_test": rng.permutation(np.arange(test, dtype=np.uint8) % 10),
    }


def write_mnist(folder, arrays=None, *, compressed=True):
    """Write the four files of `arrays` and return the arrays."""
    arrays = mnist_arrays() if arrays is None else arrays
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in arrays.items():
        content = idx_bytes(array)
        if compressed:
            (folder / f"{IDX_FILES[key]}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / IDX_FILES[key]).write_bytes(content)
    return arrays


def cifar_bytes(images, labels):
    """Records of a label byte and the planes of an (H, W, C) image, pixel by pixel."""
    content = bytearray()
    for image, label in zip(images, labels, strict=True):
        content.append(label)
        for channel in range(3):
            for row in range(32):
                content.extend(int(image[row, column, channel]) for column in range(32))
    return bytes(content)


def write_blank_cifar(folder, files):
    """Files of the official size: the batch's number as first label, then only zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(files):
        with open(folder / name, "wb") as file:
            file.write(bytes([number]))
            file.truncate(CIFAR_BATCH_BYTES)


def write_svhn(path, images, labels, *, compressed=True):
    """Images (N, 32, 32, 3) and digits (N,) as SVHN stores them."""
    x = np.empty((32, 32, 3, len(images)), dtype=np.uint8)
    for n, image in enumerate(images):
        x[:, :, :, n] = image
    y = np.array([[10 if label == 0 else label] for label in labels], dtype=np.uint8)
    scipy.io.savemat(path, {"X": x, "y": y}, do_compression=compressed)
