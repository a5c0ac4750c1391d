"""A training without end, in segments of legs, each with a batch size of its own.

``python training.py FOLDER SEED STEPS`` goes on from the checkpoint in the folder, if there is one.
Each line that it reads is the number of a segment, which it trains to the end of. It writes a line
of JSON after each checkpoint, and one at the end of the segment, with a digest of all that a
trainer holds.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

import kfc_numba as kfc
from kfc_numba.datasets.bundled import fashion_mnist_10k

EXAMPLES, HELD_OUT = 2000, 500
LEGS = 10  # of a segment
#: KFC with BatchNorm diverges some time if there are two examples in a batch for long.
LEAST_BATCH, MOST_BATCH = 16, 320
LEAST_BY_HAND = 8


def network():
    layers = [
        kfc.Conv2d(6, 3, stride=2, padding="same"),
        kfc.BatchNorm(),
        kfc.ReLU(),
        kfc.MaxPool2d(2),
        kfc.Conv2d(8, 3, padding="same"),
        kfc.ReLU(),
        kfc.Flatten(),
        kfc.Dropout(0.2),
        kfc.Dense(10),
    ]
    return kfc.Sequential(layers, input_shape=(28, 28, 1))


def optimizer():
    """With as many kinds of state as go together."""
    return kfc.KFC(
        damping=1e-2,
        l2_reg=1e-3,
        num_burnin_steps=3,
        exact_period=4,
        use_adaptive_damping=True,
        adaptation={"min_damping": 1e-3},
        max_loss_increase=0.5,
        averaging=0.1,
    )


def leg(seed, number, steps):
    """What a leg does: its settings follow from the seed and its number alone."""
    rng = np.random.default_rng([seed, number])
    # As many small batches as large ones.
    batch_size = int(np.exp(rng.uniform(np.log(LEAST_BATCH), np.log(MOST_BATCH + 1))))
    return {
        "by_hand": rng.random() < 0.2,  # a loop of `Trainer.step`, as somebody might write it
        "batch_size": batch_size,
        "evaluate_every": None if rng.random() < 0.3 else int(rng.integers(1 + steps // 8, steps)),
        "predicted": int(rng.integers(1, HELD_OUT + 1)),
    }


class Training:
    """A trainer, and the legs that it goes through.

    Parameters
    ----------
    folder : pathlib.Path
    seed : int
    steps : int
        Of each leg.
    report : callable
        Called with a dict after each checkpoint.
    """

    def __init__(self, folder, seed, steps, report):
        data = fashion_mnist_10k()
        self.x, self.y = self.images(data.x_train[:EXAMPLES]), data.y_train[:EXAMPLES]
        self.held_out = self.images(data.x_test[:HELD_OUT]), data.y_test[:HELD_OUT]
        self.seed, self.steps, self.report = seed, steps, report
        self.checkpoint = folder / "checkpoint.safetensors"
        loss = kfc.SoftmaxCrossEntropy()
        if self.checkpoint.exists():
            self.trainer = kfc.Trainer.load(self.checkpoint, network(), loss, optimizer())
        else:
            self.trainer = kfc.Trainer(network(), loss, optimizer(), seed=seed)

    @staticmethod
    def images(given):
        return given.astype(np.float32) / 255

    def segment(self, number):
        """Train to the end of a segment, and say with which bits."""
        while (at := self.trainer.steps // self.steps) < LEGS * (number + 1):
            given = leg(self.seed, at, self.steps)
            self.go_through(given, (at + 1) * self.steps)
            self.predict(given["predicted"])
        return self.digests()

    def predict(self, count):
        return self.trainer.evaluation_net().predict(self.held_out[0][:count])

    def go_through(self, leg, end):
        trainer, batch_size = self.trainer, leg["batch_size"]
        if leg["by_hand"]:
            while trainer.steps < end:
                rng = np.random.default_rng([self.seed, trainer.steps])
                chosen = rng.integers(EXAMPLES, size=rng.integers(LEAST_BY_HAND, batch_size + 1))
                trainer.step(self.x[chosen], self.y[chosen])
            trainer.save(self.checkpoint)
            self.report(measured(trainer))
        else:
            trainer.fit(
                self.x,
                self.y,
                batch_size=batch_size,
                total_steps=end,
                validation=self.held_out,
                evaluate_every=leg["evaluate_every"],
                progress=False,
                checkpoint=self.checkpoint,
                stop=lambda row: self.report(measured(trainer)),
                training_sample=500,
            )

    def digests(self):
        """A digest of each thing that a trainer holds, but for seconds, by its name."""
        trainer = self.trainer
        rows = [{k: v for k, v in r.items() if k != "seconds"} for r in trainer.history.rows]
        arrays = {f"params/{name}": value for name, value in trainer.net.params.items()}
        arrays |= {f"raw_params/{name}": value for name, value in trainer.raw_params.items()}
        arrays |= {f"buffers/{name}": value for name, value in trainer.net.buffers.items()}
        arrays |= {f"raw_buffers/{name}": value for name, value in trainer.raw_buffers.items()}
        arrays |= {f"optimizer/{name}": value for name, value in trainer.optimizer_state.items()}
        digests = {name: digest(value) for name, value in arrays.items()}
        place = trainer._epoch, trainer._position
        return digests | {
            "history": digest(json.dumps(rows)),
            "place": digest(repr(place)),
            "predictions": digest(self.predict(HELD_OUT)),
        }


def digest(value):
    if isinstance(value, str):
        content = value.encode()
    else:
        content = f"{value.dtype} {value.shape}".encode() + value.tobytes()
    return hashlib.sha256(content).hexdigest()[:24]


def measured(trainer):
    """Where training is, and what the process holds."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "step": trainer.steps,
        "cpu": time.process_time(),
        "memory": int(status["VmRSS"].split()[0]) * 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
    }


def write(line):
    print(json.dumps(line), flush=True)


def main(folder, seed, steps):
    training = Training(Path(folder), int(seed), int(steps), write)
    for line in sys.stdin:
        digests = training.segment(int(line))
        write(measured(training.trainer) | {"end": int(line), "digests": digests})


if __name__ == "__main__":
    main(*sys.argv[1:])
