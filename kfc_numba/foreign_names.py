"""Arguments and classes as PyTorch and Keras have them, or misspelled: what is said of them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: What is called otherwise here. Of several names the first counts that the callable has.
RENAMED: dict[str, tuple[str, ...]] = {
    # Optimizers.
    "lr": ("learning_rate",),
    "l2": ("l2_reg",),
    "beta_1": ("beta1",),
    "beta_2": ("beta2",),
    "eps": ("epsilon",),
    "ema_decay": ("curvature_ema",),
    "stat_decay": ("curvature_ema",),
    "factor_decay": ("curvature_ema",),
    "kl_clip": ("norm_constraint",),
    "cov_update_steps": ("curvature_update_period",),
    "factor_update_steps": ("curvature_update_period",),
    "inv_update_steps": ("inverse_update_period",),
    # Layers.
    "out_channels": ("filters",),
    "channels": ("filters",),
    "out_features": ("units",),
    "features": ("filters", "units"),
    "kernel_size": ("kernel",),
    "pool_size": ("kernel",),
    "window_shape": ("kernel",),
    "strides": ("stride",),
    "dilation_rate": ("dilation",),
    "kernel_dilation": ("dilation",),
    "feature_group_count": ("groups",),
    "use_bias": ("bias",),
    "p": ("rate",),
    "alpha": ("negative_slope",),
    # Networks and trainers.
    "model": ("net",),
    "network": ("net",),
    "criterion": ("loss",),
    "loss_fn": ("loss",),
    "input_size": ("input_shape",),
    "random_state": ("seed",),
    # Training.
    "validation_data": ("validation",),
    "validation_freq": ("evaluate_every",),
    "n_epochs": ("epochs",),
    "nb_epoch": ("epochs",),
    "num_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "steps": ("max_steps",),
    "verbose": ("progress",),
}

#: What there is no argument for, and why.
UNNEEDED = {
    "betas": "Adam has beta1 and beta2",
    "in_channels": "a layer sees the number of its input channels in the network",
    "in_features": "a layer sees the number of its inputs in the network",
    "num_features": "a layer sees the number of its channels in the network",
    "name": "networks name their layers: conv1, conv2, dense1",
    "kernel_initializer": "net.params can be written to",
    "kernel_regularizer": "l2_reg of the optimizer holds for all parameters",
    "inplace": "no layer changes what it is given",
    "activation": "activations are layers: ReLU() behind it",
    "padding_mode": "padding is with zeros",
    "data_format": "the order is (examples, height, width, channels)",
    "from_logits": "outputs are logits",
    "reduction": "a loss is the mean over examples",
    "callbacks": "stop is called with each row of the history",
    "initial_epoch": "a trainer knows how far it is; total_epochs counts from the start",
    "steps_per_epoch": "a pass is the whole data set; evaluate_every counts steps",
    "verbose": "nothing is written",
    "metrics": "each row of the history has the loss and the error",
    "shuffle": "each pass is shuffled, by the seed of the Trainer",
    "validation_split": "cut the data, and give the second part as validation",
    "class_weight": "all examples have the same weight",
    "sample_weight": "all examples have the same weight",
    "device": "networks have it, as in net.to('cuda')",
    "learning_rate_schedule": "learning_rate takes a callable of the step, such as CosineDecay",
    "scheduler": "learning_rate takes a callable of the step, such as CosineDecay",
}

#: Of what other libraries have there first, for those who give arguments in their order.
FIRST_ELSEWHERE = {"Conv2d": UNNEEDED["in_channels"], "BatchNorm": UNNEEDED["num_features"]}

#: Classes as they are called elsewhere.
CLASSES = {
    "Linear": "Dense",
    "Conv2D": "Conv2d",
    "MaxPooling2D": "MaxPool2d",
    "AveragePooling2D": "AvgPool2d",
    "AdaptiveAvgPool2d": "GlobalAvgPool2d",
    "GlobalAveragePooling2D": "GlobalAvgPool2d",
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "BatchNormalization": "BatchNorm",
    "Concatenate": "Concat",
    "CrossEntropyLoss": "SoftmaxCrossEntropy",
    "CategoricalCrossentropy": "SoftmaxCrossEntropy",
    "SparseCategoricalCrossentropy": "SoftmaxCrossEntropy",
    "BCEWithLogitsLoss": "SigmoidCrossEntropy",
    "BinaryCrossentropy": "SigmoidCrossEntropy",
    "MSELoss": "SquaredError",
    "MeanSquaredError": "SquaredError",
    "KFAC": "KFC",
}

_MOST_NAMES = 8  # that are listed


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Let a callable answer arguments that it does not take by what they may have been meant for.

    Parameters
    ----------
    function : callable

    Returns
    -------
    callable
        Of the same signature, documentation and result.
    """
    parameters = inspect.signature(function).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}:
        return function
    names = [name for name in parameters if name != "self"]
    places = [n for n in names if parameters[n].kind is not inspect.Parameter.KEYWORD_ONLY]
    first = len(parameters) - len(names)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        count = max(len(args) - first, 0)  # of those without a name
        given = places[:count]
        if count > len(places) or not kwargs.keys() <= set(names).difference(given):
            constructor = function.__name__ == "__init__"
            what = type(args[0]).__name__ if constructor else function.__qualname__
            for name in kwargs:
                if name not in names:
                    _explain(what, name, names, given)
            for name in given:
                if name in kwargs:
                    raise TypeError(
                        f"{what} got {name} twice: it takes {_taken(what, names, places)}"
                    )
            if count > len(places):
                raise TypeError(f"{what} takes {_taken(what, names, places, f', got {count}')}")
        return function(*args, **kwargs)

    return call


class Explained:
    """Base of classes whose constructors are `explained`, and those of all subclasses."""

    @explained
    def __init__(self) -> None:
        pass

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        for name in ("__init__",) if "__init__" in vars(cls) else ():
            setattr(cls, name, explained(getattr(cls, name)))


def absent(module: str, name: str, known: Iterable[str]) -> str:
    """What is said of a name that a module does not have.

    Parameters
    ----------
    module, name : str
    known : iterable of str
        Those that it has.

    Returns
    -------
    str
    """
    known = list(known)
    ours = [CLASSES[name]] if name in CLASSES else similar(name, known)
    more = f"; did you mean {' or '.join(map(repr, ours))}?" if ours else ""
    return f"module {module!r} has no attribute {name!r}{more}"


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Names that another may have been meant for, the likeliest first.

    Parameters
    ----------
    name : str
        As given.
    known : iterable of str
        Those that there are.

    Returns
    -------
    list of str
        Three at most.
    """
    # Where dashes stand, and which letters are capitals, is no difference.
    plain = {_letters(other): other for other in known}
    return [plain[other] for other in difflib.get_close_matches(_letters(name), plain, 3)]


def _letters(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _taken(what: str, names: list[str], places: list[str], got: str = "") -> str:
    """Which arguments something takes, by place and by name."""
    count = f"{len(places)} argument{'s' * (len(places) > 1)}" if places else "no argument"
    text = f"{count} without a name" + f" ({', '.join(places)})" * bool(places) + got
    others = [f"{name}=" for name in names if name not in places]
    if others:
        listed = others[:_MOST_NAMES] + ["..."] * (len(others) > _MOST_NAMES)
        text += f"; others are named: {', '.join(listed)}"
    return text + (f"; {FIRST_ELSEWHERE[what]}" if what in FIRST_ELSEWHERE else "")


def _explain(what: str, name: str, possible: list[str], given: list[str]) -> None:
    ours = next((here for here in RENAMED.get(name, ()) if here in possible), None)
    if ours is not None:
        already = ""
        if ours in given:
            already = ", which is given already"
            already += f"; {FIRST_ELSEWHERE[what]}" if what in FIRST_ELSEWHERE else ""
        raise TypeError(f"{what} has no argument {name!r}: here it is called {ours!r}{already}")
    if name in UNNEEDED:
        raise TypeError(f"{what} has no argument {name!r}: {UNNEEDED[name]}")
    close = similar(name, possible)
    if close:
        raise TypeError(
            f"{what} has no argument {name!r}: did you mean {' or '.join(map(repr, close))}?"
        )
