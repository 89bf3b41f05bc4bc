#include <stdexcept>
#include <string>

#include "ceilings.cuh"
#include "ceilings.h"
#include "check.h"
#include "current_device.h"
#include "device_memory.h"
#include "probe.h"

namespace fastrnn::ceilings {
namespace {

void check_blocks(int blocks, int most) {
  if (blocks < 1 || blocks > most) {
    throw std::invalid_argument("blocks must be from 1 to " + std::to_string(most) + ", got " + std::to_string(blocks));
  }
}

cudaLaunchConfig_t configuration(int blocks, int64_t shared_bytes) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  return config;
}

// Has `kernel` take all shared memory of a multiprocessor, as the recurrence's kernels take most of it: so that each
// block has one to itself. Returns how much that is.
template <class Kernel>
int64_t take_multiprocessors(Kernel* kernel, int device, const std::string& what) {
  const int64_t most = limits(device).shared_memory;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)), what);
  return most;
}

// Launches a kernel on the current device by `launch`, which is given where to leave what it measures. Returns the
// nanoseconds of a step, of which there are so many that they take half a millisecond or so, some hundred times what
// the device's clock resolves.
template <class Launch>
float measure(int steps, const std::string& what, const Launch& launch) {
  const DeviceMemory<Measured> measured(1);
  check(cudaMemset(measured.data(), 0, sizeof(Measured)), "cudaMemset");
  check(launch(measured.data()), what);
  Measured found{};
  check(cudaMemcpy(&found, measured.data(), sizeof(Measured), cudaMemcpyDeviceToHost), what);
  if (found.failed) throw std::runtime_error(what + ": what a block waited for did not arrive");
  return static_cast<float>(static_cast<double>(found.nanoseconds) / steps);
}

}  // namespace

#ifndef FASTRNN_NO_CLUSTERS
float cluster_exchange(int device, int blocks) {
  constexpr int steps = 2000;
  check_blocks(blocks, kMostClusterBlocks);
  const CurrentDevice current(device);
  const std::string what = "cluster_exchange_kernel in a cluster of " + std::to_string(blocks) + " blocks";
  cudaLaunchConfig_t config = configuration(blocks, take_multiprocessors(cluster_exchange_kernel, device, what));
  check(cudaFuncSetAttribute(cluster_exchange_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), what);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return measure(steps, what, [&](Measured* measured) {
    return cudaLaunchKernelEx(&config, cluster_exchange_kernel, blocks, kWarmUp + steps, measured);
  });
}
#endif

float grid_exchange(int device, int blocks) {
  constexpr int steps = 600;  // whose rows the second-level cache holds
  check_blocks(blocks, kMostGridBlocks);
  const CurrentDevice current(device);
  const std::string what = "grid_exchange_kernel of " + std::to_string(blocks) + " blocks";
  cudaLaunchConfig_t config = configuration(blocks, take_multiprocessors(grid_exchange_kernel, device, what));
  cudaLaunchAttribute cooperative;
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  const size_t words = size_t(kWarmUp + steps) * blocks * kBlockPairs;
  const DeviceMemory<uint32_t> rows(words);
  check(cudaMemset(rows.data(), 0xff, words * sizeof(uint32_t)), "cudaMemset");
  return measure(steps, what, [&](Measured* measured) {
    return cudaLaunchKernelEx(&config, grid_exchange_kernel, blocks, kWarmUp + steps, rows.data(), measured);
  });
}

float block_barrier(int device) {
  constexpr int steps = 40000;
  const CurrentDevice current(device);
  const cudaLaunchConfig_t config = configuration(1, 0);
  return measure(steps, "block_barrier_kernel", [&](Measured* measured) {
    return cudaLaunchKernelEx(&config, block_barrier_kernel, kWarmUp + steps, measured);
  });
}

}  // namespace fastrnn::ceilings
