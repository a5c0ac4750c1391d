"""Non-adaptive KFC in NumPy, step by step, with dense matrices: nothing here is of the package.

The damped curvature of a layer is a dense matrix and a linear system; averages are sums over all
that they are the average of. Steps of the algorithm: Grosse and Martens (2016), Algorithm 1.
"""

import itertools
import math
import zlib

import numpy as np
from naive import sample_by_weight
from numpy_networks import BatchNorm, Linear, backward, forward, tangent


def generator(seed, purpose, *counters):
    """Random numbers keyed by what they are for."""
    key = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *counters])
    return np.random.Generator(np.random.Philox(key))


class Average:
    """Weighted mean of all estimates so far; each new one makes the others count `ema` times.

    The first `equal` of them weigh the same: together what they would have weighed otherwise.
    """

    def __init__(self, equal=0):
        self.items, self.equal = [], equal

    def add(self, value, ema):
        self.items = [(weight * ema, old) for weight, old in self.items] + [(1 - ema, value)]
        if len(self.items) <= self.equal:
            weight = sum(weight for weight, _ in self.items) / len(self.items)
            self.items = [(weight, old) for _, old in self.items]

    def replace(self, change):
        self.items = [(weight, change(old)) for weight, old in self.items]

    def mean(self):
        total = sum(weight for weight, _ in self.items)
        return sum(weight / total * value for weight, value in self.items)


# Curvature of one layer. `factors` are what is averaged, by the name that the library gives it.


class KroneckerBlock:
    def __init__(self, layer, approx, burnin):
        self.layer, self.approx = layer, approx
        self.averages = {kind: Average(burnin) for kind in ("omega", "gamma")}
        self.decomposed = None

    def estimate(self, patches, passes):
        """Factors of patches (N, T, D), and of (outputs' derivative, gradients) of M examples."""
        count, places = patches.shape[:2]
        rows = [dy.reshape(len(dy), places, -1) for dy, _ in passes]
        if self.approx == "reduce":
            patches = patches.mean(axis=1, keepdims=True)
            rows, places = [r.sum(axis=1, keepdims=True) for r in rows], 1
        omega = np.einsum("ntd,nte->de", patches, patches) / count
        gamma = sum(np.einsum("nti,ntj->ij", r, r) for r in rows) / (len(rows[0]) * places)
        return {"omega": omega, "gamma": gamma}

    def enough(self, patches, wanted):
        """Patches of as many examples, evenly over the batch, as serve; None: of all."""
        count, places, rows = patches.shape
        if wanted is None:
            return patches
        size = min(count, wanted)
        if places > 1 and self.approx == "expand":
            size = min(size, max(16, int(np.ceil(8 * rows / places))))
        return patches[[i * count // size for i in range(size)]]

    def add(self, patches, passes, repeats, ema):
        found = self.estimate(patches, passes)
        self.averages["omega"].add(found["omega"], ema)
        self.averages["gamma"].add(found["gamma"] / repeats, ema)

    def factors(self):
        """What a decomposition that begins now is of."""
        return self.averages["omega"].mean(), self.averages["gamma"].mean()

    def refresh(self, factors):
        self.decomposed = factors

    def added(self, damping, strategy):
        """What is added to Omega and to Gamma."""
        omega, gamma = self.decomposed
        pi = 1.0
        if strategy == "pi":
            pi = np.sqrt((np.trace(omega) / len(omega)) / (np.trace(gamma) / len(gamma)))
        return pi * np.sqrt(damping) * np.eye(len(omega)), np.sqrt(damping) / pi * np.eye(
            len(gamma)
        )

    def dense(self, damping, strategy):
        omega, gamma = self.decomposed
        if strategy == "exact":
            size = len(omega) * len(gamma)
            return np.kron(gamma, omega) + damping * np.eye(size)
        more_omega, more_gamma = self.added(damping, strategy)
        return np.kron(gamma + more_gamma, omega + more_omega)


class EkfacBlock(KroneckerBlock):
    """Eigenvectors of K-FAC; the eigenvalues are second moments of single gradients in them."""

    def __init__(self, layer, approx, burnin):
        super().__init__(layer, approx, burnin)
        self.averages["second_moments"] = Average()
        self.basis = None

    def add(self, patches, passes, repeats, ema):
        super().add(patches, passes, repeats, ema)
        if self.basis is not None:
            self.add_moments(passes, repeats, ema)

    def add_moments(self, passes, repeats, ema):
        total = 0
        for _, each in passes:
            turned = each.reshape(len(each), -1) @ self.basis
            total = total + (turned**2).mean(axis=0).reshape(each.shape[1:])
        self.averages["second_moments"].add(total / repeats, ema)

    def refresh(self, factors):
        super().refresh(factors)
        omega, gamma = self.decomposed
        old = self.basis
        self.basis = np.kron(np.linalg.eigh(gamma)[1], np.linalg.eigh(omega)[1])

        def turned(moments):
            matrix = old @ np.diag(moments.ravel()) @ old.T
            return np.diag(self.basis.T @ matrix @ self.basis).reshape(moments.shape)

        self.averages["second_moments"].replace(turned)

    def dense(self, damping, strategy):
        more = super().dense(damping, strategy) - np.kron(*self.decomposed[::-1])
        moments = self.averages["second_moments"].mean()
        return self.basis @ np.diag(moments.ravel()) @ self.basis.T + more


class DiagonalBlock:
    def __init__(self, layer, approx, burnin):
        self.layer = layer
        self.averages = {"diagonal": Average(burnin)}

    def enough(self, patches, wanted):
        return None

    def add(self, patches, passes, repeats, ema):
        squares = sum((each**2).mean(axis=0) for _, each in passes)
        self.averages["diagonal"].add(squares / repeats, ema)

    def factors(self):
        return None

    def refresh(self, factors):
        pass  # no eigenvectors: the average itself is what is used

    def dense(self, damping, strategy):
        return np.diag(self.averages["diagonal"].mean().ravel() + damping)


BLOCKS = {"kronecker": KroneckerBlock, "ekfac": EkfacBlock, "diagonal": DiagonalBlock}


DEFAULTS = {
    "learning_rate": 0.1,
    "damping": None,
    "momentum": 0.8,
    "loss_bound": 2e-3,
    "kl_bound": None,
    "norm_constraint": None,
    "exact_examples": 64,
    "exact_period": None,
    "exact_by": "difference",
    "balance_layers": True,
    "curvature_examples": 256,
    "curvature_ema": 0.85,
    "curvature_update_period": 20,
    "inverse_update_period": 100,
    "period_growth": 0.2,
    "decomposition_lag": 0,
    "num_burnin_steps": 0,
    "estimation_mode": "fisher_gradients",
    "num_estimator_samples": 1,
    "kfac_approx": "expand",
    "structure": "kronecker",
    "damping_strategy": "pi",
    "inversion": "cholesky",
    "l2_reg": 0.0,
    "weight_decay": None,
    "averaging": 0.1,
}


def is_due(step, period, growth):
    """Whether a step is one of 0, 1, 2, ...: the part `growth` of the way apart, or `period`."""
    if growth == 0:
        return step % period == 0
    times = [0]
    while times[-1] < step:
        times.append(times[-1] + int(np.clip(np.floor(growth * times[-1]), 1, period)))
    return step in times


class Reference:
    """Training by KFC, from given parameters; settings have the library's names and defaults."""

    defaults = DEFAULTS

    def __init__(self, layers, params, buffers, loss, seed, settings):
        assert settings.keys() <= self.defaults.keys()
        self.settings = self.defaults | settings
        self.layers, self.loss, self.seed = layers, loss, seed
        self.params = {name: np.array(value) for name, value in params.items()}
        self.buffers = {name: np.array(value) for name, value in buffers.items()}
        self.momentum = {name: np.zeros_like(value) for name, value in self.params.items()}
        self.path, self.steps, self.estimates, self.blocks = [], 0, 0, {}
        self.shortened, self.exact_on = [], []  # what happened at the steps
        self.recent_loss, self.ratio, self.asked, self.every = None, None, 0, 1
        self.length, self.tried, self.left, self.held, self.lasted = 0.0, 0, 1.0, 1.0, 0.0
        self.shorter = 0
        self.layer_ratios, self.layer_scales = Average(), {}
        self.begun, self.late = None, []  # the last: how many steps decompositions came late
        structure, burnin = self.settings["structure"], self.settings["num_burnin_steps"]
        for layer in layers:
            if layer.names:
                kind = structure if isinstance(layer, Linear) else "diagonal"
                self.blocks[layer.name] = BLOCKS[kind](layer, self.settings["kfac_approx"], burnin)

    def value(self, name, step=None):
        value = self.settings[name]
        return value(self.steps if step is None else step) if callable(value) else value

    # The data: each pass in an order of its own, the first batches for burn-in too.

    def batches(self, x, y, size):
        epoch = 0
        while True:
            order = generator(self.seed, "shuffle", epoch).permutation(len(x))
            for start in range(0, len(x), size):
                chosen = order[start : start + size]
                yield x[chosen], y[chosen]
            epoch += 1

    def fit(self, x, y, size):
        """Yields after each step."""
        batches = self.batches(x, y, size)
        for index in range(self.settings["num_burnin_steps"]):
            inputs, targets = next(batches)
            self.estimate(inputs, targets, "burn-in targets", index)
        for batch in self.batches(x, y, size):
            self.step(*batch)
            yield self

    # Curvature.

    def passes(self, x, y, purpose, counter):
        """Backward passes whose outer products add up to the Fisher matrix, and their divisor.

        They are of half of the examples that the curvature is to rest on. First the values of the
        forward pass on the whole batch.
        """
        wanted = self.settings["curvature_examples"]
        _, inputs = forward(self.layers, self.params, x)
        if not self.buffers and wanted is not None and -(-wanted // 2) < len(x):
            half = -(-wanted // 2)
            chosen = [i * len(x) // half for i in range(half)]
            x, y = x[chosen], y[chosen]
        z, kept = forward(self.layers, self.params, x)
        mode, samples = self.settings["estimation_mode"], self.settings["num_estimator_samples"]
        if mode == "fisher_gradients":
            rng = generator(self.seed, purpose, counter)
            derivatives = [
                self.loss.derivative(z, self.loss.sample(z, rng)) for _ in range(samples)
            ]
        elif mode == "fisher_empirical":
            derivatives, samples = [self.loss.derivative(z, y)], 1
        else:
            roots = np.array([self.loss.root(row) for row in z])
            derivatives, samples = [roots[..., k] for k in range(z.shape[1])], 1
        return inputs, [backward(self.layers, self.params, kept, dz) for dz in derivatives], samples

    def estimate(self, x, y, purpose, counter):
        inputs, passes, repeats = self.passes(x, y, purpose, counter)
        wanted = self.settings["curvature_examples"]
        if wanted is not None and self.buffers:  # batch normalisation
            wanted = len(x)
        ema = self.value("curvature_ema", counter)
        self.estimates += 1
        for layer, what in zip(self.layers, inputs, strict=True):
            if layer.names:
                own, block = [found[layer.name] for found in passes], self.blocks[layer.name]
                block.add(block.enough(what[0], wanted), own, repeats, ema)

    def first_moments(self, x, y):
        """EKFAC: second moments in the first eigenvectors, from targets of their own."""
        lacking = [
            block
            for block in self.blocks.values()
            if isinstance(block, EkfacBlock) and not block.averages["second_moments"].items
        ]
        if lacking:
            _, passes, repeats = self.passes(x, y, "second moments", self.steps)
            for block in lacking:
                own = [found[block.layer.name] for found in passes]
                block.add_moments(own, repeats, self.value("curvature_ema"))

    def refresh(self, due):
        """Decompositions that come into use, and one that begins."""
        lag = self.value("decomposition_lag") if self.steps > 0 else 0
        self.refreshed = False
        if self.begun is not None and (due or self.steps - self.begun[0] >= lag):
            self.use_begun()
        if due:
            self.begun = self.steps, [block.factors() for block in self.blocks.values()]
            if lag == 0:
                self.use_begun()

    def use_begun(self):
        for block, factors in zip(self.blocks.values(), self.begun[1], strict=True):
            block.refresh(factors)
        self.late.append(self.steps - self.begun[0])
        self.begun, self.refreshed = None, True

    def natural_gradient(self, gradients, damping):
        strategy, found = self.settings["damping_strategy"], {}
        for block in self.blocks.values():
            matrix = block.layer.matrix(gradients)
            solution = np.linalg.solve(block.dense(damping, strategy), matrix.ravel())
            found |= block.layer.arrays(solution.reshape(matrix.shape), self.params)
        return {name: found[name] for name in self.params}

    def stays_factor(self, size, others):
        """Whether a Cholesky factor takes the place of an inverse, by the rows solved for."""
        return 5 * others * self.serves <= size

    @property
    def inverts(self):
        """Whether factors are inverted with their damping, which then holds until the next time."""
        settings = self.settings
        return (
            settings["inversion"] == "cholesky"
            and settings["structure"] in ("kronecker", "diagonal")
            and settings["damping_strategy"] == "pi"
            and not settings["decomposition_lag"]
            and not settings.get("use_adaptive_damping")
        )

    def damping_now(self):
        """Of this step, or of the last inversion."""
        if self.refreshed or not self.inverts:
            self.damping = self.damping_wanted()
        return self.damping

    def damping_wanted(self):
        """As given, or the more, the fewer examples the curvature was estimated from."""
        if self.settings["damping"] is not None:
            return self.value("damping")
        count, wanted = self.examples, self.settings["curvature_examples"]
        seen = count if self.buffers or wanted is None else min(count, wanted)
        return 0.2 / (seen * min(self.estimates, 30))

    def momentum_now(self):
        mu = self.value("momentum")
        mu = mu if callable(self.settings["momentum"]) else min(mu, self.lasted / (self.lasted + 6))
        return mu * self.held

    # One step.

    def shares(self, x, directions):
        """What each example adds to all v_i^T F v_j, F the exact Fisher matrix on x."""
        z, _ = forward(self.layers, self.params, x)
        jv = np.stack([tangent(self.layers, self.params, x, v) for v in directions], axis=1)
        return np.array([v @ self.loss.fisher(row) @ v.T for v, row in zip(jv, z, strict=True)])

    def shares_by_difference(self, x, direction, scale):
        """The same of one direction, J v by the predictions after a step."""
        moved = {name: self.params[name] + scale * v for name, v in direction.items()}
        (z, _), (after, _) = forward(self.layers, self.params, x), forward(self.layers, moved, x)
        jv = (after - z) / scale
        return np.array([v @ self.loss.fisher(row) @ v for v, row in zip(jv, z, strict=True)])

    def exact_forms(self, x, directions):
        """All v_i^T F v_j from a sample of examples by the size of their predictions' Fisher."""
        return self.from_sample(x, self.shares(x, directions))

    def from_sample(self, x, shares):
        """The mean of what each example adds, from those that are looked at."""
        wanted = self.wanted(x)
        if wanted == len(x):
            self.exact_on.append(len(x))
            return shares.mean(axis=0)
        z, _ = forward(self.layers, self.params, x)
        traces = np.array([np.trace(self.loss.fisher(row)) for row in z])
        factors = sample_by_weight(traces, wanted)
        self.exact_on.append(np.count_nonzero(factors))
        return np.tensordot(factors, shares, axes=1) / len(x)

    def wanted(self, x):
        """How many examples are looked at; with batch normalisation all of them."""
        wanted = self.settings["exact_examples"]
        if self.buffers or wanted is None:
            return len(x)
        return min(max(wanted, math.ceil(len(x) / 4)), len(x))

    def step(self, x, y):
        z, kept = forward(self.layers, self.params, x)
        loss = self.batch_loss = self.loss.value(z, y)
        first = self.recent_loss is None
        if hasattr(self.loss, "least"):
            loss -= self.loss.least(y)
        if first:
            self.recent_loss = loss
        elif self.settings["loss_bound"] is not None:
            power = 1 if self.value("loss_bound") * len(x) < 0.1 else 0.5
            mean = 0.9 * self.recent_loss**power + 0.1 * loss**power
            self.recent_loss = mean ** (1 / power)
        passed = backward(self.layers, self.params, kept, self.loss.derivative(z, y))
        gradients = {}
        for layer in self.layers:
            if layer.names:
                mean = passed[layer.name][1].mean(axis=0)
                gradients |= layer.arrays(mean, self.params)
        gradients = {
            name: gradients[name] + self.value("l2_reg") * theta
            for name, theta in self.params.items()
        }

        burnin = self.settings["num_burnin_steps"]
        starting = self.estimates < max(burnin, 1)
        growth = self.settings["period_growth"]
        due = is_due(self.steps, self.settings["curvature_update_period"], growth)
        if starting or (due and self.steps > 0):
            self.estimate(x, y, "targets", self.steps)
        doubled = self.estimates in (1, 2, 4, 8, 16, 32, burnin)
        growth *= 3 if self.inverts else 15
        period = self.settings["inverse_update_period"]
        self.refresh(is_due(self.steps, period, growth) or (starting and doubled))
        if self.refreshed:
            later = itertools.count(1)
            self.serves = next(k for k in later if is_due(self.steps + k, period, growth))
        self.first_moments(x, y)

        self.examples, self.batch_y = len(x), y
        self.restrain(gradients)
        self.momentum = self.update(x, y, gradients)
        taken = self.taken(len(x))
        self.params = {n: (1 - taken[n]) * self.params[n] + p for n, p in self.momentum.items()}
        for layer, what in zip(self.layers, kept, strict=True):
            if isinstance(layer, BatchNorm):
                self.buffers |= layer.running(self.buffers, what)
        self.path.append(self.params | self.buffers)
        self.steps += 1

    def adaptive(self):
        kinds = ("learning_rate", "momentum", "damping")
        return any(self.settings.get(f"use_adaptive_{kind}") for kind in kinds)

    def taken(self, examples):
        """Parts of the parameters that a step takes away."""
        part, spared, most = self.value("weight_decay"), set(), np.inf
        if part is None:
            most = 0.1
            usual = type(self.loss).__name__ == "Softmax" and not self.adaptive()
            part = 4e-5 * min(examples, 2048) if usual else 0
            for layer, follower in itertools.pairwise(self.layers):
                if isinstance(follower, BatchNorm):
                    spared |= set(layer.names)
        rate = min(self.value("learning_rate"), most) if part else 0
        return {name: 0 if name in spared else part * rate for name in self.params}

    def restrained(self):
        return not self.adaptive() and self.settings["loss_bound"] is not None

    def restrain(self, gradients):
        """Less of the bound, and of the step before, where that raises the loss by more."""
        self.held = 1.0
        slope = sum(np.sum(step * gradients[name]) for name, step in self.momentum.items())
        self.count(slope)
        if not self.restrained():
            return
        rise, most = self.momentum_now() * slope, 0.1 * self.recent_loss
        if type(self.loss).__name__ != "Squared" and rise > 0:
            variance = self.bound(self.examples)[0] / self.examples
            if rise <= 3 * self.momentum_now() * np.sqrt(variance):
                rise = 0
        may = self.left**0.7 * most
        changed = max(0.25, may / rise) if rise > may else 1.1
        self.left = np.clip(self.left * changed, 0.1, 1.0)
        self.held = min(1.0, self.left**0.7 * most / rise) if rise > 0 else 1.0

    def count(self, slope):
        """Steps that lasted, of which momentum is made."""
        if self.steps and not callable(self.settings["momentum"]):
            bound, _ = self.bound(self.examples)
            part = self.value("loss_bound")
            small = part is not None and part * self.examples < 0.1
            raised = 0 if bound is None else slope / bound
            counts = np.clip(1 - 4 * raised, -2 if small else 1, 2)
            most = self.settings["momentum"]
            least = min(self.lasted, 6)
            self.lasted = min(max(self.lasted + counts, least), 6 * most / (1 - most))

    def update(self, x, y, gradients):
        """What a step adds to the parameters."""
        natural = self.natural_gradient(gradients, self.damping_now())
        if self.balances():
            natural = self.balance(x, gradients, natural)
        factor = self.shortening(gradients, natural, lambda: self.form(x, gradients, natural))
        alpha, mu = self.value("learning_rate"), self.momentum_now()
        return {name: mu * self.momentum[name] - alpha * factor * u for name, u in natural.items()}

    def balances(self):
        settings = self.settings
        bounded = settings["loss_bound"] is not None or settings["kl_bound"] is not None
        return len(self.blocks) > 1 and settings["balance_layers"] and bounded

    def measures(self):
        """Whether layers are compared: each time that the steps have doubled, and now and then."""
        often = is_due(self.steps, self.settings["inverse_update_period"], 1)
        return self.balances() and not self.adaptive() and often

    def balance(self, x, gradients, natural):
        """The parts of layers, each as long by exact curvature as the approximation has it."""
        if self.measures():
            part, factors = self.few(x)
            z, kept = forward(self.layers, self.params, part)
            targets = self.loss.sample(z, generator(self.seed, "targets of layers", self.steps))
            passed = backward(self.layers, self.params, kept, self.loss.derivative(z, targets))
            slopes, logs = [], []
            for name, block in self.blocks.items():
                u = block.layer.matrix(natural).ravel()
                each = passed[name][1].reshape(len(part), -1) @ u
                slopes.append(block.layer.matrix(gradients).ravel() @ u)
                logs.append(max(np.log(factors @ each**2 / len(x) / slopes[-1]), 0))
            self.layer_ratios.add(np.array(logs) - np.mean(logs), 0.5)
            scales = np.exp(-self.layer_ratios.mean() / 2)
            scales *= sum(slopes) / (scales @ slopes)
            self.layer_scales = dict(zip(self.blocks, scales, strict=True))
        return {
            name: self.layer_scales[layer.name] * natural[name]
            for layer in self.layers
            for name in layer.names
        }

    def few(self, x, wanted=32):
        """Examples by the size of their predictions' Fisher, and how many each stands for."""
        if self.buffers or len(x) <= wanted:
            return x, np.ones(len(x))
        z, _ = forward(self.layers, self.params, x)
        traces = np.array([np.trace(self.loss.fisher(row)) for row in z])
        factors = sample_by_weight(traces, wanted)
        falling = sorted(range(len(x)), key=lambda i: -traces[i])
        chosen = [i for i in falling if factors[i] > 0]
        return x[chosen], factors[chosen]

    def form(self, x, gradients, natural):
        """u^T F u: computed, or u^T g times a ratio that has proved steady."""
        approximate = sum(np.sum(u * gradients[name]) for name, u in natural.items())
        self.asked += 1
        near = approximate <= 1.5 * self.length
        if self.asked < self.every and near and not self.refreshed and not self.measures():
            return self.ratio * approximate
        exact = self.seen(x, natural, self.looked_at(x, natural, approximate))
        self.take_ratio(exact, approximate)
        return exact

    def looked_at(self, x, natural, approximate):
        """u^T F u over a part of the expected step, or over all of one that is much longer."""
        rate, (bound, _) = self.value("learning_rate"), self.bound(len(x))

        def over(alpha):
            return self.from_sample(x, self.shares_by_difference(x, natural, -alpha))

        def reach(form):
            return min(rate, np.sqrt(bound / form))

        expected = reach(self.ratio * approximate) if self.ratio else 0.0
        part = 0.3 if self.settings["exact_by"] == "difference" else 0.0
        way = part * expected
        exact = over(way) if way else self.exact_forms(x, [natural])[0, 0]
        alpha = reach(exact)
        if alpha <= 3 * expected:
            return exact
        while alpha**2 > 1.5 * reach(exact := over(alpha)) ** 2:
            alpha = max(reach(exact), 0.1 * alpha)
            self.shorter += 1
        return exact if reach(exact) <= alpha else bound / alpha**2

    def seen(self, x, natural, exact):
        """u^T F u, or what holds the step to the bound where predictions are sure and wrong."""
        wanted, (z, _) = self.wanted(x), forward(self.layers, self.params, x)
        left_open = np.mean([np.trace(self.loss.fisher(row)) for row in z])
        if type(self.loss).__name__ == "Squared" or self.batch_loss <= 20 * left_open:
            return exact
        bound, _ = self.bound(len(x))
        alpha = first = min(self.value("learning_rate"), np.sqrt(bound / exact))
        y = self.batch_y[:wanted]
        for _ in range(60):
            moved = {name: self.params[name] - alpha * v for name, v in natural.items()}
            after, _ = forward(self.layers, moved, x[:wanted])
            far = 2 * np.mean([self.divergence(*rows) for rows in zip(z, after, strict=False)])
            far = max(far, self.loss.value(after, y) - self.loss.value(z[:wanted], y))
            if far <= 1.5 * bound:
                break
            alpha *= max(np.sqrt(bound / far), 0.1)
        self.tried += 1
        return bound / alpha**2 if alpha < first else exact

    def divergence(self, z, after):
        """Of Kullback and Leibler, by the definition."""
        if type(self.loss).__name__ == "Softmax":
            z, after = (row - max(row) - np.log(np.exp(row - max(row)).sum()) for row in (z, after))
            return np.exp(z) @ (z - after)
        signs = np.array([1, -1])[:, None]
        z, after = (-np.logaddexp(0, -signs * row) for row in (z, after))
        return np.sum(np.exp(z) * (z - after))

    def take_ratio(self, exact, approximate):
        ratio, self.length, self.asked = exact / approximate, approximate, 0
        if self.ratio is not None and max(ratio / self.ratio, self.ratio / ratio) < 1.6:
            self.ratio = np.sqrt(ratio * self.ratio)
            longest = self.settings["exact_period"] or (4 if self.examples >= 128 else 1)
            self.every = min(2 * self.every, longest)
        else:
            self.ratio, self.every = ratio, 1

    def bound(self, examples):
        """The smaller of the two bounds of v^T F v, and its name."""
        b, c = self.value("loss_bound"), self.value("kl_bound")
        bounds = [] if c is None else [(c, "kl_bound")]
        if b is not None:
            bounds.append((self.left * min(b * examples, 0.1) * self.recent_loss, "loss_bound"))
        return min(bounds, default=(None, ""))

    def shortening(self, gradients, natural, exact):
        """What brings alpha^2 u^T F u, or the approximate alpha^2 u^T g, within its bound."""
        alpha, factor, why = self.value("learning_rate"), 1.0, ""
        approximate = sum(np.sum(u * gradients[name]) for name, u in natural.items())
        norm = self.value("norm_constraint")
        bounds = [] if norm is None else [(norm, approximate, "norm_constraint")]
        bound, name = self.bound(self.examples)
        if bound is not None:
            bounds.append((bound, exact(), name))
        for bound, form, name in bounds:
            if alpha**2 * form > bound:
                shorter = np.sqrt(bound / form) / alpha
                factor, why = (shorter, name) if shorter < factor else (factor, why)
        self.shortened.append(why)
        if self.restrained() and alpha * factor * approximate > self.recent_loss:
            factor = self.recent_loss / (alpha * approximate)
        return factor

    # What the library's state is compared with.

    def averages(self):
        held = self.params | self.buffers
        tau = self.settings["averaging"]
        if tau is None:
            return held
        steps = np.arange(1, len(self.path) + 1)
        timescales = np.full(len(steps), tau) if tau >= 1 else np.maximum(1, tau * steps)
        # Each step makes those before it count less, by its own timescale.
        after = np.cumsum((1 / timescales)[::-1])[::-1]
        weights = np.exp(1 / timescales - after)
        return {
            name: (
                sum(w * theta[name] ** power for w, theta in zip(weights, self.path, strict=True))
                / weights.sum()
            )
            ** (1 / power)
            for name in held
            for power in [0.5 if name.endswith(".variance") else 1]
        }

    def state(self):
        found = {f"momentum/{name}": value for name, value in self.momentum.items()}
        found["factor_batches"] = self.estimates
        if self.restrained():
            found["bound_factor"] = self.left
        if not (callable(self.settings["momentum"]) or self.settings.get("use_adaptive_momentum")):
            found["steps_that_lasted"] = self.lasted
        if not self.adaptive() and self.balances():
            ratios = dict(zip(self.blocks, self.layer_ratios.mean(), strict=True))
            found |= {f"layer_ratio/{name}": ratio for name, ratio in ratios.items()}
            found |= {f"layer_scale/{name}": scale for name, scale in self.layer_scales.items()}
        if self.begun is not None:
            found["begun_step"] = self.begun[0]
            for name, factors in zip(self.blocks, self.begun[1], strict=True):
                for kind, factor in zip(("omega", "gamma"), factors or (), strict=False):
                    found[f"{kind}_begun/{name}"] = factor
        for name, block in self.blocks.items():
            for kind, average in block.averages.items():
                weight = "second_moment_weight" if kind == "second_moments" else "factor_weight"
                found[weight] = sum(weight for weight, _ in average.items)
                if kind == "diagonal":
                    arrays = block.layer.arrays(average.mean(), self.params)
                    found |= {f"diagonal/{name}": value for name, value in arrays.items()}
                else:
                    found[f"{kind}/{name}"] = average.mean()
        return found
