"""What Triton compiles, or interprets where TRITON_INTERPRET is set: importing a module here imports Triton."""
