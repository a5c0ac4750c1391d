"""PyTorch's optimizers on the network ``"quick"``, by the protocol of our own runs.

They start from the parameters that our network has at the same seed, see the same batches in the
same order, and are evaluated by our network with their parameters. Their memory format is the
faster one, by a measurement before the first run of a batch size.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

import kfc_numba as kfc
from benchmarks.experiments.results import Plan, Result, finished
from benchmarks.experiments.runs import GROWTH, train_for
from benchmarks.experiments.tasks import Task
from benchmarks.peers import pytorch
from benchmarks.peers.pytorch import torch
from benchmarks.peers.timing import use_threads
from kfc_numba.history import Row
from kfc_numba.optim.averaging import timescale_at
from kfc_numba.random import generator

NAMES = ("SGD", "Adam", "AdamW", "Muon", "SOAP")


def config_of(name: str, rate: float, averaging: float | None) -> dict[str, Any]:
    """Settings of an optimizer of PyTorch, for a plan; what is not here is PyTorch's default."""
    settings: dict[str, Any] = {"optimizer": f"torch {name}", "learning_rate": rate}
    if name == "SGD":
        settings["momentum"] = 0.9
    return settings | {"averaging": averaging}


class TorchTraining:
    """The network ``"quick"`` under an optimizer of PyTorch; a `runs.Training`."""

    def __init__(
        self,
        task: Task,
        settings: Mapping[str, Any],
        batch_size: int,
        seed: int,
        *,
        sample: int,
        layout: torch.memory_format,
    ):
        self.task, self.batch_size, self.seed = task, batch_size, seed
        self.rows: list[Row] = []
        self.net = task.build(seed)
        self.rival = pytorch.quick(layout)
        copy_to_torch(self.net, self.rival)
        self.optimizers = _optimizers(settings, self.rival)
        self.averaging: float | None = settings["averaging"]
        self.average = [torch.zeros_like(p) for p in self.rival.parameters()]
        self.weight = 0.0
        self.steps, self.examples, self.seconds = 0, 0, 0.0
        x, y = task.train
        # Channels last in memory is how our images are.
        self.last = layout == torch.channels_last
        self.x = torch.from_numpy(x) if self.last else pytorch.images(x, layout)
        self.y = torch.from_numpy(y)
        self.batches = self._batches()
        order = generator(seed, "training sample").permutation(len(x))
        chosen = np.sort(order[:sample])
        self.sample = x[chosen], y[chosen]

    def train_to(self, steps: int) -> None:
        if not self.rows:
            self._evaluate()
        start = time.perf_counter()
        try:
            while self.steps < steps:
                self._step(*next(self.batches))
        finally:
            self.seconds += time.perf_counter() - start
        self._evaluate()

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        epoch = 0
        while True:
            order = torch.from_numpy(
                generator(self.seed, "shuffle", epoch).permutation(len(self.x))
            )
            for chosen in order.split(self.batch_size):
                x = self.x.index_select(0, chosen)
                yield (x.permute(0, 3, 1, 2) if self.last else x), self.y.index_select(0, chosen)
            epoch += 1

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.rival.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.rival(x), y)
        loss.backward()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.steps}")
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1
        self.examples += len(x)
        if self.averaging is not None:
            timescale = timescale_at(self.averaging, self.steps)
            self.weight = math.exp(-1 / timescale) * self.weight + 1
            with torch.no_grad():
                parameters = list(self.rival.parameters())
                torch._foreach_lerp_(self.average, parameters, 1 / self.weight)

    def _evaluate(self) -> None:
        averaged = self.averaging is not None and self.steps > 0
        copy_from_torch(self.average if averaged else list(self.rival.parameters()), self.net)
        training_loss, _ = kfc.evaluate(self.net, self.task.loss, *self.sample)
        loss, error = kfc.evaluate(self.net, self.task.loss, *self.task.validation)
        self.rows.append(
            {
                "step": self.steps,
                "epoch": self.examples / len(self.x),
                "seconds": self.seconds,
                "training_loss": training_loss,
                "validation_loss": loss,
                "validation_error": error,
            }
        )


class _FlatMuon(torch.optim.Muon):
    """Muon, which takes matrices, of convolution weights: a row for each output channel."""

    def __init__(self, weights: list[torch.nn.Parameter], **settings: Any):
        self._weights = weights
        # Views: what is done to the matrices is done to the weights.
        self._last = not weights[0].is_contiguous()
        matrices = [torch.nn.Parameter(self._rows(w.detach()).view(len(w), -1)) for w in weights]
        super().__init__(matrices, **settings)

    def step(self, closure: Any = None) -> None:
        for matrix, weight in zip(self.param_groups[0]["params"], self._weights, strict=True):
            assert weight.grad is not None
            matrix.grad = self._rows(weight.grad).reshape(len(weight), -1)
        super().step(closure)

    def _rows(self, weight: torch.Tensor) -> torch.Tensor:
        """Axes in the order that the weights have in memory."""
        return weight.permute(0, 2, 3, 1) if self._last else weight


def _optimizers(settings: Mapping[str, Any], net: torch.nn.Module) -> list[Any]:
    name, rate = settings["optimizer"].removeprefix("torch "), settings["learning_rate"]
    if name == "SOAP":
        from pytorch_optimizer import SOAP  # which PyTorch has not

        return [SOAP(net.parameters(), lr=rate)]
    if name != "Muon":
        more = {"momentum": settings["momentum"]} if "momentum" in settings else {}
        return [getattr(torch.optim, name)(net.parameters(), lr=rate, **more)]
    # As Muon's documentation has it: hidden weights by it, the last layer and biases by AdamW, and
    # one learning rate for both by `match_rms_adamw`.
    hidden = [p for p in net.parameters() if p.ndim == 4]
    others = [p for p in net.parameters() if p.ndim != 4]
    return [
        _FlatMuon(hidden, lr=rate, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate),
    ]


def copy_to_torch(net: kfc.Graph, rival: torch.nn.Module) -> None:
    """Give PyTorch's network the parameters of ours."""
    with torch.no_grad():
        for ours, theirs in zip(net.params.values(), rival.parameters(), strict=True):
            theirs.copy_(torch.from_numpy(_theirs(ours, net)))


def copy_from_torch(parameters: list[torch.Tensor], net: kfc.Graph) -> None:
    """Give our network parameters of PyTorch's."""
    for ours, theirs in zip(net.params.values(), parameters, strict=True):
        value = theirs.detach().numpy()
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2:
            height, width, channels = _flattened(net)
            value = value.reshape(-1, channels, height, width).transpose(2, 3, 1, 0)
        ours[...] = value.reshape(ours.shape)


def _theirs(value: np.ndarray, net: kfc.Graph) -> np.ndarray:
    if value.ndim == 4:
        return np.ascontiguousarray(value.transpose(3, 2, 0, 1))
    if value.ndim == 2:  # of images flattened with channels last
        images = value.reshape(*_flattened(net), -1)
        return np.ascontiguousarray(images.transpose(3, 2, 0, 1)).reshape(value.shape[1], -1)
    return value.copy()


def _flattened(net: kfc.Graph) -> tuple[int, ...]:
    """Shape of the images that the last layer takes."""
    return tuple(net.layers[-3].shape)


@functools.cache
def faster_layout(batch_size: int) -> str:
    """The memory format in which a step of SGD takes less time."""
    x, y = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    steps = {}
    for name, layout in pytorch.FORMATS.items():
        net = pytorch.quick(layout)
        steps[name] = (
            net,
            torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9),
            x.contiguous(memory_format=layout),
        )
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(6):
        for name, (net, optimizer, images) in steps.items():
            start = time.perf_counter()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images), y).backward()
            optimizer.step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return min(times, key=lambda name: statistics.median(times[name]))


def torch_run(
    task: Task, plan: Plan, *, give_up_after: float = math.inf, growth: float = GROWTH
) -> Result:
    """Do what a plan with an optimizer of PyTorch says.

    Parameters
    ----------
    task : Task
        With the network ``"quick"``.
    plan : Plan
        Its optimizer from `config_of`.
    give_up_after, growth
        See `runs.train_for`.

    Returns
    -------
    Result
    """
    if plan.budget is None:
        raise ValueError("plan.budget is None; required: a number of seconds")
    use_threads(None)
    name = faster_layout(plan.batch_size)

    def training() -> TorchTraining:
        return TorchTraining(
            task,
            plan.optimizer,
            plan.batch_size,
            plan.seed,
            sample=plan.sample,
            layout=pytorch.FORMATS[name],
        )

    warm = training()
    for _ in range(2):
        warm._step(*next(warm.batches))
    run = training()
    outcome, problem = train_for(
        run, plan.budget, level=plan.level, give_up_after=give_up_after, growth=growth
    )
    result = finished(plan, outcome, problem, run.rows)
    result.environment["format"] = name
    return result
