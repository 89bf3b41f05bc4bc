"""`python -m benchmarks.gpu`: everything that a GPU is needed for, in one command and within minutes.

It proves fastrnn's kernels on the GPU that is there and measures them beside cuDNN. The work is cut into *stages*, a
stage into *jobs*, which are processes, and a job into *cases*, which have names (`work`). `workers` starts the jobs,
reads what they report line by line and ends those that hang, so that a kernel that never returns costs no more than
itself. `stages` says what there is and how long it may take.
"""
