// fastrnn._C: what it was built for, and which devices it finds. Importing it calls no CUDA function, so it imports on
// a machine without a driver; pybind11 is included here alone, since nvcc would read it once for each architecture.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include "check.h"
#include "probe.h"

#define FASTRNN_TEXT_OF(tokens) #tokens
#define FASTRNN_TEXT(macro) FASTRNN_TEXT_OF(macro)

namespace py = pybind11;

namespace fastrnn {
namespace {

// The CUDA version that the driver supports, as 13000 for 13.0; 0 where there is no driver.
int driver_version() {
  int version = 0;
  check(cudaDriverGetVersion(&version), "cudaDriverGetVersion");
  return version;
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

// The same keys for every device; asking makes no context on it.
py::dict device(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties(" + std::to_string(index) + ")");
  py::dict result;
  result["name"] = static_cast<const char*>(properties.name);
  result["capability"] = py::make_tuple(properties.major, properties.minor);
  result["multiprocessors"] = properties.multiProcessorCount;
  result["shared_memory_per_block"] = properties.sharedMemPerBlockOptin;  // bytes
  return result;
}

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(_C, module) {
  module.attr("architectures") = FASTRNN_TEXT(FASTRNN_ARCHITECTURES);  // "80:90a"
  module.attr("runtime_version") = CUDART_VERSION;
  module.def("driver_version", &fastrnn::driver_version);
  module.def("device_count", &fastrnn::device_count);
  module.def("device", &fastrnn::device, py::arg("index"));
  module.def("probe", &fastrnn::probe, py::arg("device"), py::call_guard<py::gil_scoped_release>());
}
