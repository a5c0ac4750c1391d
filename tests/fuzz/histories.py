"""Histories: ``history.json`` of a run that is to be resumed."""

import json
import random
import shutil

from .command import run, write_data
from .mutate import TEXTS, change_bytes, change_json
from .oracle import measured, require

#: What a resumed run may be given anew, and may so find changed.
CHANGEABLE = ("epochs", "max_steps", "data")
PLACEHOLDER = '"replaced"'


class Histories:
    """``kfc-numba train --resume`` after something was done to the history."""

    name = "histories"

    def __init__(self, folder):
        self.folder = folder
        self.run = folder / "run"
        write_data(folder / "data" / "mnist")
        words = "train --dataset mnist --data data --optimizer sgd --epochs 3 --seed 7 --quiet"
        found = run([*words.split(), "--batch-size", "5", "--output", "run"], folder)
        require(found.status == 0, found.err)
        self.files = {path.name: path.read_bytes() for path in self.run.iterdir()}
        self.content = json.loads(self.files["history.json"])
        (self.trainer, self.settings), *_ = found.trained

    def case(self, number):
        rng = random.Random(f"{self.name} {number}")
        kind = rng.choice(("bytes", "json", "json", "json", "config", "config", "text", "gone"))
        self.description = kind
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()
        changed, what = self._changed(rng, kind)
        files = self.files | {"history.json": changed}
        if what == "no checkpoint":
            del files["checkpoint.safetensors"]
        for name, content in files.items():
            if content is not None:
                (self.run / name).write_bytes(content)
        self.description = f"{kind}: {what}"
        with measured() as peak:
            found = run(["train", "--resume", "--output", "run", "--quiet"], self.folder)
        peak.require(20 * sum(map(len, self.files.values())), "a history")
        found.check(["run/", "run holds", "run was", "run has", "--data", "data set"])
        if found.status == 0:
            require(what != "no checkpoint", "a run without its checkpoint is begun anew")
            self._as_before(found)
        else:
            for name, content in files.items():
                if content is not None:
                    left = (self.run / name).read_bytes()
                    require(left == content, f"{name} is changed after an error")
        return found.status == 0, peak.bytes

    def _changed(self, rng, kind):
        content = self.files["history.json"]
        if kind == "bytes":
            return change_bytes(rng, content)
        if kind == "gone":
            which = rng.choice(("no checkpoint", "no history", "nothing done"))
            return (None if which == "no history" else content), which
        under = ("config",) if kind == "config" else ()
        changed, what = change_json(rng, self.content, under)
        text = json.dumps(changed, indent=2)
        if kind == "text":
            for word in sorted({"16", "5", "7", "null", '"mnist"', "3", "2.5"}):
                if rng.random() < 0.4 and word in text:
                    special = rng.choice(TEXTS)
                    text, what = text.replace(word, special, 1), f"{special[:20]!r} for {word}"
        return text.encode("utf-8", "surrogatepass"), what

    def _as_before(self, found):
        """That the run goes on with the settings and the rows that it has."""
        (trainer, settings), *_ = found.trained
        require(settings["batch_size"] == self.settings["batch_size"], "another batch size")
        require(trainer.seed == self.trainer.seed, "another seed")
        config = trainer.optimizer.config()
        require(config == self.trainer.optimizer.config(), f"other settings: {config}")
        rows = trainer.history.rows
        require(rows == self.trainer.history.rows, f"other rows: {rows}")
        written = json.loads((self.run / "history.json").read_bytes())
        require(written["history"] == self.content["history"], "other rows are written")
        kept = {
            name: (written["config"].get(name), value)
            for name, value in self.content["config"].items()
            if name not in CHANGEABLE
        }
        for name, (new, old) in kept.items():
            require(new == old, f"{name} is written as {new!r}, it is {old!r}")
