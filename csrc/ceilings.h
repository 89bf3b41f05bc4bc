// What a step of the recurrence costs at least on a device: latencies, measured by kernels that do nothing else. They
// take the place of what docs/performance-gpu.md assumed at first.
#pragma once

namespace fastrnn::ceilings {

// Each returns nanoseconds of a step, on a device that runs nothing else. They throw std::runtime_error where CUDA
// fails or something does not arrive in time, std::invalid_argument for a number of blocks that they do not take.

// Blocks of a cluster send each other their slices of a state, as cluster/forward.cuh does. Not compiled for devices
// without clusters alone (FASTRNN_NO_CLUSTERS).
float cluster_exchange(int device, int blocks);

// Blocks of a grid see each other's slices in the device's memory, as grid/forward.cuh does.
float grid_exchange(int device, int blocks);

// The threads of a block wait for each other.
float block_barrier(int device);

}  // namespace fastrnn::ceilings
