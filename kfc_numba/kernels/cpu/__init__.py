"""Kernels on NumPy arrays, compiled by Numba."""
