"""Two trainings at once on the cores of this machine, beside one after the other.

People run grid searches. Idle threads that spin for their next work keep the other training from
the core; how long ours do is set in `kfc_numba/variables.py`, and decompositions run on one
BLAS thread. With `--spin` the OpenMP library's own setting is taken instead, for comparison.

Run: python -m benchmarks.peers.concurrency [--rounds 5] [--spin] [--json FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from benchmarks.peers.timing import Claim, arguments, claims_table, environment

STEPS = {"SGD": 300, "KFC": 100}
BATCH = 128


def train(name: str) -> None:
    """Wait for a line, train `small`, and print the seconds that it took."""
    import time

    import kfc_numba as kfc
    from benchmarks.common import small

    data = kfc.datasets.fashion_mnist_10k()
    x, _ = data.normalized()
    optimizer = kfc.KFC(period_growth=0) if name == "KFC" else kfc.SGD(learning_rate=1e-3)
    trainer = kfc.Trainer(small(), kfc.SoftmaxCrossEntropy(), optimizer)

    def steps(first: int, last: int) -> None:
        for step in range(first, last):
            part = slice(step * BATCH % 9000, step * BATCH % 9000 + BATCH)
            trainer.step(x[part], data.y_train[part])

    steps(0, 25)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    steps(25, 25 + STEPS[name])
    print(time.perf_counter() - start, flush=True)


def seconds(name: str, count: int, variables: dict[str, str]) -> float:
    """Mean seconds of a number of trainings at once."""
    command = [sys.executable, "-m", "benchmarks.peers.concurrency", "--train", name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [
        subprocess.Popen(command, env=os.environ | variables, **pipes) for _ in range(count)
    ]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    found = [float(child.communicate()[0]) for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError(f"a training by {name} failed")
    return statistics.mean(found)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--train", choices=STEPS, help="be one of the trainings")
    parser.add_argument("--spin", action="store_true", help="threads spin as OpenMP has it")
    parser.set_defaults(rounds=5)
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    # 300,000 is what GNU OpenMP has by itself.
    variables = {"GOMP_SPINCOUNT": "300000"} if options.spin else {}
    rows, claims = [], []
    for name, steps in STEPS.items():
        if options.only not in name:
            continue
        alone, pair = [], []
        for _ in range(options.rounds):
            alone.append(seconds(name, 1, variables))
            pair.append(seconds(name, 2, variables))
        one, two = (1e3 * statistics.median(times) / steps for times in (alone, pair))
        rows.append((f"{name}, `small`, batch {BATCH}", one, two, two / (2 * one)))
        claims.append(
            Claim(f"two trainings by {name} at once, to one after the other", rows[-1][-1], 1.2)
        )
    headers = ("training", "alone, ms a step", "two at once", "to one after the other")
    print(tabulate(rows, headers, floatfmt=".2f"))
    print(claims_table(claims))
    if options.json is not None:
        result = {
            "environment": environment(),
            "claims": [vars(claim) | {"met": claim.met} for claim in claims],
            "concurrency": [dict(zip(headers, row, strict=True)) for row in rows],
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
