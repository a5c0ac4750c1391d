"""Names of arguments from elsewhere are answered by ours."""

import inspect

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba.foreign_names import CLASSES, RENAMED, UNNEEDED, explained


def network():
    return kfc.Sequential([kfc.Dense(2)], input_shape=(3,))


def trainer():
    return kfc.Trainer(network(), kfc.SoftmaxCrossEntropy(), kfc.SGD())


X, Y = np.zeros((4, 3)), np.zeros(4, int)

RENAMINGS = [
    (kfc.SGD, {"lr": 0.1}, "SGD has no argument 'lr': here it is called 'learning_rate'"),
    (kfc.KFC, {"lr": 0.1}, "KFC has no argument 'lr': here it is called 'learning_rate'"),
    (kfc.Adam, {"l2": 0}, "Adam has no argument 'l2': here it is called 'l2_reg'"),
    (kfc.Adam, {"eps": 1e-8}, "Adam has no argument 'eps': here it is called 'epsilon'"),
    (kfc.BatchNorm, {"eps": 1e-5}, "BatchNorm has no argument 'eps': here it is called 'epsilon'"),
    (kfc.Conv2d, {"filters": 3, "kernel_size": 3}, "Conv2d has .* 'kernel_size': .* 'kernel'"),
    (kfc.Conv2d, {"out_channels": 3, "kernel": 3}, "'out_channels': .* called 'filters'"),
    (kfc.Conv2d, {"filters": 3, "kernel": 3, "strides": 2}, "'strides': .* called 'stride'"),
    (kfc.Dense, {"out_features": 3}, "Dense has no argument 'out_features': .* called 'units'"),
    (kfc.Dense, {"features": 3}, "'features': here it is called 'units'"),
    (kfc.Dense, {"units": 3, "use_bias": False}, "'use_bias': here it is called 'bias'"),
    (kfc.MaxPool2d, {"pool_size": 3}, "MaxPool2d .* 'pool_size': here it is called 'kernel'"),
    (kfc.AvgPool2d, {"kernel_size": 3}, "AvgPool2d .* 'kernel_size': here it is called 'kernel'"),
    (kfc.Dropout, {"p": 0.5}, "Dropout has no argument 'p': here it is called 'rate'"),
    (kfc.LeakyReLU, {"alpha": 0.5}, "LeakyReLU .* 'alpha': here it is called 'negative_slope'"),
    (kfc.Sequential, {"layers": [], "input_size": 3}, "Sequential .* called 'input_shape'"),
    (lambda **more: kfc.Trainer(network(), criterion=1, **more), {}, "Trainer .* called 'loss'"),
    (lambda **more: trainer().fit(X, Y, **more), {"validation_data": (X, Y)},
     r"Trainer\.fit has no argument 'validation_data': here it is called 'validation'"),
    (lambda **more: trainer().fit(X, Y, **more), {"n_epochs": 3}, "here it is called 'epochs'"),
    (lambda **more: trainer().fit(X, Y, **more), {"verbose": 0}, "here it is called 'progress'"),
]  # fmt: skip

REASONS = [
    (kfc.Adam, {"betas": (0.9, 0.999)}, "Adam has no argument 'betas': Adam has beta1 and beta2"),
    (kfc.Conv2d, {"in_channels": 3, "filters": 3}, "'in_channels': a layer sees the number of its"),
    (kfc.Conv2d, {"filters": 3, "activation": "relu"}, "'activation': activations are layers"),
    (kfc.ReLU, {"inplace": True}, "ReLU has no argument 'inplace': no layer changes"),
    (kfc.SoftmaxCrossEntropy, {"from_logits": True}, "'from_logits': outputs are logits"),
    (lambda **more: trainer().fit(X, Y, **more), {"shuffle": True}, "'shuffle': each pass is shuf"),
    (network().predict, {"x": X, "verbose": 0}, "Graph.predict .* 'verbose': nothing is written"),
]

MISSPELLED = [
    (kfc.KFC, {"dampng": 1}, "^KFC has no argument 'dampng': did you mean 'damping'\\?$"),
    (kfc.SGD, {"learningrate": 1}, "^SGD has no .* 'learningrate': did you mean 'learning_rate'"),
    (kfc.SGD, {"learningRate": 1}, "'learningRate': did you mean 'learning_rate'"),
    (kfc.Adam, {"beta_one": 1}, "Adam has no argument 'beta_one': did you mean 'beta"),
    (kfc.Conv2d, {"filters": 3, "kernal": 3}, "Conv2d .* 'kernal': did you mean 'kernel'"),
    (kfc.Dense, {"unit": 3}, "Dense has no argument 'unit': did you mean 'units'"),
    (kfc.MaxPool2d, {"kernel": 3, "ceilmode": True}, "did you mean 'ceil_mode'"),
    (kfc.BatchNorm, {"momentun": 3}, "BatchNorm has no argument 'momentun': did you mean"),
    (kfc.Sequential, {"layers": [], "inputshape": 3}, "Sequential .* did you mean 'input_shape'"),
    (lambda **more: kfc.Trainer(network(), kfc.SoftmaxCrossEntropy(), kfc.SGD(), **more),
     {"sed": 1}, r"^Trainer has no argument 'sed': did you mean 'seed'\?$"),
    (lambda **more: trainer().fit(X, Y, **more), {"batchsize": 3},
     r"^Trainer\.fit has no argument 'batchsize': did you mean 'batch_size'\?$"),
    (network().predict, {"x": X, "batch": 1}, "'batch': did you mean 'batch_size'"),
    (lambda **more: kfc.evaluate(network(), kfc.SoftmaxCrossEntropy(), X, Y, **more),
     {"batchsize": 1}, "^evaluate has no argument 'batchsize': did you mean 'batch_size'"),
    (kfc.Model, {"net": network(), "normalisation": None}, "^Model .* mean 'normalization'"),
    (kfc.datasets.load, {"name": "mnist", "folders": "."}, "^load .* did you mean 'folder'"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "arguments", "message"), RENAMINGS + REASONS + MISSPELLED)
def test_the_message_has_our_name(call, arguments, message):
    with pytest.raises(TypeError, match=message):
        call(**arguments)


def test_other_names_get_the_usual_message():
    for call in (kfc.KFC, kfc.ReLU, kfc.Flatten):
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
            call(nonsense=1)
    # A name of ours, in the wrong place.
    with pytest.raises(TypeError, match="unexpected keyword argument 'stride'"):
        kfc.Dense(3, stride=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'pool_size'"):
        kfc.Dense(3, pool_size=2)


def callables():
    found = [value for value in map(vars(kfc).get, kfc.__all__) if inspect.isclass(value)]
    return [*found, kfc.Trainer.fit, kfc.Graph.predict]


def conv_of_pytorch(**more):
    return kfc.Conv2d(3, 16, **more)


SEES = "a layer sees the number of its"
MISPLACED = [
    (lambda: kfc.Conv2d(3, 16, 3),
     r"^Conv2d takes 2 arguments without a name \(filters, kernel\), got 3; others are named: "
     rf"stride=, padding=, dilation=, groups=, bias=; {SEES} input channels in the network$"),
    (lambda: conv_of_pytorch(kernel=3),
     rf"^Conv2d got kernel twice: it takes 2 .* \(filters, kernel\); .*; {SEES} input channels"),
    (lambda: conv_of_pytorch(kernel_size=3),
     rf"'kernel_size': here it is called 'kernel', which is given already; {SEES} input channels"),
    (lambda: kfc.Dense(784, 10), rf"^bias \(=10\) must be True or False; {SEES} inputs in the net"),
    (lambda: kfc.BatchNorm(16), rf"^BatchNorm takes no argument without a name, got 1; .*; {SEES}"),
    (lambda: kfc.MaxPool2d(2, 2), r"^MaxPool2d takes 1 argument without a name \(kernel\), got 2; "
     r"others are named: stride=, padding=, ceil_mode=$"),
    (lambda: kfc.SGD(0.1), "^SGD takes no argument without a name, got 1; others are named: lear"),
    (lambda: kfc.KFC(0.1), r"others are named: learning_rate=, damping=, .*, \.\.\.$"),
    (lambda: kfc.Sequential(kfc.Dense(3), kfc.ReLU()), r"Sequential takes 1 .* \(layers\), got 2"),
    (lambda: trainer().fit(X, Y, 32), r"^Trainer\.fit takes 2 arguments .* \(x, y\), got 3; other"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), MISPLACED)
def test_arguments_in_the_order_of_another_library_are_explained(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_any_number_of_arguments_where_any_are_taken():
    @explained
    def listed(*values, sep=""):
        return values

    assert listed(1, 2, 3, sep="") == (1, 2, 3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'units'"):
        kfc.Dense()


def test_neither_self_nor_anything_far_away_is_meant():
    with pytest.raises(TypeError, match="unexpected keyword argument 'selv'"):
        kfc.SGD(selv=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'frobnicate'"):
        trainer().fit(X, Y, frobnicate=1)


def test_every_name_of_the_table_is_one_of_ours_and_none_is_foreign():
    ours = {name for call in callables() for name in inspect.signature(call).parameters}
    for foreign, names in RENAMED.items():
        for name in names:
            assert name in ours, foreign
    # alpha is an argument of LocalResponseNorm, steps of schedules; elsewhere they are foreign.
    assert set(RENAMED) & ours <= {"alpha", "steps"}
    # Networks have a device; layers and optimizers need none.
    assert set(UNNEEDED) & ours <= {"name", "device"}


def test_signatures_are_those_that_were_written():
    class Plain:
        def __init__(self, a: int, *, b: float = 1.0) -> None:
            """Words."""
            self.kept = a, b

    expected = inspect.signature(Plain.__init__)
    found = explained(Plain.__init__)
    assert inspect.signature(found) == expected
    assert found.__doc__ == "Words."
    assert list(inspect.signature(kfc.Conv2d).parameters) == [
        *("filters", "kernel", "stride", "padding", "dilation", "groups", "bias")
    ]
    assert not inspect.signature(kfc.ReLU).parameters
    assert inspect.signature(kfc.Trainer.fit).parameters["epochs"].default is None

    @explained
    def anything(a, **more):
        return more

    assert anything(1, lr=2) == {"lr": 2}


def test_layers_and_optimizers_of_users_answer_too():
    class Scaled(kfc.Layer):
        def __init__(self, units):
            self.units = units

    class Descent(kfc.Optimizer):
        def __init__(self, *, learning_rate=0.1):
            super().__init__()
            self.learning_rate = learning_rate

    with pytest.raises(TypeError, match=r"Scaled has no argument 'out_features': .* 'units'"):
        Scaled(out_features=3)
    with pytest.raises(TypeError, match=r"Descent has no argument 'lr': .* 'learning_rate'"):
        Descent(lr=3)
    with pytest.raises(TypeError, match="Scaled has no argument 'unit': did you mean 'units'"):
        Scaled(unit=3)
    assert Scaled(3).units == 3
    assert Descent(learning_rate=3).learning_rate == 3


@pytest.mark.parametrize(
    ("name", "ours"),
    [*CLASSES.items(), ("Relu", "ReLU"), ("Conv2", "Conv2d"), ("trainer", "Trainer")],
)
def test_classes_as_they_are_called_elsewhere(name, ours):
    assert hasattr(kfc, ours)
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean '{ours}'"):
        getattr(kfc, name)


def test_a_name_like_no_other_is_only_not_there():
    with pytest.raises(AttributeError, match=r"'kfc_numba' has no attribute 'zzz'$"):
        kfc.zzz  # noqa: B018
    assert not hasattr(kfc, "__path_of_old__")
