"""The two trainings side by side: one that nothing happens to, and one that is killed."""

import json
import resource
from collections import Counter

import numpy as np

from .process import CHECKPOINT, TRAINING, Process, drawn_deaths
from .record import growth

STEPS = 400  # of a leg


class Soak:
    """A training in a process that lives throughout, and the same one, killed at random moments.

    They take turns, a segment each, and are compared at its end. Times are those that processors
    worked: all may be stopped (SIGSTOP) and go on (SIGCONT) at any time.

    Parameters
    ----------
    folder : pathlib.Path
        A new one.
    seed : int
        Of the training, and of what happens to it.
    steps : int
        Of a leg.
    deaths : callable
        Given a generator, when the processes of a segment are killed.
    script : pathlib.Path
        What the processes run.
    """

    def __init__(self, folder, *, seed=0, steps=STEPS, deaths=drawn_deaths, script=TRAINING):
        self.folder, self.deaths = folder, deaths
        self.training = script, seed, steps
        self.rng = np.random.default_rng(seed)
        self.ending = False
        self.kills, self.halves, self.starts, self.segments = Counter(), 0, 0, 0
        self.problems = []
        for name in ("left alone", "killed"):
            (folder / name).mkdir(parents=True)

    def end(self):
        """Let `run` return when the segment that it is at has been done."""
        self.ending = True

    def run(self, seconds):
        """Segments, until processors have worked so long.

        Parameters
        ----------
        seconds : float

        Returns
        -------
        dict
            What happened, as in record.json, which is written at the end of each segment.
        """
        before, worked = _of_children(), 0.0
        with Process(self.folder / "left alone", *self.training) as alone:
            while True:
                expected = alone.segment(self.segments)
                if expected is None:
                    self.problems.append(f"the process left alone ended: {alone.error()}")
                    return self._record(alone.reports, worked)
                self.with_kills(expected)
                self.segments += 1
                worked = expected["cpu"] + _of_children() - before
                record = self._record(alone.reports, worked)
                if worked >= seconds or self.ending or self.problems:
                    return record

    def with_kills(self, expected):
        """The segment that was just done, by processes that are killed, and the comparison.

        Parameters
        ----------
        expected : dict
            Last report of the process that was left alone.
        """
        for death in [*self.deaths(self.rng), None]:
            self.starts += 1
            half = self._half_a_file()
            with Process(self.folder / "killed", *self.training) as process:
                found = process.segment(self.segments, death)
            if found is not None:
                break
            if not process.killed:
                self.problems.append(f"a process ended by itself: {process.error()}")
                return
            self.kills[death.name] += 1
            self.halves += self._half_a_file() not in (None, half)
        if process.errors.stat().st_size:
            self.problems.append(f"not silent: {process.error()}")
        for name in sorted(found["digests"].keys() | expected["digests"].keys()):
            if found["digests"].get(name) != expected["digests"].get(name):
                self.problems.append(f"segment {self.segments}: other bits in {name}")
        more = {path.name for path in process.folder.iterdir()} - {CHECKPOINT, f"{CHECKPOINT}.tmp"}
        if more:
            self.problems.append(f"segment {self.segments}: files are left: {sorted(more)}")

    def _half_a_file(self):
        """When the checkpoint that was being written was last written to."""
        try:
            return (self.folder / "killed" / f"{CHECKPOINT}.tmp").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _record(self, reports, worked):
        points = [list(report.values()) for report in reports]
        memory = growth(points)
        record = {
            "seed": self.training[1],
            "processor_seconds": round(worked, 1),
            "segments": self.segments,
            "steps": reports[-1]["step"] if reports else 0,
            "checkpoints": len(reports),
            "kills": dict(self.kills),
            "kills_that_left_half_a_file": self.halves,
            "starts_of_killed_processes": self.starts,
            "memory": memory,
            "problems": self.problems + memory.pop("problems"),
            # step, seconds of the process, bytes, open files, threads
            "left_alone": points[:: 1 + len(points) // 500],
        }
        (self.folder / "record.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        return record


def _of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
