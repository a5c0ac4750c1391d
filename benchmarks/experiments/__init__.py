"""Experiments on whole trainings: settings that nobody tuned beside rivals that were.

docs/experiments.md says how to run them and what is compared.
"""
