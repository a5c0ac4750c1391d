"""``kfc-numba curvature``: how good and how expensive the curvature of a network is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from kfc_numba import checkpoint, networks
from kfc_numba.commands import CommandError
from kfc_numba.commands.run import load_images, make_numbered, write_json, write_plot
from kfc_numba.commands.train import DATASET
from kfc_numba.curvature.report import check_curvature
from kfc_numba.environment import environment
from kfc_numba.graph import Graph
from kfc_numba.losses import SoftmaxCrossEntropy
from kfc_numba.random import generator

BATCH_SIZE = 256
EXACT_EXAMPLES = 32
LARGEST = 16384
FILES = ("curvature.json", "curvature.png")


def command(arguments: argparse.Namespace) -> None:
    """Print the report of a network on a batch of a data set, and write it to a folder.

    Parameters
    ----------
    arguments : argparse.Namespace
        Options that were not given are None.
    """
    dataset = arguments.dataset or DATASET
    images = load_images(dataset, arguments.data, download=arguments.download)
    network = arguments.network or networks.default(images.x.shape[1:])
    seed = arguments.seed or 0
    try:
        net = networks.build(network, images.x.shape[1:], images.classes, seed=seed)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if arguments.checkpoint is not None:
        read_parameters(net, arguments.checkpoint)
    count = min(arguments.batch_size or BATCH_SIZE, len(images.x))
    chosen = np.sort(generator(seed, "report batch").permutation(len(images.x))[:count])
    path = _folder(arguments.output, f"{dataset}-{network}-curvature")
    report = check_curvature(
        net,
        images.x[chosen],
        SoftmaxCrossEntropy(),
        exact_examples=arguments.exact_examples or EXACT_EXAMPLES,
        largest=LARGEST if arguments.largest is None else arguments.largest,
        seed=seed,
    )
    config = {
        "dataset": dataset,
        "data_checksum": images.checksum,
        "network": network,
        "checkpoint": arguments.checkpoint,
        "batch_size": count,
        "seed": seed,
    }
    content = {"config": config, "environment": environment(), **json.loads(report.to_json())}
    write_json(path / FILES[0], content)
    pictured = any(row["derivative_correlation"] is not None for row in report.rows)
    missing = write_plot(path / FILES[1], report.figure) if pictured else None
    where = "at its initial parameters" if arguments.checkpoint is None else arguments.checkpoint
    print(f"network {network} on {dataset}, {where}")
    print(report)
    print(f"written to {path}: {', '.join(name for name in FILES if (path / name).exists())}")
    if missing:
        print(missing)


def read_parameters(net: Graph, path: str) -> None:
    """Take parameters and running statistics from a checkpoint, averaged ones if it has them.

    Parameters
    ----------
    net : Graph
    path : path

    Raises
    ------
    CommandError
        It is no checkpoint, or one of another network.
    """
    try:
        arrays, header = checkpoint.load(path)
    except ValueError as error:
        raise CommandError(f"--checkpoint: {error}") from None
    except OSError as error:
        raise CommandError(f"--checkpoint: {path}: {error.strerror}") from None
    problem = checkpoint.difference(header.get("network", []), checkpoint.describe(net))
    if problem:
        raise CommandError(f"--checkpoint: {path} does not fit --network: {problem}")
    averaged = float(arrays.get("optimizer/average_weight", np.zeros(()))) > 0
    prefix = "optimizer/average/" if averaged else "params/"
    for name, value in net.params.items():
        np.copyto(value, arrays[prefix + name])
    for name, value in net.buffers.items():
        np.copyto(value, arrays[f"buffers/{name}"])


def _folder(given: str | None, usual: str) -> Path:
    try:
        if given is None:
            return make_numbered(Path("runs"), usual)
        path = Path(given)
        if (path / FILES[0]).exists():
            raise CommandError(
                f"--output: {path} already holds a report, which is not overwritten; give another "
                "folder"
            )
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--output: {error.filename}: {error.strerror}") from None
    return path
