// fastrnn._C: its kernels by raw pointers, what they were built for, which devices it finds and, in its submodule
// `ceilings`, what a step costs there at least. Importing it calls no CUDA function, so it imports on a machine without
// a driver; pybind11 is included here alone, since nvcc would read it once for each architecture. The host build
// (FASTRNN_HOST) has the same kernels, compiled for the CPU, but no ceilings.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

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

// The values of a kernel's arguments by name, for which each is looked up.
class Values {
 public:
  Values(const char* operation, const py::dict& given) : operation_(operation), given_(given) {}

  // Addresses are what torch's data_ptr() gives; 0 is null.
  template <class T>
  void set(T*& field, PyObject* name) {
    field = static_cast<T*>(address(at(name), name));
  }
  // Of up to N tensors; null beyond them.
  template <class T, int N>
  void set(T* (&field)[N], PyObject* name) {
    PyObject* given = at(name);
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) > N) {
      refuse(name, ("must be a tuple of up to " + std::to_string(N) + " addresses").c_str());
    }
    const auto count = PyTuple_GET_SIZE(given);
    for (int i = 0; i < N; ++i) field[i] = i < count ? address(PyTuple_GET_ITEM(given, i), name) : nullptr;
  }
  void set(int& field, PyObject* name) {
    int overflow = 0;
    PyObject* given = at(name);
    const long value = PyLong_Check(given) ? PyLong_AsLongAndOverflow(given, &overflow) : -1;
    if (value < 0 || value > std::numeric_limits<int>::max()) refuse(name, "must be a size below 2^31");
    field = static_cast<int>(value);
  }
  void set(bool& field, PyObject* name) {
    PyObject* given = at(name);
    if (!PyBool_Check(given)) refuse(name, "must be a bool");
    field = given == Py_True;
  }

  // That there are no others than `names`, of each of which a field was set.
  void end(std::initializer_list<const char*> names) const {
    if (given_.size() == names.size()) return;
    for (const auto& item : given_) {
      const auto name = item.first.cast<std::string>();
      if (std::find(names.begin(), names.end(), name) == names.end()) refuse(item.first.ptr(), "is no argument");
    }
  }

 private:
  PyObject* at(PyObject* name) const {
    PyObject* value = PyDict_GetItemWithError(given_.ptr(), name);
    if (value == nullptr) refuse(name, "is missing");
    return value;
  }

  void* address(PyObject* value, PyObject* name) const {
    if (!PyLong_Check(value)) refuse(name, "must be an address");
    void* result = PyLong_AsVoidPtr(value);
    if (PyErr_Occurred()) throw py::error_already_set();
    return result;
  }

  [[noreturn]] void refuse(PyObject* name, const char* why) const {
    PyErr_Clear();
    throw py::type_error(std::string(operation_) + ": " + py::cast<std::string>(py::handle(name)) + " " + why);
  }

  const char* operation_;
  const py::dict& given_;
};

#define FASTRNN_NAME(Type, name) #name,
#define FASTRNN_SET(Type, name)                                     \
  {                                                                 \
    static PyObject* const key = PyUnicode_InternFromString(#name); \
    values.set(a.name, key);                                        \
  }

// `given` has a value for each field of ForwardArguments: the addresses of its tensors, and its sizes and flags.
ForwardArguments forward_arguments(const py::dict& given) {
  ForwardArguments a;
  Values values("forward", given);
  FASTRNN_FORWARD(FASTRNN_SET)
  values.end({FASTRNN_FORWARD(FASTRNN_NAME)});
  return a;
}

// As `forward_arguments`, for BackwardArguments.
BackwardArguments backward_arguments(const py::dict& given) {
  BackwardArguments a;
  Values values("backward", given);
  FASTRNN_BACKWARD(FASTRNN_SET)
  values.end({FASTRNN_BACKWARD(FASTRNN_NAME)});
  return a;
}

void forward(const std::string& cell, const std::string& element, const py::dict& given, int device, uintptr_t stream) {
  const ForwardArguments a = forward_arguments(given);
  const py::gil_scoped_release unlocked;
  launch_forward(parse_cell(cell), parse_element(element), a, {device, reinterpret_cast<void*>(stream)});
}

void backward(const std::string& cell, const std::string& element, const py::dict& given, int device,
              uintptr_t stream) {
  const BackwardArguments a = backward_arguments(given);
  const py::gil_scoped_release unlocked;
  launch_backward(parse_cell(cell), parse_element(element), a, {device, reinterpret_cast<void*>(stream)});
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
Request request_for(const std::string& operation, CellKind cell, const std::string& element, int64_t units,
                    int64_t batch, int64_t heads, int64_t directions, std::optional<Only> only) {
  return {parse_operation(operation), cell, parse_element(element), units, batch, heads, directions, only};
}

// The kernels of a cell that is compiled while the program runs, of one operation and element: an array of Geometry, as
// run_time.cuh lays it out.
std::vector<Geometry> read_rows(const py::bytes& bytes) {
  const std::string_view data = bytes;
  if (data.empty() || data.size() % sizeof(Geometry) != 0) throw py::value_error("rows are no array of Geometry");
  std::vector<Geometry> rows(data.size() / sizeof(Geometry));
  std::memcpy(rows.data(), data.data(), data.size());
  for (Geometry& row : rows) row.cell = kOtherCell;
  return rows;
}

using Rows = std::optional<py::bytes>;

// The kernel that serves a recurrence under the given limits, as in `kernels`, and its clusters or teams, with the
// blocks and the shared memory of theirs; or the reason why none. Of `rows`, where they are given, and then whatever
// the cell.
py::object plan_for(const std::string& operation, const std::string& cell, const std::string& element, int64_t units,
                    int64_t batch, int64_t heads, int64_t directions, std::pair<int, int> capability,
                    int multiprocessors, int64_t shared_memory, int cluster, const std::string& architectures,
                    const std::optional<std::string>& way, const Rows& rows) {
  const Request request = request_for(operation, rows ? kOtherCell : parse_cell(cell), element, units, batch, heads,
                                      directions, way ? std::optional<Only>(parse_only(*way)) : std::nullopt);
  const Limits limits{capability.first, capability.second, multiprocessors, shared_memory, cluster};
  const std::vector<Geometry> among = rows ? read_rows(*rows) : compiled();
  const Plan found = plan(among, request, limits, architectures);
  if (found.chosen < 0) return py::str(found.reason);
  py::dict result = geometry(among[static_cast<size_t>(found.chosen)]);
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
      plan_on(device, request_for(operation, parse_cell(cell), element, units, batch, heads, directions, only_way()));
  if (found.chosen < 0) return py::str(found.reason);
  return py::none();
}

// As `why_not`, of a cell whose kernels are compiled while the program runs, for `architecture`.
py::object why_none_of(const py::bytes& rows, const std::string& architecture, const std::string& operation,
                       const std::string& element, int64_t units, int64_t batch, int64_t heads, int64_t directions,
                       int device) {
  const Request request = request_for(operation, kOtherCell, element, units, batch, heads, directions, only_way());
  const Plan found = plan(read_rows(rows), request, limits(device), architecture);
  if (found.chosen < 0) return py::str(found.reason);
  return py::none();
}

template <class Value>
py::bytes bytes_of(const Value& value) {
  return py::bytes(reinterpret_cast<const char*>(&value), sizeof(value));
}

// How such a kernel is started, whoever starts it: which of the rows it is, what the launch is given, and what must be
// filled before, as (address, bytes, value), or None.
template <class Arguments>
py::dict launch_of(const py::bytes& table, const std::string& architecture, Operation operation,
                   const std::string& element, const Arguments& a, int device) {
  const std::vector<Geometry> rows = read_rows(table);
  const Plan found =
      plan(rows, request_of(operation, kOtherCell, parse_element(element), a), limits(device), architecture);
  if (found.chosen < 0) throw py::value_error(found.reason);
  const Geometry& row = rows[static_cast<size_t>(found.chosen)];
  py::dict result;
  py::list parameters;
  parameters.append(bytes_of(a));
  result["chosen"] = found.chosen;
  result["grid"] = found.groups * found.blocks;
  result["threads"] = row.threads;
  result["shared_bytes"] = found.shared_bytes;
  result["cluster"] = py::none();
  result["filled"] = py::none();
  if (row.way == Way::kCluster) {
    result["cluster"] = found.blocks;
  } else {
    const Exchanged words = exchanged(a, row);
    parameters.append(bytes_of(Teams{static_cast<int>(found.groups), found.blocks, found.batch_tiles}));
    result["filled"] = py::make_tuple(reinterpret_cast<uintptr_t>(words.address), words.bytes, kNotYet);
  }
  result["parameters"] = parameters;
  return result;
}

py::dict launch_for(const py::bytes& rows, const std::string& architecture, const std::string& operation,
                    const std::string& element, const py::dict& given, int device) {
  const Operation parsed = parse_operation(operation);
  return parsed == Operation::kForward
             ? launch_of(rows, architecture, parsed, element, forward_arguments(given), device)
             : launch_of(rows, architecture, parsed, element, backward_arguments(given), device);
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
  module.attr("architectures") = fastrnn::architectures();
  module.def("kernels", &fastrnn::kernels);
  module.def("plan", &fastrnn::plan_for, py::kw_only(), py::arg("operation"), py::arg("cell"), py::arg("element"),
             py::arg("units"), py::arg("batch"), py::arg("heads"), py::arg("directions"), py::arg("capability"),
             py::arg("multiprocessors"), py::arg("shared_memory"), py::arg("cluster"), py::arg("architectures"),
             py::arg("way") = py::none(), py::arg("rows") = py::none());
  module.def("limits", &fastrnn::limits_of, py::arg("device"));
  module.def("why_not", &fastrnn::why_not);
  module.def("why_none_of", &fastrnn::why_none_of);
  module.def("launch_for", &fastrnn::launch_for);
  module.def("forward", &fastrnn::forward);
  module.def("backward", &fastrnn::backward);
#ifdef FASTRNN_HOST
  module.attr("host") = true;
#else
  using Unlocked = py::call_guard<py::gil_scoped_release>;
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
