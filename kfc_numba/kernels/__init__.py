"""Arrays in, arrays out: the numerical kernels. No layer and no state."""
