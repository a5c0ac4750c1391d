"""One process of `training`, and the moments at which it is killed."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint.safetensors"
TRAINING = Path(__file__).with_name("training.py")


@dataclass
class AtAge:
    """When processors have worked for it so long: imports, loading, the first steps."""

    seconds: float
    name, pause = "by age", 0.01

    @classmethod
    def drawn(cls, rng):
        return cls(rng.uniform(0, 8))

    def due(self, process):
        return process.worked() >= self.seconds


@dataclass
class BetweenCheckpoints:
    """After some checkpoints, and a part of the time from one of them to the next."""

    after: int
    part: float
    name, pause = "between checkpoints", 0.005

    @classmethod
    def drawn(cls, rng):
        return cls(int(rng.integers(1, 12)), rng.uniform(0, 1.2))

    def due(self, process):
        if len(process.reports) < self.after:
            return False
        last = [report["cpu"] for report in process.reports][-2:]
        return process.worked() >= last[-1] + self.part * (last[-1] - last[0])


@dataclass
class WhileWriting:
    """Soon after a checkpoint, not the first, has begun to be written."""

    times: int
    delay: float
    existed: bool = True  # one may be left of another process
    name, pause = "while writing", 0.0005

    @classmethod
    def drawn(cls, rng):
        return cls(int(rng.integers(1, 8)), rng.uniform(0, 0.01))

    def due(self, process):
        exists = (process.folder / f"{CHECKPOINT}.tmp").exists()
        self.times -= exists and not self.existed
        self.existed = exists
        if self.times > 0:
            return False
        time.sleep(self.delay)
        return True


def drawn_deaths(rng):
    """From one to six moments of all kinds: those of a segment, after which it is left alone."""
    kinds = rng.choice([AtAge, BetweenCheckpoints, WhileWriting], size=rng.integers(1, 7))
    return [kind.drawn(rng) for kind in kinds]


class Process:
    """A training in a process of its own.

    Parameters
    ----------
    folder : pathlib.Path
        Of its checkpoint.
    script : pathlib.Path
        `TRAINING`, or what does the same.
    seed, steps : int
        As in `training.Training`.
    """

    def __init__(self, folder, script, seed, steps):
        self.folder, self.reports, self.killed = folder, [], False
        self.errors = folder.with_name(f"{folder.name}.errors")
        with open(self.errors, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", script, folder, str(seed), str(steps)],
                env=os.environ | {"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()  # nothing more to do: it ends
        self._process.stdout.close()
        self._process.wait()

    def segment(self, number, death=None):
        """Let it train to the end of a segment; its last report, None where it did not get there.

        Parameters
        ----------
        number : int
        death : AtAge, BetweenCheckpoints or WhileWriting, optional
            When it is killed.
        """
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        output, rest = self._process.stdout.fileno(), b""
        while True:
            if death is not None and death.due(self):
                self._process.send_signal(signal.SIGKILL)
                self.killed = self._process.wait() == -signal.SIGKILL
                return None
            if not select.select([output], [], [], death and death.pause)[0]:
                continue
            found = os.read(output, 2**16)
            if not found:
                self._process.wait()
                return None
            *lines, rest = (rest + found).split(b"\n")
            for line in lines:
                report = json.loads(line)
                if "end" in report:
                    return report
                self.reports.append(report)

    def worked(self):
        """Seconds that processors worked for it."""
        with open(f"/proc/{self._process.pid}/stat", encoding="ascii", errors="replace") as file:
            entries = file.read().rpartition(")")[2].split()
        return (int(entries[11]) + int(entries[12])) / os.sysconf("SC_CLK_TCK")

    def error(self):
        """The end of what it said."""
        return f"exit status {self._process.returncode}: {self.errors.read_text('utf-8')[-2000:]}"
