"""Losses as negative log-likelihoods: value, derivative, sampling, Fisher of the prediction."""
