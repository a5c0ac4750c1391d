"""The command, run as it is but for the training itself."""

import copy
import io
import os
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from unittest import mock

import numpy as np

from kfc_numba import cli
from kfc_numba.curvature.report.check import Report
from kfc_numba.environment import environment
from kfc_numba.train import Trainer

from .data_files import idx
from .oracle import check_line, require

#: It stays what it is, and is asked for in each case.
_environment = cache(environment)


@dataclass
class Ran:
    """What a command left behind.

    Attributes
    ----------
    status : int
    out, err : str
    trained : list of (Trainer, dict)
        Each call of `Trainer.fit`, which did nothing.
    """

    status: int
    out: str
    err: str
    trained: list = field(default_factory=list)

    def check(self, names):
        """That it ended as it may: well, or with one line that has one of some names."""
        require("Traceback" not in self.err, f"a traceback: {self.err[-300:]!r}")
        require(self.status in (0, 1, 2), f"exit status {self.status}")
        lines = self.err.split("\n")[:-1]
        errors = [line for line in lines if line.startswith("kfc-numba")]
        if self.status == 0:
            require(not errors, f"an error and status 0: {errors}")
            require(self.out.endswith("\n"), "nothing printed")
            return
        require(len(errors) == 1 and lines[-1] == errors[0], f"{len(errors)} lines: {lines[-3:]}")
        require(self.err.endswith("\n"), "a line without its end")
        check_line(errors[0], names)


def write_data(folder):
    """Ten images in the format of MNIST."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (10, 28, 28)), np.arange(10)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))


def run(words, folder):
    """``kfc-numba WORDS`` in a folder, without steps, kernels and pictures.

    Parameters
    ----------
    words : list of str
    folder : path

    Returns
    -------
    Ran
    """
    trained = []

    def known():
        return copy.deepcopy(_environment())

    def fit(trainer, x, y, **settings):
        limits = ("epochs", "max_steps", "total_epochs", "total_steps")
        for name in ("batch_size", "evaluate_every", *limits):
            value = settings.get(name)
            fine = type(value) is int and value > 0
            require(fine or (value is None and name != "batch_size"), f"fit has {name}={value!r}")
        require(len(x) == len(y) > 0 and x.dtype == np.float32, "fit has other data")
        trained.append((trainer, settings))
        if not trainer.history.rows:
            numbers = {"training_loss": 2.5, "validation_loss": 2.5, "validation_error": 0.9}
            trainer.history.rows.append({"step": 0, "epoch": 0.0, "seconds": 0.0} | numbers)
        if settings.get("checkpoint") is not None:
            trainer.save(settings["checkpoint"])
        if settings.get("stop") is not None:
            settings["stop"](trainer.history.rows[-1])
        return trainer.history

    def check_curvature(net, x, loss, **settings):
        costs = dict.fromkeys(("gradient", "statistics", "decomposition"), 1.0)
        costs = {f"{name}_seconds": value for name, value in costs.items()} | {"overhead": 0.1}
        costs |= {"curvature_update_period": 1, "inverse_update_period": 1}
        return Report([], costs, len(x), settings["exact_examples"], settings["largest"])

    with (
        _streams() as (out, err),
        _inside(folder),
        mock.patch.object(Trainer, "fit", fit),
        mock.patch.object(Trainer, "step", return_value=2.5),
        mock.patch("kfc_numba.commands.curvature.check_curvature", check_curvature),
        _without("matplotlib.figure"),
        mock.patch("os.fsync"),
        ExitStack() as stack,
    ):
        for name, module in list(sys.modules.items()):
            if name.startswith("kfc_numba.commands.") and hasattr(module, "environment"):
                stack.enter_context(mock.patch.object(module, "environment", known))
        try:
            status = cli.main(list(words))
        except SystemExit as error:  # --help and --version
            status = error.code
        sys.stdout.flush()
        sys.stderr.flush()
    text = [stream.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err)]
    return Ran(status, *text, trained)


@contextmanager
def _streams():
    """Standard streams as a terminal has them: not everything can be printed."""
    before = sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdout = io.TextIOWrapper(out, encoding="utf-8", errors="strict")
    sys.stderr = io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace")
    streams = sys.stdout, sys.stderr  # or they would be closed with what they write to
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.detach()


@contextmanager
def _without(module):
    """No such module; what is imported meanwhile stays, which `mock.patch.dict` would forget."""
    before = sys.modules.get(module)
    sys.modules[module] = None
    try:
        yield
    finally:
        del sys.modules[module]
        if before is not None:
            sys.modules[module] = before


@contextmanager
def _inside(folder):
    before, variable = os.getcwd(), os.environ.pop("KFC_NUMBA_DATA", None)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        if variable is not None:
            os.environ["KFC_NUMBA_DATA"] = variable
