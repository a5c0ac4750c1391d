"""Adaptive KFC in NumPy: step by the least quadratic model, and damping that follows its success.

Martens and Grosse (2015), sections 6.4 to 7; nothing here is of the package.
"""

import numpy as np
from kfc_reference import DEFAULTS, Reference
from numpy_networks import forward

ADAPTATION = {
    "damping_adaptation_interval": 5,
    "damping_adaptation_decay": 0.95,
    "damping_lower_threshold": 0.25,
    "damping_upper_threshold": 0.75,
    "min_damping": 1e-8,
    "max_damping": 1e8,
    "include_damping_in_quad_change": True,
    "preconditioner_damping_interval": 20,
    "preconditioner_damping_decay": 0.95,
    "reject_damping_increase_factor": 2.0,
}


def product(one, other):
    return sum(np.sum(value * other[name]) for name, value in one.items())


class AdaptiveReference(Reference):
    defaults = DEFAULTS | {
        "use_adaptive_learning_rate": False,
        "use_adaptive_momentum": False,
        "use_adaptive_damping": False,
        "adaptation": {},
        "max_loss_increase": None,
    }

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.rule = ADAPTATION | self.settings["adaptation"]
        self.lamb = self.gamma = self.rho = self.change = None
        if self.settings["use_adaptive_damping"]:
            first = self.settings["damping"]
            self.lamb = 2e-4 if first is None else first
            self.gamma = self.bounded(self.lamb + self.value("l2_reg"))
        self.coefficients, self.rejected, self.tried = None, 0, []

    def bounded(self, damping):
        return np.clip(damping, self.rule["min_damping"], self.rule["max_damping"])

    def gammas(self):
        """Values of gamma to choose from."""
        interval = self.rule["preconditioner_damping_interval"]
        if not self.settings["use_adaptive_damping"]:
            return [self.damping_now()]
        if interval is None:
            return [self.lamb + self.value("l2_reg")]
        w = self.rule["preconditioner_damping_decay"] ** interval
        tried = [self.gamma, self.bounded(self.gamma * w), self.bounded(self.gamma / w)]
        return tried if (self.steps + 1) % interval == 0 else tried[:1]

    def update(self, x, y, gradients):
        eta, gammas = self.value("l2_reg"), self.gammas()
        lamb = self.damping_now() if self.lamb is None else self.lamb
        due = (self.steps + 1) % self.rule["damping_adaptation_interval"] == 0
        naturals = [self.natural_gradient(gradients, gamma) for gamma in gammas]
        if not self.adaptive() and self.balances():
            naturals = [self.balance(x, gradients, natural) for natural in naturals]
        model = (
            self.settings["use_adaptive_learning_rate"] or self.settings["use_adaptive_momentum"]
        )
        damping_due = self.lamb is not None and due
        modelled = model or damping_due or (self.lamb is not None and len(gammas) > 1)
        self.looked = None if modelled else lambda: self.form(x, gradients, naturals[0])
        moving = any(np.any(value) for value in self.momentum.values())
        forms = self.exact_forms(x, naturals + [self.momentum] * moving)
        found = []
        for index, natural in enumerate(naturals):
            directions = [natural] + [self.momentum] * moving
            places = [index] + [len(naturals)] * moving
            fisher = forms[np.ix_(places, places)]
            squares = np.array([[product(v, w) for w in directions] for v in directions])
            slopes = np.array([product(gradients, v) for v in directions])
            damped, undamped = fisher + (lamb + eta) * squares, fisher + eta * squares
            c = self.coefficients_of(gradients, natural, fisher, damped, slopes)
            changes = [slopes @ c + c @ matrix @ c / 2 for matrix in (damped, undamped)]
            found.append((changes[0], index, changes[1], c, directions))
        change, index, undamped, c, directions = min(found, key=lambda item: item[:2])
        self.tried.append(index)
        delta = {
            name: sum(k * direction[name] for k, direction in zip(c, directions, strict=True))
            for name in self.params
        }
        self.coefficients = -c[0], c[1] if moving else None
        if modelled:
            self.change = change
            self.take_ratio(forms[index, index], product(gradients, naturals[index]))

        before = self.objective(self.params, x, y)
        moved = {name: theta + delta[name] for name, theta in self.params.items()}
        after = self.objective(moved, x, y)
        if damping_due:
            predicted = change if self.rule["include_damping_in_quad_change"] else undamped
            self.rho = (after - before) / predicted if predicted < 0 else 0.0
            w = self.rule["damping_adaptation_decay"] ** self.rule["damping_adaptation_interval"]
            if self.rho > self.rule["damping_upper_threshold"]:
                self.lamb = self.bounded(self.lamb * w)
            if self.rho < self.rule["damping_lower_threshold"]:
                self.lamb = self.bounded(self.lamb / w)
        if self.lamb is not None:
            self.gamma = gammas[index]
        limit, self.undone = self.settings["max_loss_increase"], False
        if limit is not None and not after <= before + limit * abs(before):
            self.rejected += 1
            self.undone = True
            if self.lamb is not None:
                factor = self.rule["reject_damping_increase_factor"]
                self.lamb = self.bounded(self.lamb * factor)
                self.gamma = self.bounded(self.gamma * factor)
            return {name: np.zeros_like(value) for name, value in delta.items()}
        return delta

    def coefficients_of(self, gradients, natural, fisher, damped, slopes):
        """Of u and of the step before: those that are given, and for the others the least M."""
        c, free = np.zeros(len(slopes)), []
        if self.settings["use_adaptive_learning_rate"]:
            free.append(0)
        else:
            exact = self.looked or (lambda: fisher[0, 0])
            shorter = self.shortening(gradients, natural, exact)
            c[0] = -self.value("learning_rate") * shorter
        if len(c) == 2 and self.settings["use_adaptive_momentum"]:
            free.append(1)
        elif len(c) == 2:
            c[1] = self.momentum_now()
        if free:
            grid = np.ix_(free, free)
            c[free] = np.linalg.solve(damped[grid], -(slopes + damped @ c)[free])
        bound, name = self.bound(self.examples)
        if 0 in free and bound is not None and c @ fisher @ c > bound:
            self.shortened.append(name)
            c *= np.sqrt(bound / (c @ fisher @ c))
        return c

    def taken(self, examples):
        return dict.fromkeys(self.params, 0) if self.undone else super().taken(examples)

    def objective(self, params, x, y):
        z, _ = forward(self.layers, params, x)
        return self.loss.value(z, y) + self.value("l2_reg") / 2 * product(params, params)

    def state(self):
        found = super().state()
        if self.lamb is not None:
            found |= {"damping": self.lamb, "preconditioner_damping": self.gamma}
            found["reduction_ratio"] = np.nan if self.rho is None else self.rho
        if self.change is not None:
            found["model_change"] = self.change
        if self.settings["max_loss_increase"] is not None:
            found["rejected_steps"] = self.rejected
        if self.settings["use_adaptive_learning_rate"] or self.settings["use_adaptive_momentum"]:
            found["learning_rate"], momentum = self.coefficients
            if momentum is not None:
                found["momentum"] = momentum
        return found
