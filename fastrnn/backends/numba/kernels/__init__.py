"""What Numba compiles: vectors, activations, tiles, and the kernels made of them.

Importing any of it imports Numba, which only `fastrnn.backends.numba.compile` does, and only for its first kernel.
"""
