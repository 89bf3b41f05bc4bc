// How kernels are started: on a device, or on host fibers. Included where kernels are instantiated.
#pragma once

#include "device.cuh"
#include "launch.h"

#ifdef __CUDACC__
#include <atomic>

#include "check.h"
#include "current_device.h"
#include "probe.h"
#else
#include <cstdlib>
#include <cstring>
#endif

namespace fastrnn {

#ifdef __CUDACC__

constexpr int kPortableCluster = 8;  // blocks: what every device with clusters runs, larger ones must be asked for
constexpr int kRemembered = 64;      // devices for which a kernel's attributes are set once, not at every launch

// Allows `kernel` on the current device, `device`, as much shared memory as a block may have there, and a large cluster
// where its clusters are large. What is set is the same whatever the plan: threads may set it side by side.
template <auto kernel>
void prepare(const Geometry& geometry, const Plan& plan, int device) {
  static std::atomic<bool> prepared[kRemembered];
  if (device < kRemembered && prepared[device].load(std::memory_order_acquire)) return;
  const auto set = [&](cudaFuncAttribute attribute, int64_t value) {
    check(cudaFuncSetAttribute(kernel, attribute, static_cast<int>(value)),
          describe(geometry, plan.blocks, plan.shared_bytes));
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, limits(device).shared_memory);
  if (geometry.way == Way::kCluster && geometry.blocks > kPortableCluster) {
    set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (device < kRemembered) prepared[device].store(true, std::memory_order_release);
}

// Starts `kernel` on the current device, with `attribute` of the launch.
template <auto kernel, class... Arguments>
void start(const Geometry& geometry, const Plan& plan, const Target& target, cudaLaunchAttribute attribute,
           const Arguments&... arguments) {
  prepare<kernel>(geometry, plan, target.device);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(plan.groups * plan.blocks));
  config.blockDim = dim3(static_cast<unsigned>(geometry.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared_bytes);
  config.stream = static_cast<cudaStream_t>(target.stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...),
        std::to_string(plan.groups) + " of " + describe(geometry, plan.blocks, plan.shared_bytes));
}

template <class Arguments, void (*kernel)(Arguments)>
void launch_clusters(const Geometry& geometry, const Plan& plan, const Arguments& arguments, const Target& target) {
  const CurrentDevice current(target.device);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(plan.blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  start<kernel>(geometry, plan, target, cluster, arguments);
}

// Blocks of a team wait for each other's words in what the kernel writes: all must run at once, and no word may be
// there before it is written.
template <class Arguments, void (*kernel)(Arguments, Teams)>
void launch_grid(const Geometry& geometry, const Plan& plan, const Arguments& arguments, const Target& target) {
  const CurrentDevice current(target.device);
  const Exchanged words = exchanged(arguments, geometry);
  check(cudaMemsetAsync(words.address, kNotYet, words.bytes, static_cast<cudaStream_t>(target.stream)),
        "cudaMemsetAsync of " + std::to_string(words.bytes) + " bytes");
  cudaLaunchAttribute cooperative;
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  const Teams teams{static_cast<int>(plan.groups), plan.blocks, plan.batch_tiles};
  start<kernel>(geometry, plan, target, cooperative, arguments, teams);
}

#else

// The seed of the host's schedules: FASTRNN_HOST_SEED, else 1.
inline unsigned host_seed() {
  const char* text = std::getenv("FASTRNN_HOST_SEED");
  return text == nullptr ? 1 : static_cast<unsigned>(std::strtoul(text, nullptr, 10));
}

template <class Arguments, void (*kernel)(Arguments)>
void launch_clusters(const Geometry& geometry, const Plan& plan, const Arguments& arguments, const Target&) {
  host::launch(
      static_cast<int>(plan.groups), plan.blocks, geometry.threads, plan.shared_bytes, [&] { kernel(arguments); },
      host_seed());
}

// All blocks of the grid take turns, as those of one cluster do.
template <class Arguments, void (*kernel)(Arguments, Teams)>
void launch_grid(const Geometry& geometry, const Plan& plan, const Arguments& arguments, const Target&) {
  const Exchanged words = exchanged(arguments, geometry);
  memset(words.address, kNotYet, words.bytes);
  const Teams teams{static_cast<int>(plan.groups), plan.blocks, plan.batch_tiles};
  host::launch(
      1, teams.count * teams.blocks, geometry.threads, plan.shared_bytes, [&] { kernel(arguments, teams); },
      host_seed());
}

#endif

// The table's row for the cluster kernel of shape `Shape`.
template <class Shape, class Arguments, void (*kernel)(Arguments)>
Instance<Arguments> cluster_instance(Operation operation) {
  return {cluster_geometry<Shape>(operation), &launch_clusters<Arguments, kernel>};
}

// The table's row for the grid kernel of shape `Shape`.
template <class Shape, class Arguments, void (*kernel)(Arguments, Teams)>
Instance<Arguments> grid_instance(Operation operation) {
  return {grid_geometry<Shape>(operation), &launch_grid<Arguments, kernel>};
}

}  // namespace fastrnn
