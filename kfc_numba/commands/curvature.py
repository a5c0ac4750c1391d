"""``kfc-numba curvature``: how good and how expensive the curvature of a network is."""

from __future__ import annotations

import argparse
import json

import numpy as np

from kfc_numba import networks, saving
from kfc_numba.commands import CommandError
from kfc_numba.commands.config import Config, config_from
from kfc_numba.commands.folders import new_folder, reason, write_json, write_plot
from kfc_numba.commands.run import build_network, load_images
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
    run = None if arguments.checkpoint is None else run_of(arguments.checkpoint)
    dataset = arguments.dataset or (run.dataset if run else DATASET)
    folder = arguments.data or (run.data if run and dataset == run.dataset else None)
    images = load_images(dataset, folder, download=arguments.download)
    usual = run.network if run else networks.default(images.x.shape[1:])
    network = arguments.network or usual
    seed = arguments.seed or 0
    net = build_network(network, images, seed=seed).to(arguments.device)
    if arguments.checkpoint is not None:
        read_parameters(net, arguments.checkpoint)
    count = min(arguments.batch_size or BATCH_SIZE, len(images.x))
    chosen = np.sort(generator(seed, "report batch").permutation(len(images.x))[:count])
    usual = f"{dataset}-{network}-curvature"
    with new_folder(arguments.output, usual, lambda path: (path / FILES[0]).exists()) as path:
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
            "device": arguments.device,
        }
        content = {"config": config, "environment": environment(), **json.loads(report.to_json())}
        write_json(path / FILES[0], content)
        pictured = any(row["derivative_correlation"] is not None for row in report.rows)
        missing = write_plot(path / FILES[1], report.figure) if pictured else None
        where = (
            "at its initial parameters" if arguments.checkpoint is None else arguments.checkpoint
        )
        print(f"network {network} on {dataset}, {where}")
        print(report)
        print(f"written to {path}: {', '.join(name for name in FILES if (path / name).exists())}")
        if missing:
            print(missing)


def run_of(path: str) -> Config | None:
    """Settings of the run that a checkpoint is of, whose data and network are then the usual ones.

    Parameters
    ----------
    path : path

    Returns
    -------
    Config or None
        None if they are not in it; what may be wrong with it is told when parameters are read.
    """
    try:
        with saving.opened(path, "trainer") as file:
            return config_from("notes.run", file.header["notes"]["run"])
    except (ValueError, OSError, KeyError):
        return None


def read_parameters(net: Graph, path: str) -> None:
    """Take parameters and running statistics from a checkpoint, averaged ones if it has them.

    Parameters
    ----------
    net : Graph
    path : path

    Raises
    ------
    CommandError
        It is no checkpoint, or one of another network; `net` is left as it was.
    """
    try:
        saving.read_into(net, path)
    except ValueError as error:
        message = str(error).replace("does not fit:", "does not fit --network:")
        raise CommandError(f"--checkpoint: {message}") from None
    except OSError as error:
        raise CommandError(f"--checkpoint: {reason(error)}") from None
