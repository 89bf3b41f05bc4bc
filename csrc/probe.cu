#include <string>

#include "check.h"
#include "probe.h"

namespace fastrnn {
namespace {

__global__ void report_architecture(int* architecture) {  // (1,)
#ifdef __CUDA_ARCH__
  *architecture = __CUDA_ARCH__;
#endif
}

// Makes `device` current for as long as the object lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
  }
  ~CurrentDevice() { cudaSetDevice(before_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
};

// One int on the current device.
class DeviceInt {
 public:
  DeviceInt() { check(cudaMalloc(&data_, sizeof(int)), "cudaMalloc"); }
  ~DeviceInt() { cudaFree(data_); }
  DeviceInt(const DeviceInt&) = delete;
  DeviceInt& operator=(const DeviceInt&) = delete;
  int* data() const { return data_; }

 private:
  int* data_ = nullptr;
};

}  // namespace

int probe(int device) {
  const CurrentDevice current(device);
  const DeviceInt result;
  report_architecture<<<1, 1>>>(result.data());
  check(cudaGetLastError(), "report_architecture<<<1, 1>>>");
  int architecture = 0;
  check(cudaMemcpy(&architecture, result.data(), sizeof(int), cudaMemcpyDeviceToHost), "report_architecture<<<1, 1>>>");
  return architecture;
}

}  // namespace fastrnn
