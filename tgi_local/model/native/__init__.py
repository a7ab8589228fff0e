"""A decoder of our own for the CPU: packed weights of 4 to 32 bits, C kernels, bitwise independent of the batch."""
