"""What Numba compiles: vectors, activations, tiles, and the kernels made of them.

Only `fastrnn.backends.numba.compile` imports any of it, and only for its first kernel.
"""
