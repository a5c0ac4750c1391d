"""Natural-gradient training of convolutional networks by KFC, on NumPy and Numba."""
