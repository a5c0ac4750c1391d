"""Command lines: options in and out of place, misspelt, with values of every kind."""

import random
import shutil

from kfc_numba import datasets, networks
from kfc_numba.commands import options

from .command import run, write_data
from .oracle import measured, require

COMMANDS = ("train", "train", "train", "train", "compare", "compare", "curvature", "info")
#: Bytes that a command may need: the state of KFC for the largest network, and images.
STATE = 192 * 2**20
COMMON = {
    "--dataset": ("mnist", "cifar-10", "svhn", "imagenet", "", "MNIST"),
    "--data": (
        "data",
        "data/mnist",
        "absent",
        "file",
        "~nouser/x",
        "",
        "-",
        "x" * 300,
        "/dev/null",
    ),
    "--network": (*networks.names(), "vgg", "Small", ""),
    "--epochs": None,
    "--max-steps": None,
    "--batch-size": None,
    "--seed": None,
    "--evaluate-every": None,
    "--threads": ("1", "2", "0", "-1", "100000", "x", "1e3"),
    "--output": (
        "out",
        "a/b/c",
        "file",
        "file/x",
        "x" * 300,
        "naïve",
        "\udcff",
        "-",
        "~nouser/x",
        "",
    ),
    "--quiet": (),
    "--resume": (),
    "--optimizer": (*options.OPTIMIZERS, "lbfgs", "KFC", ""),
    "--optimizers": (*options.OPTIMIZERS, "lbfgs"),
    "--run": ("kfc", "sgd momentum=0", "adam  beta1=x", "sgd lr=1", "", " ", "kfc damping", "x y"),
    "--losses": ("1", "0.5", "-1", "nan", "x", "inf"),
    "--checkpoint": ("absent", "file", "data", "", "x" * 300),
    "--exact-examples": None,
    "--largest": None,
    "--help": (),
    "--version": (),
}
VALUES = (
    *("0", "1", "2", "7", "-1", "0.5", "1e-3", "1e300", "-1e-3", "1e400", "nan", "inf", "none"),
    *("true", "False", "x", "", " ", "1_000", "0x10", "9" * 30, "9" * 5000, "é", "--", "a b", "\n"),
    *("expand", "ekfac", "full", "fisher_exact", "exact", "\udcff", "1,5", "[1]", "{}", "%s", "½"),
)

#: Characters of a word that a message has, if it names it: a long one may be cut short.
QUOTED = 100


class CommandLines:
    """``kfc-numba``, on small data, with all that comes before and after training."""

    name = "command lines"

    def __init__(self, folder):
        self.folder = folder / "work"
        self.data = folder / "data"
        write_data(self.data / "mnist")
        kinds = options.OPTIMIZERS
        names = sorted({name for kind in kinds for name in options.parameters(kind)})
        self.options = COMMON | dict.fromkeys(map(options.flag, names))

    def case(self, number):
        rng = random.Random(f"{self.name} {number}")
        words = self._words(rng)
        self.description = " ".join(repr(word[:40]) for word in words)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "file").write_text("no")
        (self.folder / "data").symlink_to(self.data)
        with measured() as peak:
            found = run(words, self.folder)
        peak.require(STATE, "a command")
        given = {word.partition("=")[0] for word in words}
        names = {name for word in given for name in (word, options.flag(word.strip("-")))}
        names |= {repr(word) for word in given}
        names |= {word.partition("=")[2] for word in words}
        names = {name[:QUOTED] for name in names}
        found.check({*names, "give a command", "--data"} - {"", "-", " "} | {"''", "--output"})
        if found.status:
            require(not list(self.folder.glob("**/*.tmp")), "a temporary file is left")
            folders = [path for path in self.folder.glob("**/*") if path.is_dir()]
            empty = [str(path) for path in folders if not list(path.iterdir())]
            require(not empty, f"an empty folder is left: {empty}")
        return found.status == 0, peak.bytes

    def _words(self, rng):
        if rng.random() < 0.02:
            return [rng.choice((*VALUES, "trian", "-h", "--version", "--x"))]
        command = rng.choice(COMMANDS)
        words = [command]
        if command != "info" and rng.random() < 0.9:
            # The bundled images are many, for a case.
            words += ["--dataset", "mnist", "--data", "data"]
        for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
            name = rng.choice(tuple(self.options))
            values = self.options[name]
            if rng.random() < 0.1:
                name = _misspelt(rng, name)
            if values == ():
                words.append(name)
                continue
            value = rng.choice(VALUES if values is None or rng.random() < 0.1 else values)
            words += [f"{name}={value}"] if rng.random() < 0.3 else [name, value]
        if rng.random() < 0.05:
            words.insert(rng.randrange(len(words) + 1), rng.choice(VALUES))
        if "--dataset" not in words and command != "info":
            words += ["--dataset", rng.choice(("mnist", "mnist", datasets.names()[-1]))]
        return words


def _misspelt(rng, name):
    at = rng.randrange(2, len(name))
    return rng.choice(
        (
            *(name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name.upper()),
            *(name.replace("-", "_"), name[1:], name + "s", "--" + name),
        )
    )
