"""The command line program in processes of its own: streams, environment, interrupts."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import dataset_files
import numpy as np
import pytest

from kfc_numba import cli
from kfc_numba.optim import KFC

COMMAND = [sys.executable, "-m", "kfc_numba"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with a small data set in the format of MNIST."""
    folder = tmp_path_factory.mktemp("data")
    dataset_files.write_mnist(folder / "mnist", dataset_files.mnist_arrays(0, 40, 20))
    return folder


def shell(line, **environment):
    """Exit status and both outputs of a line for the shell, in which "kfc" is the program."""
    line = f"set -o pipefail; kfc() {{ '{sys.executable}' -m kfc_numba \"$@\"; }}; {line}"
    done = subprocess.run(
        ["bash", "-c", line], env={**os.environ, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


# Streams.


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_line(unbuffered):
    status, _, err = shell("kfc info > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert (status, err) == (1, "kfc-numba info: standard output: No space left on device\n")
    status, _, err = shell("kfc info | sleep 0", PYTHONUNBUFFERED=unbuffered)
    assert (status, err) == (1, "kfc-numba info: standard output: Broken pipe\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_and_full_streams_are_no_error(data, tmp_path, unbuffered):
    words = f"train --dataset mnist --data {data} --optimizer sgd --max-steps 2 --output {tmp_path}"
    for number, streams in enumerate(("2>&-", "2>/dev/full", "0<&- 1>&- 2>&-")):
        status, out, err = shell(f"kfc {words}/{number} {streams}", PYTHONUNBUFFERED=unbuffered)
        assert (status, err) == (0, "")
        assert ("after 2 steps" in out) == (number < 2)
        # Nothing was printed into a file that had got the number of a stream.
        history = json.loads((tmp_path / str(number) / "history.json").read_text())
        assert history["history"][-1]["step"] == 2
    for streams in ("2>&-", "2>/dev/full"):
        found = shell(f"kfc train --epochs 0 {streams}", PYTHONUNBUFFERED=unbuffered)
        assert found == (2, "", "")


def test_names_that_are_not_text_are_printed(data, tmp_path):
    words = f"train --dataset mnist --data {data} --optimizer sgd --max-steps 1 --quiet"
    status, out, err = shell(f"kfc {words} --output {tmp_path}/$'\\xff'")
    assert (status, err) == (0, "")
    assert "\\udcff" in out


# The environment and numbers that are out of every range.


@pytest.mark.parametrize("layer", ["tbb", "fibres"])
def test_a_threading_layer_that_is_not_there_is_one_line(layer):
    status, out, err = shell("kfc info", NUMBA_THREADING_LAYER=layer)
    if layer == "tbb" and status == 0:
        assert "tbb" in out  # it is there
        return
    assert (status, out) == (2, "")
    required = {"tbb": "a layer that is there, such as 'workqueue'", "fibres": "one of workqueue, "}
    start = f"kfc-numba info: NUMBA_THREADING_LAYER (='{layer}') must be {required[layer]}"
    assert err.startswith(start)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "more",
    [
        *(["--learning-rate", "1e300"], ["--l2-reg", "1e300"], ["--damping", "1e300"]),
        *(["--kl-bound", "1e300"], ["--optimizer", "adam", "--learning-rate", "1e300"]),
        ["--optimizer", "sgd", "--learning-rate", "1e300"],
        ["--seed", "1" + "0" * 30, "--evaluate-every", "1" + "0" * 30],
    ],
)
def test_enormous_numbers_end_in_one_line_or_well(data, tmp_path, capsys, more):
    words = ["train", "--dataset", "mnist", "--data", str(data), "--max-steps", "2", "--quiet"]
    status = cli.main([*words, *more, "--output", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert (status, err.count("\n")) in ((0, 0), (1, 1))
    assert status == 0 or "at step" in err


def test_a_number_that_overflows_is_not_finite():
    from kfc_numba import Dense, Sequential, SquaredError

    net = Sequential([Dense(2)], input_shape=(3,))
    x, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    optimizer = KFC(learning_rate=1e300)
    before = {name: value.copy() for name, value in net.params.items()}
    with pytest.raises(FloatingPointError, match="finite at step 0"):
        optimizer.step(net, SquaredError(), x, y, optimizer.init(net))
    for name, value in before.items():
        np.testing.assert_array_equal(net.params[name], value)


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/x", "~nobody-of-this-name"])
def test_the_home_of_nobody_is_one_line(folder, capsys, monkeypatch):
    assert cli.main(["train", "--dataset", "mnist", "--data", folder]) == 2
    assert capsys.readouterr().err == (
        f"kfc-numba train: --data is {folder!r}, which does not exist\n"
    )
    monkeypatch.setenv("KFC_NUMBA_DATA", folder)
    assert cli.main(["train", "--dataset", "mnist"]) == 2
    assert f"KFC_NUMBA_DATA is {folder!r}, which does not exist" in capsys.readouterr().err


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def greedy(*arguments, **more):
        return np.empty(1 << 62, np.uint8)

    monkeypatch.setattr("kfc_numba.datasets.load", greedy)
    assert cli.main(["train"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("kfc-numba train: not enough memory (Unable to allocate 4.00 EiB")
    assert err.count("\n") == 1


def test_warnings_are_one_line(monkeypatch, capsys):
    def warn(arguments):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("the cache\nis full", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr("kfc_numba.commands.info.command", warn)
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().err == "kfc-numba: warning: the cache is full\n"


def test_a_variable_that_numba_cannot_read_is_one_line():
    status, _, err = shell("kfc info", NUMBA_OPT="abc")
    assert status == 0
    assert err == (
        "kfc-numba: warning: Environment variable 'NUMBA_OPT' is defined but its associated value "
        "'abc' could not be parsed.\n"
    )


# Interrupts.

# Says "+" when the first file of the package is imported; before, Python itself is starting.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have had it ignored
sys.argv[0] = "kfc-numba"
def see(event, arguments):
    if event == "import" and arguments[0] == "kfc_numba.curvature":
        os.write(1, b"+")
sys.addaudithook(see)
from kfc_numba import cli
sys.exit(cli.main())
"""


def interrupted(words, seconds, *, after=b"+"):
    """Exit status and messages of the program, interrupted some time after a sign of its own."""
    command = [sys.executable, "-c", INTERRUPTED, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while process.stdout.read(1) not in (after, b""):
            pass
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err.decode()


def test_an_interrupt_at_any_time_before_training_is_one_line(data, tmp_path):
    rng = np.random.default_rng(0)
    words = ["train", "--dataset", "mnist", "--data", str(data), "--optimizer", "sgd", "--quiet"]
    wrong = []
    for seconds in rng.uniform(0, 1.2, 10):
        output = str(tmp_path / f"{seconds}")  # the latest may come when training has begun
        status, err = interrupted([*words, "--epochs", "100000", "--output", output], seconds)
        if status != 130 or err.count("\n") != 1 or ": interrupted" not in err:
            wrong.append((seconds, status, err))
    assert not wrong


# A loop whose finalizers take most of the time, as LLVM's do while kernels are compiled.
SWALLOWING = """
import os, signal, sys
from kfc_numba import interrupts

class Slow:
    def __del__(self):
        for _ in range(2000):
            pass

def command():
    try:
        os.write(1, b"+")
        while True:
            Slow()
    except KeyboardInterrupt:
        return 7

signal.signal(signal.SIGINT, signal.default_int_handler)
left = []
for _ in range(int(sys.argv[1])):
    left.append(interrupts.guarded(command))
print(left.count(7))
"""


def test_no_interrupt_is_lost_in_a_finalizer():
    """Python itself loses nearly all of them."""
    count = 50
    process = subprocess.Popen(
        [sys.executable, "-c", SWALLOWING, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        rng = np.random.default_rng(0)
        watch = threading.Timer(60, process.kill)
        watch.start()
        for seconds in rng.uniform(0, 0.02, count):
            assert process.stdout.read(1) == b"+"
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        watch.cancel()
        process.kill()
    assert (out.strip(), err.decode()) == (str(count).encode(), "")


def test_a_second_interrupt_ends_what_goes_on():
    code = textwrap.dedent("""
        import os, signal, time
        from kfc_numba import interrupts

        def stubborn():
            try:
                os.write(1, b"+")
                time.sleep(60)
            except KeyboardInterrupt:
                os.write(1, b"-")
                time.sleep(60)
            return 0

        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts.guarded(stubborn)
        """)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout.read(1) == b"+"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read(1) == b"-"
        process.send_signal(signal.SIGINT)  # at once: one finger that trembled
        time.sleep(1.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, b"kfc-numba: interrupted\n")


def test_signals_and_streams_are_put_back(capsys):
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook, sys.stdout, sys.stderr
    assert cli.main(["train", "--epochs", "0"]) == 2
    assert (signal.getsignal(signal.SIGINT), sys.unraisablehook, sys.stdout, sys.stderr) == before
