#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastrnn {

// Throws std::runtime_error, which Python sees as RuntimeError, with CUDA's own words if `status` is an error; `what`
// names the call, and for a kernel its configuration.
inline void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
  }
}

}  // namespace fastrnn
