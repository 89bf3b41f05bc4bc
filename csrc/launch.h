// The table of compiled kernels, and their launch.
#pragma once

#include <vector>

#include "planner.h"

namespace fastrnn {

// Where a kernel runs.
struct Target {
  int device;
  void* stream;  // a cudaStream_t of that device, null for the default one; of no meaning on the host
};

// A compiled kernel over `Arguments`, and what starts it.
template <class Arguments>
struct Instance {
  Geometry geometry;
  void (*launch)(const Geometry& geometry, const Plan& plan, const Arguments& arguments, const Target& target);
};

// Each is defined in a source file of its own, so that they compile side by side.
namespace cluster {
std::vector<Instance<ForwardArguments>> lstm_forward();
std::vector<Instance<ForwardArguments>> gru_forward();
std::vector<Instance<ForwardArguments>> rnn_tanh_forward();
std::vector<Instance<ForwardArguments>> rnn_relu_forward();
std::vector<Instance<BackwardArguments>> lstm_backward();
std::vector<Instance<BackwardArguments>> gru_backward();
std::vector<Instance<BackwardArguments>> rnn_tanh_backward();
std::vector<Instance<BackwardArguments>> rnn_relu_backward();
}  // namespace cluster

namespace grid {
std::vector<Instance<ForwardArguments>> lstm_forward();
std::vector<Instance<ForwardArguments>> gru_forward();
std::vector<Instance<ForwardArguments>> rnn_tanh_forward();
std::vector<Instance<ForwardArguments>> rnn_relu_forward();
std::vector<Instance<BackwardArguments>> lstm_backward();
std::vector<Instance<BackwardArguments>> gru_backward();
std::vector<Instance<BackwardArguments>> rnn_tanh_backward();
std::vector<Instance<BackwardArguments>> rnn_relu_backward();
}  // namespace grid

// Every compiled kernel, those of the forward first.
const std::vector<Geometry>& compiled();

// The architectures that they were compiled for, as "80:90a"; for the host build, that of the device it stands for.
const char* architectures();

// Which kernels alone the environment variable FASTRNN_CUDA_WAY allows, for tests and measurements: "cluster", "block"
// or "grid"; or nothing. Throws std::invalid_argument where it names none of them.
std::optional<Only> only_way();

// The kernel that serves `request` on the device, or why none does. Throws std::runtime_error where CUDA fails.
Plan plan_on(int device, const Request& request);

// Plan and launch; return before the kernel has ended, but for the host build. Throw std::runtime_error, which names
// the kernel and its configuration, where the launch fails; and std::invalid_argument where no kernel serves the
// request.
void launch_forward(CellKind cell, ElementKind element, const ForwardArguments& arguments, const Target& target);
void launch_backward(CellKind cell, ElementKind element, const BackwardArguments& arguments, const Target& target);

}  // namespace fastrnn
