"""ONNX Runtime and OpenVINO as contenders on the CPU: `python -m benchmarks --peers`.

Both read the same ONNX model, one LSTM, GRU or RNN operator for each layer (`model`), and are called in the form that
was fastest here, from Python as everyone else: inputs, outputs and states bound once to aligned memory of our own, no
array made in a call, as many threads as torch has, float32 throughout (`buffers`, `onnxruntime_engine`,
`openvino_engine`).

Each peer lives in a process of its own (`process`, `worker`), because thread pools in one process fight: whoever has
nothing to do spins for a while, in the hope of more, and takes a core from the one whose turn it is. Measured on two
cores, with other programs running, after a call of 100 steps, 32 sequences, 256 units: ONNX Runtime's threads spin for
20 ms of processor time and more, OpenMP's under torch.nn and fastrnn, which share one pool, for 9 ms, OpenVINO's for
1 ms. Spinning within a turn
is how each of them is fast, so nobody is told not to. Between its turns a peer's process is stopped (SIGSTOP), and
before a peer's turn this process waits until its own threads sleep (`rest`). A turn's time is taken inside the
peer's process, after untimed calls as for everyone (`benchmarks.timing`).
"""
