"""Where networks compute, as far as it can be told without a card."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import kfc_numba as kfc
from kfc_numba import cli, devices
from kfc_numba.feeding import is_mapped


class NoCard(Exception):
    """What CuPy raises where the driver does not answer."""


def stand_in(count):
    """A package that answers as CuPy does about cards."""

    def how_many():
        if isinstance(count, int):
            return count
        raise NoCard(count)

    runtime = SimpleNamespace(getDeviceCount=how_many, CUDARuntimeError=NoCard)
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))


def net(**settings):
    return kfc.Sequential([kfc.Dense(2)], input_shape=(3,), **settings)


@pytest.mark.parametrize("module", devices.PACKAGES)
def test_a_missing_package_is_named(monkeypatch, module):
    for name in devices.PACKAGES:
        monkeypatch.setitem(sys.modules, name, stand_in(1) if name != module else None)
    package = devices.PACKAGES[module]
    with pytest.raises(devices.DeviceError, match=f"package {package} is missing.*pip install"):
        net(device="cuda")


@pytest.mark.parametrize(
    ("count", "what"), [(0, "there is no NVIDIA card"), ("broken", "driver that works .broken.")]
)
def test_a_missing_card_or_driver_is_named(monkeypatch, count, what):
    for name in devices.PACKAGES:
        monkeypatch.setitem(sys.modules, name, stand_in(count))
    own = net()
    with pytest.raises(devices.DeviceError, match=what):
        own.to("cuda")
    assert own.device == "cpu"


def test_packages_that_do_not_go_together(monkeypatch):
    for name in devices.PACKAGES:
        monkeypatch.setitem(sys.modules, name, stand_in(1))
    monkeypatch.setattr(devices, "device_kernels", lambda: None)
    assert devices.missing() is None

    def refuse():
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")

    monkeypatch.setattr(devices, "device_kernels", refuse)
    assert "numba-cuda does not work with the NumPy" in devices.missing()
    assert "row_stack" in devices.missing()


@pytest.mark.parametrize("device", ["gpu", "cuda:0", None])
def test_unknown_devices(device):
    with pytest.raises((ValueError, TypeError), match="device"):
        net().to(device)
    with pytest.raises((ValueError, TypeError), match="device"):
        net(device=device)


def test_moving_to_where_it_is_changes_nothing():
    trainer = kfc.Trainer(net(), kfc.SquaredError(), kfc.SGD())
    params, state = dict(trainer.net.params), dict(trainer.optimizer_state)
    assert trainer.to("cpu") is trainer
    assert trainer.net.to("cpu") is trainer.net
    assert all(trainer.net.params[name] is value for name, value in params.items())
    assert all(trainer.optimizer_state[name] is value for name, value in state.items())


def test_a_move_that_fails_changes_nothing(monkeypatch):
    for name in devices.PACKAGES:
        monkeypatch.setitem(sys.modules, name, stand_in(0))
    trainer = kfc.Trainer(net(), kfc.SquaredError(), kfc.SGD(averaging=4))
    x, y = np.eye(3), np.ones((3, 2))
    trainer.fit(x, y, epochs=3, progress=False)
    averaged, raw = trainer.net.predict(x), trainer.raw_params
    assert not np.array_equal(trainer.net.params["dense1.weight"], raw["dense1.weight"])
    for device in ("cuda", "gpu"):
        with pytest.raises((devices.DeviceError, ValueError), match="device"):
            trainer.to(device)
        np.testing.assert_array_equal(trainer.net.predict(x), averaged)
        for name, value in trainer.raw_params.items():
            np.testing.assert_array_equal(value, raw[name])


def test_arrays_of_a_mapped_file(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert is_mapped(mapped)
    assert is_mapped(np.asarray(mapped)[1:])
    assert not is_mapped(mapped.copy())
    assert not is_mapped(np.zeros(3)[1:])


def test_arrays_of_the_host():
    array = np.zeros(3)
    assert devices.device_of(array) == "cpu"
    assert devices.to_device(array, "cpu") is array
    assert devices.to_host(array) is array
    assert devices.owned("x", [1, 2]).tolist() == [1, 2]


def test_no_card_is_one_line(capsys):
    assert cli.main(["bench-cuda"]) == 1
    assert capsys.readouterr().err.startswith("kfc-numba bench-cuda: device (='cuda')")


def test_no_card_leaves_no_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(["train", "--device", "cuda", "--output", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("kfc-numba train: --device: device (='cuda') cannot be used")
    assert error.count("\n") == 1
    assert not folder.exists()
