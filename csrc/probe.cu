#include <map>
#include <mutex>
#include <string>

#include "check.h"
#include "current_device.h"
#include "device_memory.h"
#include "probe.h"

namespace fastrnn {
namespace {

constexpr int kFirstWithClusters = 9;  // the major capability
constexpr int kMostBlocks = 16;        // of a cluster, on every device so far

__global__ void report_architecture(int* architecture) {  // (1,)
#ifdef __CUDA_ARCH__
  *architecture = __CUDA_ARCH__;
#endif
}

// Blocks of the largest cluster that the current device runs where a block takes a multiprocessor, as its shared memory
// does. A part of a device may run smaller clusters than the whole.
int largest_cluster(int shared_memory) {
  const std::string what = "largest cluster of report_architecture";
  check(cudaFuncSetAttribute(report_architecture, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), what);
  check(cudaFuncSetAttribute(report_architecture, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_memory), what);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kMostBlocks);  // it answers no more than the grid holds
  config.blockDim = dim3(1);
  config.dynamicSmemBytes = static_cast<size_t>(shared_memory);
  int size = 0;
  check(cudaOccupancyMaxPotentialClusterSize(&size, report_architecture, &config), what);
  return size;
}

int attribute(cudaDeviceAttr asked, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, asked, device), "cudaDeviceGetAttribute");
  return value;
}

Limits ask(int device) {
  Limits found{};
  found.major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  found.minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  found.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  const int shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  found.shared_memory = shared_memory;
  found.cluster = 1;
  if (found.major >= kFirstWithClusters) {
    const CurrentDevice current(device);
    found.cluster = largest_cluster(shared_memory);
  }
  return found;
}

}  // namespace

const Limits& limits(int device) {
  static std::mutex mutex;
  static std::map<int, Limits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  return found != known.end() ? found->second : known.emplace(device, ask(device)).first->second;
}

int probe(int device) {
  const CurrentDevice current(device);
  const DeviceMemory<int> result(1);
  report_architecture<<<1, 1>>>(result.data());
  check(cudaGetLastError(), "report_architecture<<<1, 1>>>");
  int architecture = 0;
  check(cudaMemcpy(&architecture, result.data(), sizeof(int), cudaMemcpyDeviceToHost), "report_architecture<<<1, 1>>>");
  return architecture;
}

}  // namespace fastrnn
