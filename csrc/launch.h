// The table of compiled kernels, and their launch.
#pragma once

#include <cstddef>
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

// What a grid kernel's blocks see of each other: the output that they wait for, every byte of it kNotYet before.
struct Exchanged {
  void* address;
  size_t bytes;
};

constexpr int kNotYet = 0xff;  // such words are NaN, and no kernel stores just this NaN

inline size_t word_bytes(ElementKind element) { return element == ElementKind::kTf32 ? 4 : 2; }

inline Exchanged exchanged(const ForwardArguments& a, const Geometry& geometry) {
  return {a.histories[0], size_t(a.T) * a.B * a.directions * a.H * word_bytes(geometry.element)};
}

inline Exchanged exchanged(const BackwardArguments& a, const Geometry& geometry) {
  return {a.dgates, size_t(a.directions) * a.T * a.B * geometry.gradients * a.H * word_bytes(geometry.element)};
}

using ForwardTable = std::vector<Instance<ForwardArguments>>;
using BackwardTable = std::vector<Instance<BackwardArguments>>;

#define FASTRNN_CLASS(Cell, name) struct Cell;
FASTRNN_CELLS(FASTRNN_CLASS)
#undef FASTRNN_CLASS

// Add a cell's kernels to a table. Each is compiled from a source of its own for each cell, side by side.
namespace cluster {
template <class Cell>
void add(ForwardTable& table);
template <class Cell>
void add(BackwardTable& table);
}  // namespace cluster

namespace grid {
template <class Cell>
void add(ForwardTable& table);
template <class Cell>
void add(BackwardTable& table);
}  // namespace grid

// Every compiled kernel, those of the forward first.
const std::vector<Geometry>& compiled();

// The architectures that they were compiled for, as "80:90a"; for the host build, that of the device it stands for.
const char* architectures();

// Which kernels alone the environment variable FASTRNN_CUDA_WAY allows, for tests and measurements: "cluster", "block"
// or "grid"; or nothing. Throws std::invalid_argument where it names none of them.
std::optional<Only> only_way();

// What a kernel's arguments ask of the planner.
template <class Arguments>
Request request_of(Operation operation, CellKind cell, ElementKind element, const Arguments& a) {
  return {operation, cell, element, a.H / a.heads, a.B, a.heads, a.directions, only_way()};
}

// The kernel that serves `request` on the device, or why none does. Throws std::runtime_error where CUDA fails.
Plan plan_on(int device, const Request& request);

// Plan and launch; return before the kernel has ended, but for the host build. Throw std::runtime_error, which names
// the kernel and its configuration, where the launch fails; and std::invalid_argument where no kernel serves the
// request.
void launch_forward(CellKind cell, ElementKind element, const ForwardArguments& arguments, const Target& target);
void launch_backward(CellKind cell, ElementKind element, const BackwardArguments& arguments, const Target& target);

}  // namespace fastrnn
