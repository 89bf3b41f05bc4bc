// A driver in the place of CUDA's for tests without a GPU. It refuses what CUDA's would, tells how it was called, and
// runs what it launches: kernels that were compiled into it for the CPU, of FASTRNN_CELL in bfloat16, which it finds by
// the names that they have on a device.
#include <cuda.h>
#include <dlfcn.h>

#include <cstring>
#include <exception>
#include <map>
#include <sstream>
#include <string>

#include "cluster/backward.cuh"
#include "cluster/forward.cuh"
#include "grid/backward.cuh"
#include "grid/forward.cuh"
#include "run_time.cuh"

#define __constant__  // of the tables
FASTRNN_TABLES(fastrnn::FASTRNN_CELL, fastrnn::Bfloat16, bfloat16)

namespace fastrnn {
namespace {

// Those that serve heads of up to 64 units: of clusters the planner takes the first forward, the third backward.
using Own = FASTRNN_CELL;
void* const kKernels[] = {
    reinterpret_cast<void*>(&cluster::forward_kernel<run_time::ForwardShape<Own, Bfloat16, 0>>),
    reinterpret_cast<void*>(&cluster::backward_kernel<run_time::BackwardShape<Own, Bfloat16, 2>>),
    reinterpret_cast<void*>(&grid::forward_kernel<grid::ForwardShape<Own, Bfloat16>>),
    reinterpret_cast<void*>(&grid::backward_kernel<grid::BackwardShape<Own, Bfloat16>>),
};

std::string symbol_of(void* kernel) {
  Dl_info info;
  return dladdr(kernel, &info) && info.dli_sname ? info.dli_sname : "";
}

constexpr unsigned kDefaultShared = 48 << 10;  // bytes, and
constexpr unsigned kDefaultCluster = 8;        // blocks: what a kernel may have unless more is allowed
constexpr int kDevice = 40, kContext = 50;     // of number 0

struct Function {
  void* code;
  bool is_forward;
  unsigned shared = kDefaultShared, cluster = kDefaultCluster;
};

struct State {
  std::string calls, image;
  std::map<std::string, Function> functions;
  int depth = 0;  // of the stack of contexts
} state;

template <class... Values>
void tell(const Values&... values) {
  std::ostringstream line;
  ((line << values << ' '), ...);
  state.calls += line.str();
  state.calls.back() = '\n';
}

template <class Arguments>
void run(const Function& function, const CUlaunchConfig& config, void** parameters) {
  const Arguments a = *static_cast<const Arguments*>(parameters[0]);
  const CUlaunchAttribute& attribute = config.attrs[0];
  const int blocks = static_cast<int>(config.gridDimX), threads = static_cast<int>(config.blockDimX);
  if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
    const int cluster = static_cast<int>(attribute.value.clusterDim.x);
    const auto kernel = reinterpret_cast<void (*)(Arguments)>(function.code);
    host::launch(blocks / cluster, cluster, threads, config.sharedMemBytes, [&] { kernel(a); });
  } else {
    const Teams teams = *static_cast<const Teams*>(parameters[1]);
    const auto kernel = reinterpret_cast<void (*)(Arguments, Teams)>(function.code);
    host::launch(1, blocks, threads, config.sharedMemBytes, [&] { kernel(a, teams); });
  }
}

}  // namespace
}  // namespace fastrnn

using fastrnn::state;
using fastrnn::tell;

extern "C" {

const char* driver_calls() { return state.calls.c_str(); }
void driver_forget() { state.calls.clear(); }

// How many bytes each of the tables has.
int driver_table_bytes() {
  static_assert(sizeof(forward_bfloat16) == sizeof(backward_bfloat16));
  return sizeof(forward_bfloat16);
}

// What its kernels are called, each on a line.
const char* driver_symbols() {
  static std::string all;
  all.clear();
  for (void* kernel : fastrnn::kKernels) all += fastrnn::symbol_of(kernel) + "\n";
  return all.c_str();
}

CUresult cuInit(unsigned flags) { return flags == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }

CUresult cuDeviceGet(CUdevice* device, int number) {
  *device = fastrnn::kDevice + number;
  return number == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = reinterpret_cast<CUcontext>(uintptr_t(device - fastrnn::kDevice + fastrnn::kContext));
  return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent(CUcontext context) {
  if (context != reinterpret_cast<CUcontext>(uintptr_t(fastrnn::kContext))) return CUDA_ERROR_INVALID_CONTEXT;
  ++state.depth;
  return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(uintptr_t(fastrnn::kContext));
  return state.depth-- > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (state.depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (memcmp(image, "\177ELF", 4) != 0) return CUDA_ERROR_INVALID_IMAGE;
  tell("load");
  *module = reinterpret_cast<CUmodule>(&state);
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* symbol) {
  if (state.depth == 0 || module != reinterpret_cast<CUmodule>(&state)) return CUDA_ERROR_INVALID_CONTEXT;
  void* code = nullptr;
  for (void* kernel : fastrnn::kKernels) code = fastrnn::symbol_of(kernel) == symbol ? kernel : code;
  if (code == nullptr) return CUDA_ERROR_NOT_FOUND;
  const bool is_forward = strstr(symbol, "forward_kernel") != nullptr;
  auto& found = state.functions[symbol] = fastrnn::Function{code, is_forward};
  *function = reinterpret_cast<CUfunction>(&found);
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  auto& own = *reinterpret_cast<fastrnn::Function*>(function);
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
    tell("allow", value, "bytes");
    own.shared = static_cast<unsigned>(value);
  } else if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
    tell("allow large clusters");
    own.cluster = 2 * fastrnn::kDefaultCluster;
  } else {
    return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t size, CUstream stream) {
  if (state.depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  tell("fill", size, "bytes with", int(value), "on", reinterpret_cast<uintptr_t>(stream));
  memset(reinterpret_cast<void*>(to), value, size);
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  const auto& own = *reinterpret_cast<const fastrnn::Function*>(function);
  if (state.depth == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (extra != nullptr || config->numAttrs != 1 || config->sharedMemBytes > own.shared) return CUDA_ERROR_INVALID_VALUE;
  if (config->gridDimY * config->gridDimZ * config->blockDimY * config->blockDimZ != 1) return CUDA_ERROR_INVALID_VALUE;
  const CUlaunchAttribute& attribute = config->attrs[0];
  std::ostringstream how;
  if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
    const auto& cluster = attribute.value.clusterDim;
    if (cluster.y * cluster.z != 1 || cluster.x == 0 || config->gridDimX % cluster.x) return CUDA_ERROR_INVALID_VALUE;
    if (cluster.x > own.cluster) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    how << "clusters of " << cluster.x;
  } else {
    if (attribute.id != CU_LAUNCH_ATTRIBUTE_COOPERATIVE || attribute.value.cooperative != 1) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    how << "cooperative";
  }
  tell("launch", config->gridDimX, "blocks of", config->blockDimX, "and", config->sharedMemBytes, "bytes,", how.str(),
       "on", reinterpret_cast<uintptr_t>(config->hStream));
  try {
    own.is_forward ? fastrnn::run<fastrnn::ForwardArguments>(own, *config, parameters)
                   : fastrnn::run<fastrnn::BackwardArguments>(own, *config, parameters);
  } catch (const std::exception& error) {
    tell(error.what());
    return CUDA_ERROR_LAUNCH_FAILED;
  }
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  *name = error == CUDA_ERROR_INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE" : "CUDA_ERROR_OTHER";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  static std::string said;
  said = "the driver's words for " + std::to_string(error);
  *text = said.c_str();
  return CUDA_SUCCESS;
}
}
