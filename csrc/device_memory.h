#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "check.h"

namespace fastrnn {

// Memory of the current device, for `count` of T.
template <class T>
class DeviceMemory {
 public:
  explicit DeviceMemory(size_t count) {
    void* data = nullptr;
    check(cudaMalloc(&data, count * sizeof(T)), "cudaMalloc of " + std::to_string(count * sizeof(T)) + " bytes");
    data_ = static_cast<T*>(data);
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

}  // namespace fastrnn
