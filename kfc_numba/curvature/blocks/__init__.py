"""Curvature of one layer, a structure a file."""
