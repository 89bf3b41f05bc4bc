// fastrnn._C: its kernels by raw pointers, what they were built for, which devices it finds and, in its submodule
// `ceilings`, what a step costs there at least. Importing it calls no CUDA function, so it imports on a machine without
// a driver; pybind11 is included here alone, since nvcc would read it once for each architecture. The host build
// (FASTRNN_HOST) has the same kernels, compiled for the CPU, but no ceilings.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "launch.h"
#include "probe.h"

#ifndef FASTRNN_HOST
#include <cuda_runtime_api.h>

#include "ceilings.h"
#include "check.h"
#endif

namespace py = pybind11;

namespace fastrnn {
namespace {

using Address = uintptr_t;  // what torch's data_ptr() gives; 0 is null

const void* input(Address address) { return reinterpret_cast<const void*>(address); }
void* output(Address address) { return reinterpret_cast<void*>(address); }
template <class T>
T* typed(Address address) {
  return reinterpret_cast<T*>(address);
}

// The arguments after the dtype are those of ForwardArguments, in its order.
void forward(const std::string& cell, const std::string& element, Address gx, Address w_first, Address w_second,
             Address b_first, Address b_second, Address h0, Address c0, Address lengths, Address resets, Address ys,
             Address cs, Address gates, Address h_last, Address c_last, int T, int B, int H, int heads, int directions,
             bool reverse, int device, Address stream) {
  ForwardArguments a{};
  a.gx = input(gx);
  a.w_hh[0] = input(w_first);
  a.w_hh[1] = input(w_second);
  a.b_hh[0] = input(b_first);
  a.b_hh[1] = input(b_second);
  a.h0 = input(h0);
  a.c0 = input(c0);
  a.lengths = typed<const int64_t>(lengths);
  a.resets = typed<const uint8_t>(resets);
  a.ys = output(ys);
  a.cs = typed<float>(cs);
  a.gates = output(gates);
  a.h_last = output(h_last);
  a.c_last = output(c_last);
  a.T = T;
  a.B = B;
  a.H = H;
  a.heads = heads;
  a.directions = directions;
  a.reverse = reverse;
  launch_forward(parse_cell(cell), parse_element(element), a, {device, output(stream)});
}

// The arguments after the dtype are those of BackwardArguments, in its order.
void backward(const std::string& cell, const std::string& element, Address w_first, Address w_second, Address ys,
              Address cs, Address gates, bool are_preactivations, Address h0, Address c0, Address lengths,
              Address resets, Address dys, Address dcs, Address dh_last, Address dc_last, Address dgates, Address dh0,
              Address dc0, int T, int B, int H, int heads, int directions, bool reverse, int device, Address stream) {
  BackwardArguments a{};
  a.w_hh[0] = input(w_first);
  a.w_hh[1] = input(w_second);
  a.ys = input(ys);
  a.cs = typed<const float>(cs);
  a.gates = input(gates);
  a.are_preactivations = are_preactivations;
  a.h0 = input(h0);
  a.c0 = input(c0);
  a.lengths = typed<const int64_t>(lengths);
  a.resets = typed<const uint8_t>(resets);
  a.dys = input(dys);
  a.dcs = typed<const float>(dcs);
  a.dh_last = input(dh_last);
  a.dc_last = input(dc_last);
  a.dgates = output(dgates);
  a.dh0 = output(dh0);
  a.dc0 = output(dc0);
  a.T = T;
  a.B = B;
  a.H = H;
  a.heads = heads;
  a.directions = directions;
  a.reverse = reverse;
  launch_backward(parse_cell(cell), parse_element(element), a, {device, output(stream)});
}

py::dict geometry(const Geometry& one) {
  py::dict result;
  result["way"] = name(one.way);
  result["operation"] = name(one.operation);
  result["cell"] = name(one.cell);
  result["element"] = name(one.element);
  result["units"] = one.units;
  result["blocks"] = one.blocks;
  result["threads"] = one.threads;
  result["rows"] = one.rows;
  result["shared_bytes"] = one.shared_bytes;
  return result;
}

py::list kernels() {
  py::list result;
  for (const Geometry& one : compiled()) result.append(geometry(one));
  return result;
}

// What is asked of the planner, by names.
Request request_for(const std::string& operation, const std::string& cell, const std::string& element, int64_t units,
                    int64_t batch, int64_t heads, int64_t directions, std::optional<Only> only) {
  return {parse_operation(operation), parse_cell(cell), parse_element(element), units, batch, heads, directions, only};
}

// The kernel that serves a recurrence under the given limits, as in `kernels`, and its clusters or teams, with the
// blocks and the shared memory of theirs; or the reason why none.
py::object plan_for(const std::string& operation, const std::string& cell, const std::string& element, int64_t units,
                    int64_t batch, int64_t heads, int64_t directions, std::pair<int, int> capability,
                    int multiprocessors, int64_t shared_memory, int cluster, const std::string& architectures,
                    const std::optional<std::string>& way) {
  const Request request = request_for(operation, cell, element, units, batch, heads, directions,
                                      way ? std::optional<Only>(parse_only(*way)) : std::nullopt);
  const Limits limits{capability.first, capability.second, multiprocessors, shared_memory, cluster};
  const Plan found = plan(compiled(), request, limits, architectures);
  if (found.chosen < 0) return py::str(found.reason);
  py::dict result = geometry(compiled()[static_cast<size_t>(found.chosen)]);
  result["groups"] = found.groups;
  result["blocks"] = found.blocks;
  result["batch_tiles"] = found.batch_tiles;
  result["shared_bytes"] = found.shared_bytes;
  return std::move(result);
}

// What `plan` takes of a device.
py::dict limits_of(int device) {
  const Limits& found = limits(device);
  py::dict result;
  result["capability"] = py::make_tuple(found.major, found.minor);
  result["multiprocessors"] = found.multiprocessors;
  result["shared_memory"] = found.shared_memory;
  result["cluster"] = found.cluster;
  return result;
}

// Why no kernel serves a recurrence on a device, as a clause; None where one does.
py::object why_not(const std::string& operation, const std::string& cell, const std::string& element, int64_t units,
                   int64_t batch, int64_t heads, int64_t directions, int device) {
  const Plan found =
      plan_on(device, request_for(operation, cell, element, units, batch, heads, directions, only_way()));
  if (found.chosen < 0) return py::str(found.reason);
  return py::none();
}

#ifndef FASTRNN_HOST
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
#endif

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(_C, module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  module.attr("architectures") = fastrnn::architectures();
  module.def("kernels", &fastrnn::kernels);
  module.def("plan", &fastrnn::plan_for, py::kw_only(), py::arg("operation"), py::arg("cell"), py::arg("element"),
             py::arg("units"), py::arg("batch"), py::arg("heads"), py::arg("directions"), py::arg("capability"),
             py::arg("multiprocessors"), py::arg("shared_memory"), py::arg("cluster"), py::arg("architectures"),
             py::arg("way") = py::none());
  module.def("limits", &fastrnn::limits_of, py::arg("device"));
  module.def("why_not", &fastrnn::why_not);
  module.def("forward", &fastrnn::forward, Unlocked());
  module.def("backward", &fastrnn::backward, Unlocked());
#ifdef FASTRNN_HOST
  module.attr("host") = true;
#else
  module.attr("host") = false;
  module.attr("runtime_version") = CUDART_VERSION;
  module.def("driver_version", &fastrnn::driver_version);
  module.def("device_count", &fastrnn::device_count);
  module.def("device", &fastrnn::device, py::arg("index"));
  module.def("probe", &fastrnn::probe, py::arg("device"), Unlocked());
  py::module_ ceilings = module.def_submodule("ceilings");
#ifndef FASTRNN_NO_CLUSTERS
  ceilings.def("cluster_exchange", &fastrnn::ceilings::cluster_exchange, py::arg("device"), py::arg("blocks"),
               Unlocked());
#endif
  ceilings.def("grid_exchange", &fastrnn::ceilings::grid_exchange, py::arg("device"), py::arg("blocks"), Unlocked());
  ceilings.def("block_barrier", &fastrnn::ceilings::block_barrier, py::arg("device"), Unlocked());
#endif
}
