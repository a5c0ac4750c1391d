"""Configurations: arguments of constructors and of `Trainer.fit`, settings as they are stored."""

import decimal
import fractions
import inspect
import json
import random

import numpy as np

import kfc_numba as kfc
from kfc_numba.commands import CommandError, compare, options

from .checkpoints import LOSS, data, everything, network, same
from .mutate import VALUES, change_json
from .oracle import LONGEST, check_error, measured, require

CONSTRUCTORS = (
    *(kfc.KFC, kfc.KFC, kfc.KFC, kfc.SGD, kfc.Adam, kfc.Adaptation),
    *(kfc.CosineDecay, kfc.ExponentialDecay, kfc.LinearWarmup, kfc.PiecewiseConstant),
    *(kfc.Conv2d, kfc.Dense, kfc.MaxPool2d, kfc.AvgPool2d, kfc.LeakyReLU, kfc.BatchNorm),
    *(kfc.LocalResponseNorm, kfc.Dropout, kfc.Concat, kfc.SoftmaxCrossEntropy),
    *(kfc.SquaredError, kfc.SigmoidCrossEntropy),
)
#: Beyond what JSON has.
OBJECTS = (
    *(np.float32(0.5), np.int64(3), np.array(0.5), np.array([1.0, 2.0]), np.bool_(True), 1j),
    *(float("nan"), float("inf"), (1, 2), (3,), (1, 2, 3, 4), {1, 2}, b"x", decimal.Decimal("0.5")),
    *(
        fractions.Fraction(1, 2),
        np.float64,
        np.datetime64("2020"),
        np.array([]),
        range(3),
        Ellipsis,
    ),
)
#: Arguments of arguments.
_INSIDE = ("min_damping", "max_damping")
STRINGS = ("same", "valid", "expand", "ekfac", "kronecker", "tridiagonal", "exact", "uniform")
WORDS = (
    *("kfc", "sgd", "adam", "damping=1", "learning_rate=0.1", "batch_size=8", "batch_size=x", "="),
    *(
        "a=b",
        "--momentum=0.5",
        "momentum=1",
        "structure=ekfac",
        "x",
        "l2_reg=nan",
        "averaging=none",
    ),
    *("evaluate_every=0", "=1", "damping==1", "nesterov=true", "epsilon=1e-3", "learning-rate=1"),
)


class Configurations:
    """Whatever is not refused has a configuration that gives the same again."""

    name = "configurations"

    def __init__(self, folder):
        self.net = network()
        self.x, self.y = data()

    def case(self, number):
        rng = random.Random(f"{self.name} {number}")
        kind = rng.choice((self._construct,) * 6 + (self._rebuild,) * 4 + (self._run, self._fit))
        self.description = kind.__name__
        return kind(rng)

    def judge(self, call, sound, kinds, names, longest=LONGEST):
        error = found = None
        with measured() as peak:
            try:
                found = call()
            except Exception as caught:
                error = caught
        peak.require(0, "a configuration")
        if error is not None:
            check_error(error, kinds, names, longest)
        else:
            sound(found)
        return error is None, peak.bytes

    def _construct(self, rng):
        kind = rng.choice(CONSTRUCTORS)
        parameters = inspect.signature(kind).parameters
        given = {
            name: self._value(rng, parameter)
            for name, parameter in parameters.items()
            if parameter.default is inspect.Parameter.empty or rng.random() < 2 / len(parameters)
        }
        self.description = f"{kind.__name__}({_short(given)})"

        def sound(found):
            require("\n" not in repr(found), "a repr of several lines")
            if isinstance(found, kfc.Optimizer):
                config = json.loads(json.dumps(found.config(), allow_nan=False))
                if not any(callable(value) for value in vars(found).values()):
                    again = options.rebuild(config).config()
                    require(again == found.config(), f"{again} of {found.config()}")

        names = [*parameters, *_INSIDE, "takes"]
        longest = LONGEST + _length(given)  # a program may be told all that it gave
        return self.judge(lambda: kind(**given), sound, (TypeError, ValueError), names, longest)

    def _value(self, rng, parameter):
        """Something, rather of the kind of what it usually is."""
        usual = parameter.default
        chance = rng.random()
        if chance < 0.4 and isinstance(usual, (int, float)) and not isinstance(usual, bool):
            return rng.choice((usual * 2, usual / 2, -usual, 0, 1, usual + 1, int(usual), 1e-12, 3))
        if chance < 0.5:
            return rng.choice((1, 2, 3, 0.5))
        return rng.choice(rng.choice((VALUES, VALUES, OBJECTS, STRINGS)))

    def _rebuild(self, rng):
        config = rng.choice(tuple(options.OPTIMIZERS.values()))().config()
        changed, what = change_json(rng, config)
        if rng.random() < 0.3:
            changed, more = change_json(rng, changed) if changed else (changed, "")
            what += f", {more}"
        self.description = f"rebuild: {what}"

        def sound(found):
            again = found.config()
            for name, value in changed.items():
                given = options.rebuild({"optimizer": again["optimizer"], name: value}).config()
                same = name == "optimizer" or again[name] == given[name]
                require(same, f"{name} is {again[name]!r}, given {value!r}")

        names = [*config, *changed, *map(options.flag, [*config, *changed]), "optimizer"]
        return self.judge(lambda: options.rebuild(changed), sound, CommandError, names)

    def _run(self, rng):
        words = [rng.choice(WORDS[: 3 if rng.random() < 0.8 else None])]
        words += [rng.choice(WORDS) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        text = rng.choice((" ", "  ", "\t")).join(words)
        self.description = f"run {text!r}"

        def sound(found):
            require(found.optimizer in options.OPTIMIZERS, f"optimizer {found.optimizer!r}")
            for word in found.label.split()[1:]:
                name = word.partition("=")[0].strip("-").replace("-", "_")
                require(name in found.settings, f"{name} is lost")

        return self.judge(lambda: compare.parse_run(text), sound, CommandError, ["run "])

    def _fit(self, rng):
        names = ("batch_size", "epochs", "max_steps", "evaluate_every", "training_sample")
        given = {name: rng.choice((*VALUES, *OBJECTS, 1, 2, 3)) for name in rng.sample(names, 2)}
        given = {"batch_size": 5, "epochs": 1} | given
        self.description = f"fit({_short(given)})"
        trainer = kfc.Trainer(self.net, LOSS, kfc.SGD())
        before = everything(self.net)

        def fit():
            return trainer.fit(self.x, self.y, **given, progress=False, stop=lambda row: True)

        def sound(found):
            require(len(found.rows) == 1, f"{len(found.rows)} rows")

        try:
            kinds = (TypeError, ValueError)
            return self.judge(fit, sound, kinds, names, LONGEST + _length(given))
        finally:
            require(same(everything(self.net), before), "the network is changed")


def _length(given):
    return sum(len(repr(value)) for value in given.values())


def _short(given):
    return ", ".join(f"{name}={str(value)[:30]!r}" for name, value in given.items())
