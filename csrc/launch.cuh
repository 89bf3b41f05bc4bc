// How a cluster kernel is started: on a device, or on host fibers. Included where kernels are instantiated.
#pragma once

#include "device.cuh"
#include "launch.h"

#ifdef __CUDACC__
#include <atomic>

#include "check.h"
#include "current_device.h"
#else
#include <cstdlib>
#endif

namespace fastrnn {

#ifdef __CUDACC__

constexpr int kPortableCluster = 8;  // blocks: what every device with clusters runs, larger ones must be asked for
constexpr int kRemembered = 64;      // devices for which a kernel's attributes are set once, not at every launch

// Allows `kernel` its shared memory and its cluster on the current device, `device`.
template <class Arguments, void (*kernel)(Arguments)>
void prepare(const Geometry& geometry, int device) {
  static std::atomic<bool> prepared[kRemembered];
  if (device < kRemembered && prepared[device].load(std::memory_order_acquire)) return;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check(cudaFuncSetAttribute(kernel, attribute, value), describe(geometry));
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, geometry.shared_bytes);
  if (geometry.blocks > kPortableCluster) set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (device < kRemembered) prepared[device].store(true, std::memory_order_release);
}

template <class Arguments, void (*kernel)(Arguments)>
void launch_clusters(const Geometry& geometry, int64_t clusters, const Arguments& arguments, const Target& target) {
  const CurrentDevice current(target.device);
  prepare<Arguments, kernel>(geometry, target.device);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(geometry.blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(clusters * geometry.blocks));
  config.blockDim = dim3(static_cast<unsigned>(geometry.threads));
  config.dynamicSmemBytes = static_cast<size_t>(geometry.shared_bytes);
  config.stream = static_cast<cudaStream_t>(target.stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments),
        std::to_string(clusters) + " clusters of " + describe(geometry));
}

#else

// The seed of the host's schedules: FASTRNN_HOST_SEED, else 1.
inline unsigned host_seed() {
  const char* text = std::getenv("FASTRNN_HOST_SEED");
  return text == nullptr ? 1 : static_cast<unsigned>(std::strtoul(text, nullptr, 10));
}

template <class Arguments, void (*kernel)(Arguments)>
void launch_clusters(const Geometry& geometry, int64_t clusters, const Arguments& arguments, const Target&) {
  host::launch(
      static_cast<int>(clusters), geometry.blocks, geometry.threads, geometry.shared_bytes, [&] { kernel(arguments); },
      host_seed());
}

#endif

// The table's row for the kernel of shape `Shape`.
template <class Shape, class Arguments, void (*kernel)(Arguments)>
Instance<Arguments> instance(Operation operation, CellKind cell, ElementKind element) {
  return {{operation, cell, element, Shape::UNITS, Shape::BLOCKS, Shape::THREADS, Shape::ROWS, Shape::SHARED_BYTES},
          &launch_clusters<Arguments, kernel>};
}

}  // namespace fastrnn
