"""Ranges of the entries of optimizers' states, for those that come from a file."""

from __future__ import annotations

#: Least value of an entry by what its name has before a slash; one that is not listed may have any.
LEAST: dict[str, float] = {
    # counts
    "step": 0,
    "factor_batches": 0,
    "rejected_steps": 0,
    "form_age": 0,
    "form_interval": 1,
    "begun_step": -1,
    # weights of running averages
    "average_weight": 0,
    "first_weight": 0,
    "second_weight": 0,
    "factor_weight": 0,
    "second_moment_weight": 0,
    "inverse_damping": 0,
    "inverse_steps": 0,
    # eigenvalues, and means of squares
    "omega_values": 0,
    "gamma_values": 0,
    "full_values": 0,
    "second_moments": 0,
    "diagonal": 0,
    "second": 0,
    # a ratio of quadratic forms
    "form_ratio": 0,
    # a loss above its least, how many steps lasted, parts and ratios
    "loss_average": 0,
    "steps_that_lasted": 0,
    "bound_factor": 0,
    "layer_scale": 0,
    "layer_ratio_weight": 0,
}
#: Entries that are above zero.
POSITIVE = ("damping", "preconditioner_damping")
#: The same of running statistics, by the last part of their names.
LEAST_STATISTIC: dict[str, float] = {"variance": 0}
#: Counts above this are not those of a training.
MOST_STEPS = 2**53
