"""A program as source: for PyTorch, Numba, Triton and CUDA, and as equations to read."""
